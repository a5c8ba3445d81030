"""How much of each ingredient goes into each tensor, and which tensors share coefficients."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.formats.base import Checkpoint, leaders_of

SUM_TOLERANCE = 1e-6
"""Coefficients must sum to 1 within this; they are never normalised silently."""

_By = Literal["model", "group", "tensor", "element"]


@dataclass(frozen=True)
class Coefficients:
    """Mixing coefficients per model, group of tensors, tensor, or element.

    Made by `uniform`, `per_model`, `per_group`, `per_tensor` or `elementwise`. Every vector has one
    number for each ingredient, in the order of the ingredients, and sums to 1 within 1e-6. They may
    be negative. An ingredient whose coefficient is exactly 0 takes no part.

    Attributes:
        by: what a vector belongs to.
        vectors: the vector of each group or tensor; under `""` that of the whole model.
        group_of: the group that each tensor belongs to (by group only).
        elements: a checkpoint of coefficients for each ingredient (by element only).
        any_sum: whether vectors may have any sum, as freely learned ones do.

    >>> Coefficients.uniform(4).for_tensor("any.weight")
    (0.25, 0.25, 0.25, 0.25)
    >>> Coefficients.per_model([1, 2, 3])
    Traceback (most recent call last):
    ...
    stockpot.errors.RecipeError: coefficients sum to 6, expected 1 (within 1e-06): ...
    >>> Coefficients.per_model([1, 2, 5], normalise=True).for_tensor("any.weight")
    (0.125, 0.25, 0.625)
    """

    by: _By
    vectors: Mapping[str, tuple[float, ...]]
    group_of: Mapping[str, str] = field(default_factory=dict)
    elements: tuple[Checkpoint, ...] = ()
    any_sum: bool = False

    def __post_init__(self) -> None:
        if self.by == "element":
            if not self.elements:
                raise RecipeError("there are no coefficients; expected one for each ingredient")
            return
        if not self.vectors:
            raise RecipeError("there are no coefficients; expected one for each ingredient")
        problems = [
            text for key, v in self.vectors.items() for text in _problems(key, v, self.any_sum)
        ]
        if len({len(v) for v in self.vectors.values()}) > 1:
            problems.append("vectors have different lengths; expected one number per ingredient")
        unknown = sorted(set(self.group_of.values()) - set(self.vectors))
        if unknown:
            problems.append(f"groups without coefficients: {', '.join(unknown)}")
        if problems:
            raise RecipeError("\n".join(problems))

    @classmethod
    def uniform(cls, n_ingredients: int) -> Coefficients:
        """1/k for each of k ingredients."""
        if n_ingredients < 1:
            raise RecipeError(f"{n_ingredients} ingredients cannot be mixed; expected at least 1")
        return cls("model", {"": (1.0 / n_ingredients,) * n_ingredients})

    @classmethod
    def per_model(
        cls, values: Sequence[float], *, normalise: bool = False, any_sum: bool = False
    ) -> Coefficients:
        """One coefficient for each ingredient; with `normalise`, divided by their sum first.

        Raises:
            RecipeError: they do not sum to 1, vanish in sum, or are not finite.
        """
        vector = tuple(float(value) for value in values)
        return cls("model", {"": _divided("", vector) if normalise else vector}, any_sum=any_sum)

    @classmethod
    def per_group(
        cls,
        values: Mapping[str, Sequence[float]],
        *,
        group_of: Mapping[str, str],
        any_sum: bool = False,
    ) -> Coefficients:
        """A vector for each group; `group_of` names the group of each tensor.

        A tensor tied to others belongs to the group of the first name.
        """
        return cls("group", _vectors(values), dict(group_of), any_sum=any_sum)

    @classmethod
    def per_tensor(cls, values: Mapping[str, Sequence[float]]) -> Coefficients:
        """A vector for each tensor, by name."""
        return cls("tensor", _vectors(values))

    @classmethod
    def elementwise(cls, elements: Sequence[Checkpoint]) -> Coefficients:
        """A coefficient for each element, read as needed from a checkpoint for each ingredient.

        Each holds floating tensors of the names and shapes that are mixed, and at every element
        they sum to 1 within 1e-6: checked as they are read.
        """
        return cls("element", {}, elements=tuple(elements))

    @property
    def n_ingredients(self) -> int:
        """How many ingredients these are for."""
        if self.by == "element":
            return len(self.elements)
        return len(next(iter(self.vectors.values())))

    def for_tensor(self, name: str) -> tuple[float, ...]:
        """The vector of tensor `name`, one number for each ingredient.

        Raises:
            RecipeError: there is none, or every element has its own.
        """
        if self.by == "element":
            raise RecipeError(f"{name!r} has a coefficient for each element, not a vector")
        key = {"model": "", "group": self.group_of.get(name), "tensor": name}[self.by]
        if key is None or key not in self.vectors:
            raise RecipeError(
                f"no coefficients for tensor {name!r}; expected "
                f"{'its group in group_of' if self.by == 'group' else 'a vector of that name'}"
            )
        return self.vectors[key]

    def normalised(self) -> Coefficients:
        """Each vector divided by its sum, so that they sum to 1 to the last bit that floats allow.

        Raises:
            RecipeError: a sum vanishes.
        """
        vectors = {key: _divided(key, vector) for key, vector in self.vectors.items()}
        return Coefficients(self.by, vectors, self.group_of, self.elements)

    def to_json(self) -> dict[str, JSON]:
        """A JSON object from which `from_json` makes an equal value; floats survive exactly.

        >>> Coefficients.from_json(Coefficients.uniform(3).to_json()) == Coefficients.uniform(3)
        True

        Raises:
            RecipeError: by element; those live in checkpoints.
        """
        if self.by == "element":
            raise RecipeError("coefficients of elements are checkpoints and have no JSON form")
        if self.by == "model":
            result: dict[str, JSON] = {"by": "model", "values": list(self.vectors[""])}
        else:
            values: dict[str, JSON] = {key: list(v) for key, v in sorted(self.vectors.items())}
            result = {"by": self.by, "values": values}
        if self.any_sum:
            result["any_sum"] = True
        if self.by == "group":
            result["group_of"] = dict(sorted(self.group_of.items()))
        return result

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Coefficients:
        """The value that `to_json` was made from.

        Raises:
            RecipeError: not such an object.
        """
        by, values, group_of = data.get("by"), data.get("values"), data.get("group_of", {})
        any_sum = data.get("any_sum") is True
        try:
            if by == "model" and isinstance(values, list):
                return cls.per_model(values, any_sum=any_sum)  # type: ignore[arg-type]
            if by == "tensor" and isinstance(values, dict):
                return cls.per_tensor(values)  # type: ignore[arg-type]
            if by == "group" and isinstance(values, dict) and isinstance(group_of, dict):
                return cls.per_group(values, group_of=group_of, any_sum=any_sum)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise RecipeError(f"coefficients are not numbers: {error}") from error
        raise RecipeError(
            f"coefficients by {by!r} with values of type {type(values).__name__}; expected by "
            "'model' with a list, or by 'group' or 'tensor' with an object of lists"
        )


def _vectors(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    return {key: tuple(float(v) for v in vector) for key, vector in values.items()}


def _problems(key: str, vector: tuple[float, ...], any_sum: bool) -> list[str]:
    where = f" of {key!r}" if key else ""
    if not vector:
        return [f"coefficients{where}: none; expected one for each ingredient"]
    if not all(math.isfinite(value) for value in vector):
        return [f"coefficients{where} are not finite: {list(vector)}"]
    total = math.fsum(vector)
    if any_sum:
        return []
    if abs(total) <= SUM_TOLERANCE:
        return [f"coefficients{where} sum to {total:g}: a mean of weight zero does not exist"]
    if abs(total - 1.0) > SUM_TOLERANCE:
        return [
            f"coefficients{where} sum to {total:g}, expected 1 (within {SUM_TOLERANCE:g}): "
            "divide them by their sum (normalise=True, or --normalise), or correct them"
        ]
    return []


def _divided(key: str, vector: tuple[float, ...]) -> tuple[float, ...]:
    total = math.fsum(vector)
    if not math.isfinite(total) or abs(total) <= SUM_TOLERANCE * math.fsum(map(abs, vector)):
        where = f" of {key!r}" if key else ""
        raise RecipeError(f"coefficients{where} sum to {total:g} and cannot be normalised")
    return tuple(value / total for value in vector)


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
