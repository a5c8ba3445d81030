"""Tasks of lm-evaluation-harness, run in this process: `--task lm-eval:TASKS`."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import TaskError
from stockpot.evaluate.metrics import MeanMetric, WholeMetric
from stockpot.evaluate.source_hash import source_hash
from stockpot.evaluate.task import Metric, Role, Split
from stockpot.tasks.base import FROM_FOLDER
from stockpot.tasks.checks import check_task
from stockpot.tasks.general import GeneralTask

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "lm-eval:"
_SEED = 1234
"""Of few-shot examples; that of the harness' own command."""
_SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1"})
"""Metrics of the harness that lie between 0 and 1 for every example."""


_OF_NUMBERS = frozenset({"mean", "nanmean", "median", "perplexity"})
"""The harness' ways of making one number of a number for each document."""


@dataclass(frozen=True)
class HarnessSpec:
    """What `lm-eval:TASKS?…` says.

    Attributes:
        choose: names of the harness' tasks that choose.
        report: of those that report; empty for the test documents of those that choose.
        include: folder with further tasks, as YAML files.
        metric: as the harness shows it, `acc_norm` or `exact_match,strict-match`; None for the
            first of the first task.
        fewshot: examples before the question; None for what a task says.
        limit: documents of each task, at most.
        batch_size: documents of one forward pass, and of one step of early rejection.
        model: folder with configuration and tokenizer; None for that of the first checkpoint.
        drop_shared: leave out of what chooses what also reports, instead of refusing it.
    """

    choose: tuple[str, ...]
    report: tuple[str, ...] = ()
    include: str | None = None
    metric: str | None = None
    fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 4
    model: str | None = None
    drop_shared: bool = False


_NUMBERS = ("fewshot", "limit", "batch_size")
_TEXTS = ("include", "metric", "model")


def parse_spec(spec: str) -> HarnessSpec:
    """What `lm-eval:A,B/C?include=tasks&metric=acc` says.

    >>> parse_spec("lm-eval:arc_easy/arc_challenge?metric=acc_norm&limit=100")
    HarnessSpec(choose=('arc_easy',), report=('arc_challenge',), include=None, metric='acc_norm',
    fewshot=None, limit=100, batch_size=4, model=None, drop_shared=False)

    Raises:
        TaskError: no task is named, or an option is not known or is no number.
    """
    names, _, options = spec.removeprefix(PREFIX).partition("?")
    choose, _, report = names.partition("/")
    problems = (
        [] if choose else [f"{spec!r} names no task; expected lm-eval:TASK,… as lm-eval does"]
    )
    values: dict[str, Any] = {}
    for option in filter(None, options.split("&")):
        key, _, value = option.partition("=")
        if key in _TEXTS and value:
            values[key] = value
        elif key in _NUMBERS and value.isdecimal() and (int(value) > 0 or key == "fewshot"):
            values[key] = int(value)
        elif key == "drop_shared" and value in ("yes", "no"):
            values[key] = value == "yes"
        else:
            known = ", ".join((*_TEXTS, *_NUMBERS, "drop_shared"))
            problems.append(
                f"{option!r} is no option of lm-eval tasks; expected KEY=VALUE of {known}, numbers "
                "above 0, and drop_shared=yes"
            )
    if problems:
        raise TaskError("\n".join(problems), problems)
    split = [tuple(filter(None, part.split(","))) for part in (choose, report)]
    return HarnessSpec(split[0], split[1], **values)


@dataclass(frozen=True)
class Document:
    """One document of a task of the harness, with what the model is asked about it."""

    task: Any
    content: Any
    requests: tuple[Any, ...]


