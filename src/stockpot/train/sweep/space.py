"""Search spaces as data: what one run's hyper-parameters are drawn from.

Optuna has distributions, too, but its draws come from a study; here run i is a pure function of the
space and the seed, needs no further package, and several parameters can be drawn together.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

import numpy as np

from stockpot.errors import TrainingError

_Value: TypeAlias = Any


class Distribution(ABC):
    """What one value is drawn from. `draw` is a pure function of the generator's state."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> _Value:
        """One value."""

    @abstractmethod
    def scaled(self, factor: float) -> Distribution:
        """The law of `factor` times the value."""

    @abstractmethod
    def as_data(self) -> Any:
        """What `parse_distribution` reads."""


@final
@dataclass(frozen=True)
class Constant(Distribution):
    """Always `value`."""

    value: _Value

    def draw(self, generator: np.random.Generator) -> _Value:
        """The value."""
        return self.value

    def scaled(self, factor: float) -> Distribution:
        """Times `factor`; an integer stays one."""
        return Constant(_times(self.value, factor))

    def as_data(self) -> Any:
        """The value itself."""
        return self.value


@dataclass(frozen=True)
class Range(Distribution):
    """Values from `low` to `high`; subclasses say how they are spread."""

    low: Any
    high: Any
    law: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise TrainingError(
                f"{type(self).__name__} runs from {self.low} to {self.high}; swap the two"
            )

    def scaled(self, factor: float) -> Distribution:
        """Both bounds times `factor`; integers are rounded, and positive ones stay at least 1."""
        return type(self)(_times(self.low, factor), _times(self.high, factor))

    def as_data(self) -> Any:
        """Such as `{"uniform": [low, high]}`."""
        return {self.law: [self.low, self.high]}


@final
@dataclass(frozen=True)
class Uniform(Range):
    """U(low, high)."""

    law = "uniform"

    def draw(self, generator: np.random.Generator) -> _Value:
        """A float."""
        return float(generator.uniform(self.low, self.high))

    def scaled(self, factor: float) -> Distribution:
        """Both bounds times `factor`."""
        return Uniform(self.low * factor, self.high * factor)


@final
@dataclass(frozen=True)
class LogUniform(Range):
    """10^U(log₁₀ low, log₁₀ high)."""

    law = "log_uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise TrainingError(f"log_uniform starts at {self.low}, expected a positive number")

    def draw(self, generator: np.random.Generator) -> _Value:
        """A float."""
        return float(10 ** generator.uniform(math.log10(self.low), math.log10(self.high)))


@final
@dataclass(frozen=True)
class Integer(Range):
    """Each integer from `low` to `high`, both included."""

    law = "int"

    def draw(self, generator: np.random.Generator) -> _Value:
        """An int."""
        return int(generator.integers(self.low, self.high, endpoint=True))


