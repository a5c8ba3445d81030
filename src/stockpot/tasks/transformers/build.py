"""From a `task.yaml` to a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stockpot import formats as checkpoints
from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import CheckpointError, TaskError
from stockpot.evaluate.task import Role
from stockpot.tasks.base import FROM_FOLDER
from stockpot.tasks.checks import check_fit, check_task, example_digests
from stockpot.tasks.clip.groups import ClassGroups
from stockpot.tasks.transformers.kinds import KINDS, TRAIN, Data, Made, Reader
from stockpot.tasks.transformers.tables import label_indices, read_table
from stockpot.tasks.transformers.taskfile import DataSource, TaskFile, parse_task_file

_PREPARES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model",
    "sentencepiece.bpe.model", "tokenizer.model", "preprocessor_config.json",
)  # fmt: skip
"""Files of a tokenizer or processor."""


def load_task(path: StrPath) -> Made:
    """The task that a `task.yaml` describes, checked: see `make_task`."""
    return make_task(parse_task_file(path))


def make_task(file: TaskFile) -> Made:
    """The task on the model folder and the data that `file` names.

    Everything is looked at before anything is scored; nothing is looked up on the network. Weights
    in the model folder must fit the model, the head included: see `share_head`.

    Raises:
        TaskError: a file or column is missing, a label is not among the classes, the classes are
            not those of the config, the weights do not fit, a split is empty, or splits share
            examples. Problems of several splits are listed together.
        OptionalDependencyError: transformers is not installed.
    """
    kind = KINDS[file.kind]
    config = kind.config(file)
    names = class_names(file, config) if kind.has_classes else ()
    reader = kind.reader(file, config, names)
    groups = _split_groups(file, names)
    task = kind.make(file, names, reader, _read_all(file, names, reader, groups), groups)
    # Labels were looked at when they were read; a pass over all batches would tokenise everything.
    check_task(task)
    if _has_weights(file.model):
        with _remedy(f"make the head once for all runs: {kind.head_maker}"):
            check_fit(task, checkpoints.open(file.model))
    return task


def _split_groups(file: TaskFile, names: Sequence[str]) -> dict[str, ClassGroups]:
    """What labels mean in the splits that have labels of their own; all problems at once."""
    groups: dict[str, ClassGroups] = {}
    problems: list[str] = []
    for name, source in file.splits.items():
        try:
            if source.classes is not None:
                groups[name] = ClassGroups.of(source.classes, names)
        except TaskError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise TaskError("\n".join(problems), problems)
    return groups


def class_names(file: TaskFile, config: Any) -> tuple[str, ...]:
    """Names of the classes by index: those of the task file, checked against the config's.

    Raises:
        TaskError: the two disagree in number, names or order; or neither names the classes.
    """
    if file.form != "head":
        return _word_classes(file)
    id2label = dict(config.id2label or {})
    known = tuple(str(id2label[i]) for i in sorted(id2label))
    unnamed = known == tuple(f"LABEL_{i}" for i in range(len(known)))
    if file.labels is None:
        return tuple(map(str, range(len(known)))) if unnamed else known
    if len(file.labels) != len(known):
        raise TaskError(
            f"{file.path} lists {len(file.labels)} labels, the model in {file.model} has "
            f"{len(known)}: {', '.join(known)}"
        )
    if not unnamed and file.labels != known:
        pairs = [
            f"class {i} is {a!r} in {file.path.name}, {b!r} in the model's config"
            for i, (a, b) in enumerate(zip(file.labels, known, strict=True))
            if a != b
        ]
        raise TaskError("the labels are not those of the model:\n  " + "\n  ".join(pairs), pairs)
    return file.labels


def _word_classes(file: TaskFile) -> tuple[str, ...]:
    names = tuple(file.label_words) if file.labels is None else file.labels
    without = [name for name in names if name not in file.label_words]
    without += [name for name in file.label_words if name not in names]
    if without or len(names) < 2:
        raise TaskError(
            f"{file.path}: labels and label_words must name the same two or more classes; "
            f"only one of them has: {', '.join(without) or '(fewer than two)'}"
        )
    return names


def share_head(
    model: StrPath, out: StrPath, *, labels: Sequence[str], seed: int = 0, kind: str = "text"
) -> Path:
    """Write a model folder with a classification head drawn once, for all runs to start from.

    A head of its own random weights in each run is the most common reason why runs do not average
    (Wortsman et al. 2022, arXiv 2203.05482). Everything but the head comes from `model`; the
    tokenizer or processor is copied, where there is one.

    Args:
        model: folder of an encoder, or of a model with another head.
        out: folder to write; must not exist.
        labels: class names by index, kept in the config.
        seed: of the head.
        kind: `"text"` or `"image"`.

    Raises:
        OutputExistsError: `out` exists.
    """
    import torch

    from stockpot.io.atomic import refuse_existing

    transformers = require("transformers", extra="hf")
    target = Path(out)
    refuse_existing(target, force=False, folder=True)
    auto = transformers.AutoModelForSequenceClassification
    copied = transformers.AutoTokenizer
    if kind == "image":
        auto = transformers.AutoModelForImageClassification
        copied = transformers.AutoImageProcessor
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = auto.from_pretrained(
            str(model),
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            num_labels=len(labels),
            ignore_mismatched_sizes=True,
            **FROM_FOLDER,
        )
    # A folder without one would get one with no words, or, of transformers 4, a TypeError.
    if any((Path(model) / name).exists() for name in _PREPARES):
        copied.from_pretrained(str(model), **FROM_FOLDER).save_pretrained(target)
    made.save_pretrained(target)
    return target


def _read_all(
    file: TaskFile, names: Sequence[str], reader: Reader, groups: Mapping[str, ClassGroups]
) -> dict[str, Data]:
    """Every data set of the file, the problems of all of them raised together."""
    sources: dict[str, DataSource] = {name: s.data for name, s in file.splits.items()}
    if file.train is not None:
        sources[TRAIN] = file.train
    data: dict[str, Data] = {}
    problems: list[str] = []
    # What is trained on needs no categories.
    category = () if file.category is None else (file.category,)
    for name, source in sources.items():
        try:
            table = read_table(source, reader.columns + (category if name != TRAIN else ()))
            own = groups[name].names if name in groups else names
            labelled = file.label in reader.columns
            labels = label_indices(table, file.label, own) if labelled else ()
            data[name] = reader.make(table, labels)
        except TaskError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise TaskError("\n".join(problems), problems)
    return _disjoint(file, data) if file.drop_shared else data


def _disjoint(file: TaskFile, data: Mapping[str, Data]) -> dict[str, Data]:
    """Held-out less what reports, training less both."""
    roles = {name: source.role for name, source in file.splits.items()}
    seen = {d for n, r in roles.items() if r is not Role.HELD_OUT for d in example_digests(data[n])}
    kept = dict(data)
    order = [n for n, role in roles.items() if role is Role.HELD_OUT]
    order += [n for n in data if n not in roles]
    also: set[bytes] = set()
    for name in order:
        digests = data[name].example_digests()
        taken = seen if name in roles else seen | also
        rows = [i for i, digest in enumerate(digests) if digest not in taken]
        kept[name] = data[name].subset(rows)
        also |= set(digests)
    return kept


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any((folder / name).exists() for name in names)


@contextmanager
def _remedy(text: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise TaskError(str(error)) from error
    except TaskError as error:
        raise TaskError(f"{error}\nIf a head is missing, {text}", error.problems) from error
