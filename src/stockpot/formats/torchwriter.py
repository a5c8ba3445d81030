"""The layout of a `.pt` file, made without torch and without holding a tensor.

A torch file is a zip archive of stored (not compressed) records: a pickle that describes the
tensors, and one record per storage. All of it but the values and their checksums follows from the
specs, so it can be laid out first and filled in any order. The archive name and the dates are fixed
and the pickle is written here opcode by opcode: equal tensors give equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from stockpot.errors import CheckpointError
from stockpot.formats.base import leaders_of
from stockpot.formats.output import PlannedFile
from stockpot.formats.toolkits import Instance, Surroundings, Weights
from stockpot.formats.ziplayout import ALIGNMENT, Entry, plan_archive
from stockpot.io.paths import natural_key
from stockpot.tensors.spec import TensorSpec

_ARCHIVE = "archive"


def plan_file(
    name: str,
    specs: Mapping[str, TensorSpec],
    tied: Iterable[Sequence[str]] = (),
    *,
    around: Surroundings | None = None,
) -> PlannedFile:
    """The plan of a file that `torch.load(weights_only=True)` reads as an `OrderedDict`.

    Tensors come in natural order, contiguous; the names of a tied group share one storage,
    whose offset stands under the group's first name.

    Raises:
        CheckpointError: torch has no tensors of some type in it, or a name belongs to none of the
            dictionaries that `around` has a place for.
    """
    ordered = [specs[key] for key in sorted(specs, key=natural_key)]
    for spec in ordered:
        if spec.dtype.torch_name is None:
            raise CheckpointError(
                f"{spec.name} is {spec.dtype}, which torch files cannot hold: write .safetensors"
            )
    if around is not None:
        _refuse_homeless(ordered, around)
    owner = leaders_of(tied)
    stored = [spec for spec in ordered if owner.get(spec.name, spec.name) == spec.name]
    keys = {spec.name: str(i) for i, spec in enumerate(stored)}
    of = {key: keys[owner.get(key, key)] for key in specs}
    root = _state_dict(ordered, of) if around is None else _value(around.root, (ordered, of))
    pickled = b"\x80\x02" + root + b"."
    members = [
        Entry("data.pkl", pickled),
        Entry(".format_version", b"1"),
        Entry(".storage_alignment", str(ALIGNMENT).encode()),
        Entry("byteorder", b"little"),
        *(Entry(f"data/{keys[one.name]}", b"", one.name, one.nbytes) for one in stored),
        Entry("version", b"3\n"),
    ]
    return plan_archive(name, [replace(one, name=f"{_ARCHIVE}/{one.name}") for one in members])


def _refuse_homeless(specs: Iterable[TensorSpec], around: Surroundings) -> None:
    """Raise for tensors that would not be written, because no part of the file takes them."""
    prefixes = tuple(_prefixes(around.root))
    homeless = [spec.name for spec in specs if not spec.name.startswith(prefixes)]
    if homeless:
        named = ", ".join(repr(name[:200]) for name in homeless[:3])
        raise CheckpointError(
            f"{named}{', ...' if homeless[3:] else ''} belong{'s' * (len(homeless) == 1)} to no "
            f"part of the dictionary around the weights, whose names begin with "
            f"{', '.join(repr(one[:200]) for one in prefixes[:10])}: write .safetensors, or keep "
            "the beginnings of the names"
        )


def _prefixes(value: object) -> Iterator[str]:
    """Of all `Weights` in a value of `Surroundings.root`."""
    if isinstance(value, Weights):
        yield value.prefix
    inner: Iterable[object] = ()
    if isinstance(value, Instance):
        inner = (value.items, value.state)
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    for one in inner:
        yield from _prefixes(one)


_State: TypeAlias = tuple[Sequence[TensorSpec], Mapping[str, str]]


def _state_dict(specs: Sequence[TensorSpec], keys: Mapping[str, str], prefix: str = "") -> bytes:
    """`OrderedDict(name → tensor)` pickled in protocol 2, with the opcodes that torch allows.

    Of the names that begin with `prefix`, which they lose.
    """
    parts = [_global("collections", "OrderedDict"), b")R("]
    for spec in specs:
        if spec.name.startswith(prefix):
            parts += [_text(spec.name[len(prefix) :]), _tensor(spec, keys[spec.name])]
    return b"".join([*parts, b"u"])


def _value(value: object, state: _State) -> bytes:
    """A value of `Surroundings.root`, with the tensors of `state` where the weights go."""
    if isinstance(value, Weights):
        return _state_dict(*state, value.prefix)
    if isinstance(value, Instance):
        module, _, name = value.origin.rpartition(".")
        made = _global(module, name) + b")\x81"
        made += _items(value.items, state)
        return made + (_value(value.state, state) + b"b" if value.state else b"")
    if isinstance(value, dict):
        return b"}" + _items(value, state)
    if isinstance(value, list):
        return b"](" + b"".join(_value(item, state) for item in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(_value(item, state) for item in value) + b"t"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return _int(value) if isinstance(value, int) else _text(str(value))


def _items(items: Mapping[Any, Any], state: _State) -> bytes:
    if not items:
        return b""
    pairs = (_value(key, state) + _value(item, state) for key, item in items.items())
    return b"(" + b"".join(pairs) + b"u"


def _tensor(spec: TensorSpec, key: str) -> bytes:
    strides, step = [], 1
    for size in reversed(spec.shape):
        strides.append(step)
        step *= max(size, 1)
    typed = spec.dtype.torch_storage
    storage = [
        _text("storage"),
        _global("torch", typed) if typed else _global("torch.storage", "UntypedStorage"),
        _text(key),
        _text("cpu"),
        _int(spec.numel if typed else spec.nbytes),
    ]
    arguments = [
        b"(" + b"".join(storage) + b"tQ",
        _int(0),
        b"(" + b"".join(map(_int, spec.shape)) + b"t",
        b"(" + b"".join(map(_int, reversed(strides))) + b"t",
        b"\x89",  # requires_grad=False
        _global("collections", "OrderedDict") + b")R",  # no backward hooks
    ]
    if not typed:
        arguments.append(_global("torch", str(spec.dtype.torch_name)))
    build = _global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    return build + b"(" + b"".join(arguments) + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if 0 <= value < 0x100:
        return b"K" + struct.pack("<B", value)
    if -0x80000000 <= value < 0x80000000:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(data)) + data
