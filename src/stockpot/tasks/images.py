"""Images as examples of a transformers model."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stockpot.errors import TaskError
from stockpot.evaluate.splits import categories_at

_CACHE_BYTES = 2**30
"""Processed images are kept in memory when a data set's take no more than this."""


class ImageData(Dataset[dict[str, Any]]):
    """Images and class indices, as dicts with `pixel_values` (C, H, W) and `labels`.

    `images` holds paths (from `base`), encoded bytes, `{"bytes", "path"}` as parquet files of
    `datasets` have them, arrays, or PIL images. Processed on first use and then kept, if small
    enough: a soup's search looks at the same images many times. `categories` are those of the
    images.
    """

    def __init__(
        self,
        images: Sequence[Any],
        labels: Sequence[int],
        processor: Any,
        *,
        base: Path,
        cache_bytes: int = _CACHE_BYTES,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.images, self.labels, self.categories = list(images), list(labels), categories
        self.processor, self.base, self.cache_bytes = processor, base, cache_bytes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = self.labels[index]
        if index in self._kept:
            return {"pixel_values": self._kept[index], "labels": label}
        image = open_image(self.images[index], self.base)
        found = self.processor(images=[image], return_tensors="pt")["pixel_values"][0]
        if found.nbytes * len(self) <= self.cache_bytes:
            self._kept[index] = found
        return {"pixel_values": found, "labels": label}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_kept"}

    @functools.cached_property
    def _kept(self) -> dict[int, torch.Tensor]:
        return {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the images as they are stored, and of the labels."""
        digest = hashlib.blake2b(digest_size=16)
        for content, label in zip(self.example_digests(), self.labels, strict=True):
            digest.update(content + label.to_bytes(8, "little", signed=True))
        return digest.hexdigest()

    def example_digests(self) -> list[bytes]:
        """One digest per image, of its stored bytes; of its pixels where there are none."""
        return list(self._digests)

    @functools.cached_property
    def _digests(self) -> list[bytes]:
        return [
            hashlib.blake2b(_stored(image, self.base), digest_size=16).digest()
            for image in self.images
        ]

    def subset(self, kept: Sequence[int]) -> ImageData:
        """The same data set with the examples at `kept` only."""
        images, labels = [self.images[i] for i in kept], [self.labels[i] for i in kept]
        return ImageData(
            images, labels, self.processor, base=self.base, cache_bytes=self.cache_bytes,
            categories=categories_at(self.categories, kept),
        )  # fmt: skip


def open_image(value: Any, base: Path) -> Any:
    """A PIL image in RGB from a path, bytes, a `{"bytes", "path"}` mapping, an array, or an image.

    Raises:
        TaskError: there is no such file, or it is no image; names it.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, np.ndarray):
        return Image.fromarray(value).convert("RGB")
    if hasattr(value, "convert"):
        return value.convert("RGB")
    data = _stored(value, base)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise TaskError(f"{_name(value, base)} is not an image") from error


def _stored(value: Any, base: Path) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value = value["path"]
    if isinstance(value, np.ndarray) or hasattr(value, "tobytes"):
        pixels = np.asarray(value)
        return f"{pixels.dtype}{pixels.shape}".encode() + pixels.tobytes()
    path = base / str(value)
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error


def _name(value: Any, base: Path) -> str:
    if isinstance(value, Mapping):
        value = value.get("path")
    return str(base / value) if isinstance(value, str) else "an example"
