"""Which tensors share one vector of coefficients: the whole model, a layer, or a tensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from stockpot.errors import RecipeError
from stockpot.formats.base import leaders_of


def layer_of(name: str) -> str:
    """The layer that tensor `name` belongs to, by its module path.

    A path with a number ends there (a block of a stack); other paths lose the tensor's own name
    and, where something is left, the innermost module, so that the parts of an embedding or of a
    head stay together.

    >>> layer_of("bert.encoder.layer.3.attention.self.query.weight")
    'bert.encoder.layer.3'
    >>> layer_of("bert.embeddings.LayerNorm.bias"), layer_of("classifier.weight"), layer_of("scale")
    ('bert.embeddings', 'classifier', 'scale')
    """
    parts = name.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: position + 1])
    return ".".join(parts[: max(1, len(parts) - (2 if len(parts) > 2 else 1))])


def group_names(
    names: Iterable[str],
    by: str,
    *,
    tied: Iterable[tuple[str, ...]] = (),
    patterns: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The group of each tensor, `{name: group}`.

    A tied tensor belongs to the group of its first name, since it has only one set of values.

    Args:
        names: tensors of the model.
        by: `"model"` (one group, `"model"`), `"layer"` (`layer_of`) or `"tensor"` (its name).
        tied: groups of names that are one tensor.
        patterns: shell patterns to group names, tried in order before `by`:
            `{"*.attn.*": "attention"}`.

    Raises:
        RecipeError: `by` is none of the three, or a pattern matches no tensor.

    >>> group_names(["a.0.w", "a.1.w", "head.w"], "layer", patterns={"head.*": "classifier"})
    {'a.0.w': 'a.0', 'a.1.w': 'a.1', 'head.w': 'classifier'}
    """
    if by not in ("model", "layer", "tensor"):
        raise RecipeError(f"by={by!r} is not a grouping: choose 'model', 'layer' or 'tensor'")
    patterns = dict(patterns or {})
    names = list(names)
    unused = [p for p in patterns if not any(fnmatch.fnmatchcase(name, p) for name in names)]
    if unused:
        raise RecipeError(
            f"no tensor matches the group pattern {', '.join(map(repr, unused))}; names are like "
            f"{', '.join(repr(name) for name in names[:3])}"
        )
    first = leaders_of(tied)
    return {name: _group(first.get(name, name), by, patterns) for name in names}


def _group(name: str, by: str, patterns: Mapping[str, str]) -> str:
    for pattern, group in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            return group
    return {"model": "model", "layer": layer_of(name), "tensor": name}[by]
