"""Which values of a tensor are exactly zero, seen in its bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stockpot.checkpoint.spec import DType

__all__ = ["nonzero"]


def nonzero(raw: npt.NDArray[np.uint8], dtype: DType) -> npt.NDArray[np.bool_]:
    """True where the elements in `raw` are neither +0.0 nor −0.0; NaN is not zero.

    >>> nonzero(np.array([1.0, -0.0, 0.0, np.nan], np.float32).view(np.uint8), DType.F32)
    array([ True, False, False,  True])
    """
    values = raw.view(dtype.storage)
    if dtype is DType.BF16:
        return np.asarray((values & np.uint16(0x7FFF)) != 0)
    return np.asarray(values != 0)
