"""What the page shows of Zoo-Tuning: the gates of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stockpot._figures import AnyFigure, Axis, Heatmap
from stockpot._records import parse
from stockpot.errors import ReportError
from stockpot.io.paths import natural_key, short_names
from stockpot.recipes.result import Details, SoupSummary


@dataclass(frozen=True, slots=True)
class _Zoo:
    """The keys that a page shows, with their types."""

    models: tuple[str, ...]
    gates: Mapping[str, tuple[float, ...]]
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ZooDetails(Details):
    """The part of a Zoo-Tuning's record that a page shows.

    Attributes:
        paths: of the models that were adapted.
        gates: layer → the gate of each model.
        fresh: names of what no model could give.
    """

    paths: tuple[str, ...]
    gates: Mapping[str, tuple[float, ...]]
    fresh: tuple[str, ...] = ()

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """What became one, and what is new in it."""
        new = f" Drawn from the seed, for no model has them: {', '.join(self.fresh)}."
        return (
            f"{len(self.paths)} models were adapted together and folded into one."
            f"{new if self.fresh else ''}",
        )


def zoo_summary(summary: SoupSummary, data: object) -> tuple[SoupSummary, list[AnyFigure]]:
    """A Zoo-Tuning's summary with typed details, and the map of its gates.

    Raises:
        ReportError: the record is damaged; the message names the place.
    """
    found = parse(_Zoo, data, error=ReportError)
    details = ZooDetails(paths=found.models, gates=found.gates, fresh=found.fresh)
    names, layers = short_names(details.paths), sorted(details.gates, key=natural_key)
    gates = Heatmap(
        name="gates",
        title="Gates of each layer",
        explanation=(
            "A row for each layer, a column for each model; the stronger the colour, the larger "
            f"the gate of its weights. All gates began at {1 / max(1, len(details.paths)):.2f}, "
            "and need not sum to one."
        ),
        rows=tuple(layers),
        columns=tuple(names[path] for path in details.paths),
        values=tuple(details.gates[layer] for layer in layers),
        scale=Axis(name="gate"),
    )
    return replace(summary, details=details), [gates] if details.gates else []
