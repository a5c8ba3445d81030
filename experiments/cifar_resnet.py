"""ResNets trained on CIFAR-10 originals, moved to its JPEG copy: the reference image task.

    stockpot evaluate resnet20.safetensors --task experiments/cifar_resnet.py:task

reads the data folder named by the environment variable `STOCKPOT_DATA` (and holds the images on the
device that `STOCKPOT_DEVICE` names, by default the CPU). Held-out and test are
disjoint parts of the JPEG test file; the shifts are the originals (`lossless`), photographs of four
of the classes (`natural`) and Tiny-ImageNet images of seven (`tiny-imagenet`). Scores on the JPEG
copy are not "CIFAR-10 accuracy": the compression costs ten points. Every run trains with small
shifts and flips, and the BatchNorm policy `recalibrated` computes statistics with them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from experiments.common import evenly
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

import stockpot

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_CLASSES = 10
N_TRAIN = 10_000
N_HELD_OUT = 4_000
N_CALIBRATION = 4_000
SPLIT_SEED = 0

Pixels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Augment = Callable[[Any, torch.Generator], Any]


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights (He et al. 2015, option A)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride, self.n_extra = stride, n_out - n_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.n_extra:
            half = self.n_extra // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, half, self.n_extra - half))
        return functional.relu(y + shortcut)


class ResNet(nn.Module):
    """ResNet of `depth` = 6 n + 2 layers for 32×32 images in 0..1 (normalised inside).

    Its three stages have `width`, twice and four times as many channels; the published ones 16.

    The normalisation is kept in buffers that are not saved, so that the names are those of the
    published checkpoints and augmentation sees ordinary images.
    """

    def __init__(self, depth: int = 20, n_classes: int = N_CLASSES, *, width: int = 16) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise ValueError(f"depth {depth} is not 6 n + 2: use 8, 14, 20, 32, 44 or 56")
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, n, 1)
        self.layer2 = _stage(width, 2 * width, n, 2)
        self.layer3 = _stage(2 * width, 4 * width, n, 2)
        self.linear = nn.Linear(4 * width, n_classes)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Channels last: a fifth faster on CPUs, the same names and shapes.
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _stage(n_in: int, n_out: int, n_blocks: int, stride: int) -> nn.Sequential:
    blocks = [Block(n_in, n_out, stride)]
    return nn.Sequential(*blocks, *(Block(n_out, n_out, 1) for _ in range(n_blocks - 1)))


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images (3, size, size) float32 in 0..1 with labels, decoded from a file on first use.

    `indices` says which examples of the file, in which order. They are held, and batches made, on
    `device`: of small images, fetching them one by one would take longer than a step. A pickled
    data set holds no pixels: a worker decodes what it needs.
    """

    def __init__(
        self,
        file: Path,
        indices: Indices,
        labels: Indices,
        *,
        key: str = "jpeg",
        device: str = "cpu",
        size: int = 32,
    ) -> None:
        self.file, self.indices, self.labels = file, indices, labels
        self.key, self.device, self.size = key, device, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pixels[index].float() / 255, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.as_tensor(indices, device=self.device)
        return self.pixels[chosen].float() / 255, self.targets[chosen]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("pixels", "targets")}

    @functools.cached_property
    def pixels(self) -> torch.Tensor:
        """All images as uint8 (n, 3, size, size)."""
        images = read_images(self.file, self.indices, key=self.key, size=self.size)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)

    @functools.cached_property
    def targets(self) -> torch.Tensor:
        """All labels as int64 (n,)."""
        return torch.from_numpy(self.labels).to(self.device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the stored bytes and labels of exactly these examples, and of another size."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels).tobytes())
        if self.size != 32:
            digest.update(f"{self.size}\0".encode())
        with np.load(self.file) as z:
            stored = z[self.key]
            offsets = z["offsets"] if self.key == "jpeg" else None
        for i in self.indices:
            one = stored[i] if offsets is None else stored[offsets[i] : offsets[i + 1]]
            digest.update(one.tobytes())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Movements:
    """Each image of a batch moved by whole pixels, at most `pixels` each way, and mirrored or not.

    What comes in from outside is 0. Without interpolation nothing is blurred, so that activations
    keep the variance that they have on the images which are scored.
    """

    pixels: int = 2
    flip: bool = True

    def __call__(self, batch: Any, generator: torch.Generator) -> Any:
        """`batch` with its images moved; draws come from `generator`, on the CPU."""
        images, *rest = batch
        n, _, height, width = images.shape
        shifts = torch.randint(-self.pixels, self.pixels + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < (0.5 if self.flip else 0.0)
        columns = torch.arange(width).repeat(n, 1)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns) + shifts[1, :, None]
        rows = torch.arange(height) + shifts[0, :, None]
        wide = functional.pad(images, (self.pixels,) * 4)
        at = torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]
        where = [(index + offset).to(images.device) for index, offset in
                 zip(at, (0, self.pixels, self.pixels), strict=True)]  # fmt: skip
        # Advanced indices on both sides of the channels come first: (N, H, W, C).
        moved = wide[where[0], :, where[1], where[2]].permute(0, 3, 1, 2).contiguous()
        return (moved, *rest)


