"""Why checkpoints cannot be averaged: every reason, found from their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stockpot.errors import MismatchError, Problem
from stockpot.formats.base import Checkpoint
from stockpot.mixing.reconcile import Reconcile
from stockpot.mixing.vocabulary import REMEDY, differ
from stockpot.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Ingredient number `index`, and every way in which it differs from the reference.

    `missing`, `extra`, `shapes` and `dtypes` hold names of tensors; one that differs in both shape
    and dtype is in both.
    """

    index: int
    path: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    problems: tuple[Problem, ...]


def reference(checkpoints: Sequence[Checkpoint], base: Checkpoint | None = None) -> Checkpoint:
    """What the others are compared with: the base, else the first of the largest equal group."""
    if base is not None:
        return base
    layouts = [frozenset(checkpoint.items()) for checkpoint in checkpoints]
    largest = max(Counter(layouts).values())
    first = next(i for i, layout in enumerate(layouts) if layouts.count(layout) == largest)
    return checkpoints[first]


def compare(
    checkpoints: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    options: Reconcile | None = None,
) -> tuple[Mismatch, ...]:
    """Every checkpoint that differs from the reference in names, shapes or dtypes.

    With `options`, tensors that are not to be mixed may differ, and with a dtype for the output
    floating types too.
    """
    options = Reconcile() if options is None else options
    expected = reference(checkpoints, base)
    found = (_compare_one(i, given, expected, options) for i, given in enumerate(checkpoints))
    return tuple(mismatch for mismatch in found if mismatch is not None)


def same_form(one: TensorSpec, other: TensorSpec | None, options: Reconcile) -> bool:
    """Whether two tensors can be mixed: of one shape, and of one type or any floating ones."""
    if other is None or one.shape != other.shape:
        return False
    floating = one.dtype.mixable and other.dtype.mixable
    return one.dtype == other.dtype or (floating and options.output_dtype is not None)


def _compare_one(
    index: int, given: Checkpoint, expected: Checkpoint, options: Reconcile
) -> Mismatch | None:
    if given is expected:
        return None
    missing = tuple(name for name in expected if name not in given and options.mixes(name))
    extra = tuple(name for name in given if name not in expected and options.mixes(name))
    both = [name for name in expected if name in given and options.mixes(name)]
    shapes = tuple(n for n in both if given[n].shape != expected[n].shape)
    dtypes = tuple(
        n
        for n in both
        if given[n].dtype != expected[n].dtype
        and not same_form(replace(given[n], shape=expected[n].shape), expected[n], options)
    )
    different = list(dict.fromkeys(shapes + dtypes))
    problems = (
        *(Problem(given.path, n, "missing", _short(expected[n])) for n in missing),
        *(Problem(given.path, n, _short(given[n]), "not there") for n in extra),
        *(Problem(given.path, n, _short(given[n]), _short(expected[n])) for n in different),
    )
    if not problems:
        return None
    return Mismatch(index, given.path, missing, extra, shapes, dtypes, problems)


def _short(spec: TensorSpec) -> str:
    return f"{spec.dtype.value} {spec.shape}"


def describe(
    found: Sequence[Mismatch],
    checkpoints: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    remedy: str | None = None,
) -> MismatchError:
    """One error that says everything in `found`, a few lines for each ingredient."""
    expected = reference(checkpoints, base)
    n_unfit, n = len(found), len(checkpoints)
    lines = [f"{n_unfit} of {n} ingredients cannot be averaged with {expected.path}:"]
    for mismatch in found:
        given = checkpoints[mismatch.index]
        lines += [f"  {given.path}  {line}" for line in _lines(mismatch, given, expected)]
    lines.append(_remedy(found, checkpoints, expected) if remedy is None else remedy)
    return MismatchError("\n".join(lines), [p for mismatch in found for p in mismatch.problems])


