"""How accelerators round."""

from __future__ import annotations

import torch

__all__ = ["whole_float32"]


def whole_float32() -> None:
    """Multiply float32 as it is, on accelerators too: TF32 would round logits to some 10 bits.

    A module of its own, because functions of a script that is run are sent to its workers by value,
    and switches of torch cannot be sent.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
