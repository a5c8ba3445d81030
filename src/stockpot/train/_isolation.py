"""Running with seeds and devices of one's own, and leaving the process as it was."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from stockpot.errors import TrainingError
from stockpot.tensors._devices_torch import (
    accelerator_here,
    random_states,
    set_random_states,
)


def seed_for(seed: int, *path: str | int) -> int:
    """A seed below 2⁶³ for one purpose (`path`) of the run with `seed`; a pure function.

    >>> seed_for(0, "order", 1) == seed_for(0, "order", 1)
    True
    >>> seed_for(0, "order", 1) == seed_for(0, "order", 2)
    False
    """
    text = "\0".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; dropout and data sets use them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (data sets that use it are the reason)
    torch.manual_seed(seed)


def get_randomness() -> dict[str, Any]:
    """States of those generators, of types that `torch.load(weights_only=True)` accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    numpy_keys = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, numpy_keys, position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "accelerator": random_states(accelerator_here()),
    }


def set_randomness(state: dict[str, Any]) -> None:
    """Put back what `get_randomness` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    # Runs that 0.1 began say "cuda".
    set_random_states(accelerator_here(), state.get("accelerator", state.get("cuda", [])))


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeded global generators inside, the caller's own states again outside."""
    before = get_randomness()
    try:
        seed_everything(seed)
        yield
    finally:
        set_randomness(before)


@contextmanager
def accelerator(precision: str, device: str | None) -> Iterator[Any]:
    """An `accelerate.Accelerator`; its process-wide state is put back afterwards.

    Under `accelerate launch` that state is the process group, and is left alone.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared: list[dict[str, Any]] = [
        owner._shared_state for owner in (AcceleratorState, GradientState, PartialState)
    ]
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    before = [dict(state) for state in shared]
    if not launched:
        for state in shared:
            state.clear()
    try:
        made = Accelerator(
            cpu=device is not None and torch.device(device).type == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
        )
        if device is not None and made.device.type != torch.device(device).type:
            raise TrainingError(f"device {device!r} is not here; accelerate found {made.device}")
        yield made
    finally:
        if not launched:
            for state, values in zip(shared, before, strict=True):
                state.clear()
                state.update(values)