@final
@dataclass(frozen=True)
class Choice(Distribution):
    """Each of `values` with equal probability."""

    values: tuple[_Value, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if len(self.values) == 0:
            raise TrainingError("choice holds no value to choose from")

    def draw(self, generator: np.random.Generator) -> _Value:
        """One of the values."""
        return self.values[int(generator.integers(len(self.values)))]

    def scaled(self, factor: float) -> Distribution:
        """Every value times `factor`."""
        return Choice(tuple(_times(value, factor) for value in self.values))

    def as_data(self) -> Any:
        """`{"choice": [...]}`."""
        return {"choice": list(self.values)}


@final
@dataclass(frozen=True)
class Mixture(Distribution):
    """One of `options`, each with a probability proportional to its weight.

    An option is a distribution, or several by name (as a mapping), which are then drawn together:
    "no augmentation with probability ⅓, else magnitude and number of operations".
    """

    options: tuple[tuple[float, Distribution | Mapping[str, Distribution]], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options or any(weight <= 0 for weight, _ in self.options):
            raise TrainingError("a mixture needs options with positive weights")

    def draw(self, generator: np.random.Generator) -> _Value:
        """The value of the option; a mapping of values where the option names several."""
        weights = np.array([weight for weight, _ in self.options], dtype=float)
        chosen = self.options[int(generator.choice(len(weights), p=weights / weights.sum()))][1]
        if isinstance(chosen, Distribution):
            return chosen.draw(generator)
        return {name: part.draw(generator) for name, part in chosen.items()}

    def scaled(self, factor: float) -> Distribution:
        """Every option's values times `factor`; not for options of several names."""
        options: list[tuple[float, Distribution]] = []
        for weight, option in self.options:
            if not isinstance(option, Distribution):
                raise TrainingError(
                    f"{', '.join(option)} are drawn together; scale one by its name"
                )
            options.append((weight, option.scaled(factor)))
        return Mixture(tuple(options))

    def as_data(self) -> Any:
        """`{"mixture": [{"weight": w, …}, …]}`."""
        return {"mixture": [_option_data(weight, option) for weight, option in self.options]}


@dataclass(frozen=True)
class Space:
    """Hyper-parameters of runs: a random law, or a grid.

    `entries` maps field names of `TrainConfig` (or of a user's own training) to distributions; the
    name of a mixture whose options name several fields is only a label. `grid` holds names whose
    values are combined, the last varying fastest, before `entries` are drawn.

    >>> space = Space({"lr": LogUniform(1e-4, 1e-2), "epochs": Constant(3)})
    >>> space.draw(0, seed=0) == space.draw(0, seed=0) != space.draw(1, seed=0)
    True
    """

    entries: Mapping[str, Distribution]
    grid: Mapping[str, Sequence[_Value]] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and any(len(values) == 0 for values in self.grid.values()):
            raise TrainingError("a grid holds a name without values")

    @property
    def n_points(self) -> int | None:
        """Points of the grid; None for a random law."""
        return None if self.grid is None else math.prod(map(len, self.grid.values()))

    def draw(self, index: int, *, seed: int) -> dict[str, _Value]:
        """The hyper-parameters of run `index`: a pure function, so that runs can be added later.

        Raises:
            TrainingError: the grid has fewer points.
        """
        found: dict[str, _Value] = {}
        if self.grid is not None:
            points = itertools.product(*self.grid.values())
            point = next(itertools.islice(points, index, None), None)
            if point is None:
                raise TrainingError(
                    f"the grid has {self.n_points} points, so there is no run {index}; "
                    f"ask for at most {self.n_points} runs"
                )
            for name, value in zip(self.grid, point, strict=True):
                found.update(value if isinstance(value, Mapping) else {name: value})
        generator = np.random.default_rng(np.random.SeedSequence([seed, index]))
        for name, distribution in self.entries.items():
            value = distribution.draw(generator)
            found.update(value if isinstance(value, Mapping) else {name: value})
        return found

    def scaled(self, factors: Mapping[str, float]) -> Space:
        """The space with the named values multiplied, on a grid too.

        >>> Space({"epochs": Integer(4, 16)}).scaled({"epochs": 0.5}).entries["epochs"]
        Integer(low=2, high=8)

        Raises:
            TrainingError: the space has no such name.
        """
        entries, grid = dict(self.entries), dict(self.grid or {})
        for name, factor in factors.items():
            if name in entries:
                entries[name] = entries[name].scaled(factor)
            elif name in grid:
                grid[name] = [_times(value, factor) for value in grid[name]]
            else:
                known = ", ".join([*entries, *grid])
                raise TrainingError(f"the space has no {name!r} to scale; it has {known}")
        return Space(entries, grid or None)

    def as_data(self) -> dict[str, Any]:
        """What `parse_space` reads: plain values for JSON and YAML."""
        data = {name: distribution.as_data() for name, distribution in self.entries.items()}
        if self.grid is not None:
            data["grid"] = {name: list(values) for name, values in self.grid.items()}
        return data


def _option_data(weight: float, option: Distribution | Mapping[str, Distribution]) -> Any:
    if not isinstance(option, Distribution):
        return {"weight": weight, "set": {name: part.as_data() for name, part in option.items()}}
    if isinstance(option, Constant):
        return {"weight": weight, "value": option.value}
    return {"weight": weight, **option.as_data()}


def _times(value: Any, factor: float) -> Any:
    """`value * factor`; integers are rounded and do not fall to 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TrainingError(f"{value!r} is no number and cannot be scaled")
    if isinstance(value, int):
        return value if value == 0 else max(1, round(value * factor))
    return value * factor
