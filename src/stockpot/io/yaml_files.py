"""Reading YAML that anyone may have written: bounded, without anchors, every mistake one line."""

from __future__ import annotations

import json
from typing import Any

import yaml

from stockpot._records import read_regular
from stockpot._types import StrPath

MAX_BYTES = 2**20
MAX_DEPTH = 32
# Each takes half a kilobyte and 15 µs once it is read, a hundred times what its text may take.
MAX_VALUES = 50_000


class YamlError(ValueError):
    """What cannot be read, and in which line; 0 where that is not known."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


def read_node(path: StrPath) -> yaml.Node | None:
    """The document in a file, with the lines of its parts; None where it is empty.

    Anchors, which can multiply what a file holds, are refused.

    Raises:
        YamlError: it cannot be read, is no YAML, too long, too deep, or holds anchors.
    """
    try:
        data = read_regular(path, MAX_BYTES)
        text = data.decode()
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise YamlError("it is not UTF-8; save it as UTF-8", line) from error
    except ValueError as error:
        raise YamlError(str(error)) from error
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if number > MAX_VALUES:
                raise YamlError(f"it holds more than {MAX_VALUES:,} values", _line(event))
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise YamlError(f"it is nested more than {MAX_DEPTH} levels deep", _line(event))
            if isinstance(event, yaml.AliasEvent):
                raise YamlError("anchors (& and *) are not read", _line(event))
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _wrong(error) from error
    return node


def plain(node: yaml.Node) -> Any:
    """The Python value of a node, by YAML's safe rules.

    Raises:
        YamlError: a tag is unknown, or a value is not what its tag says.
    """
    loader = yaml.SafeLoader("")
    line = node.start_mark.line + 1
    try:
        value = loader.construct_object(node, deep=True)
        json.dumps(value)  # dates, bytes and sets are no values of ours
        return value
    except yaml.YAMLError as error:
        raise _wrong(error) from error
    except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
        what = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a value"
        raise YamlError(f"{what} cannot be read: {error}; put text in quotes", line) from error
    finally:
        loader.dispose()


def read_yaml(path: StrPath) -> Any:
    """The Python value of a file; None where it is empty.

    Raises:
        YamlError: see `read_node` and `plain`.
    """
    node = read_node(path)
    return None if node is None else plain(node)


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else event.start_mark.line + 1


def _wrong(error: yaml.YAMLError) -> YamlError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        text = error.problem or error.context or "no YAML"
        return YamlError(f"not valid YAML: {text}", 0 if mark is None else mark.line + 1)
    reason = getattr(error, "reason", "") or (str(error).splitlines() or ["no YAML"])[0]
    return YamlError(f"not valid YAML: {reason}")