MOVEMENTS = Movements()
"""What all runs of the sweeps train with."""


def whole(batch: Any) -> Any:
    """The batch that a data set's `__getitems__` has made already."""
    return batch


def read_images(file: Path, indices: Indices, *, key: str = "jpeg", size: int = 32) -> Pixels:
    """The images at `indices` of a packed file: uint8 (n, size, size, 3), resized if they differ.

    `key` is `"jpeg"` for encoded images, else the name of a plain array.
    """
    with np.load(file) as z:
        if key != "jpeg":
            return np.ascontiguousarray(z[key][indices])
        data, offsets = z["jpeg"].tobytes(), z["offsets"]
    from PIL import Image

    out = np.empty((len(indices), size, size, 3), np.uint8)
    for row, i in enumerate(indices):
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]])) as image:
            picture = image.convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        out[row] = np.asarray(picture)
    return out


def stratified(labels: Indices, n: int, *, seed: int) -> Indices:
    """Positions of `n` examples with every class equally often (± 1), in random order.

    The files are sorted by class, so a plain slice would hold a few classes only.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    per_class = [n // len(classes) + (i < n % len(classes)) for i in range(len(classes))]
    chosen = [
        rng.permutation(np.flatnonzero(labels == c))[:m]
        for c, m in zip(classes, per_class, strict=True)
    ]
    if any(len(c) < m for c, m in zip(chosen, per_class, strict=True)):
        raise ValueError(f"{len(labels)} examples cannot give {n} of equally many per class")
    return rng.permutation(np.concatenate(chosen)).astype(np.int64)


def jpeg_copies(
    originals: Pixels, labels: Indices, copies: Pixels, copy_labels: Indices
) -> Indices:
    """For each original image, the position of its JPEG copy: the nearest image of its class."""
    out = np.empty(len(originals), np.int64)
    for c in np.unique(labels):
        rows, columns = np.flatnonzero(labels == c), np.flatnonzero(copy_labels == c)
        a = originals[rows].reshape(len(rows), -1).astype(np.float32)
        b = copies[columns].reshape(len(columns), -1).astype(np.float32)
        distance = (b**2).sum(1)[None, :] - 2 * a @ b.T
        out[rows] = columns[distance.argmin(axis=1)]
    return out


@functools.lru_cache(maxsize=2)
def data_sets(
    data: Path, *, n_train: int = N_TRAIN, n_held_out: int = N_HELD_OUT, device: str = "cpu"
) -> dict[str, Images]:
    """The data sets of the task by name; `train` and `calibration`, a part of it, included.

    Each is in an order of which every first part holds the classes in their shares.
    Held-out loses the images whose originals are in `lossless`, so that no image both chooses and
    reports: about 3,700 of the 4,000 remain.
    """
    cifar = data / "cifar10"
    train_file, test_file = cifar / "cifar10_train_jpeg.npz", cifar / "cifar10_test_jpeg.npz"
    part_file = cifar / "cifar10_lossless_part.npz"
    with np.load(part_file) as z:
        originals, original_labels = z["test_images"], z["test_labels"].astype(np.int64)
    labels = labels_of(test_file)
    everything = np.arange(len(labels))
    copies = jpeg_copies(originals, original_labels, read_images(test_file, everything), labels)
    held_out = stratified(labels, n_held_out, seed=SPLIT_SEED)
    test = np.setdiff1d(everything, held_out)
    test = test[evenly(labels[test], seed=SPLIT_SEED)]
    held_out = held_out[~np.isin(held_out, copies)]
    train_labels = labels_of(train_file)
    train = stratified(train_labels, n_train, seed=SPLIT_SEED)
    calibration = train[:N_CALIBRATION]
    shifts = {
        "natural": cifar / "natural_images_cifar4.npz",
        "tiny-imagenet": cifar / "cifar10_shift_tin.npz",
    }
    make = functools.partial(Images, device=device)
    return {
        "train": make(train_file, train, train_labels[train]),
        "calibration": make(train_file, calibration, train_labels[calibration]),
        "held-out": make(test_file, held_out, labels[held_out]),
        "test": make(test_file, test, labels[test]),
        "lossless": make(part_file, np.arange(len(originals)), original_labels, key="test_images"),
        **{
            name: make(file, order, labels_of(file)[order])
            for name, file in shifts.items()
            for order in [evenly(labels_of(file), seed=SPLIT_SEED)]
        },
    }


def task() -> stockpot.ClassificationTask:
    """ResNet-20 on the JPEG copy of CIFAR-10, from the folder that `STOCKPOT_DATA` names."""
    return make_task(device=os.environ.get("STOCKPOT_DEVICE", "cpu"))


def make_task(
    data: str | os.PathLike[str] | None = None,
    *,
    depth: int = 20,
    width: int = 16,
    n_train: int = N_TRAIN,
    n_held_out: int = N_HELD_OUT,
    device: str = "cpu",
    augment: Augment | None = MOVEMENTS,
) -> stockpot.ClassificationTask:
    """The task for a ResNet of `depth` and `width`; `n_train` training images, all on `device`.

    `augment` is the transform of training, and of the BatchNorm policy `recalibrated`.
    """
    sets = data_sets(data_folder(data), n_train=n_train, n_held_out=n_held_out, device=device)
    roles = {"held-out": "held-out", "test": "test"}
    return stockpot.ClassificationTask(
        build=functools.partial(ResNet, depth, width=width),
        splits={
            name: stockpot.Split(part, role=roles.get(name, "shift"), fingerprint=part.fingerprint)
            for name, part in sets.items()
            if name not in ("train", "calibration")
        },
        train_set=sets["train"],
        calibration_set=sets["calibration"],
        augment=augment,
        batch_size=250,
        collate=whole,
    )


def base(data: str | os.PathLike[str] | None = None, *, depth: int = 20) -> dict[str, torch.Tensor]:
    """The published weights trained on the originals, with BatchNorm's counters added as 0."""
    from safetensors.torch import load_file

    file = data_folder(data) / "resnet_cifar10" / f"resnet{depth}.safetensors"
    model = ResNet(depth)
    model.load_state_dict(load_file(file))
    return model.state_dict()


def labels_of(file: Path) -> Indices:
    """The labels of a packed file, int64 (n,)."""
    with np.load(file) as z:
        return z["labels"].astype(np.int64)


def data_folder(data: str | os.PathLike[str] | None = None) -> Path:
    """`data`, else the folder that `STOCKPOT_DATA` names."""
    found = os.environ.get("STOCKPOT_DATA") if data is None else os.fspath(data)
    if found is None:
        raise FileNotFoundError(
            "no data folder: set STOCKPOT_DATA to it, or give --data DIR to the experiment"
        )
    if not Path(found).is_dir():
        raise FileNotFoundError(
            f"{found} is not a folder; expected the one with cifar10/ and text/"
        )
    return Path(found).resolve()
