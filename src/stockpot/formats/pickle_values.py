"""What an unpickled file may consist of, and the few constructors that a pickle may call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from stockpot.tensors.spec import DType, of_torch_name


class MalformedPickleError(Exception):
    """Why the bytes are no pickle that can be read; the caller knows the file."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle refers to."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Placeholder:
    """What stands in for an object of a class that was not loaded. Compared by identity.

    `parts` are the values that went into it: arguments, state, items.
    """

    origin: str
    parts: list[Any]


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of elements in the file. `dtype` is None for untyped bytes, text if not supported.

    `first` and `numel` count elements.
    """

    key: str
    dtype: DType | str | None
    numel: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage; `offset` and `stride` count elements. Not yet checked against it."""

    storage: StorageRef
    dtype: DType | str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Machine(Protocol):
    """What a constructor may use of the pickle being read.

    Attributes:
        left: operations that it may still take.
        unknown: names of what became placeholders, in order.
    """

    left: int
    unknown: dict[str, None]

    def call(self, function: object, arguments: object) -> object:
        """What `function`, a name of the pickle, makes of `arguments`."""
        ...


def as_key(key: object) -> object:
    """`key`, or a stand-in for one that Python cannot hash, or that was chosen to hash badly.

    The hashes of text are salted and those of small integers spread; long tuples and big numbers
    can be made to collide, and hashing a deep tuple overflows the C stack.
    """
    if isinstance(key, str) or key is None or type(key) is bool:
        return key
    if type(key) is int and -(2**31) <= key < 2**31:
        return key
    return Placeholder("a key", [key])


def _ordered_dict(machine: Machine, arguments: tuple[Any, ...]) -> object:
    made: dict[object, object] = {}
    pairs = arguments[0] if arguments else ()
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    if isinstance(pairs, list | tuple):
        machine.left -= len(pairs)  # a list can be used many times
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                made[as_key(pair[0])] = pair[1]
    return made


def _default_dict(machine: Machine, arguments: tuple[Any, ...]) -> object:
    return {}


def _rebuild_tensor(machine: Machine, arguments: tuple[Any, ...]) -> object:
    # (storage, offset, size, stride, requires_grad, hooks, metadata): the later ones do not matter,
    # save metadata, which can say that values are to be conjugated or negated.
    if len(arguments) > 6 and isinstance(arguments[6], dict) and arguments[6]:
        return Placeholder("torch.Tensor with conjugate or negative bit", [arguments])
    return _tensor(arguments, None)


def _rebuild_tensor_v3(machine: Machine, arguments: tuple[Any, ...]) -> object:
    dtype = arguments[6] if len(arguments) > 6 else None
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise MalformedPickleError("a tensor is built without a dtype")
    return _tensor(arguments, of_torch_name(dtype.name) or dtype.name)


def _tensor(arguments: tuple[Any, ...], dtype: DType | str | None) -> object:
    if len(arguments) < 4:
        raise MalformedPickleError("a tensor is built from too few arguments")
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, StorageRef):
        return Placeholder("torch.Tensor without a storage of this file", [arguments])
    dtype = storage.dtype if dtype is None else dtype
    if dtype is None or not (_is_count(offset) and _are_counts(shape) and _are_counts(stride)):
        raise MalformedPickleError("a tensor is built from arguments of the wrong kind")
    return StoredTensor(storage, dtype, offset, shape, stride)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(map(_is_count, value))


def _rebuild_parameter(machine: Machine, arguments: tuple[Any, ...]) -> object:
    return arguments[0] if arguments else None


def _rebuild_from_type(machine: Machine, arguments: tuple[Any, ...]) -> object:
    # (function, type, arguments, state): a plain tensor that has attributes, or a subclass.
    if len(arguments) < 3:
        raise MalformedPickleError("a tensor is built from too few arguments")
    function, kind, inner = arguments[:3]
    # Only names are put into text: that of nested values may be of any length.
    origin = str(kind)[:200] if isinstance(kind, Global) else "?"
    if origin in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter"):
        return machine.call(function, inner)
    machine.unknown[origin] = None
    return Placeholder(origin, [function, inner])


def _size(machine: Machine, arguments: tuple[Any, ...]) -> object:
    if arguments and isinstance(arguments[0], tuple):
        return arguments[0]
    return Placeholder("torch.Size", [])


CONSTRUCTORS: dict[tuple[str, str], Callable[[Machine, tuple[Any, ...]], object]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _size,
}

HARMLESS = {
    (module, name)
    for module in ("builtins", "__builtin__")
    for name in ("set", "frozenset", "bytearray", "complex", "slice", "range", "object")
} | {("_codecs", "encode"), ("torch", "device"), ("torch.serialization", "_get_layout")}

_CODE_MODULES = frozenset({
    "os", "posix", "nt", "subprocess", "sys", "runpy", "importlib", "shutil", "socket", "ctypes",
    "pty", "code", "codeop", "commands", "webbrowser", "marshal", "imp", "pdb", "timeit", "asyncio",
})  # fmt: skip
_CODE_BUILTINS = frozenset(
    {"eval", "exec", "compile", "open", "__import__", "execfile", "breakpoint", "input"}
)


def runs_code(function: Global) -> bool:
    """Whether calling `function` has no place in a checkpoint.

    The message is all that hangs on it: what is not in this list is not run either.
    """
    top = function.module.partition(".")[0]
    if top in ("builtins", "__builtin__"):
        return function.name.partition(".")[0] in _CODE_BUILTINS
    return top in _CODE_MODULES
