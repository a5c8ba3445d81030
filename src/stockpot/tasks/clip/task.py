"""A zero-shot classifier, its data, and how it is scored and fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import TaskError
from stockpot.evaluate.task import Metric, Split
from stockpot.tasks.base import FROM_FOLDER, TaskBase, cross_entropy, labels
from stockpot.tasks.clip.classifier import ImageTextClassifier, build_classifier, read_config
from stockpot.tasks.clip.groups import (
    GROUPS,
    ClassGroups,
    Grouped,
    as_dict,
    grouped_fingerprint,
    project,
)
from stockpot.tasks.images import ImageData


@dataclass(frozen=True)
class CLIPTask(TaskBase):
    """Classification by the image encoder and the head of a CLIP-like model.

    `model` is a folder that `make_zero_shot` (`stockpot clip-head`) wrote. It is also where every
    fine-tuning starts, and the base of WiSE-FT: encoder and head are interpolated together. Only
    its configuration is read here.

    Data give `(pixel_values, label)` pairs or dicts with these keys, as `image_data` does. `groups`
    names the splits whose labels are not the model's classes: a subset of them, or several classes
    under one label (`ClassGroups`); targets of such a split are indices of its own labels.

    What is trained is said by `TrainConfig`: everything; the head alone (a linear probe:
    `head=HEAD, probe_epochs=10, epochs=0`); or first the one and then the other (LP-FT:
    `head=HEAD, probe_epochs=5, epochs=10`).

    Args:
        model: the folder.
        splits: name → `Split`.
        batch_size: images of one forward pass.
        metric: a name (see `metric_by_name`) or a `Metric`.
        train_set: data with the model's classes as labels.
        groups: split → `ClassGroups`, or what `ClassGroups.of` takes.

    Raises:
        TaskError: the folder holds no such classifier, groups are wrong, or there is no split.
        EvaluationError: the metric is not known.

    Reference: Wortsman et al. 2021, arXiv 2109.01903 (WiSE-FT, classifier as zero-shot head);
    Kumar et al. 2022, arXiv 2202.10054 (LP-FT).
    """

    model: StrPath
    splits: Mapping[str, Split]
    batch_size: int = 64
    metric: Metric = "accuracy"  # type: ignore[assignment]  # a name becomes a Metric below
    train_set: Dataset[Any] | None = field(default=None, kw_only=True)
    groups: Mapping[str, ClassGroups | Sequence[str] | Mapping[str, Sequence[str]]] = field(
        default_factory=dict, kw_only=True
    )
    classes: tuple[str, ...] = field(init=False)
    version: str = field(init=False)

    def __post_init__(self) -> None:
        config = read_config(self.model)
        classes = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        unknown = [name for name in self.groups if name not in self.splits]
        if unknown:
            raise TaskError(
                f"groups are given for {', '.join(unknown)}; the splits are "
                f"{', '.join(self.splits)}"
            )
        groups = {name: _groups(name, given, classes) for name, given in self.groups.items()}
        self._complete(
            classes=classes,
            groups=groups,
            splits={n: _projected(s, groups.get(n)) for n, s in self.splits.items()},
            version=_version(Path(self.model)),
        )

    @property
    def calibration_set(self) -> None:
        """None: these encoders have no BatchNorm."""
        return None

    def build(self) -> ImageTextClassifier:
        """Encoder and head; weights come from checkpoints."""
        return build_classifier(self.model)

    @staticmethod
    def collate(examples: list[Any]) -> dict[str, Any]:
        """Dicts of `pixel_values` (N, channels, height, width) and `labels` (N,)."""
        rows = [as_dict(example) for example in examples]
        batch: dict[str, Any] = default_collate(
            [{k: v for k, v in row.items() if k != GROUPS} for row in rows]
        )
        # What labels mean is a fact of the data set, not of its examples: once is enough.
        return {**batch, GROUPS: rows[0][GROUPS]} if GROUPS in rows[0] else batch

    def predict(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Logits (N, C) over the classes, or (N, G) over a split's own labels."""
        logits: torch.Tensor = model(batch["pixel_values"])
        return project(logits, batch[GROUPS]) if GROUPS in batch else logits

    def targets(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Label indices (N,)."""
        return labels(batch)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats."""
        return cross_entropy(outputs, targets)


def image_data(
    model: StrPath, images: Sequence[Any], labels: Sequence[int], *, base: StrPath = "."
) -> ImageData:
    """Images and label indices as data of a `CLIPTask`, through the image processor of `model`.

    Args:
        model: the folder of the classifier.
        images: paths (from `base`), encoded bytes, uint8 arrays (height, width, 3), or PIL images.
        labels: one index for each.
        base: where relative paths start.
    """
    transformers = require("transformers", extra="hf")
    read_config(model)
    processor = transformers.AutoImageProcessor.from_pretrained(str(model), **FROM_FOLDER)
    if len(images) != len(labels):
        raise TaskError(f"{len(images)} images and {len(labels)} labels; expected one for each")
    return ImageData(images, labels, processor, base=Path(base))


def _groups(name: str, given: Any, classes: Sequence[str]) -> ClassGroups:
    if isinstance(given, ClassGroups):
        return given
    try:
        return ClassGroups.of(given, classes)
    except TaskError as error:
        raise TaskError(f"split {name}: {error}", error.problems) from error


def _projected(split: Split, groups: ClassGroups | None) -> Split:
    if groups is None:
        return split
    own = split.fingerprint
    return replace(
        split,
        dataset=Grouped(split.dataset, groups),
        fingerprint=None if own is None else grouped_fingerprint(own, groups),
    )


def _version(folder: Path) -> str:
    """Changes with all that decides a prediction besides weights and examples."""
    digest = hashlib.blake2b(b"clip-1", digest_size=16)
    for name in ("config.json", "preprocessor_config.json"):
        path = folder / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.exists() else b""))
    return digest.hexdigest()
