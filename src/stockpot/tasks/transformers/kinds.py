"""The kinds of `task.yaml`: how each reads its model folder, its examples, and its outputs.

A further kind is a subclass of `Kind` with a line in `KINDS`, and its name in `taskfile.KINDS`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias, final

from torch import nn

from stockpot._optional import require
from stockpot.errors import TaskError
from stockpot.evaluate.batchnorm import Augment
from stockpot.evaluate.task import Split
from stockpot.io.storage import open_regular
from stockpot.tasks.base import FROM_FOLDER, cross_entropy
from stockpot.tasks.classification import ClassificationTask
from stockpot.tasks.clip.classifier import read_config
from stockpot.tasks.clip.groups import ClassGroups
from stockpot.tasks.clip.task import CLIPTask
from stockpot.tasks.general import GeneralTask
from stockpot.tasks.images import ImageData
from stockpot.tasks.transformers.language import (
    PackedData,
    block_losses,
    language_metric,
    mean_loss,
    no_targets,
)
from stockpot.tasks.transformers.names import with_file_names
from stockpot.tasks.transformers.tables import Table
from stockpot.tasks.transformers.taskfile import TaskFile
from stockpot.tasks.transformers.text import (
    HeadForm,
    LabelWordForm,
    TextData,
    TextToTextForm,
    collate,
    language_model_loss,
    token_pads,
)

Data: TypeAlias = TextData | ImageData | PackedData
Made: TypeAlias = ClassificationTask | CLIPTask | GeneralTask
TRAIN = "(train)"
"""Where the training set stands among the data by split."""

_LENGTH_LIMIT = 512
"""For tokenizers and models that name no limit of their own."""
_BLOCK_LIMIT = 1024
"""Tokens of a block of documents, where the file names no other number."""


@dataclass(frozen=True)
class Reader:
    """How rows of a table become a data set, and batches of it predictions."""

    columns: tuple[str, ...]
    make: Callable[[Table, Sequence[int]], Data]
    predict: Callable[[nn.Module, Any], Any]
    collate: Callable[[list[Any]], Any] | None = None


class Kind(ABC):
    """Everything that only one kind of task knows.

    Attributes:
        has_classes: whether an example has a label, which is one of the classes.
    """

    has_classes: ClassVar[bool] = True

    head_maker = "stockpot.tasks.transformers.share_head"
    """What makes a head that all runs share, for messages."""

    def config(self, file: TaskFile) -> Any:
        """The configuration of the model folder; nothing is looked up on the network."""
        transformers = require("transformers", extra="hf")
        if not (file.model / "config.json").is_file():
            raise TaskError(
                f"{file.model} holds no config.json: model must be a local transformers folder"
            )
        return _from_folder(transformers.AutoConfig, file.model)

    @abstractmethod
    def reader(self, file: TaskFile, config: Any, names: Sequence[str]) -> Reader:
        """How examples are read and predicted."""

    @abstractmethod
    def auto_class(self, file: TaskFile) -> str:
        """Name of the transformers class that builds the model."""

    def loss(self, file: TaskFile) -> Callable[[Any, Any], Any]:
        """Mean loss of outputs and targets."""
        return cross_entropy

    def make(
        self,
        file: TaskFile,
        names: Sequence[str],
        reader: Reader,
        data: Mapping[str, Data],
        groups: Mapping[str, ClassGroups],
    ) -> Made:
        """The task on data that were read."""
        return ClassificationTask(
            build=functools.partial(architecture, str(file.model), self.auto_class(file)),
            splits=splits_of(file, data),
            train_set=data.get(TRAIN),
            augment=_augment(file),
            metric=file.metric,  # type: ignore[arg-type]  # a name becomes a Metric
            batch_size=file.batch_size,
            predict=reader.predict,
            loss=self.loss(file),
            collate=reader.collate,
            version=_version(file, names),
        )


@final
class TextClassification(Kind):
    """Texts or pairs, by a head, by words at a mask, or by text to text."""

    _CLASSES = MappingProxyType(
        {
            "head": "AutoModelForSequenceClassification",
            "label-words": "AutoModelForMaskedLM",
            "text-to-text": "AutoModelForSeq2SeqLM",
        }
    )

    def auto_class(self, file: TaskFile) -> str:
        """By the form."""
        return self._CLASSES[file.form]

    def loss(self, file: TaskFile) -> Callable[[Any, Any], Any]:
        """Of log-probabilities where the outputs are such."""
        return language_model_loss if file.form == "text-to-text" else cross_entropy

    def reader(self, file: TaskFile, config: Any, names: Sequence[str]) -> Reader:
        """Tokens of the text columns."""
        transformers = require("transformers", extra="hf")
        tokenizer = _from_folder(transformers.AutoTokenizer, file.model)
        form = _form(file, tokenizer, _max_length(file, tokenizer, config), names)
        pads = token_pads(tokenizer)
        return Reader(
            (*file.text, file.label),
            functools.partial(_texts, file, form, pads),
            form.predict,
            functools.partial(collate, pads=pads) if file.padding == "batch" else None,
        )


class ImageClassification(Kind):
    """Images, by a head."""

    def auto_class(self, file: TaskFile) -> str:
        """The one there is."""
        return "AutoModelForImageClassification"

    def reader(self, file: TaskFile, config: Any, names: Sequence[str]) -> Reader:
        """Pixels of the image column."""
        transformers = require("transformers", extra="hf")
        processor = _from_folder(transformers.AutoImageProcessor, file.model)
        make = functools.partial(_images, file, processor)
        return Reader((file.image, file.label), make, _image_logits)


@final
class ZeroShotImageClassification(ImageClassification):
    """Images, by the head that `stockpot clip-head` made of class names."""

    head_maker = "stockpot clip-head"

    def config(self, file: TaskFile) -> Any:
        """That of a vision tower with a head."""
        return read_config(file.model)

    def make(
        self,
        file: TaskFile,
        names: Sequence[str],
        reader: Reader,
        data: Mapping[str, Data],
        groups: Mapping[str, ClassGroups],
    ) -> Made:
        """The task, whose splits may have labels of their own."""
        return CLIPTask(
            file.model,
            splits_of(file, data),
            batch_size=file.batch_size,
            metric=file.metric,  # type: ignore[arg-type]  # a name becomes a Metric
            train_set=data.get(TRAIN),
            groups=groups,
        )


@final
class CausalLanguageModel(Kind):
    """Documents, by the likelihood of every token."""

    has_classes = False

    def auto_class(self, file: TaskFile) -> str:
        """The one there is."""
        return "AutoModelForCausalLM"

    def reader(self, file: TaskFile, config: Any, names: Sequence[str]) -> Reader:
        """Documents of the text column, packed."""
        transformers = require("transformers", extra="hf")
        tokenizer = _from_folder(transformers.AutoTokenizer, file.model)
        length = _max_length(file, tokenizer, config)
        if file.max_length is None:
            length = min(length, _BLOCK_LIMIT)
        make = functools.partial(_documents, file, tokenizer, length)
        return Reader(file.text, make, block_losses)

    def make(
        self,
        file: TaskFile,
        names: Sequence[str],
        reader: Reader,
        data: Mapping[str, Data],
        groups: Mapping[str, ClassGroups],
    ) -> Made:
        """The task, whose outputs are losses."""
        return GeneralTask(
            build=functools.partial(architecture, str(file.model), self.auto_class(file)),
            splits=splits_of(file, data),
            train_set=data.get(TRAIN),
            metric=language_metric(file.metric),
            batch_size=file.batch_size,
            predict=reader.predict,
            targets=no_targets,
            loss=mean_loss,
            version=_version(file, names),
        )


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "causal-lm": CausalLanguageModel(),
        "text-classification": TextClassification(),
        "image-classification": ImageClassification(),
        "zero-shot-image-classification": ZeroShotImageClassification(),
    }
)
"""What `kind:` may say."""


def splits_of(file: TaskFile, data: Mapping[str, Data]) -> dict[str, Split]:
    """The splits of the file on the data that were read."""
    return {
        name: Split(
            data[name],
            role=source.role,
            fingerprint=data[name].fingerprint,
            categories=data[name].categories,
        )
        for name, source in file.splits.items()
    }


def _augment(file: TaskFile) -> Augment | None:
    """The transform of training that the file declares; None without."""
    if not file.augment:
        return None
    from stockpot.train.augment import ImageTransform
    from stockpot.train.config import TrainConfig

    return ImageTransform(TrainConfig(**dict(file.augment)))  # type: ignore[arg-type]  # checked


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
    return TextData(
        texts,
        labels,
        form.encode,
        padding=file.padding,
        pads=pads,
        categories=_categories(file, table),
    )


def _documents(
    file: TaskFile, tokenizer: Any, length: int, table: Table, labels: Sequence[int]
) -> PackedData:
    documents = [str(text) for text in table.column(file.text[0])]
    encode = functools.partial(_token_ids, tokenizer)
    return PackedData(documents, encode, end=tokenizer.eos_token_id, length=length)


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _images(file: TaskFile, processor: Any, table: Table, labels: Sequence[int]) -> ImageData:
    return ImageData(
        table.column(file.image),
        labels,
        processor,
        base=table.base,
        categories=_categories(file, table),
    )


def _categories(file: TaskFile, table: Table) -> list[str] | None:
    """The category of each row; None where the table was read without that column."""
    if file.category is None or file.category not in table.columns:
        return None
    column = table.column(file.category)
    found = ["" if value is None else str(value).strip() for value in column]
    missing = [row for row, text in enumerate(found, 1) if not text]
    if missing:
        raise TaskError(
            f"{table.source}: example {missing[0]} has no {file.category}"
            + (f"; {len(missing)} examples are like that" if len(missing) > 1 else "")
        )
    return found


def _image_logits(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    return model(pixel_values=batch["pixel_values"]).logits


def _from_folder(auto: Any, folder: Path) -> Any:
    try:
        return auto.from_pretrained(str(folder), **FROM_FOLDER)
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


def architecture(folder: str, auto: str) -> nn.Module:
    """The architecture of the folder's config, with weights that do not matter."""
    transformers = require("transformers", extra="hf")
    config = _from_folder(transformers.AutoConfig, Path(folder))
    return with_file_names(getattr(transformers, auto).from_config(config, trust_remote_code=False))


def _version(file: TaskFile, names: Sequence[str]) -> str:
    """Changes with all that decides a prediction besides weights and examples."""
    parts = (file.kind, file.form, file.text, file.template, file.label_words, names)
    digest = hashlib.blake2b(repr((parts, file.max_length, file.metric)).encode(), digest_size=16)
    hash_preparation(file.model, digest)
    return digest.hexdigest()


def hash_preparation(folder: Path, digest: Any) -> None:
    """Add to a digest the configuration and tokenizer of a model folder."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            digest.update(path.name.encode() + b"\0")
            with os.fdopen(open_regular(path), "rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
