"""The compiled sums: the same bits as NumPy's on any input, and absent without harm."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tensors.oracle import STORAGE, Block

from stockpot.tensors import compiled
from stockpot.tensors.sums import Unrepresentable, mix

TYPES = ("BF16", "F16", "F32")
needs_compiler = pytest.mark.skipif(
    not compiled.available("F32", "F32"), reason="this copy was installed without a C compiler"
)


def any_bits(dtype: str, n: int, generator: np.random.Generator) -> Block:
    size = np.dtype(STORAGE[dtype]).itemsize
    bits: npt.NDArray[np.unsignedinteger] = generator.integers(
        0, 2 ** (8 * size), n, dtype=np.dtype(f"u{size}")
    )
    return bits.view(STORAGE[dtype])


def by_numpy(blocks: list[Block], weights: list[float], dtype: str, out_dtype: str) -> Block | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "available", lambda *_: False)
        try:
            return mix(blocks, weights, dtype=dtype, out_dtype=out_dtype)
        except Unrepresentable:
            return None


def by_compiled(
    blocks: list[Block], weights: list[float], dtype: str, out_dtype: str
) -> Block | None:
    try:
        return mix(blocks, weights, dtype=dtype, out_dtype=out_dtype)
    except Unrepresentable:
        return None


@needs_compiler
@pytest.mark.parametrize("out_dtype", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 40), st.booleans(), st.integers(0, 2**32))
def test_any_bits_give_what_numpy_gives(
    dtype: str, out_dtype: str, k: int, n: int, uniform: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    blocks = [any_bits(dtype, n, generator) for _ in range(k)]
    weights = [1 / k] * k if uniform else generator.normal(0.3, 1, k).tolist()
    # One number at a time, so that one that is refused does not hide the others.
    for i in range(n):
        column = [block[i : i + 1] for block in blocks]
        found = by_compiled(column, weights, dtype, out_dtype)
        expected = by_numpy(column, weights, dtype, out_dtype)
        assert (found is None) == (expected is None)
        assert found is None or expected is None or found.tobytes() == expected.tobytes()


@needs_compiler
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_number_of_sixteen_bits_comes_through_every_other_type(dtype: str) -> None:
    every = np.arange(1 << 16).astype(np.uint16).view(STORAGE[dtype])
    single = every.astype(np.float64) if dtype == "F16" else None
    finite = np.isfinite(single) if single is not None else (every & 0x7F80) != 0x7F80
    numbers = every[finite]
    for out_dtype in TYPES:
        for start in range(0, numbers.size, 4096):
            part = [numbers[start : start + 4096]]
            found = by_compiled(part, [0.999], dtype, out_dtype)
            expected = by_numpy(part, [0.999], dtype, out_dtype)
            assert (found is None) == (expected is None)
            assert found is None or expected is None or found.tobytes() == expected.tobytes()


@needs_compiler
@pytest.mark.parametrize("out_dtype", ["BF16", "F16"])
def test_middles_of_two_numbers_and_their_neighbours_are_rounded_once(out_dtype: str) -> None:
    """Where a step through float32 would round twice: the middles, and what lies just beside."""
    every = np.arange(0x7BFF if out_dtype == "F16" else 0x7F7F, dtype=np.uint16)
    wide = (
        every.view(np.float16).astype(np.float64)
        if out_dtype == "F16"
        else (every.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    )
    middle = (wide[:-1] + wide[1:]) / 2
    near = np.concatenate([middle, -middle]).astype(np.float32)
    keep = near.astype(np.float64) == np.concatenate([middle, -middle])
    ones = near[keep]
    for weight in (1 - 2**-40, 1 + 2**-40):
        blocks = [ones, np.zeros_like(ones)]
        found = by_compiled(blocks, [weight, 0.5], "F32", out_dtype)
        expected = by_numpy(blocks, [weight, 0.5], "F32", out_dtype)
        assert found is not None
        assert expected is not None
        assert found.tobytes() == expected.tobytes()


@needs_compiler
@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 5000])
def test_lengths_around_a_tile(n: int) -> None:
    generator = np.random.default_rng(n)
    blocks = [generator.normal(size=n).astype(np.float32) for _ in range(3)]
    found = by_compiled(blocks, [1 / 3] * 3, "F32", "F32")
    expected = by_numpy(blocks, [1 / 3] * 3, "F32", "F32")
    assert found is not None
    assert expected is not None
    assert found.tobytes() == expected.tobytes()


@needs_compiler
def test_blocks_and_results_may_lie_anywhere() -> None:
    memory = np.zeros(4 * 1001 + 1, np.uint8)
    block = memory[1:].view(np.float32)
    block[:] = np.arange(1001)
    out = np.empty(4 * 1001 + 1, np.uint8)[1:].view(np.float32)
    assert compiled.mix([block, block[::-1]], None, out, dtype="F32", out_dtype="F32")
    assert (out == 500).all()


@needs_compiler
def test_a_result_that_it_could_not_write_is_refused() -> None:
    block = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="contiguous"):
        compiled.mix([block], None, np.ones(8, np.float32)[::2], dtype="F32", out_dtype="F32")
    with pytest.raises(ValueError, match="one length"):
        compiled.mix([block], None, np.ones(5, np.float32), dtype="F32", out_dtype="F32")


def test_types_that_it_does_not_know_are_not_available() -> None:
    assert not compiled.available("F64", "F64")
    with pytest.raises(RuntimeError, match="F64"):
        compiled.mix([np.ones(1)], None, np.ones(1), dtype="F64", out_dtype="F64")


def test_without_the_library_numpy_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setattr(compiled, "_loaded", compiled._loaded.__wrapped__)
    assert not compiled.available("F32", "F32")
    blocks = [np.float32([1, 2]), np.float32([3, 5])]
    assert mix(blocks, [0.5, 0.5], dtype="F32", out_dtype="F32").tolist() == [2.0, 3.5]


def test_a_mapped_file_that_is_cut_short_reads_as_zeros_where_it_is_guarded(tmp_path: Path) -> None:
    if compiled._loaded("guard") is None:
        pytest.skip("not compiled")
    program = """
import mmap, os, signal, sys
from stockpot.tensors.compiled import guarded
path = sys.argv[1]
with open(path, "wb") as file:
    file.write(b"x" * 1_000_000)
with open(path, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
with guarded(), guarded():
    os.truncate(path, 4096)
    assert mapped[:2] == b"xx"
    assert mapped[999_990:] == bytes(10)
    assert mapped[5000:5002] == bytes(2)
print("alive", flush=True)
mapped[500_000]
print("not reached", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        env={**os.environ, "PYTHONPATH": str(Path(compiled.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == -signal.SIGBUS
