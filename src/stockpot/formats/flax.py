"""Files of flax (`flax.serialization.msgpack_serialize`), mapped: no array is copied to be found.

The file is one value of MessagePack: dictionaries within dictionaries, and arrays as extension 1,
whose bytes are another value, (shape, name of the type, values). Arrays above 1 GiB are
dictionaries of chunks. Format: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.format import Format
from stockpot.formats.mapped import Run, RunsCheckpoint, joined, parted
from stockpot.formats.output import OutputPlan, OutputRequest, PlannedFile
from stockpot.io.paths import natural_key
from stockpot.io.storage import MappedFile
from stockpot.tensors.spec import TensorSpec, parse_dtype

MAX_VALUES = 500_000
"""Values that any file may hold beside its arrays' bytes; a tensor takes about ten."""
BYTES_PER_VALUE = 16
"""A larger file may hold one more for so many bytes: a value takes up to 120 once it is read."""

_MAX_DEPTH = 64
_MAX_TEXT = 1 << 16
_MAX_PARTS = _MAX_DEPTH - 3
"""Of a name: an array holds a list with the list of its sizes."""
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY = 1
_MAX_EXTENSION = 0xFFFFFFFF
_TRAINING = ("opt_state", "optimizer", "optimizer_state", "step", "rng", "rngs", "key", "epoch")
"""What a train state has beside `params` and `batch_stats`."""


class _DamagedError(Exception):
    """Why the bytes are no such file; the caller knows which."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array in the file; `runs` are (first byte, bytes)."""

    dtype: str
    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]


class _Reader:
    """The values of a file of MessagePack, one after the other; it has state as it moves on."""

    def __init__(self, data: npt.NDArray[np.uint8], at: int = 0, end: int | None = None) -> None:
        self.data = data.data
        self.at = at
        self.end = len(self.data) if end is None else end
        self.left = MAX_VALUES + len(self.data) // BYTES_PER_VALUE

    def take(self, n: int) -> int:
        """Where the next `n` bytes begin."""
        at = self.at
        if n > self.end - at:
            raise _DamagedError(f"{n} bytes are announced, {self.end - at} follow (cut off?)")
        self.at += n
        return at

    def number(self, n: int) -> int:
        return int.from_bytes(self.data[self.take(n) : self.at], "big")

    def text(self, n: int) -> str:
        if n > _MAX_TEXT:
            raise _DamagedError(f"a text of {n} bytes, at most {_MAX_TEXT} are read")
        try:
            return str(self.data[self.take(n) : self.at], "utf-8")
        except UnicodeDecodeError:
            raise _DamagedError("a text is not UTF-8") from None

    def value(self, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _MAX_DEPTH:
            raise _DamagedError("it holds too many values, or nests them too deeply")
        code = self.number(1)
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0x90:
            return self.mapping(code & 15, depth)
        if code < 0xA0:
            return self.sequence(code & 15, depth)
        if code < 0xC0:
            return self.text(code & 31)
        return self.long(code, depth)

    def long(self, code: int, depth: int) -> Any:
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in (0xC4, 0xC5, 0xC6):  # bytes, by their place
            n = self.number(1 << (code - 0xC4))
            return range(at := self.take(n), at + n)
        if code in (0xC7, 0xC8, 0xC9):
            return self.extension(self.number(1 << (code - 0xC7)), depth)
        if code in (0xCA, 0xCB):
            n = 4 << (code - 0xCA)
            kind = ">f" if n == 4 else ">d"
            return struct.unpack(kind, self.data[self.take(n) : self.at])[0]
        if 0xCC <= code <= 0xD3:
            n = 1 << ((code - 0xCC) & 3)
            signed = code >= 0xD0
            return int.from_bytes(self.data[self.take(n) : self.at], "big", signed=signed)
        if 0xD4 <= code <= 0xD8:
            return self.extension(1 << (code - 0xD4), depth)
        if code in (0xD9, 0xDA, 0xDB):
            return self.text(self.number(1 << (code - 0xD9)))
        if code in (0xDC, 0xDD):
            return self.sequence(self.number(2 << (code - 0xDC)), depth)
        if code in (0xDE, 0xDF):
            return self.mapping(self.number(2 << (code - 0xDE)), depth)
        raise _DamagedError(f"byte {self.at - 1} is {code:#x}, which begins no value")

    def sequence(self, n: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(n)]

    def mapping(self, n: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth + 1)
            if not isinstance(key, str | int) or str(key) in found:
                raise _DamagedError("a dictionary has a name that is no text, or one twice")
            found[str(key)] = self.value(depth + 1)
        return found

    def extension(self, n: int, depth: int) -> Any:
        kind, end = self.number(1), self.at + n
        begin = self.take(n)
        if kind != _ARRAY:
            return None  # a complex number, or a scalar of NumPy
        inner = _Reader(np.frombuffer(self.data, np.uint8), begin, end)
        inner.left = self.left
        found = inner.value(depth + 1)
        self.left = inner.left
        shape, dtype, at = found if isinstance(found, list) and len(found) == 3 else ((), "", None)
        if not isinstance(at, range) or not isinstance(dtype, str) or not isinstance(shape, list):
            raise _DamagedError("an array lacks its shape, its type or its values")
        return _Stored(dtype, _sizes(shape), ((at.start, len(at)),))


def _sizes(values: list[Any]) -> tuple[int, ...]:
    if len(values) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise _DamagedError("a shape holds what is no size")
    return tuple(values)


def _arrays(root: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Stored]]:
    """Every array under `root`, chunked ones put together."""
    if isinstance(root, _Stored):
        yield path, root
    elif isinstance(root, list):
        for i, value in enumerate(root):
            yield from _arrays(value, (*path, str(i)))
    elif isinstance(root, dict) and _CHUNKED in root:
        shape, chunks = root.get("shape"), root.get("chunks")
        listed = [*chunks.values()] if isinstance(chunks, dict) else []
        if not isinstance(shape, dict) or not all(isinstance(c, _Stored) for c in listed):
            raise _DamagedError("a chunked array lacks its shape or its chunks")
        runs = tuple(run for chunk in listed for run in chunk.runs)
        yield path, _Stored(listed[0].dtype if listed else "", _sizes([*shape.values()]), runs)
    elif isinstance(root, dict):
        for key, value in root.items():
            yield from _arrays(value, (*path, key))


