"""Weights as NumPy arrays, whatever holds them."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Values: TypeAlias = Any
"""A NumPy array, or a torch tensor on any device."""


def as_array(values: Values) -> npt.NDArray[Any]:
    """`values` as an array, of float32 where it is narrower; exact for every floating type.

    Nothing is copied where nothing has to be, so the result is only to be read.
    """
    if not hasattr(values, "detach"):
        array = np.asarray(values)
        return array.astype(np.float32) if array.dtype == np.float16 else array
    values = values.detach().cpu()
    if values.is_floating_point() and values.element_size() < 4:
        values = values.float()
    return cast("npt.NDArray[Any]", values.numpy())
