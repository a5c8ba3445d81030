"""EfficientNet-Lite0 with ImageNet weights, fine-tuned on one or three of the domains of PACS.

    stockpot evaluate base.safetensors --task experiments/pacs.py:task

reads the data folder named by `STOCKPOT_DATA`. Seven classes in four domains. Of the source, which
is photographs unless others are named, one fifth is chosen on and one reported on; of the rest the
runs see as many images as there are photographs in it (1,002), in equal parts from each source. The
other domains are natural shifts, 800 images of each, and no run sees one. All runs share a head
made from the names of the classes, before anything is trained: a class is the mean of the five
ImageNet classes whose names are most like its own by a sentence encoder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from experiments.cifar_resnet import Images, Indices, Movements, data_folder, labels_of, whole
from experiments.common import evenly
from torch.nn import functional
from torch.utils.data import Dataset

import stockpot
from experiments import efficientnet_lite, sst2_minilm

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
SIZE = 128
N_SHIFT = 800
SPLIT_SEED = 0
N_NEAREST, TEMPERATURE = 5, 0.05
"""Of the zero-shot head: ImageNet classes for each class, and how sharply the nearest count."""
PROMPT = "a photo of a {}"
"""How a name is shown to the encoder; of four such, best on held-out photographs of the base."""

MOVEMENTS = Movements(pixels=8)
"""What all runs train with, and what the BatchNorm policy `recalibrated` runs on."""


class Joined(Dataset[tuple[torch.Tensor, int]]):
    """Images of several files as one data set; every first part holds the files in their shares."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = tuple(parts)
        shares = [(np.arange(len(part)) + 0.5) / len(part) for part in parts]
        which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        within = np.concatenate([np.arange(len(part)) for part in parts])
        order = np.argsort(np.concatenate(shares), kind="stable")
        self.places = np.stack([which, within], axis=1)[order]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        which, within = self.places[index]
        return self.parts[which][int(within)]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*(self[i] for i in indices), strict=True)
        return torch.stack(images), torch.tensor(labels, device=self.parts[0].device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the fingerprints of the parts."""
        digests = "\0".join(part.fingerprint for part in self.parts)
        return hashlib.sha256(digests.encode()).hexdigest()[:32]


def data_sets(
    data: Path, *, sources: Sequence[str] = DOMAINS[:1], size: int = SIZE, device: str = "cpu"
) -> dict[str, Images | Joined]:
    """The data sets by name; every first part of each holds the classes in their shares."""
    read = functools.partial(_part, data, size=size, device=device)
    orders = {name: evenly(_labels(data, name), seed=SPLIT_SEED) for name in DOMAINS}
    fifths = {name: len(order) // 5 for name, order in orders.items()}
    n_train = (len(orders["photo"]) - 2 * fifths["photo"]) // len(sources)
    parts: dict[str, list[Images]] = {"train": [], "held-out": [], "test": []}
    for name in sources:
        order, fifth = orders[name], fifths[name]
        parts["train"].append(read(name, order[2 * fifth :][:n_train]))
        parts["held-out"].append(read(name, order[fifth : 2 * fifth]))
        parts["test"].append(read(name, order[:fifth]))
    shifts = {name: read(name, orders[name][:N_SHIFT]) for name in DOMAINS if name not in sources}
    joined = {name: of[0] if len(of) == 1 else Joined(of) for name, of in parts.items()}
    return {**joined, **shifts}


def _part(data: Path, name: str, part: Indices, *, size: int, device: str) -> Images:
    labels = _labels(data, name)[part]
    return Images(_file(data, name), part, labels, size=size, device=device)


def _labels(data: Path, name: str) -> Indices:
    return labels_of(_file(data, name))


def _file(data: Path, name: str) -> Path:
    return data / "pacs" / f"{name}.npz"


def task() -> stockpot.ClassificationTask:
    """The task, from the folder that `STOCKPOT_DATA` names."""
    return make_task(device=os.environ.get("STOCKPOT_DEVICE", "cpu"))


def make_task(
    data: str | os.PathLike[str] | None = None,
    *,
    sources: Sequence[str] = DOMAINS[:1],
    size: int = SIZE,
    device: str = "cpu",
) -> stockpot.ClassificationTask:
    """The task on images of `size` × `size` pixels, held on `device`."""
    sets = data_sets(data_folder(data), sources=sources, size=size, device=device)
    roles = {"held-out": "held-out", "test": "test"}
    return stockpot.ClassificationTask(
        build=functools.partial(efficientnet_lite.EfficientNetLite, len(CLASSES)),
        splits={
            name: stockpot.Split(part, role=roles.get(name, "shift"), fingerprint=part.fingerprint)
            for name, part in sets.items()
            if name != "train"
        },
        train_set=sets["train"],
        augment=MOVEMENTS,
        batch_size=100,
        collate=whole,
    )


def base(data: Path) -> dict[str, torch.Tensor]:
    """The published weights with a head for the seven classes, made from their names alone."""
    weights = efficientnet_lite.published()
    names = json.loads((data / "pacs" / "imagenet_class_names.json").read_text())
    share = nearest_classes(CLASSES, names)
    head = {name: share @ weights[name] for name in ("_fc.weight", "_fc.bias")}
    return {**weights, **head}


def nearest_classes(classes: tuple[str, ...], names: list[str]) -> torch.Tensor:
    """How much of each of `names` is in each of `classes`: rows (classes, names) that sum to 1.

    A row is the softmax of cosine similarity / `TEMPERATURE` over the `N_NEAREST` nearest names.
    """
    folder = sst2_minilm.minilm_folder()
    encoder = sst2_minilm.zero_shot(folder, [[PROMPT.format(name)] for name in classes])
    examples = [sst2_minilm.Example(PROMPT.format(name), 0) for name in names]
    tokens = sst2_minilm.encode(sst2_minilm.tokenizer(folder), examples, max_length=32)
    with torch.inference_mode():
        ours = functional.normalize(encoder.head.weight, dim=1)
        similarity = ours @ encoder.embed(**tokens).T
    near = similarity.topk(N_NEAREST, dim=1)
    share = torch.zeros_like(similarity)
    return share.scatter(1, near.indices, (near.values / TEMPERATURE).softmax(1)).clone()
