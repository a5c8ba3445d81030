"""From a `task.yaml` to a task."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stockpot import formats as checkpoints
from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import CheckpointError, TaskError
from stockpot.evaluate.task import Role, Split
from stockpot.tasks.checks import check_fit, check_task, example_digests
from stockpot.tasks.classification import ClassificationTask, cross_entropy
from stockpot.tasks.clip.classifier import read_config
from stockpot.tasks.clip.groups import ClassGroups
from stockpot.tasks.clip.task import CLIPTask
from stockpot.tasks.images import ImageData
from stockpot.tasks.transformers.names import with_file_names
from stockpot.tasks.transformers.tables import Table, label_indices, read_table
from stockpot.tasks.transformers.taskfile import DataSource, TaskFile, parse_task_file
from stockpot.tasks.transformers.text import (
    HeadForm,
    LabelWordForm,
    TextData,
    TextToTextForm,
    collate,
    language_model_loss,
    token_pads,
)

_MODELS = {
    ("text-classification", "head"): "AutoModelForSequenceClassification",
    ("text-classification", "label-words"): "AutoModelForMaskedLM",
    ("text-classification", "text-to-text"): "AutoModelForSeq2SeqLM",
    ("image-classification", "head"): "AutoModelForImageClassification",
}
_ZERO_SHOT = "zero-shot-image-classification"
_TRAIN = "(train)"
_LENGTH_LIMIT = 512
"""For tokenizers and models that name no limit of their own."""


def load_task(path: StrPath) -> ClassificationTask | CLIPTask:
    """The task that a `task.yaml` describes, checked: see `make_task`."""
    return make_task(parse_task_file(path))


def make_task(file: TaskFile) -> ClassificationTask | CLIPTask:
    """The task on the model folder and the data that `file` names.

    Everything is looked at before anything is scored; nothing is looked up on the network. Weights
    in the model folder must fit the model, the head included: see `share_head`.

    Raises:
        TaskError: a file or column is missing, a label is not among the classes, the classes are
            not those of the config, the weights do not fit, a split is empty, or splits share
            examples. Problems of several splits are listed together.
        OptionalDependencyError: transformers is not installed.
    """
    config = _config(file)
    names = class_names(file, config)
    reader = _reader(file, config, names)
    groups = _split_groups(file, names)
    data = _read_all(file, names, reader, groups)
    task = (
        _clip_task(file, data, groups)
        if file.kind == _ZERO_SHOT
        else _classification(file, names, reader, data)
    )
    # Labels were looked at when they were read; a pass over all batches would tokenise everything.
    check_task(task)
    if _has_weights(file.model):
        maker = "stockpot clip-head" if file.kind == _ZERO_SHOT else f"{__package__}.share_head"
        with _remedy(f"make the head once for all runs: {maker}"):
            check_fit(task, checkpoints.open(file.model))
    return task


def _classification(
    file: TaskFile,
    names: Sequence[str],
    reader: _Reader,
    data: Mapping[str, TextData | ImageData],
) -> ClassificationTask:
    return ClassificationTask(
        build=functools.partial(_build, str(file.model), _MODELS[file.kind, file.form]),
        splits=_splits(file, data),
        train_set=data.get(_TRAIN),
        metric=file.metric,  # type: ignore[arg-type]  # a name becomes a Metric
        batch_size=file.batch_size,
        predict=reader.predict,
        loss=language_model_loss if file.form == "text-to-text" else cross_entropy,
        collate=reader.collate,
        version=_version(file, names),
    )


def _clip_task(
    file: TaskFile,
    data: Mapping[str, TextData | ImageData],
    groups: Mapping[str, ClassGroups],
) -> CLIPTask:
    return CLIPTask(
        file.model,
        _splits(file, data),
        batch_size=file.batch_size,
        metric=file.metric,  # type: ignore[arg-type]  # a name becomes a Metric
        train_set=data.get(_TRAIN),
        groups=groups,
    )


def _splits(file: TaskFile, data: Mapping[str, TextData | ImageData]) -> dict[str, Split]:
    return {
        name: Split(data[name], role=source.role, fingerprint=data[name].fingerprint)
        for name, source in file.splits.items()
    }


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

    A head drawn anew in each run is the most common reason why runs do not average (METHODS:
    Heads). Everything but the head comes from `model`; the tokenizer or processor is copied.

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
            local_files_only=True,
        )
    copied.from_pretrained(str(model), local_files_only=True).save_pretrained(target)
    made.save_pretrained(target)
    return target


@dataclass(frozen=True)
class _Reader:
    """How rows of a table become a data set, and batches of it predictions."""

    columns: tuple[str, ...]
    make: Callable[[Table, Sequence[int]], TextData | ImageData]
    predict: Callable[[nn.Module, Any], Any]
    collate: Callable[[list[Any]], Any] | None = None


def _reader(file: TaskFile, config: Any, names: Sequence[str]) -> _Reader:
    transformers = require("transformers", extra="hf")
    if file.kind in ("image-classification", _ZERO_SHOT):
        processor = _from_folder(transformers.AutoImageProcessor, file.model)
        make = functools.partial(_images, file, processor)
        return _Reader((file.image, file.label), make, _image_logits)
    tokenizer = _from_folder(transformers.AutoTokenizer, file.model)
    form = _form(file, tokenizer, _max_length(file, tokenizer, config), names)
    pads = token_pads(tokenizer)
    return _Reader(
        (*file.text, file.label),
        functools.partial(_texts, file, form, pads),
        form.predict,
        functools.partial(collate, pads=pads) if file.padding == "batch" else None,
    )


def _form(
    file: TaskFile, tokenizer: Any, max_length: int, names: Sequence[str]
) -> HeadForm | LabelWordForm | TextToTextForm:
    if file.form == "head":
        return HeadForm(tokenizer, max_length)
    form = LabelWordForm if file.form == "label-words" else TextToTextForm
    return form.make(
        tokenizer,
        max_length=max_length,
        template=file.template,
        columns=file.text,
        words=[file.label_words[name] for name in names],
    )


def _texts(
    file: TaskFile, form: Any, pads: Mapping[str, int], table: Table, labels: Sequence[int]
) -> TextData:
    columns = [[str(value) for value in table.column(name)] for name in file.text]
    texts = list(zip(*columns, strict=True))
    return TextData(texts, labels, form.encode, padding=file.padding, pads=pads)


def _images(file: TaskFile, processor: Any, table: Table, labels: Sequence[int]) -> ImageData:
    return ImageData(table.column(file.image), labels, processor, base=table.base)


def _image_logits(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    return model(pixel_values=batch["pixel_values"]).logits


def _read_all(
    file: TaskFile, names: Sequence[str], reader: _Reader, groups: Mapping[str, ClassGroups]
) -> dict[str, TextData | ImageData]:
    """Every data set of the file, the problems of all of them raised together."""
    sources: dict[str, DataSource] = {name: s.data for name, s in file.splits.items()}
    if file.train is not None:
        sources[_TRAIN] = file.train
    data: dict[str, TextData | ImageData] = {}
    problems: list[str] = []
    for name, source in sources.items():
        try:
            table = read_table(source, reader.columns)
            own = groups[name].names if name in groups else names
            data[name] = reader.make(table, label_indices(table, file.label, own))
        except TaskError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise TaskError("\n".join(problems), problems)
    return _disjoint(file, data) if file.drop_shared else data


def _disjoint(
    file: TaskFile, data: Mapping[str, TextData | ImageData]
) -> dict[str, TextData | ImageData]:
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


def _config(file: TaskFile) -> Any:
    if file.kind == _ZERO_SHOT:
        return read_config(file.model)
    transformers = require("transformers", extra="hf")
    if not (file.model / "config.json").is_file():
        raise TaskError(
            f"{file.model} holds no config.json: model must be a local transformers folder"
        )
    return _from_folder(transformers.AutoConfig, file.model)


def _from_folder(auto: Any, folder: Path) -> Any:
    try:
        return auto.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"{auto.__name__} cannot be made from {folder}: {error}") from error


def _max_length(file: TaskFile, tokenizer: Any, config: Any) -> int:
    """The length asked for, else the smaller of what tokenizer and model take."""
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [int(n) for n in limits if n is not None and 0 < n < 10**9]
    limit = min(known, default=_LENGTH_LIMIT)
    if file.max_length is not None and known and file.max_length > limit:
        raise TaskError(f"max_length is {file.max_length}, but the model takes {limit} tokens")
    return limit if file.max_length is None else file.max_length


def _build(folder: str, auto: str) -> nn.Module:
    """The architecture of the folder's config, with weights that do not matter."""
    transformers = require("transformers", extra="hf")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    return with_file_names(getattr(transformers, auto).from_config(config))


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any((folder / name).exists() for name in names)


def _version(file: TaskFile, names: Sequence[str]) -> str:
    """Changes with all that decides a prediction besides weights and examples."""
    parts = (file.kind, file.form, file.text, file.template, file.label_words, names)
    digest = hashlib.blake2b(repr((parts, file.max_length, file.metric)).encode(), digest_size=16)
    for path in sorted(file.model.iterdir()):
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _remedy(text: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise TaskError(str(error)) from error
    except TaskError as error:
        raise TaskError(f"{error}\nIf a head is missing, {text}", error.problems) from error
