"""Weights in fp8 with a scale for each block, seen as the bfloat16 ones that they stand for.

`w` of type F8_E4M3 or F8_E5M2 stands beside `w_scale_inv` or `w_scale`: one number, one for each
row, or one for each block, by which the values are multiplied (DeepSeek-V3, and transformers'
`quant_method: fp8`). A mean of scaled integers means nothing; one of these values does, and
what quantising lost is not had back by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stockpot.formats.base import Checkpoint
from stockpot.mixing.reconcile import PartlyMade
from stockpot.tensors.rounding import narrow, widen
from stockpot.tensors.spec import DType, TensorSpec

_SUFFIXES = ("_scale_inv", "_scale")
_BLOCK = (128, 128)
_MAX_CONFIG = 1 << 22
_FORMATS = {DType.F8_E4M3: (4, 7), DType.F8_E5M2: (5, 15)}
"""Bits of the exponent, and its bias."""


@dataclass(frozen=True)
class _Scaled:
    """A weight of (rows, columns), and what multiplies it: a number for each (height, width)."""

    scale: str
    block: tuple[int, int]


class DequantisedCheckpoint(PartlyMade):
    """A checkpoint whose weights in fp8 are read as bfloat16; their scales are left out."""

    def __init__(self, source: Checkpoint, scaled: Mapping[str, _Scaled]) -> None:
        note = f"{len(scaled)} weights in fp8 are read as bfloat16, multiplied by their scales"
        super().__init__(
            source,
            {name: replace(source[name], dtype=DType.BF16) for name in scaled},
            left_out={one.scale for one in scaled.values()},
            notes=(note,),
        )
        self._scaled = dict(scaled)

    def over(self, source: Checkpoint) -> DequantisedCheckpoint:
        """The same of another copy of its source."""
        return DequantisedCheckpoint(source, self._scaled)

    def make(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """See `PartlyMade.make`."""
        found = self._scaled[name]
        first, last = start // 2, -(-stop // 2)
        spec, scale = self.source[name], self.source[found.scale]
        values = _TABLES[spec.dtype][self.source.reader(name)(first, last)]
        scales = widen(self.source.raw(found.scale).view(scale.dtype.storage), scale.dtype.value)
        width = spec.shape[-1]
        at = np.arange(first, last)
        across = -(-width // found.block[1])
        factors = scales[at // width // found.block[0] * across + at % width // found.block[1]]
        made = narrow(values * factors, "BF16").view(np.uint8)
        return made[start - 2 * first : stop - 2 * first]


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with its weights in fp8 as bfloat16; itself where it has none with a scale."""
    scaled = fp8_weights(checkpoint)
    return DequantisedCheckpoint(checkpoint, scaled) if scaled else checkpoint


def fp8_weights(checkpoint: Checkpoint) -> dict[str, _Scaled]:
    """The weights in fp8 that have scales, with these."""
    blocks = [_BLOCK, *([] if (own := _configured(checkpoint)) is None else [own])]
    found = {}
    for name, spec in checkpoint.items():
        if spec.dtype not in _FORMATS or len(spec.shape) != 2 or 0 in spec.shape:
            continue
        for suffix in _SUFFIXES:
            scale = checkpoint.get(name + suffix)
            block = None if scale is None else _block(spec, scale, blocks)
            if scale is not None and block is not None:
                found[name] = _Scaled(scale.name, block)
                break
    return found


def _block(
    spec: TensorSpec, scale: TensorSpec, blocks: list[tuple[int, int]]
) -> tuple[int, int] | None:
    """How many rows and columns share a scale; None where that cannot be told."""
    rows, columns = spec.shape
    if not scale.dtype.mixable:
        return None
    if scale.numel == 1:
        return rows, columns
    if scale.shape in ((rows,), (rows, 1)):
        return 1, columns
    for height, width in reversed(blocks):
        if scale.shape == (-(-rows // height), -(-columns // width)):
            return height, width
    return None


def _configured(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """The size of a block by the `config.json` beside the weights."""
    path = Path(checkpoint.folder) / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CONFIG:
            return None
        height, width = json.loads(path.read_bytes())["quantization_config"]["weight_block_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    sizes = type(height) is int and type(width) is int and min(height, width) > 0
    return (height, width) if sizes else None


def _table(exponent_bits: int, bias: int, dtype: DType) -> npt.NDArray[np.float64]:
    """The values of all 256 bytes."""
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    values = np.where(
        exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias)
    )
    top = exponent == (1 << exponent_bits) - 1
    if dtype is DType.F8_E5M2:  # as IEEE has it
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where(codes & 0x7F == 0x7F, np.nan, values)
    signed: npt.NDArray[np.float64] = np.where(codes & 0x80, -values, values)
    return signed


_TABLES = {dtype: _table(*bits, dtype) for dtype, bits in _FORMATS.items()}
