"""The safetensors format, read in plain Python with every bound checked.

The file is `<8 bytes: n, little-endian> <n bytes: JSON header> <data>`. The JSON object maps each
name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the start of the
data, and may hold text under `__metadata__`. Tensors fill the data without hole or overlap.
Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from stockpot._records import require_modest
from stockpot._types import StrPath
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.base import Checkpoint
from stockpot.formats.format import Format
from stockpot.formats.output import OutputPlan, OutputRequest, PlannedFile
from stockpot.io.objects import RemoteFile
from stockpot.io.storage import MappedFile
from stockpot.tensors.spec import DType, TensorSpec

MAX_HEADER_BYTES = 100_000_000
"""Longest header of the format, as in its reference implementation."""

MAX_DIMENSIONS = 64
"""More than any framework can hold; keeps the product of a shape small."""

_MAX_INT = 2**63 - 1
_METADATA = "__metadata__"
_DTYPES: dict[str, DType] = {dtype.value: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a safetensors file says.

    `offsets` are counted from the start of the *file*; `specs` are in the order of the data.
    """

    specs: dict[str, TensorSpec]
    offsets: dict[str, int]
    metadata: dict[str, str]


class _DamagedError(Exception):
    """Why a header is not valid; the caller knows the file."""


def parse_header(data: npt.NDArray[np.uint8] | RemoteFile, path: StrPath) -> Header:
    """The checked header of the safetensors file whose bytes are `data`.

    Only the header's own bytes are touched, and nothing is allocated by a number in the file that
    was not first found to be in bounds.

    Raises:
        CheckpointFormatError: the bytes are not a complete and consistent safetensors file.
    """
    try:
        return _parse(data)
    except _DamagedError as reason:
        raise CheckpointFormatError(f"{path} is not a valid safetensors file: {reason}") from None


def _parse(data: npt.NDArray[np.uint8] | RemoteFile) -> Header:
    if data.size < 8:
        raise _DamagedError(f"it has {data.size} bytes, a header needs at least 8")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise _DamagedError(
            f"its header claims {length} bytes; the format allows {MAX_HEADER_BYTES} at most"
        )
    if length > data.size - 8:
        raise _DamagedError(
            f"its header claims {length} bytes, {data.size - 8} follow (cut off while copying?)"
        )
    fields = _parse_json(data[8 : 8 + length].tobytes())
    metadata = _metadata(fields.pop(_METADATA, {}))
    # Taken out one by one, so that a long header is not held twice.
    entries = [_entry(name, fields.pop(name)) for name in list(fields)]
    # An empty tensor shares its offset with the next one, so ends are compared too.
    entries.sort(key=lambda entry: entry[1:])
    end = 0
    for spec, begin, stop in entries:
        if begin != end:
            kind = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise _DamagedError(f"tensor {spec.name!r} {kind} (begins at {begin}, expected {end})")
        end = stop
    if end != data.size - 8 - length:
        have = data.size - 8 - length
        hint = " (cut off while copying?)" if have < end else ""
        raise _DamagedError(
            f"its header describes {end} bytes of tensors, the file holds {have}{hint}"
        )
    return Header(
        specs={spec.name: spec for spec, _, _ in entries},
        offsets={spec.name: 8 + length + begin for spec, begin, _ in entries},
        metadata=metadata,
    )


def _parse_json(text: bytes) -> dict[str, object]:
    # "{" must come first, so that no other format passes for this one; padding may follow.
    if text[:1] != b"{":
        raise _DamagedError("its header does not begin with '{'")
    try:
        decoded = text.decode()
        del text  # of a long header, one copy is enough
        # Three keys that repeat, and two lists that become tuples.
        require_modest(decoded, repeated=5 * decoded.count('"data_offsets"'))
        fields = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _DamagedError(
            f"its header is not UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    except RecursionError:
        raise _DamagedError("its header is nested too deeply") from None
    except ValueError as error:
        # JSONDecodeError, and the limit on the digits of an integer.
        raise _DamagedError(f"its header is not valid JSON ({error})") from None
    return fields._asdict() if isinstance(fields, _Info) else dict(fields)  # it begins with "{"


class _Info(NamedTuple):
    """What a header says of a tensor, in a fifth of the memory of its JSON object."""

    dtype: object
    shape: object
    data_offsets: object


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object] | _Info:
    fields = dict(pairs)
    if len(pairs) == 3 and fields.keys() == set(_Info._fields):
        return _info(fields)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DamagedError(f"its header says {_quoted(key)} twice")
            seen.add(key)
    return fields


def _info(fields: dict[str, object]) -> _Info:
    found = map(fields.get, _Info._fields)
    return _Info(*(tuple(one) if isinstance(one, list) else one for one in found))


def _refuse_constant(text: str) -> NoReturn:
    raise _DamagedError(f"its header holds {text}, which is not JSON")


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _DamagedError("__metadata__ is not an object")
    for key, text in value.items():
        if not isinstance(text, str):
            raise _DamagedError(f"__metadata__ must map text to text, and {_quoted(key)} does not")
        _check_text(key)
        _check_text(text)
    return value


