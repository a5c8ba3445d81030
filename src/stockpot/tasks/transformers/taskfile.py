"""`task.yaml`: a task on a transformers model, written down."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stockpot._types import StrPath
from stockpot.errors import TaskError, TrainingError
from stockpot.evaluate.task import Role
from stockpot.io.yaml_files import YamlError, plain, read_node
from stockpot.train.config import TrainConfig

KINDS = (
    "text-classification", "image-classification", "zero-shot-image-classification", "causal-lm",
)  # fmt: skip
FORMS = ("head", "label-words", "text-to-text")


@dataclass(frozen=True)
class DataSource:
    """Where examples are: a file or folder, and for a saved dictionary of data sets which one."""

    path: Path
    part: str | None = None


@dataclass(frozen=True)
class SplitSource:
    """A data source and what it may be used for.

    `classes` says what its labels are where they are not the model's classes, as
    `stockpot.tasks.clip.ClassGroups.of` takes it.
    """

    data: DataSource
    role: Role
    classes: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class TaskFile:
    """What a `task.yaml` says; relative paths are meant from its folder.

    Attributes:
        path: the file itself.
        kind: one of `KINDS`.
        model: folder with `config.json` and a tokenizer or an image processor; of the kind
            zero-shot-image-classification the folder that `stockpot clip-head` wrote.
        splits: name → data and role.
        train: data to fine-tune on.
        form: one of `FORMS`; images know `head` only.
        text: one or two columns of text; of the kind causal-lm the column of documents.
        image: column with paths (from the table's folder) or images.
        label: column with class names or indices.
        category: column with the category of each example of the splits, such as a topic or a
            language; None means that they have none.
        labels: class names by index; None means those of the model's config.
        label_words: class name → word, for the forms without a head.
        template: the text around the columns; `{mask}` is where a label word is read.
        metric: a name that `stockpot.evaluate.metric_by_name` knows; of the kind causal-lm loss,
            which is its default, or perplexity.
        batch_size: examples of one forward pass; of the kind causal-lm 8 by default.
        max_length: tokens after which a text is cut, and of the kind causal-lm those of a block;
            None means what the model can take, and of blocks 1024 at most.
        augment: of images, the options of `TrainConfig` that every run trains with (`AUGMENTS`);
            BatchNorm statistics are recalibrated with them.
        padding: `split` pads to the longest example of a data set, so that no prediction depends on
            its neighbours in a batch; `batch` pads less and is faster.
        drop_shared: leave out of held-out and training what also stands in a split that reports,
            instead of refusing it.
    """

    path: Path
    kind: str
    model: Path
    splits: Mapping[str, SplitSource]
    train: DataSource | None = None
    form: str = "head"
    text: tuple[str, ...] = ("text",)
    image: str = "image"
    label: str = "label"
    category: str | None = None
    labels: tuple[str, ...] | None = None
    label_words: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    metric: str = "accuracy"
    batch_size: int = 64
    max_length: int | None = None
    augment: Mapping[str, float] = field(default_factory=dict)
    padding: str = "split"
    drop_shared: bool = False


AUGMENTS = ("min_crop", "shift_pixels", "rotate_degrees", "randaugment_m", "randaugment_n")
"""What `augment:` may say."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"causal-lm": {"metric": "loss", "batch_size": 8}}
"""What a kind takes where the file names nothing else."""
_OF_CLASSES = ("label", "labels", "label_words", "form", "template", "padding", "category")
_REQUIRED = ("kind", "model", "splits")
_KEYS = tuple(name for name in TaskFile.__dataclass_fields__ if name != "path")
_CHOICES = {"kind": KINDS, "form": FORMS, "padding": ("split", "batch")}
_POSITIVE = ("batch_size", "max_length")
_TEXTS = ("image", "label", "category", "metric", "template")


class _Problems:
    """Collects what is wrong together with its line; the one thing here that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []

    def add(self, node: yaml.Node | None, text: str) -> None:
        where = "" if node is None else f":{node.start_mark.line + 1}"
        self.found.append(f"{self.path}{where}: {text}")

    def stop(self) -> None:
        if self.found:
            raise TaskError("\n".join(self.found), self.found)


def parse_task_file(path: StrPath) -> TaskFile:
    """Read a `task.yaml`; the data it names are not opened yet.

    Raises:
        TaskError: the file is missing or no valid YAML, a key is unknown, doubled or missing, or a
            value is not allowed. Every problem is listed with its line.
    """
    file = Path(path)
    problems = _Problems(file)
    try:
        root = read_node(file)
    except YamlError as error:
        where = f":{error.line}" if error.line else ""
        raise TaskError(f"{file}{where}: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise TaskError(f"{file}:1: expected a mapping with kind, model and splits")
    nodes = _entries(root, problems, _KEYS)
    for name in _REQUIRED:
        if name not in nodes:
            problems.add(root, f"{name!r} is missing")
    values = {name: _value(name, node, problems) for name, node in nodes.items()}
    for name, value in values.items():
        _check(name, value, nodes[name], problems)
    _check_together(values, nodes, problems)
    problems.stop()
    return TaskFile(path=file, **{**_DEFAULTS.get(values["kind"], {}), **values})


def _entries(
    node: yaml.MappingNode, problems: _Problems, known: tuple[str, ...] | None
) -> dict[str, yaml.Node]:
    """Key → value node, with unknown and doubled keys reported."""
    entries: dict[str, yaml.Node] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if known is not None and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            problems.add(key_node, f"unknown key {key!r}{hint}")
        elif key in entries:
            problems.add(key_node, f"{key!r} stands twice")
        else:
            entries[key] = value_node
    return entries


def _plain(node: yaml.Node, problems: _Problems) -> Any:
    """The Python value of a node; None, and a problem, where it has none."""
    try:
        return plain(node)
    except YamlError as error:
        problems.add(node, str(error))
        return None


def _value(name: str, node: yaml.Node, problems: _Problems) -> Any:
    folder = problems.path.parent
    if name == "splits":
        return _splits(node, problems)
    if name == "train":
        return _source(node, problems)
    if name in ("text", "labels", "label_words"):
        return _texts(node)
    value = _plain(node, problems)
    if name == "model" and isinstance(value, str):
        return folder / value
    return value


def _texts(node: yaml.Node) -> Any:
    """Text, a tuple, or a mapping of texts, as they are written: `no` is a name here, not false."""
    if isinstance(node, yaml.SequenceNode):
        return tuple(str(child.value) for child in node.value)
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): str(value.value) for key, value in node.value}
    return (str(node.value),)


_SOURCE_KEYS = ("data", "part", "role")


def _source(
    node: yaml.Node, problems: _Problems, known: tuple[str, ...] = _SOURCE_KEYS
) -> DataSource | None:
    """A path, or `{data: path, part: name}`."""
    folder = problems.path.parent
    if isinstance(node, yaml.ScalarNode):
        return DataSource(folder / str(node.value))
    if not isinstance(node, yaml.MappingNode):
        problems.add(node, "expected a path, or a mapping with data")
        return None
    entries = _entries(node, problems, known)
    if "data" not in entries:
        problems.add(node, "'data' is missing: the file or folder of this split")
        return None
    part = None if "part" not in entries else str(_plain(entries["part"], problems))
    return DataSource(folder / str(_plain(entries["data"], problems)), part)


def _splits(node: yaml.Node, problems: _Problems) -> dict[str, SplitSource]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        problems.add(node, "expected at least one split: name: {data: FILE, role: held-out}")
        return {}
    splits = {}
    for name, child in _entries(node, problems, None).items():
        source = _source(child, problems, (*_SOURCE_KEYS, "classes"))
        role = _role(name, child, problems)
        classes = _classes(dict(_pairs(child)).get("classes"), problems)
        if source is not None and role is not None:
            splits[name] = SplitSource(source, role, classes)
    return splits


def _classes(
    node: yaml.Node | None, problems: _Problems
) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
    """A list of classes, a mapping of labels to lists of them, or a file that holds one of both."""
    if isinstance(node, yaml.ScalarNode):
        path = problems.path.parent / str(node.value)
        try:
            found = read_node(path)
        except YamlError as error:
            problems.add(node, f"{path} cannot be read as a list or mapping of classes: {error}")
            return None
        if not isinstance(found, yaml.SequenceNode | yaml.MappingNode):
            problems.add(node, f"{path} holds neither a list nor a mapping of classes")
            return None
        return _classes(found, problems)
    if isinstance(node, yaml.MappingNode):
        return {str(label.value): _texts(members) for label, members in node.value}
    return None if node is None else tuple(_texts(node))


def _role(name: str, node: yaml.Node, problems: _Problems) -> Role | None:
    """The role given, else the one that the split is called by."""
    entries = dict(_pairs(node))
    given = str(entries["role"].value) if "role" in entries else name
    try:
        return Role(given)
    except ValueError:
        allowed = ", ".join(role.value for role in Role)
        problems.add(node, f"split {name!r} needs a role: one of {allowed} (found {given!r})")
        return None


def _pairs(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value


def _check(name: str, value: Any, node: yaml.Node, problems: _Problems) -> None:
    """Type and range of one value."""
    if name in _CHOICES and value not in _CHOICES[name]:
        allowed = ", ".join(_CHOICES[name])
        problems.add(node, f"{name} is {value!r}, expected one of {allowed}")
    elif name in _POSITIVE and not (type(value) is int and value > 0):
        problems.add(node, f"{name} is {value!r}, expected a whole number above 0")
    elif name in _TEXTS and not isinstance(value, str):
        problems.add(node, f"{name} is {value!r}, expected text")
    elif name == "model" and not isinstance(value, Path):
        problems.add(node, f"model is {value!r}, expected a folder")
    elif name == "drop_shared" and not isinstance(value, bool):
        problems.add(node, f"drop_shared is {value!r}, expected true or false")
    elif name == "text" and not (isinstance(value, tuple) and 1 <= len(value) <= 2):
        problems.add(node, f"text is {value!r}, expected one column or a list of two")
    elif name == "labels" and not (isinstance(value, tuple) and len(set(value)) == len(value) > 1):
        problems.add(node, f"labels is {value!r}, expected a list of two or more different names")
    elif name == "augment":
        _check_augment(value, node, problems)
    elif name == "label_words" and not isinstance(value, dict):
        problems.add(node, f"label_words is {value!r}, expected a mapping of class names to words")


def _check_augment(value: Any, node: yaml.Node, problems: _Problems) -> None:
    known = ", ".join(AUGMENTS)
    if not isinstance(value, dict) or not set(value) <= set(AUGMENTS):
        problems.add(node, f"augment is {value!r}, expected a mapping with keys of {known}")
    elif any(type(v) not in (int, float) for v in value.values()):
        problems.add(node, f"augment is {value!r}, expected numbers")
    else:
        try:
            TrainConfig(**value)
        except TrainingError as error:
            problems.add(node, f"augment: {str(error).splitlines()[-1].strip()}")


def _check_documents(
    values: Mapping[str, Any], nodes: Mapping[str, yaml.Node], problems: _Problems
) -> None:
    for name in _OF_CLASSES:
        if name in values:
            problems.add(nodes[name], f"{name} is for classes, which causal-lm does not have")
    if isinstance(values.get("text"), tuple) and len(values["text"]) > 1:
        problems.add(nodes["text"], "text names two columns; causal-lm reads documents from one")
    if values.get("metric", "loss") not in ("loss", "perplexity"):
        problems.add(
            nodes["metric"], f"metric is {values['metric']!r}, expected loss or perplexity"
        )
    if isinstance(values.get("max_length"), int) and values["max_length"] == 1:
        problems.add(nodes["max_length"], "max_length is 1: a block of one token predicts nothing")


def _check_together(
    values: Mapping[str, Any], nodes: Mapping[str, yaml.Node], problems: _Problems
) -> None:
    """What one key asks of another."""
    grouped = [name for name, split in values.get("splits", {}).items() if split.classes]
    if grouped and values.get("kind") != "zero-shot-image-classification":
        problems.add(
            nodes["splits"],
            f"classes of {', '.join(grouped)}: only the kind zero-shot-image-classification can "
            "score a data set on other labels than the model's",
        )
    if values.get("augment") and values.get("kind") != "image-classification":
        problems.add(nodes["augment"], "augment changes images: of image-classification only")
    if values.get("kind") == "causal-lm":
        _check_documents(values, nodes, problems)
    form = values.get("form", "head")
    if form != "head" and form in FORMS:
        if str(values.get("kind")).endswith("image-classification"):
            problems.add(nodes["form"], f"form {form} needs text; images know 'head' only")
        if not values.get("label_words"):
            problems.add(nodes["form"], f"form {form} needs label_words: a word for each class")
    template = values.get("template")
    if form == "label-words" and isinstance(template, str) and template.count("{mask}") != 1:
        problems.add(nodes["template"], "the template must hold {mask} once: where the word goes")
