"""Prefixes that wrappers put before the names of a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Put there by `DataParallel`/`DistributedDataParallel` and by `torch.compile`."""


def normalised(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Each name without the wrappers' prefixes that *all* names carry, and a note that says so.

    >>> normalised(["module._orig_mod.w", "module._orig_mod.b"])[0]
    {'module._orig_mod.w': 'w', 'module._orig_mod.b': 'b'}
    >>> normalised(["module.w", "b"])
    ({'module.w': 'module.w', 'b': 'b'}, ())
    """
    given = list(names)
    skip = 0
    while prefix := next((p for p in WRAPPER_PREFIXES if _all_carry(given, p, skip)), None):
        skip += len(prefix)
    if skip == 0:
        return as_given(given)
    note = f"the prefix {given[0][:skip]!r} was removed from all {len(given)} names"
    return {name: name[skip:] for name in given}, (note,)


def as_given(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What `normalised` returns when nothing is to be removed."""
    return {name: name for name in names}, ()


def _all_carry(names: list[str], prefix: str, skip: int) -> bool:
    # A name that would be left empty is no wrapped name.
    return bool(names) and all(
        name.startswith(prefix, skip) and len(name) > skip + len(prefix) for name in names
    )