def _lines(mismatch: Mismatch, given: Checkpoint, expected: Checkpoint) -> list[str]:
    lines = []
    if mismatch.shapes:
        name = mismatch.shapes[0]
        more = f" (and {len(mismatch.shapes) - 1} more shapes)" if mismatch.shapes[1:] else ""
        lines.append(f"{name} is {given[name].shape}, expected {expected[name].shape}{more}")
    for kind, names in (("missing", mismatch.missing), ("unknown", mismatch.extra)):
        if names:
            lines.append(f"{_count(len(names))} {kind}: {_list(names)}")
    lines += _dtype_lines(mismatch.dtypes, given, expected)
    hints = (_name_hint(mismatch), _tie_hint(mismatch, given, expected))
    return lines + [hint for hint in hints if hint is not None]


def _dtype_lines(
    names: Sequence[str], given: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]
) -> list[str]:
    pairs = Counter((given[n].dtype.value, expected[n].dtype.value) for n in names)
    if len(names) == 1:
        return [f"{names[0]} is {is_}, expected {should}" for is_, should in pairs]
    return [
        f"{_count(count)} {'is' if count == 1 else 'are'} {is_}, expected {should}"
        for (is_, should), count in pairs.most_common()
    ]


def _count(n: int) -> str:
    return f"{n} tensor" if n == 1 else f"{n} tensors"


def _list(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _name_hint(mismatch: Mismatch) -> str | None:
    """What would make the names agree: a prefix on one side only, or a likely misspelling."""
    if not mismatch.missing or not mismatch.extra:
        return None
    prefix = _prefix_between(mismatch.missing, mismatch.extra)
    if prefix is not None:
        return f"without the prefix {prefix!r} names would agree (--strip-prefix {prefix})"
    prefix = _prefix_between(mismatch.extra, mismatch.missing)
    if prefix is not None:
        return f"with the prefix {prefix!r} names would agree (--strip-prefix {prefix})"
    import difflib

    name = mismatch.missing[0]
    close = difflib.get_close_matches(name, mismatch.extra[:1000], n=1, cutoff=0.8)
    if not close:
        return None
    return f"did you mean {close[0]} for {name}? (--rename {close[0]}={name})"


def _tie_hint(mismatch: Mismatch, given: Checkpoint, expected: Checkpoint) -> str | None:
    """That a name is absent on one side because that format stores tied tensors once."""
    for names, other in ((mismatch.missing, expected), (mismatch.extra, given)):
        leaders = {name: group for group in other.tied for name in group}
        for name in names:
            kept = [n for n in leaders.get(name, ()) if n in given and n in expected]
            if kept:
                return (
                    f"{name} is tied to {kept[0]} in {other.path}: save all of them in one format, "
                    "or average the common tensors"
                )
    return None


def _prefix_between(short: Sequence[str], long: Sequence[str]) -> str | None:
    """The prefix that turns every name of `short` into one of `long`, if there is one."""
    last = short[0]
    for name in long:
        if name.endswith(last):
            prefix = name[: len(name) - len(last)]
            if prefix and {prefix + n for n in short} <= set(long):
                return prefix
    return None


def _remedy(
    found: Sequence[Mismatch], checkpoints: Sequence[Checkpoint], expected: Checkpoint
) -> str:
    n_unfit, n = len(found), len(checkpoints)
    lines = []
    if any(
        given[name].dtype.mixable and expected[name].dtype.mixable
        for mismatch in found
        for given in (checkpoints[mismatch.index],)
        for name in mismatch.dtypes
    ):
        lines.append(
            "Say which type the result shall have, and floating types are mixed exactly: "
            'dtype="f32" (--dtype f32, or bf16).'
        )
    if differ([*checkpoints, expected]):
        lines.append(REMEDY)
    if n_unfit == n:
        lines.append(
            'Average the common tensors only: on_mismatch="common" (--on-mismatch common).'
        )
    else:
        these = "this one" if n_unfit == 1 else f"these {n_unfit}"
        lines.append(
            f'Leave {these} out: on_mismatch="leave-out" (--on-mismatch leave-out); '
            'or average the common tensors only: "common".'
        )
    return "\n".join(lines)