class FlaxFile(RunsCheckpoint):
    """The arrays of a file of flax, without the training state beside its parameters."""

    format = "flax"

    def __init__(self, file: MappedFile, *, key: str | None = None) -> None:
        try:
            reader = _Reader(file.bytes())
            root = reader.value()
            if reader.at != file.size:
                raise _DamagedError(f"{file.size - reader.at} bytes follow its value")
            section, left_out = _section(root, key)
            arrays = dict(_arrays(section))
            names, _ = joined([*arrays])
            if not names or len(set(names)) < len(names) or "" in names:
                raise _DamagedError("it holds no arrays that have names of their own")
            specs = [_spec(*one) for one in zip(names, arrays.values(), strict=True)]
        except (_DamagedError, RecursionError) as reason:
            raise CheckpointFormatError(f"{file.path} is no valid file of flax: {reason}") from None
        self._runs = {
            name: [Run(file, at, n) for at, n in one.runs]
            for name, one in zip(names, arrays.values(), strict=True)
        }
        notes = [f"left out, of the training state: {', '.join(left_out)}"] if left_out else []
        super().__init__(
            file.path,
            {spec.name: spec for spec in specs},
            notes=tuple(notes),
            files=(file.id,),
            section=key or "",
        )


def _section(root: Any, key: str | None) -> tuple[Any, list[str]]:
    """The dictionary with the parameters, and what lies beside it."""
    if key is not None:
        for part in key.split("."):
            if not isinstance(root, dict) or part not in root:
                raise _DamagedError(f"it has nothing at key {key[:200]!a}")
            root = root[part]
        return root, []
    if not isinstance(root, dict) or "params" not in root:
        return root, []
    left_out = [name for name in root if name in _TRAINING]
    return {name: value for name, value in root.items() if name not in left_out}, left_out


