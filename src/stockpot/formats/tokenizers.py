"""Which token each row of an embedding stands for, by the tokenizer's files in a model folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from stockpot._records import require_modest
from stockpot.io.storage import stays_inside

Tokens: TypeAlias = Mapping[int, str]
"""Row → token."""

MAX_FILE_BYTES = 1 << 28
"""Longest file of a tokenizer that is read; those with 256,000 tokens have 35 MB."""

_SHORT_TEXTS = 1_500_000
"""Texts that take next to nothing: most merges are pairs of a few letters, and 512,000 of them,
written without spaces, seem half as large again as they are once they are read."""
_MAX_ROW = 1 << 28
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "added_tokens.json")


def tokens_of(folder: Path) -> Tokens | None:
    """The tokens of the model in `folder`; None where no file says it, or none that is understood.

    `tokenizer.json` says all; else `vocab.txt` or `vocab.json`, with `added_tokens.json`.
    """
    if not folder.is_dir():
        return None
    pairs = [*_of_tokenizer(_read(folder / "tokenizer.json"))]
    if not pairs:
        pairs = [*_of_dictionary(_read(folder / "vocab.json")), *_lines(folder / "vocab.txt")]
        pairs += _of_dictionary(_read(folder / "added_tokens.json")) if pairs else ()
    found = {row: token for token, row in pairs if 0 <= row < _MAX_ROW}
    return found or None


def tokenizer_digest(folder: Path) -> str | None:
    """A hash of the files that `tokens_of` reads; None where there are none."""
    state, some = xxhash.xxh3_128(), False
    for name in _FILES:
        data = _bytes(folder / name)
        some |= bool(data)
        state.update(f"{name}\0{len(data)}\0".encode())
        state.update(data)
    return state.hexdigest() if some else None


def _of_tokenizer(data: Any) -> Iterator[tuple[str, int]]:
    """Of `tokenizer.json`: the model's own tokens, a dictionary or a list, then the added ones."""
    model = data.get("model") if isinstance(data, dict) else None
    own = model.get("vocab") if isinstance(model, dict) else None
    yield from _of_dictionary(own)
    for row, entry in enumerate(own if isinstance(own, list) else ()):
        if isinstance(entry, list) and entry and isinstance(entry[0], str):
            yield entry[0], row
    added = data.get("added_tokens") if isinstance(data, dict) else None
    for one in added if isinstance(added, list) else ():
        if isinstance(one, dict) and type(one.get("id")) is int:
            yield str(one.get("content")), one["id"]


def _of_dictionary(data: Any) -> Iterator[tuple[str, int]]:
    for token, row in data.items() if isinstance(data, dict) else ():
        if type(row) is int:
            yield token, row


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    for row, line in enumerate(_bytes(path).decode("utf-8", "replace").split("\n")):
        if line:
            yield line.rstrip("\r"), row


def _read(path: Path) -> Any:
    """What the JSON in `path` holds; None where there is none that can be read."""
    try:
        data = _bytes(path) or b"null"
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        require_modest(text, repeated=_SHORT_TEXTS)
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _bytes(path: Path) -> bytes:
    """Of a small regular file within its folder; nothing where it is none."""
    try:
        if path.is_file() and stays_inside(path, path.parent):
            return path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else b""
    except OSError:
        pass
    return b""
