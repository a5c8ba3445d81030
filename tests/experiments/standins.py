"""Tiny data folders of the same layout as the real ones."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.torch import save_file

from experiments import cifar_resnet
from stockpot.tasks.handwriting.lab import FULL

Array = npt.NDArray[np.uint8]

TINY = replace(
    FULL,
    n_train=64,
    n_held_out=60,
    n_test=40,
    n_fonts=20,
    n_base=128,
    base=replace(FULL.base, epochs=1, score_every=1),
    n_runs=3,
    epochs=(1, 1),
)
"""The handwriting lab in a few seconds; what it finds means nothing."""


def pictures(n: int, *, size: int = 32, seed: int = 0) -> tuple[Array, Array]:
    """Smooth random images sorted by class, whose mean colour depends on the class."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(n) % 10).astype(np.uint8)
    coarse = rng.integers(0, 160, (n, 4, 4, 3)).astype(np.uint8)
    coarse += (labels[:, None, None, None] * np.array([9, 5, 1])).astype(np.uint8)
    large = [Image.fromarray(c).resize((size, size), Image.Resampling.BILINEAR) for c in coarse]
    return np.stack([np.asarray(image) for image in large]), labels


def pack(file: Path, images: Array, labels: Array) -> None:
    """The packed JPEG file of these images."""
    encoded = []
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=75)
        encoded.append(out.getvalue())
    np.savez(
        file,
        jpeg=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
        labels=labels,
    )


def cifar_folder(data: Path, *, n_train: int = 60, n_test: int = 100, n_part: int = 20) -> Path:
    """`data/cifar10` with a training and a test file, originals of some test images, two shifts."""
    folder = data / "cifar10"
    folder.mkdir(parents=True)
    pack(folder / "cifar10_train_jpeg.npz", *pictures(n_train, seed=1))
    images, labels = pictures(n_test, seed=2)
    pack(folder / "cifar10_test_jpeg.npz", images, labels)
    part = np.random.default_rng(3).permutation(n_test)[:n_part]
    np.savez(
        folder / "cifar10_lossless_part.npz", test_images=images[part], test_labels=labels[part]
    )
    pack(folder / "natural_images_cifar4.npz", *pictures(12, size=30, seed=4))
    pack(folder / "cifar10_shift_tin.npz", *pictures(12, seed=5))
    return data


def resnet_folder(data: Path, depths: Sequence[int]) -> Path:
    """`data/resnet_cifar10` with ResNets of these depths, drawn at random."""
    folder = data / "resnet_cifar10"
    folder.mkdir(parents=True)
    for depth in depths:
        weights = cifar_resnet.ResNet(depth).state_dict()
        save_file(weights, folder / f"resnet{depth}.safetensors")
    return data


def pacs_folder(data: Path, *, n_photo: int = 70, n_shift: int = 28, size: int = 32) -> Path:
    """`data/pacs` with four domains of seven classes, sorted by class, and some ImageNet names."""
    folder = data / "pacs"
    folder.mkdir(parents=True)
    domains = {"photo": n_photo, "art_painting": n_shift, "cartoon": n_shift, "sketch": n_shift}
    for seed, (name, n) in enumerate(domains.items()):
        images, _ = pictures(n, size=size, seed=seed)
        pack(folder / f"{name}.npz", images, np.sort(np.arange(n) % 7).astype(np.uint8))
    names = [f"thing number {i}" for i in range(1000)]
    (folder / "imagenet_class_names.json").write_text(json.dumps(names))
    return data


def _zip(file: Path, lines: list[str], encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(encoding)))


def text_folder(data: Path) -> Path:
    """`data/text` with SST-2, CoLA, RTE and MRPC of a few sentences each."""
    text = data / "text"
    words = ["awful", "bad", "dull", "fine", "good", "great"]
    films = [f"a {w} film number {i} \t{int(j > 2)}" for i in range(5) for j, w in enumerate(words)]
    _zip(text / "sst2/train_full.tsv.gz", ["sentence\tlabel", *films, "it 's  fine \t1"])
    for name, start in (("stsa.binary.dev", 10), ("stsa.binary.test", 20), ("custrev", 30)):
        suffix = ".all" if name == "custrev" else ""
        rows = [f"{j % 2} {w} café {start + j} ." for j, w in enumerate(words)]
        _zip(text / f"sentconv/{name}{suffix}.gz", [*rows, "1 it 's fine"][: 7 - (start == 30)])
    for name, start in (("train", 0), ("val", 20), ("dev", 40)):
        rows = [f"x\t{j % 2}\t\tThe {w} one {start + j} slept." for j, w in enumerate(words)]
        _zip(text / f"cola/{name}.tsv.gz", rows)
        pairs = [
            f'{j}\tThe "{w} dog" {start + j}.\tA dog.\t{"" if j % 2 else "not_"}entailment'
            for j, w in enumerate(words)
        ]
        header = [] if name == "val" else ["index\tsentence1\tsentence2\tlabel"]
        _zip(text / f"rte/{name}.tsv.gz", [*header, *pairs])
    for name, start in (("train", 0), ("dev", 20), ("test", 40)):
        rows = [f'{j % 2}\t1\t2\t{w} " dog {start + j} .\tA dog .' for j, w in enumerate(words)]
        _zip(text / f"mrpc/{name}.tsv.gz", ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows])
    return data
