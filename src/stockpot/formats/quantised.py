"""Weights that were quantised, told by their names: codes, of which no mean is one of weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stockpot.tensors.spec import DType, TensorSpec

BEFORE_CODES = "the checkpoints as they were before, averaged and quantised again"

_CODES = re.compile(r"(^|\.)(weight|qweight|qzeros|weight_packed|W_q)$")
_BITSANDBYTES = re.compile(r"\.(absmax|quant_map|nested_absmax|SCB)$|\.quant_state\.")
_METHODS = (
    (re.compile(r"\.qweight$"), "GPTQ or AWQ"),
    (_BITSANDBYTES, "bitsandbytes"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors"),
    (re.compile(r"\.W_q$"), "HQQ"),
)
_WHOLE = frozenset({DType.U8, DType.I8, DType.I16, DType.I32, DType.I64})


def is_code(spec: TensorSpec) -> bool:
    """Whether a tensor of integers holds codes of weights, or what belongs to them.

    >>> is_code(TensorSpec("h.0.qweight", DType.I32, (4, 8)))
    True
    >>> is_code(TensorSpec("h.0.position_ids", DType.I64, (8,)))
    False
    """
    named = _CODES.search(spec.name) or _BITSANDBYTES.search(spec.name)
    return spec.dtype in _WHOLE and named is not None


def note_of(specs: Iterable[TensorSpec]) -> str | None:
    """One sentence where weights are quantised, by which library if their names show it."""
    listed = [*specs]
    codes = [spec for spec in listed if is_code(spec)]
    if not codes:
        return None
    found = (how for part, how in _METHODS if any(part.search(spec.name) for spec in listed))
    how = next(found, "integers")
    return f"its weights are quantised ({how}), and are not averaged: take {BEFORE_CODES}"
