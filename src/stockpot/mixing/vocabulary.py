"""Models whose vocabularies differ: rows of embeddings and heads matched by what they stand for.

Fine-tuning often adds a few tokens, and embeddings and heads then have other numbers of rows. The
rows of a token that all have are averaged; a token that some lack keeps the row that the base has
for it, else the mean of those that have it. Where tokenizers lie beside the weights rows are
matched by token, else by position.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from stockpot.errors import MismatchError, Problem
from stockpot.formats.base import Checkpoint
from stockpot.formats.tokenizers import Tokens, tokenizer_digest, tokens_of
from stockpot.mixing.reconcile import PartlyMade
from stockpot.tensors.rounding import narrow, widen
from stockpot.tensors.spec import TensorSpec

Vocabulary: TypeAlias = Literal["error", "common", "union"]
_Raw: TypeAlias = "npt.NDArray[np.uint8]"
_Rows: TypeAlias = "npt.NDArray[np.int64]"

REMEDY = (
    "Average the rows of the tokens that all have, and keep the vocabulary of the base (else of "
    'the smallest): Reconcile(vocabulary="common") (--vocabulary common); or that of the one that '
    'has all tokens: "union".'
)
_OF_TOKENS = re.compile(r"emb|wte|tok|vocab|shared|lm_head", re.IGNORECASE)
_MAX_CONFIG = 1 << 22
_ABSENT = -1


@dataclass(frozen=True)
class _Model:
    """One checkpoint as to its vocabulary.

    Attributes:
        size: rows of its embeddings.
        tokens: what they stand for, as far as it is known.
    """

    checkpoint: Checkpoint
    size: int
    tokens: Tokens | None

    def rows_of(self, other: _Model) -> _Rows:
        """For each row of `other` the one here that stands for the same; -1 for none."""
        if self.tokens is None or other.tokens is None:
            rows = np.arange(other.size, dtype=np.int64)
            rows[self.size :] = _ABSENT
            return rows
        own: dict[object, int] = {self.tokens.get(row, row): row for row in range(self.size)}
        keys = (other.tokens.get(row, row) for row in range(other.size))
        return np.fromiter((own.get(key, _ABSENT) for key in keys), np.int64, other.size)


class VocabularyCheckpoint(PartlyMade):
    """A checkpoint whose embeddings and heads have the rows of another vocabulary.

    Args:
        source: the checkpoint as it was.
        axes: names of the tensors with a row for each token, and which of their axes it is.
        rows: for each row the one in the source; -1 for one that `others` gives.
        others: the rows that come from elsewhere.
        tokens: what the rows stand for, as far as it is known.
        note: what was done; empty where another says it.
    """

    def __init__(
        self,
        source: Checkpoint,
        axes: Mapping[str, int],
        rows: _Rows,
        others: OtherRows,
        *,
        tokens: Tokens | None,
        note: str,
    ) -> None:
        made = {}
        for name, axis in axes.items():
            shape = source[name].shape
            new = (*shape[:axis], len(rows), *shape[axis + 1 :])
            made[name] = replace(source[name], shape=new)
        super().__init__(source, made, notes=(note,) if note else ())
        self._axes, self._rows, self._others = axes, rows, others
        self.tokens, self.size = tokens, len(rows)

    def over(self, source: Checkpoint) -> VocabularyCheckpoint:
        """The same of another copy of its source."""
        note = "".join(self.own_notes)
        return VocabularyCheckpoint(
            source, self._axes, self._rows, self._others, tokens=self.tokens, note=note
        )

    def make(self, name: str, start: int, stop: int) -> _Raw:
        """See `PartlyMade.make`: of the rows that the bytes are in."""
        axis = self._axes[name]
        if start >= stop:
            return np.zeros(0, np.uint8)
        own, spec = self.source[name], self[name]
        width = _width(spec, axis)
        first, last = start // width, -(-stop // width)
        items = np.arange(first, last)
        rows = self._rows[items % self.size]
        inside = rows != _ABSENT
        wanted = (items // self.size * own.shape[axis] + rows)[inside]
        result = np.empty((last - first, width), np.uint8)
        if wanted.size:
            low, high = int(wanted.min()), int(wanted.max()) + 1
            stored = self.source.reader(name)(low * width, high * width).reshape(-1, width)
            result[inside] = stored[wanted - low]
        if not inside.all():
            outside = items[~inside]
            result[~inside] = self._others.items(name, own, outside)
        flat = result.reshape(-1)
        return flat[start - first * width : stop - first * width]


@dataclass(frozen=True, eq=False)
class OtherRows:
    """Rows that some checkpoints lack: those of the base, else the mean of those that have them.

    Attributes:
        axes: as of `VocabularyCheckpoint`.
        holders: checkpoints that may have such rows, the base first if there is one, and for each
            row of the result the one that they have; -1 for none.
        based: whether the first of `holders` is the base.
    """

    axes: Mapping[str, int]
    holders: tuple[tuple[Checkpoint, _Rows], ...]
    based: bool

    @functools.cached_property
    def _where(self) -> _Rows:
        """For each row of the result its place among those that are made here; -1 for none."""
        lacking = np.zeros(len(self.holders[0][1]), bool)
        for _, rows in self.holders:
            lacking |= rows == _ABSENT
        where = np.full(len(lacking), _ABSENT, np.int64)
        where[lacking] = np.arange(int(lacking.sum()))
        return where

    def items(self, name: str, spec: TensorSpec, items: npt.NDArray[np.int64]) -> _Raw:
        """Rows of tensor `name` as bytes of type `spec.dtype`, by their numbers in the result."""
        made = self._made(name, spec)
        size = len(self._where)
        place: _Raw = made[items // size, self._where[items % size]]
        return place

    @functools.lru_cache(maxsize=8)  # noqa: B019 - as long-lived as the checkpoints that ask
    def _made(self, name: str, spec: TensorSpec) -> _Raw:
        axis = self.axes[name]
        wanted = np.flatnonzero(self._where != _ABSENT)
        found = np.zeros((int(np.prod(spec.shape[:axis])), len(wanted)), np.int64)
        item = max(1, spec.dtype.bits // 8)
        width = _width(spec, axis) // item
        total = np.zeros((*found.shape, width))
        raw = np.zeros((*found.shape, width * item), np.uint8)
        done = np.zeros(len(wanted), bool)
        for number, (holder, rows) in enumerate(self.holders):
            here = (rows[wanted] != _ABSENT) & ~done
            if not here.any():
                continue
            stored = _rows_of(holder, name, axis, rows[wanted[here]])
            if not spec.dtype.mixable:
                raw[:, here] = stored
                done |= here
                continue
            dtype = holder[name].dtype
            total[:, here] += widen(stored.view(dtype.storage), dtype.value)
            found[:, here] += 1
            if number == 0 and self.based:
                done |= here
        if spec.dtype.mixable:
            mean = total / np.maximum(found, 1)[..., None]
            raw = narrow(mean, spec.dtype.value).view(np.uint8).reshape(raw.shape)
        return raw


def _width(spec: TensorSpec, axis: int) -> int:
    """Bytes of what one token has in the tensor, at one place of the axes before its own."""
    numel = int(np.prod(spec.shape[axis + 1 :], dtype=np.int64))
    return numel * max(1, spec.dtype.bits // 8)


def _rows_of(checkpoint: Checkpoint, name: str, axis: int, rows: _Rows) -> _Raw:
    """Rows of a tensor, as (places of the axes before, rows, bytes)."""
    spec = checkpoint[name]
    width = _width(spec, axis)
    n, outer = spec.shape[axis], int(np.prod(spec.shape[:axis], dtype=np.int64))
    low, high = int(rows.min()), int(rows.max()) + 1
    pieces = [
        checkpoint.part(name, (o * n + low) * width, (o * n + high) * width).reshape(-1, width)[
            rows - low
        ]
        for o in range(outer)
    ]
    return np.ascontiguousarray(np.stack(pieces))


def one_vocabulary(
    given: Sequence[Checkpoint], base: Checkpoint | None, how: Vocabulary
) -> tuple[list[Checkpoint], Checkpoint | None, Checkpoint | None]:
    """The checkpoints with the rows of one vocabulary, and the one whose vocabulary it is.

    Nothing is done where all vocabularies agree, and where they cannot be told.

    Args:
        given: the ingredients.
        base: what they come from, if it is given.
        how: `"error"` refuses tokens that stand for other rows; see `Reconcile.vocabulary`.

    Returns:
        the ingredients, the base, and which of them has the vocabulary; None where nothing is done.

    Raises:
        MismatchError: tokens have other rows and nothing was asked for, or no checkpoint has all.
    """
    every = [*given, *([] if base is None else [base])]
    if len(every) < 2:
        return [*given], base, None
    if how == "error":
        _refuse_moved(every)
        return [*given], base, None
    known = _tokens(every)
    axes, sizes = _axes(every, known)
    if not axes:
        return [*given], base, None
    models = [_Model(*one) for one in zip(every, sizes, known, strict=True)]
    like = _like(models, how, based=base is not None)
    rows = [model.rows_of(like) for model in models]
    alike = zip(models, rows, strict=True)
    if all(m.size == like.size and np.array_equal(r, np.arange(m.size)) for m, r in alike):
        return [*given], base, None
    shown = _views(models, rows, axes, like, based=base is not None)
    results = shown[: len(given)]
    return results, None if base is None else shown[-1], shown[models.index(like)]


def _tokens(every: Sequence[Checkpoint]) -> list[Tokens | None]:
    """What the rows of each stand for; files that are equal are understood once."""
    digests = [_digest(one) for one in every]
    parsed = {
        digest: one.tokens if isinstance(one, VocabularyCheckpoint) else tokens_of(Path(one.folder))
        for digest, one in dict(zip(digests, every, strict=True)).items()
        if digest is not None
    }
    return [None if digest is None else parsed[digest] for digest in digests]


def _digest(checkpoint: Checkpoint) -> str | None:
    if not isinstance(checkpoint, VocabularyCheckpoint):
        return tokenizer_digest(Path(checkpoint.folder))
    return None if checkpoint.tokens is None else f"{id(checkpoint.tokens)}"


def _refuse_moved(every: Sequence[Checkpoint]) -> None:
    """Refuse a row that stands for one token here and for another one there."""
    if len({digest for one in every if (digest := _digest(one)) is not None}) < 2:
        return
    known = _tokens(every)
    first = next((i for i, tokens in enumerate(known) if tokens is not None), None)
    if first is None:
        return
    expected = known[first] or {}
    problems, lines = [], []
    for checkpoint, tokens in zip(every, known, strict=True):
        if tokens is None or tokens == expected:
            continue
        moved = [row for row in tokens.keys() & expected.keys() if tokens[row] != expected[row]]
        if moved:
            row = min(moved)
            here, there = ascii(tokens[row])[:60], ascii(expected[row])[:60]
            lines.append(
                f"  {checkpoint.path}: {len(moved)} rows are of other tokens than in "
                f"{every[first].path}: row {row} is {here}, expected {there}"
            )
            problems.append(Problem(checkpoint.path, None, f"row {row} is {here}", there))
    if problems:
        head = "tokenizers do not agree, and a mean of rows of different tokens means nothing:"
        raise MismatchError("\n".join([head, *lines, REMEDY]), problems)


def _axes(
    every: Sequence[Checkpoint], known: Sequence[Tokens | None]
) -> tuple[dict[str, int], tuple[int, ...]]:
    """The tensors with a row for each token, with the axis, and how many rows each checkpoint has.

    They are those that differ in one axis alone and by the same numbers of rows, an embedding
    among them; where none differ, those with as many rows as the configuration says, or of one row
    with as many values (the bias of BART's logits).
    """
    found: dict[tuple[int, ...], dict[str, int]] = {}
    for name in every[0]:
        shapes = [one[name].shape for one in every if name in one]
        if len(shapes) < len(every) or len({len(shape) for shape in shapes}) != 1:
            continue
        differing = [i for i, sizes in enumerate(zip(*shapes, strict=True)) if len({*sizes}) > 1]
        if len(differing) == 1:
            axis = differing[0]
            found.setdefault(tuple(shape[axis] for shape in shapes), {})[name] = axis
    for sizes, names in sorted(found.items(), key=lambda one: -min(one[0])):
        enough = all(t is None or n > max(t) for n, t in zip(sizes, known, strict=True))
        if enough and any(_OF_TOKENS.search(name) for name in names):
            return names, sizes
    size = next((n for one in every if (n := _configured(Path(one.folder))) is not None), None)
    if size is None:
        return {}, ()
    same = {
        name: axis
        for name in every[0]
        for axis in (0, 1)
        if all(name in one and one[name].shape[: axis + 1] == (*(1,) * axis, size) for one in every)
    }
    return same, (size,) * len(every)


def differ(every: Sequence[Checkpoint]) -> bool:
    """Whether shapes differ as those of vocabularies do, so that they could be averaged."""
    axes, sizes = _axes(every, [None] * len(every)) if len(every) > 1 else ({}, ())
    return bool(axes) and len(set(sizes)) > 1


def _configured(folder: Path) -> int | None:
    """The size of the vocabulary by a folder's `config.json`."""
    path = folder / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CONFIG:
            return None
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    inner = config.get("text_config") if isinstance(config, dict) else None
    for one in (config, inner):
        size = one.get("vocab_size") if isinstance(one, dict) else None
        if type(size) is int and size > 0:
            return size
    return None


def _like(models: Sequence[_Model], how: Vocabulary, *, based: bool) -> _Model:
    """The model whose vocabulary the result gets.

    Raises:
        MismatchError: the union is asked for, and none has all tokens.
    """
    if how == "common":
        # Of equal ones the same in every order of arguments.
        smallest = [one for one in models if one.size == min(model.size for model in models)]
        return models[-1] if based else min(smallest, key=_written)
    largest = max(models, key=lambda one: (len(one.tokens or ()), one.size))
    every = Counter(t for one in models for t in (one.tokens or {}).values())
    missing = sorted(every.keys() - set((largest.tokens or {}).values()))
    if largest.tokens is not None and missing:
        path = largest.checkpoint.path
        shown = ", ".join(ascii(token)[:40] for token in missing[:5])
        raise MismatchError(
            f"no tokenizer has the tokens of all: {path} has most and lacks {len(missing)} "
            f"({shown}{', …' if missing[5:] else ''}). Add them there (tokenizer.add_tokens, then "
            "model.resize_token_embeddings, save both), or average the common ones: "
            "--vocabulary common",
            [Problem(path, None, f"{len(missing)} tokens are missing", "the tokens of all")],
        )
    return largest


def _written(model: _Model) -> str:
    return json.dumps(model.tokens, sort_keys=True)


def _views(
    models: Sequence[_Model],
    rows: Sequence[_Rows],
    axes: Mapping[str, int],
    like: _Model,
    *,
    based: bool,
) -> list[Checkpoint]:
    order = [len(models) - 1, *range(len(models) - 1)] if based else range(len(models))
    held = tuple((models[i].checkpoint, rows[i]) for i in order)
    others = OtherRows(axes, held, based)
    absent = np.any([one == _ABSENT for one in rows], axis=0)
    n_common = int((~absent).sum())
    note = f"all get this vocabulary of {like.size} rows, of which {n_common} are averaged"
    if n_common < like.size:
        of_base = "those of the base, or " if based else ""
        note += f"; the others are {of_base}those of whoever has them"
    results: list[Checkpoint] = []
    for i, (model, own) in enumerate(zip(models, rows, strict=True)):
        # What some lack is the base's row in all, where it has one.
        used = own.copy()
        if based and i != len(models) - 1:
            used[absent & (rows[-1] != _ABSENT)] = _ABSENT
        results.append(
            VocabularyCheckpoint(
                model.checkpoint,
                axes,
                used,
                others,
                tokens=like.tokens,
                note=note if model is like else "",
            )
        )
    return results