def _check_text(text: str) -> None:
    # JSON can spell halves of surrogate pairs, which no UTF-8 text can hold.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _DamagedError(f"{_quoted(text)} is not valid Unicode") from None


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _is_count(value: object) -> bool:
    # `True` is an int to isinstance.
    return type(value) is int and 0 <= value <= _MAX_INT


def _entry(name: str, info: object) -> tuple[TensorSpec, int, int]:
    """Spec, begin and end of one tensor, each checked by itself."""
    _check_text(name)
    if isinstance(info, dict):
        info = _info(info)
    if not isinstance(info, _Info):
        raise _DamagedError(f"tensor {_quoted(name)} is described by no object")
    code, shape, offsets = info
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise _DamagedError(f"tensor {_quoted(name)} has no known dtype; expected one of {known}")
    if not isinstance(shape, tuple) or not all(map(_is_count, shape)):
        raise _DamagedError(f"the shape of tensor {_quoted(name)} is no list of sizes")
    if len(shape) > MAX_DIMENSIONS:
        raise _DamagedError(
            f"tensor {_quoted(name)} has {len(shape)} dimensions, at most {MAX_DIMENSIONS} allowed"
        )
    if not isinstance(offsets, tuple) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _DamagedError(f"the data_offsets of tensor {_quoted(name)} are no pair of positions")
    begin, end = offsets
    n_bits = math.prod(shape) * dtype.bits
    if n_bits % 8:
        raise _DamagedError(f"tensor {_quoted(name)} does not fill a whole number of bytes")
    if end - begin != n_bits // 8:
        raise _DamagedError(
            f"tensor {_quoted(name)} has {end - begin} bytes, its shape and dtype need "
            f"{n_bits // 8}"
        )
    return TensorSpec(name, dtype, tuple(shape)), begin, end


class SafetensorsFile(Checkpoint):
    """One `.safetensors` file: mapped, header read on opening.

    Args:
        path: of the file.
        file: where its bytes are, if they are in a store.
    """

    format = "safetensors"

    def __init__(self, path: StrPath, file: RemoteFile | None = None) -> None:
        self._file = MappedFile(path) if file is None else file
        header = parse_header(self._file.bytes(), path)
        super().__init__(
            self._file.path, header.specs, metadata=header.metadata, files=(self._file.id,)
        )
        self._offsets = header.offsets

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, mapped or, from a store, read."""
        return self.part(name, 0, self[name].nbytes)

    def part(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `stop` of tensor `name`."""
        begin = self._offsets[name]
        return self._file.bytes()[begin + start : begin + stop]

    def scattered(self, name: str) -> bool:
        """Whether it is in a store, so that only the parts that are asked for should be read."""
        return isinstance(self._file, RemoteFile)

    def in_store(self, name: str) -> tuple[RemoteFile, int] | None:
        """See `Checkpoint.in_store`."""
        file = self._file
        return (file, self._offsets[name]) if isinstance(file, RemoteFile) else None


class Safetensors(Format):
    """The format of https://github.com/huggingface/safetensors."""

    name = "safetensors"
    summary = "a safetensors file"
    suffixes = (".safetensors",)
    in_folders = (
        "model.safetensors",
        "adapter_model.safetensors",
        "diffusion_pytorch_model.safetensors",
    )
    writes = True
    side_files = "metadata that all ingredients share"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By the brace that begins its header, or by its suffix."""
        return head[8:9] == b"{" or path.name.lower().endswith(self.suffixes)

    def open(self, path: Path, *, key: str | None = None) -> Checkpoint:
        """The file's tensors; `key` means nothing here."""
        return SafetensorsFile(path)

    def plan(self, request: OutputRequest) -> OutputPlan:
        """One file; tied tensors are written out under every name."""
        file = plan_file(Path(request.path).name, request.specs.values(), request.metadata)
        return OutputPlan(request=request, format=self.name, files=(file,))


def plan_file(name: str, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> PlannedFile:
    """The plan of a file, laid out as the safetensors library does it.

    Raises:
        CheckpointError: its header would be longer than readers accept, or a tensor has the name
            under which the format keeps its metadata.
    """
    header: dict[str, object] = {_METADATA: dict(sorted({"format": "pt", **metadata}.items()))}
    begin, starts = 0, {}
    for spec in sorted(specs, key=lambda spec: (-spec.dtype.rank, spec.name)):
        if spec.name == _METADATA:
            raise CheckpointError(
                f"{name}: a tensor is called {_METADATA!r}, the name of the metadata of safetensors"
                f" files: rename it (--rename {_METADATA}=metadata)"
            )
        starts[spec.name] = begin
        header[spec.name] = {
            "dtype": spec.dtype.value,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
        begin += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{name} would have a header of {len(text)} bytes, and readers accept "
            f"{MAX_HEADER_BYTES}: write a folder of smaller shards"
        )
    head = len(text).to_bytes(8, "little") + text
    offsets = {tensor: len(head) + start for tensor, start in starts.items()}
    return PlannedFile(name, len(head) + begin, offsets, ((0, head),))
