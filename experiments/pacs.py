"""EfficientNet-Lite0 with ImageNet weights, fine-tuned on the photographs of PACS.

    stockpot evaluate base.safetensors --task experiments/pacs.py:task

reads the data folder named by `STOCKPOT_DATA`. Seven classes in four domains: photographs are
trained on (three fifths), chosen on and reported on (one fifth each); paintings, cartoons and
sketches are natural shifts, 800 of each, and no run sees one. All runs share a head made from the
names of the classes, before anything is trained: a class is the mean of the five ImageNet classes
whose names are most like its own by a sentence encoder.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import torch
from experiments.cifar_resnet import Images, Movements, data_folder, labels_of, whole
from experiments.common import evenly
from torch.nn import functional

import stockpot
from experiments import efficientnet_lite, sst2_minilm

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
SHIFTS = ("art_painting", "cartoon", "sketch")
SIZE = 128
N_SHIFT = 800
SPLIT_SEED = 0
N_NEAREST, TEMPERATURE = 5, 0.05
"""Of the zero-shot head: ImageNet classes for each class, and how sharply the nearest count."""
PROMPT = "a photo of a {}"
"""How a name is shown to the encoder; of four such, best on held-out photographs of the base."""

MOVEMENTS = Movements(pixels=8)
"""What all runs train with, and what the BatchNorm policy `recalibrated` runs on."""


def data_sets(data: Path, *, size: int = SIZE, device: str = "cpu") -> dict[str, Images]:
    """The data sets by name; every first part of each holds the classes in their shares."""
    photo = data / "pacs" / "photo.npz"
    labels = labels_of(photo)
    order = evenly(labels, seed=SPLIT_SEED)
    fifth = len(order) // 5
    parts = {
        "train": order[2 * fifth :],
        "held-out": order[fifth : 2 * fifth],
        "test": order[:fifth],
    }
    sets = {
        name: Images(photo, part, labels[part], size=size, device=device)
        for name, part in parts.items()
    }
    for name in SHIFTS:
        file = data / "pacs" / f"{name}.npz"
        labels = labels_of(file)
        part = evenly(labels, seed=SPLIT_SEED)[:N_SHIFT]
        sets[name] = Images(file, part, labels[part], size=size, device=device)
    return sets


def task() -> stockpot.ClassificationTask:
    """The task, from the folder that `STOCKPOT_DATA` names."""
    return make_task(device=os.environ.get("STOCKPOT_DEVICE", "cpu"))


def make_task(
    data: str | os.PathLike[str] | None = None, *, size: int = SIZE, device: str = "cpu"
) -> stockpot.ClassificationTask:
    """The task on images of `size` × `size` pixels, held on `device`."""
    sets = data_sets(data_folder(data), size=size, device=device)
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