class Documents(Dataset[Document]):
    """The documents of several tasks, one behind the other."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = list(documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        return self.documents[index]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of all that the model is asked, few-shot examples included."""
        digest = hashlib.blake2b(digest_size=16)
        for one in self.documents:
            asked = [
                one.task.config.task,
                _plain(one.content),
                [_plain(r.args) for r in one.requests],
            ]
            digest.update(json.dumps(asked).encode())
        return digest.hexdigest()

    def example_digests(self) -> list[bytes]:
        """One digest per document, whatever is asked about it."""
        return [
            hashlib.blake2b(json.dumps(_plain(one.content)).encode(), digest_size=16).digest()
            for one in self.documents
        ]

    @property
    def categories(self) -> list[str] | None:
        """The task of each document; None where there is one task."""
        names = [str(one.task.config.task) for one in self.documents]
        return names if len(set(names)) > 1 else None


def _plain(value: Any) -> Any:
    """`value` as JSON; what is none, such as an image, by its text."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


class HarnessPredict:
    """Numbers of the harness for each document: float64 (N, metrics), not a number where none is.

    It has state: the harness' view of the model, which is made once for each model. The weights in
    the model may change between calls.

    Args:
        tokenizer: of the model.
        columns: (metric, filter) of each output.
        batch_size: requests of one forward pass.
    """

    def __init__(
        self, tokenizer: Any, columns: Sequence[tuple[str, str]], *, batch_size: int
    ) -> None:
        self.tokenizer, self.columns, self.batch_size = tokenizer, tuple(columns), batch_size
        self._held: tuple[nn.Module, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def __call__(self, model: nn.Module, batch: Sequence[Document]) -> torch.Tensor:
        """What the harness makes of the model's answers about a batch of documents."""
        import torch

        asked = [[_fresh(request) for request in one.requests] for one in batch]
        self._answer(model, [request for requests in asked for request in requests])
        by_task: dict[int, list[int]] = defaultdict(list)
        for i, one in enumerate(batch):
            by_task[id(one.task)].append(i)
        found = np.full((len(batch), len(self.columns)), np.nan)
        for members in by_task.values():
            task = batch[members[0]].task
            # Filters are the task's own, which applies them to the requests that it holds.
            task._instances = [request for i in members for request in asked[i]]
            task.apply_filters()
            for i in members:
                found[i] = self._numbers(task, batch[i].content, asked[i])
        return torch.from_numpy(found)

    def _answer(self, model: nn.Module, requests: Sequence[Any]) -> None:
        """Ask the model everything, each kind of request at once."""
        harness = self._harness(model)
        ways: dict[str, Callable[..., Any]] = {
            "loglikelihood": harness.loglikelihood,
            "loglikelihood_rolling": harness.loglikelihood_rolling,
            "generate_until": harness.generate_until,
        }
        by_kind: dict[str, list[Any]] = defaultdict(list)
        for request in requests:
            by_kind[request.request_type] += [request] * (request.repeats or 1)
        for kind, group in by_kind.items():
            answers = ways[kind](group, disable_tqdm=True)
            for request, answer in zip(group, answers, strict=True):
                request.resps.append(answer)

    def _numbers(self, task: Any, content: Any, requests: Sequence[Any]) -> list[float]:
        """A number for each column."""
        made = {
            name: task.process_results(content, [r.filtered_resps[name] for r in requests])
            for name in {name for _, name in self.columns} & set(requests[0].filtered_resps)
        }
        return [_number(made.get(name, {}).get(metric)) for metric, name in self.columns]

    def _harness(self, model: nn.Module) -> Any:
        if self._held is None or self._held[0] is not model:
            huggingface = require("lm_eval.models.huggingface", extra="lm-eval")
            with _quiet():
                made = huggingface.HFLM(
                    pretrained=model, tokenizer=self.tokenizer, batch_size=self.batch_size
                )
            self._held = (model, made)
        return self._held[1]


def _fresh(request: Any) -> Any:
    """A request without answers."""
    found = copy.copy(request)
    found.resps, found.filtered_resps = [], {}
    return found


