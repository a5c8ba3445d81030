"""A pickle read as data: no name in it is resolved, nothing in it is run.

Python's own unpickler imports what the file names and calls it. This one knows a fixed table of
constructors (`torch._utils._rebuild_tensor_v2`, `OrderedDict`, …), each of which makes a value of
`pickle_values`; every other name becomes an inert `Placeholder`. Opcodes of protocols 0 to 5, as
the standard library's `pickletools` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from stockpot.errors import UnsafeCheckpointError
from stockpot.formats.pickle_values import (
    CONSTRUCTORS,
    HARMLESS,
    Global,
    MalformedPickleError,
    Placeholder,
    as_key,
    runs_code,
)

MAX_OPERATIONS = 10_000_000
"""A tensor takes about 30. Bounds time (seconds) and memory, whatever the pickle does."""

FREE_OBJECTS = 1 << 18
"""Containers, texts, names and memo entries that a pickle of any length may make."""

BYTES_PER_OBJECT = 8
"""A longer one may make one more for each of so many bytes: a list takes 64. A state dict has about
ten for each, and six where all names are of two letters, which goes up to 6 MB of pickle."""

_MAX_LINE = 1 << 20
_MAX_INT_BYTES = 1024


PersistentLoad: TypeAlias = Callable[[object], object]


def load(
    data: memoryview, *, at: int = 0, persistent: PersistentLoad | None = None
) -> tuple[object, int, tuple[str, ...]]:
    """The value pickled at byte `at`, where it ends, and the names of what became placeholders.

    `persistent` turns a persistent id (a tuple, for torch) into a value.

    Raises:
        MalformedPickleError: it is damaged, or takes more than `MAX_OPERATIONS`.
        UnsafeCheckpointError: it calls something whose only use is to run code.
    """
    machine = _Machine(data, at, persistent)
    value = machine.run()
    return value, machine.at, tuple(machine.unknown)


class _Stop(Exception):  # noqa: N818 - not an error
    pass


class _Machine:
    """The state of one pickle being read: position, stack, marks, memo."""

    def __init__(self, data: memoryview, at: int, persistent: PersistentLoad | None) -> None:
        self.data = data
        self.at = at
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.unknown: dict[str, None] = {}
        self.left = MAX_OPERATIONS
        self.objects_left = FREE_OBJECTS + (len(data) - at) // BYTES_PER_OBJECT

    def run(self) -> object:
        data, size = self.data, len(self.data)
        try:
            while self.at < size:
                code = data[self.at]
                operation = _OPERATIONS[code]
                self.at += 1
                if code in _MAKES_OBJECTS:
                    self.objects_left -= 1
                    if self.objects_left < 0:
                        raise MalformedPickleError("it makes more objects than its size allows")
                self.left -= 1
                if self.left < 0:
                    raise MalformedPickleError(f"it takes more than {MAX_OPERATIONS} operations")
                operation(self)
        except _Stop:
            return self.stack.pop() if self.stack else None
        except KeyError as error:
            # The opcodes and the memo are the only dictionaries indexed by the file.
            raise MalformedPickleError(f"unknown opcode or memo entry {error}") from None
        except IndexError:
            raise MalformedPickleError("it takes more from its stack than lies there") from None
        raise MalformedPickleError("it ends without a stop")

    # Reading the stream.

    def take(self, n: int) -> bytes:
        end = self.at + n
        if n < 0 or end > len(self.data):
            raise MalformedPickleError(f"{n} bytes are announced, fewer follow")
        piece = bytes(self.data[self.at : end])
        self.at = end
        return piece

    def number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def line(self) -> str:
        step, start = 256, self.at
        while step <= _MAX_LINE:
            end = bytes(self.data[start : start + step]).find(b"\n")
            if end >= 0:
                self.at = start + end + 1
                return bytes(self.data[start : start + end]).decode("utf-8", "replace")
            if start + step >= len(self.data):
                break
            step *= 4
        raise MalformedPickleError("a line does not end")

    def text(self, n: int) -> None:
        self.stack.append(self.take(n).decode("utf-8", "replace"))

    def blob(self, n: int) -> None:
        # Bytes are never part of a tensor here; long ones (pickled arrays) are passed over.
        if n <= 256:
            self.stack.append(self.take(n))
            return
        if self.at + n > len(self.data):
            raise MalformedPickleError(f"{n} bytes are announced, fewer follow")
        self.at += n
        self.stack.append(Placeholder("bytes", []))

    def integer(self, n: int) -> None:
        if n > _MAX_INT_BYTES:
            raise MalformedPickleError(f"it holds an integer of {n} bytes")
        self.stack.append(int.from_bytes(self.take(n), "little", signed=True))

    # Working on the stack.

    def pop_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def set_items(self, target: object, flat: list[Any]) -> None:
        if isinstance(target, dict):
            for key, value in zip(flat[::2], flat[1::2], strict=False):
                target[as_key(key)] = value
        elif isinstance(target, Placeholder):
            target.parts.extend(flat)
        else:
            raise MalformedPickleError("items are put into what is no dictionary")

    def append_items(self, target: object, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Placeholder):
            target.parts.extend(items)
        else:
            raise MalformedPickleError("items are appended to what is no list")

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        # An OrderedDict's attributes (`_metadata` of a state dict) and a tensor's are of no use.
        if isinstance(target, Placeholder):
            target.parts.append(state)

    def call(self, function: object, arguments: object) -> object:
        if not isinstance(function, Global):
            return Placeholder("a call of an unknown object", [function, arguments])
        known = CONSTRUCTORS.get((function.module, function.name))
        if known is not None and isinstance(arguments, tuple):
            return known(self, arguments)
        if runs_code(function):
            raise UnsafeCheckpointError(
                f"its pickle calls {function}, which only serves to run code: it was not run"
            )
        origin = str(function)
        if (function.module, function.name) not in HARMLESS:
            self.unknown[origin] = None
        return Placeholder(origin, [arguments])

    def persist(self, pid: object) -> None:
        found = self.persistent(pid) if self.persistent is not None else None
        self.stack.append(Placeholder("a persistent object", []) if found is None else found)


# The opcodes, by what they do.


def _push(value: object) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value)


def _stop(m: _Machine) -> None:
    raise _Stop


def _mark(m: _Machine) -> None:
    m.marks.append(len(m.stack))


def _tuple_of(n: int) -> Callable[[_Machine], None]:
    def make(m: _Machine) -> None:
        if len(m.stack) < n:
            raise IndexError
        m.stack[-n:] = [tuple(m.stack[-n:])]

    return make


def _parse_number(m: _Machine, convert: Callable[[str], object], text: str) -> None:
    try:
        m.stack.append(convert(text))
    except ValueError:
        raise MalformedPickleError(f"{text[:40]!r} is no number") from None


def _int_line(m: _Machine) -> None:
    text = m.line()
    if text in ("00", "01"):  # how protocols 0 and 1 write False and True
        m.stack.append(text == "01")
    else:
        _parse_number(m, int, text.removesuffix("L"))


def _float(m: _Machine) -> None:
    import struct

    m.stack.append(struct.unpack(">d", m.take(8))[0])


def _reduce(m: _Machine) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    m.stack.append(m.call(function, arguments))


def _newobj_ex(m: _Machine) -> None:
    m.stack.pop()  # keyword arguments
    _reduce(m)


def _inst(m: _Machine) -> None:
    function = Global(m.line(), m.line())
    m.stack.append(m.call(function, tuple(m.pop_mark())))


def _obj(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(m.call(items[0], tuple(items[1:])))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise MalformedPickleError("a name is no text")
    m.stack.append(Global(module, name))


def _extension(n: int) -> Callable[[_Machine], None]:
    def push(m: _Machine) -> None:
        m.stack.append(Global("copyreg", f"extension {m.number(n)}"))

    return push


def _put(m: _Machine, index: int) -> None:
    if not 0 <= index < 2**32:
        raise MalformedPickleError("a memo index is out of bounds")
    m.memo[index] = m.stack[-1]


def _memo_line(m: _Machine) -> int:
    text = m.line()
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise MalformedPickleError(f"{text[:40]!r} is no memo index")
    return int(text)


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items(m.stack[-1], [key, value])


def _set_items(m: _Machine) -> None:
    items = m.pop_mark()
    m.set_items(m.stack[-1], items)


def _append(m: _Machine) -> None:
    value = m.stack.pop()
    m.append_items(m.stack[-1], [value])


def _appends(m: _Machine) -> None:
    items = m.pop_mark()
    m.append_items(m.stack[-1], items)


def _dict(m: _Machine) -> None:
    made: dict[object, object] = {}
    m.set_items(made, m.pop_mark())
    m.stack.append(made)


def _proto(m: _Machine) -> None:
    version = m.number(1)
    if version > 5:
        raise MalformedPickleError(f"its protocol is {version}, at most 5 is known")


def _pop(m: _Machine) -> None:
    # POP right after MARK takes the mark away.
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.stack.pop()


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): operation
    for code, operation in {
        ".": _stop, "(": _mark, "0": _pop, "1": lambda m: m.pop_mark() and None,
        "2": lambda m: m.stack.append(m.stack[-1]),
        "N": _push(None), "\x88": _push(True), "\x89": _push(False), ")": _push(()),
        "I": _int_line, "L": _int_line, "F": lambda m: _parse_number(m, float, m.line()),
        "J": lambda m: m.integer(4), "K": lambda m: m.stack.append(m.number(1)),
        "M": lambda m: m.stack.append(m.number(2)), "G": _float,
        "\x8a": lambda m: m.integer(m.number(1)), "\x8b": lambda m: m.integer(m.number(4)),
        "S": lambda m: m.stack.append(m.line().strip("'\"")),
        "V": lambda m: m.stack.append(m.line()),
        "T": lambda m: m.text(m.number(4)), "U": lambda m: m.text(m.number(1)),
        "X": lambda m: m.text(m.number(4)), "\x8c": lambda m: m.text(m.number(1)),
        "\x8d": lambda m: m.text(m.number(8)),
        "B": lambda m: m.blob(m.number(4)), "C": lambda m: m.blob(m.number(1)),
        "\x8e": lambda m: m.blob(m.number(8)), "\x96": lambda m: m.blob(m.number(8)),
        "]": lambda m: m.stack.append([]), "}": lambda m: m.stack.append({}),
        "l": lambda m: m.stack.append(m.pop_mark()), "d": _dict,
        "t": lambda m: m.stack.append(tuple(m.pop_mark())),
        "\x85": _tuple_of(1), "\x86": _tuple_of(2), "\x87": _tuple_of(3),
        "a": _append, "e": _appends, "s": _set_item, "u": _set_items,
        "\x8f": lambda m: m.stack.append(Placeholder("builtins.set", [])), "\x90": _appends,
        "\x91": lambda m: m.stack.append(Placeholder("builtins.frozenset", m.pop_mark())),
        "c": lambda m: m.stack.append(Global(m.line(), m.line())), "\x93": _stack_global,
        "R": _reduce, "\x81": _reduce, "\x92": _newobj_ex, "i": _inst, "o": _obj,
        "b": lambda m: m.build(),
        "\x82": _extension(1), "\x83": _extension(2), "\x84": _extension(4),
        "P": lambda m: m.persist(m.line()), "Q": lambda m: m.persist(m.stack.pop()),
        "p": lambda m: _put(m, _memo_line(m)), "q": lambda m: _put(m, m.number(1)),
        "r": lambda m: _put(m, m.number(4)), "\x94": lambda m: _put(m, len(m.memo)),
        "g": lambda m: m.stack.append(m.memo[_memo_line(m)]),
        "h": lambda m: m.stack.append(m.memo[m.number(1)]),
        "j": lambda m: m.stack.append(m.memo[m.number(4)]),
        "\x80": _proto, "\x95": lambda m: m.take(8) and None,
    }.items()
}  # fmt: skip

_MAKES_OBJECTS = frozenset(
    b"STUVX\x8c\x8d"  # texts
    b"BC\x8e\x96"  # bytes
    b"]}l\x8fdt\x85\x86\x87\x91"  # containers
    b"c\x93RPQio\x81\x92b\x82\x83\x84"  # names and what is made of them
    b"pqr\x94"  # the memo
)