def _spec(name: str, stored: _Stored) -> TensorSpec:
    try:
        dtype = parse_dtype(stored.dtype)
    except ValueError:
        raise _DamagedError(
            f"array {name[:200]!a} has the type {stored.dtype[:40]!a}, not supported"
        ) from None
    spec = TensorSpec(name, dtype, stored.shape)
    found = sum(n for _, n in stored.runs)
    if math.prod(stored.shape) * dtype.bits // 8 != found:
        raise _DamagedError(f"array {name[:200]!a} has {found} bytes, expected {spec.nbytes}")
    return spec


class Flax(Format):
    """What `flax.serialization.to_bytes` and transformers' Flax models write."""

    name = "flax"
    summary = "a file of flax (msgpack)"
    suffixes = (".msgpack",)
    in_folders = ("flax_model.msgpack", "diffusion_flax_model.msgpack")
    writes = True
    kept_in_folders = True
    side_files = "what is no training state: `params` and `batch_stats`"
    remedy = "one in shards comes out as one file"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its suffix: any bytes may begin such a file."""
        return path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> FlaxFile:
        """The arrays under `key`, or all but the training state."""
        return FlaxFile(MappedFile(path), key=key)

    def plan(self, request: OutputRequest) -> OutputPlan:
        """One file of dictionaries, as the names say; tied tensors under every name."""
        names = sorted(request.specs, key=natural_key)
        tree: dict[str, Any] = {}
        for path, name in zip(parted(names), names, strict=True):
            longest = max(len(part.encode()) for part in path)
            if len(path) > _MAX_PARTS or longest > _MAX_TEXT:
                raise CheckpointError(
                    f"{request.path}: the name {name[:80]!r}... has {len(path)} parts of up to "
                    f"{longest} bytes, and a file of flax is read with {_MAX_PARTS} parts of "
                    f"{_MAX_TEXT} at most: write .safetensors"
                )
            place: Any = tree
            for part in path[:-1]:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise CheckpointError(
                        f"{request.path}: {name} lies within a tensor, which flax has no place "
                        "for: write .safetensors"
                    )
            if path[-1] in place:
                raise CheckpointError(
                    f"{request.path}: {name} is a tensor and holds others, which flax has no "
                    "place for: write .safetensors"
                )
            place[path[-1]] = request.specs[name]
        fixed: list[tuple[int, bytes]] = []
        offsets: dict[str, int] = {}
        size = _write(tree, 0, fixed, offsets)
        file = PlannedFile(Path(request.path).name, size, offsets, tuple(fixed))
        return OutputPlan(request=request, format=self.name, files=(file,))


def _write(
    tree: Mapping[str, Any], at: int, fixed: list[tuple[int, bytes]], offsets: dict[str, int]
) -> int:
    """Lay `tree` out from byte `at` on; gives the byte behind it."""
    head = b"\xdf" + struct.pack(">I", len(tree))
    fixed.append((at, head))
    at += len(head)
    for key, value in tree.items():
        head = _text(key)
        if isinstance(value, TensorSpec):
            head += _array_head(value)
            fixed.append((at, head))
            offsets[value.name] = at + len(head)
            at += len(head) + value.nbytes
        else:
            fixed.append((at, head))
            at = _write(value, at + len(head), fixed, offsets)
    return at


def _array_head(spec: TensorSpec) -> bytes:
    """All of an array but its values."""
    if spec.dtype.torch_name is None or spec.nbytes > _MAX_EXTENSION - 1024:
        raise CheckpointError(
            f"{spec.name} is {spec.dtype.value} {spec.shape}, which a file of flax cannot hold: "
            "write .safetensors"
        )
    shape = b"\xdc" + struct.pack(">H", len(spec.shape))
    shape += b"".join(b"\xcf" + struct.pack(">Q", n) for n in spec.shape)
    inner = (
        b"\x93" + shape + _text(spec.dtype.torch_name) + b"\xc6" + struct.pack(">I", spec.nbytes)
    )
    return b"\xc9" + struct.pack(">IB", len(inner) + spec.nbytes, _ARRAY) + inner


def _text(value: str) -> bytes:
    data = value.encode()
    return b"\xdb" + struct.pack(">I", len(data)) + data
