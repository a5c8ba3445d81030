"""What every reader of a checkpoint format must do, as checks that raise AssertionError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from stockpot.errors import TensorNotFoundError
from stockpot.formats.base import Checkpoint
from stockpot.formats.memory import from_state_dict

if TYPE_CHECKING:
    import torch


Open: TypeAlias = Callable[[], Checkpoint]
ReaderCheck: TypeAlias = "Callable[[Open, Mapping[str, torch.Tensor]], None]"


def sample_tensors(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors that a format must hold: usual dtypes, 0-d, empty, longer than 1 MiB, odd lengths.

    Names are in no order. The same for the same `seed`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.1.weight": torch.randn(300, 1001, generator=generator),
        "layer.0.weight": torch.randn(7, 3, generator=generator).to(torch.bfloat16),
        "half": torch.randn(5, generator=generator).to(torch.float16),
        "double": torch.randn(2, 1, 2, generator=generator, dtype=torch.float64),
        "num_batches_tracked": torch.tensor(2**40 + seed),
        "scale": torch.tensor(0.5),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(11, dtype=torch.uint8),
        "ganz.schön": torch.tensor([-1, 1], dtype=torch.int32),
    }


def reader_conformance(
    open_checkpoint: Open, expected: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Run every check of `READER_CHECKS` on a checkpoint that holds exactly `expected`.

    Args:
        open_checkpoint: opens it; called several times.
        expected: what was written, by default `sample_tensors()`. Tensors that share their storage
            must come back tied if the format can say so.

    Raises:
        AssertionError: naming the check that failed, and how.

    >>> from stockpot.formats.memory import from_state_dict
    >>> reader_conformance(lambda: from_state_dict(sample_tensors()))
    """
    tensors = sample_tensors() if expected is None else expected
    for check in READER_CHECKS:
        try:
            check(open_checkpoint, tensors)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def _require(condition: bool, message: str) -> None:
    # Not an assert statement: those vanish under python -O.
    if not condition:
        raise AssertionError(message)


def specs_are_those_written(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """Names, shapes and dtypes are those that were written, and the mapping is whole."""
    found, wanted = open_it(), from_state_dict(expected)
    _require(set(found) == set(wanted), f"names differ: {sorted(set(found) ^ set(wanted))}")
    _require(len(found) == len(list(found)), "the length is not the number of names")
    for name, spec in found.items():
        _require(spec == wanted[name], f"{spec} is not {wanted[name]}")
        _require(name in found, f"{name!r} is iterated over and not contained")


def raw_bytes_are_those_written(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """`raw` gives the bytes in one dimension, and nobody can change them."""
    found, wanted = open_it(), from_state_dict(expected)
    for name, spec in found.items():
        raw = found.raw(name)
        _require(raw.dtype == np.uint8 and raw.ndim == 1, f"raw({name!r}) is not flat bytes")
        _require(raw.size == spec.nbytes, f"raw({name!r}) has {raw.size} bytes, not {spec.nbytes}")
        _require(not raw.flags.writeable or raw.size == 0, f"raw({name!r}) can be written to")
        _require(np.array_equal(raw, wanted.raw(name)), f"raw({name!r}) differs")


def read_gives_fresh_tensors(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """`read` gives the stored dtype and shape, in memory that is the caller's own."""
    import torch

    found = open_it()
    for name, tensor in expected.items():
        first = found.read(name)
        _require(first.dtype == tensor.dtype, f"{name!r} has dtype {first.dtype}")
        _require(torch.equal(first, tensor.cpu()), f"the values of {name!r} differ")
        first.zero_()
        _require(torch.equal(found.read(name), tensor.cpu()), f"{name!r} is shared between reads")


def unknown_names_are_refused(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """A name that is not there raises TensorNotFoundError, which names it and the path."""
    found, name = open_it(), "no such tensor"
    for attempt in (found.__getitem__, found.raw, found.read):
        try:
            attempt(name)
        except TensorNotFoundError as error:
            _require(error.name == name, "the error does not carry the name")
            _require(found.path in str(error), "the error does not say where")
        else:
            raise AssertionError(f"{attempt.__name__} accepts an unknown name")
    _require(found.get(name) is None, "get does not return None for an unknown name")
    _require(name not in found, "an unknown name is contained")


def fingerprint_is_of_the_content(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """The fingerprint is that of the same tensors in memory, each time it is opened."""
    wanted = from_state_dict(dict(sorted(expected.items()))).fingerprint
    for _ in range(2):
        _require(open_it().fingerprint == wanted, "the fingerprint depends on the format")


def tied_names_read_the_same(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """Groups of tied names are sorted and disjoint, hold equal values, and count once."""
    found = open_it()
    flat = [name for group in found.tied for name in group]
    _require(len(flat) == len(set(flat)), "a name is in two groups")
    for group in found.tied:
        _require(len(group) > 1 and list(group) == sorted(group), f"{group} is no sorted group")
        first = found.raw(group[0])
        _require(all(np.array_equal(first, found.raw(n)) for n in group), f"{group} differ")
    once = [n for n in found if not any(n in group[1:] for group in found.tied)]
    _require(found.n_bytes == sum(found[n].nbytes for n in once), "n_bytes counts otherwise")
    _require(found.n_parameters == sum(found[n].numel for n in once), "n_parameters, otherwise")


def threads_may_read_at_once(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """Four threads that read the same checkpoint get the same bytes as one."""
    found = open_it()
    names = list(found) * 8
    alone = {name: found.raw(name).tobytes() for name in found}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: found.raw(name).tobytes(), names))
    wrong = [n for n, got in zip(names, together, strict=True) if got != alone[n]]
    _require(not wrong, f"read otherwise by threads: {wrong[:3]}")


def what_is_said_is_text(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """Format, path, notes and metadata are text, and the files exist."""
    found = open_it()
    _require(found.format != "unknown", "the reader does not name its format")
    _require(all(found.notes), "a note is empty")
    described: list[object] = [text for pair in found.metadata.items() for text in pair]
    _require(all(isinstance(text, str) for text in described), "metadata is not text")
    _require(found.path in repr(found), "repr does not say the path")
    _require(all(Path(file.path).is_file() for file in found.files), "a file does not exist")


def identity_is_not_content(open_it: Open, expected: Mapping[str, torch.Tensor]) -> None:
    """Two openings are different objects: they can be keys of one dictionary."""
    one, other = open_it(), open_it()
    _require(one != other, "checkpoints are compared by content")
    _require(len({one: 1, other: 2}) == 2, "checkpoints are hashed by content")


READER_CHECKS: tuple[ReaderCheck, ...] = (
    specs_are_those_written,
    raw_bytes_are_those_written,
    read_gives_fresh_tensors,
    unknown_names_are_refused,
    fingerprint_is_of_the_content,
    tied_names_read_the_same,
    threads_may_read_at_once,
    what_is_said_is_text,
    identity_is_not_content,
)
"""Every check, to be run one by one: each takes the opener and the tensors that were written."""