def _number(value: Any) -> float:
    """A metric of one document; not a number where it is none, such as a pair for a corpus."""
    is_number = isinstance(value, int | float | np.number)
    return float(value) if is_number else math.nan


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' bars and advice, which are about its own command."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def harness_task(spec: str, *, model: StrPath | None = None) -> GeneralTask:
    """The task that `lm-eval:TASKS?…` names, see `HarnessSpec`; nothing is scored yet.

    What chooses are the validation documents of a task where it has some, else those that the
    harness scores. What reports are always those that the harness scores, so that the numbers are
    those of its own command.

    Args:
        spec: the name.
        model: folder with configuration and tokenizer, where the name gives none.

    Raises:
        TaskError: no such task, metric or folder; documents that choose also report.
        OptionalDependencyError: lm-eval is not installed.
    """
    found = parse_spec(spec)
    folder = Path(found.model or model or "")
    if not (folder / "config.json").is_file():
        raise TaskError(
            f"{spec} needs a model folder with config.json and a tokenizer, and "
            f"{'none was given' if str(folder) == '.' else f'{folder} is none'}: give checkpoints "
            "that are folders, or name one: lm-eval:TASKS?model=FOLDER"
        )
    parts = _splits(found)
    tasks = {id(one.task): one.task for data in parts.values() for one in data.documents}
    metric, columns = _metric(list(tasks.values()), found.metric)
    transformers = require("transformers", extra="hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **FROM_FOLDER)
    roles = {"held-out": Role.HELD_OUT, "test": Role.TEST}
    task = GeneralTask(
        build=functools.partial(_build, str(folder)),
        splits={
            name: Split(
                data, role=roles[name], fingerprint=data.fingerprint, categories=data.categories
            )
            for name, data in parts.items()
        },
        metric=metric,
        predict=HarnessPredict(tokenizer, columns, batch_size=found.batch_size),
        targets=_no_targets,
        collate=list,
        batch_size=found.batch_size,
        version=_version(list(tasks.values()), columns, folder),
    )
    check_task(task)
    return task


def _splits(spec: HarnessSpec) -> dict[str, Documents]:
    """What chooses and what reports."""
    chooses = [_documents(task, spec.limit) for task in _tasks(spec, spec.choose, validation=True)]
    names = spec.report or spec.choose
    reports = [
        _documents(task, spec.limit)
        for task in _tasks(spec, names, validation=False)
        # Of a task that has no other documents than those that choose, none are left to report.
        if spec.report or (task.has_test_docs() and task.has_validation_docs())
    ]
    held_out = [one for documents in chooses for one in documents]
    test = Documents([one for documents in reports for one in documents])
    if spec.drop_shared:
        seen = set(test.example_digests())
        digests = Documents(held_out).example_digests()
        held_out = [one for one, d in zip(held_out, digests, strict=True) if d not in seen]
    found = {"held-out": Documents(held_out), "test": test}
    return {name: data for name, data in found.items() if len(data) or name == "held-out"}


def _tasks(spec: HarnessSpec, names: Sequence[str], *, validation: bool) -> list[Any]:
    """New tasks of the harness, groups of them taken apart, set to the documents wanted."""
    with _quiet():
        try:
            loaded = _manager(spec.include, names).load(list(names))["tasks"].values()
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise TaskError(
                f"lm-eval has no tasks {', '.join(names)} ({error}); `lm-eval ls tasks` shows "
                "those there are, and ?include=FOLDER adds your own"
            ) from error
    for task in loaded:
        if spec.fewshot is not None:
            task.set_config(key="num_fewshot", value=spec.fewshot)
        task.set_fewshot_seed(seed=_SEED)
        if validation and task.has_validation_docs():
            task.set_config(key="test_split", value=None)
    return list(loaded)


def _manager(include: str | None, names: Sequence[str]) -> Any:
    """What finds tasks; the harness' own ten thousand files are only read where they are needed."""
    tasks = require("lm_eval.tasks", extra="lm-eval")
    if include is not None:
        own = tasks.TaskManager(include_path=include, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    return tasks.TaskManager(include_path=include)


def _documents(task: Any, limit: int | None) -> list[Document]:
    with _quiet():
        task.build_all_requests(limit=limit)
    asked: dict[int, list[Any]] = defaultdict(list)
    for request in task.instances:
        asked[request.doc_id].append(request)
    return [
        Document(task, requests[0].doc, tuple(sorted(requests, key=lambda one: one.idx)))
        for _, requests in sorted(asked.items())
    ]


def _metric(tasks: Sequence[Any], wanted: str | None) -> tuple[Metric, list[tuple[str, str]]]:
    """The metric that was asked for, and the columns that outputs have.

    Raises:
        TaskError: a task has none of this name, or it is none of single documents.
    """
    by_task = [
        [(name, one.name) for one in task._filters for name in task.aggregation()] for task in tasks
    ]
    columns = list(dict.fromkeys(column for found in by_task for column in found))
    name, _, filter_name = (wanted or columns[0][0]).partition(",")
    chosen = next((c for c in columns if c[0] == name and filter_name in ("", c[1])), None)
    if chosen is None or any(chosen not in found for found in by_task):
        shown = ["; ".join(sorted(",".join(c) for c in found)) for found in by_task]
        raise TaskError(
            f"metric is {wanted or name!r}, which not every task has; those of the tasks: "
            f"{' | '.join(dict.fromkeys(shown))}. Name one that all have: ?metric=NAME"
        )
    aggregate = tasks[0].aggregation()[name]
    if aggregate.__module__ == "lm_eval.api.metrics" and aggregate.__name__ not in _OF_NUMBERS:
        raise TaskError(
            f"metric {name} is of a whole corpus ({aggregate.__name__}), without a number for each "
            "document: name another (?metric=NAME), or take a task.yaml with kind: causal-lm for "
            "the loss of documents"
        )
    higher = bool(tasks[0].higher_is_better()[name])
    shown_name = name if chosen[1] == "none" else ",".join(chosen)
    column = columns.index(chosen)
    mean = require("lm_eval.api.metrics", extra="lm-eval").mean
    if aggregate is mean:
        low, high = (0.0, 1.0) if name in _SHARES else (-math.inf, math.inf)
        of_each = functools.partial(_column, column)
        return MeanMetric(of_each, shown_name, higher, low=low, high=high), columns
    return WholeMetric(functools.partial(_whole, aggregate, column), shown_name, higher), columns


def _column(column: int, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs[:, column].double()


def _whole(
    aggregate: Callable[[list[float]], float],
    column: int,
    outputs: torch.Tensor,
    targets: torch.Tensor,
) -> float:
    return float(aggregate(outputs[:, column].double().tolist()))


def _no_targets(batch: Sequence[Document]) -> torch.Tensor:
    """Answers are judged by the harness: zeros (N,), floating, which are no classes."""
    import torch

    return torch.zeros(len(batch))


def _build(folder: str) -> nn.Module:
    """The architecture of the folder's config, with weights that do not matter."""
    from stockpot.tasks.transformers.kinds import architecture

    config = require("transformers", extra="hf").AutoConfig.from_pretrained(folder, **FROM_FOLDER)
    auto = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    return architecture(folder, auto)


def _version(tasks: Sequence[Any], columns: Sequence[tuple[str, str]], folder: Path) -> str:
    """Changes with all that decides a number besides weights and requests."""
    from stockpot.tasks.transformers.kinds import hash_preparation

    digest = hashlib.blake2b(repr(columns).encode(), digest_size=16)
    digest.update(require("lm_eval", extra="lm-eval").__version__.encode())
    for task in tasks:
        settings: Mapping[str, Any] = vars(task.config)
        code = sorted(name for name, value in settings.items() if callable(value))
        texts = {name: str(value) for name, value in settings.items() if name not in code}
        digest.update(json.dumps(texts, sort_keys=True).encode())
        digest.update(source_hash([settings[name] for name in code]).encode())
    hash_preparation(folder, digest)
    return digest.hexdigest()
