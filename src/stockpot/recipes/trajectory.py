"""The best average over checkpoints of one run, in the order in which they were saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

from stockpot._figures import AnyFigure, Axis, Column, Line, LineChart, Row, Table
from stockpot._options import option
from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import p_value
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.result import Details, Names, SoupSummary

_Kind = Literal["mean", "ema", "1-sqrt"]
_KINDS: tuple[_Kind, ...] = ("mean", "ema", "1-sqrt")
_SHOWN = 10
"""Windows in the table."""


@dataclass(frozen=True, slots=True)
class Window:
    """Checkpoints `start`, `start + stride`, …, `count` of them, and how they are weighted.

    With i from 0 (oldest) to n − 1: `"mean"` 1/n, which is what a learning rate that falls linearly
    to 0 over the window would have given; `"1-sqrt"` √((i+1)/n) − √(i/n), the same for a rate that
    falls as 1 − √t; `"ema"` proportional to decayⁿ⁻¹⁻ⁱ.

    A decay that multiplies the update after checkpoint i by w(t) leads to Σ (w(tᵢ) − w(tᵢ₊₁))·θᵢ,
    summation by parts: Tian et al. 2025, arXiv 2507.17634.

    >>> Window("mean", start=1, stride=2, count=2).coefficients(5)
    (0.0, 0.5, 0.0, 0.5, 0.0)
    """

    kind: _Kind
    start: int
    stride: int
    count: int
    decay: float | None = None

    def members(self) -> range:
        """Positions of the checkpoints."""
        return range(self.start, self.start + self.stride * self.count, self.stride)

    def coefficients(self, n_checkpoints: int) -> tuple[float, ...]:
        """One for each of `n_checkpoints`; they sum to 1."""
        n = self.count
        if self.kind == "mean":
            weights = [1 / n] * n
        elif self.kind == "1-sqrt":
            weights = [math.sqrt((i + 1) / n) - math.sqrt(i / n) for i in range(n)]
        else:
            assert self.decay is not None
            powers = [self.decay ** (n - 1 - i) for i in range(n)]
            weights = [power / math.fsum(powers) for power in powers]
        found = [0.0] * n_checkpoints
        for position, weight in zip(self.members(), weights, strict=True):
            found[position] = weight
        return tuple(found)

    @property
    def label(self) -> str:
        """How it is weighted: `"mean"`, `"1-sqrt"`, or `"ema"` with its decay."""
        return self.kind if self.decay is None else f"{self.kind} {self.decay:g}"

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrajectoryDetails(Details):
    """What averages along a run have to say.

    Attributes:
        window: that was taken.
        curve: every window that was scored, and its score on the split that decides.
        p_value: of no difference to the last checkpoint on that split.
    """

    window: Window
    curve: tuple[tuple[Window, float], ...]
    p_value: float | None = None

    def to_json(self) -> dict[str, JSON]:
        """All fields; a point of the curve is its window with a `score`."""
        return {
            "window": self.window.to_json(),
            "curve": [{**window.to_json(), "score": score} for window, score in self.curve],
            "p_value": self.p_value,
        }

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The window that was taken."""
        window = self.window
        return (
            f"Of {len(self.curve)} windows the {window.label} of {window.count} checkpoints from "
            f"{window.start} in steps of {window.stride} was taken.",
        )

    def tables(self, names: Names) -> tuple[Table, ...]:
        """The best windows, best first."""
        # The window that was taken is the best: that says which direction is better.
        best = dict(self.curve).get(self.window)
        lowest = best is not None and best <= min(score for _, score in self.curve)
        ordered = sorted(self.curve, key=lambda item: item[1] if lowest else -item[1])
        return (
            Table(
                name="windows",
                title="Windows by their score on the data that chose",
                columns=tuple(Column(name=n) for n in ("start", "stride", "count", "held-out")),
                rows=tuple(
                    Row(
                        name=window.label,
                        cells=(window.start, window.stride, window.count, score),
                        chosen=window == self.window,
                    )
                    for window, score in ordered[:_SHOWN]
                ),
                first="window",
            ),
        )

    def figures(self, names: Names) -> tuple[AnyFigure, ...]:
        """The score of every window by its last checkpoint."""
        groups: dict[str, list[tuple[float, float]]] = {}
        for window, score in self.curve:
            label = f"{window.label} from {window.start}"
            label += f" by {window.stride}" if window.stride > 1 else ""
            groups.setdefault(label, []).append((float(window.members()[-1]), score))
        return (
            LineChart(
                name="windows",
                title="Windows along the run",
                explanation="A line for each start and weighting; positions are last checkpoints.",
                x=Axis(name="last checkpoint", whole=True),
                y=Axis(name="score on the data that chose"),
                lines=tuple(
                    Line(name=label, x=tuple(x for x, _ in at), y=tuple(y for _, y in at))
                    for label, at in groups.items()
                ),
            ),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrajectoryDetails:
        """The value that `to_json` was made from."""
        points = [dict(point) for point in data["curve"]]
        scores = [float(point.pop("score")) for point in points]
        return cls(
            window=Window(**data["window"]),
            curve=tuple((Window(**p), score) for p, score in zip(points, scores, strict=True)),
            p_value=data["p_value"],
        )


@final
@dataclass(frozen=True, kw_only=True)
class Trajectory(Recipe):
    """Average the window of one run's checkpoints that scores best on held-out data.

    Give the checkpoints in the order in which they were saved. Every window that begins at one of
    `starts` is scored at every length. Many windows are compared on one held-out set, so the
    winner's score there is optimistic: read the others.

    Attributes:
        starts: positions where windows begin; None for up to eight, evenly spread.
        strides: distances between the checkpoints of a window.
        decays: of exponential averages from each start; empty for none.
        kinds: which weightings, of `"mean"`, `"ema"`, `"1-sqrt"`.

    Reference: Izmailov et al. 2018, arXiv 1803.05407; Kaddour 2022, arXiv 2209.14981 (LAWA).
    """

    name = "trajectory"
    title = "Average along a run"
    command = "trajectory"
    summary = "Average the best window of one run's checkpoints."
    about = (
        "Give them in the order they were saved. Scores, on the held-out split, windows from each "
        "start at every length: their mean, averages like a learning rate decayed as 1 - sqrt, and "
        "exponential averages."
    )
    examples = (
        "stockpot trajectory run/step-*.safetensors --task handwriting -o best.safetensors",
        "stockpot trajectory ckpt-1.pt ckpt-2.pt ckpt-3.pt --task my.py:task -o best.pt "
        "--strides 1,2",
    )
    details_type = TrajectoryDetails
    needs_outputs = True

    starts: tuple[int, ...] | None = option(
        None, metavar="0,4", help="Where windows begin; default: up to eight."
    )
    strides: tuple[int, ...] = option(
        (1,), metavar="1,2", help="Steps between checkpoints averaged."
    )
    decays: tuple[float, ...] = option(
        (0.5, 0.8), metavar="0.5,0.8", help="Of exponential averages."
    )
    kinds: tuple[_Kind, ...] = _KINDS

    def solve(self, context: RecipeContext) -> Solution:
        """Score every window and take the best.

        Raises:
            RecipeError: no task, or starts, strides, decays or kinds that mean nothing here.
        """
        evaluator, split = context.choosing(self.name)
        k = len(context.ingredients)
        scores: dict[Window, float] = {}
        keys: set[str] = set()
        for number, window in enumerate(_windows(self._lines(k), k), 1):
            mixture = context.mixture(window.coefficients(k))
            keys.add(mixture.key)
            found = evaluator.predictions(mixture, split)
            name = f"the window {window}"
            scores[window] = evaluator.score_of(found, split, name=name, interval=False).value
            evaluator.progress(number, None, "windows")
        quality = evaluator.metric.quality
        # Of equal scores the longest window, whose score is the least of an accident.
        best = max(scores, key=lambda w: (quality(scores[w]), w.count, -_KINDS.index(w.kind)))
        mixture = context.mixture(best.coefficients(k))
        chosen = evaluator.predictions(mixture, split)
        last = evaluator.predictions(context.uniform([k - 1]), split)
        n = evaluator.n_examples(split)
        return Solution(
            mixture=mixture,
            selected=[context.paths[i] for i in best.members()],
            details=TrajectoryDetails(
                window=best,
                curve=tuple(scores.items()),
                p_value=p_value(chosen, last, seed=evaluator.seed),
            ),
            examples=n * len(keys),
            examples_plain=n * len(scores),
        )

    def _lines(self, k: int) -> list[Window]:
        """One window for each start, stride and weighting, at its full length."""
        starts = _spread(k, 8) if self.starts is None else self.starts
        problems = [f"start {s} (there are {k} checkpoints)" for s in starts if not 0 <= s < k]
        problems += [f"stride {s}" for s in self.strides if s < 1]
        problems += [f"decay {d}" for d in self.decays if not 0 < d < 1]
        problems += [f"kind {kind!r}" for kind in self.kinds if kind not in _KINDS]
        if problems:
            raise RecipeError(
                f"no such window: {', '.join(problems)}; starts are 0..{k - 1}, strides at least "
                f"1, decays between 0 and 1, kinds {', '.join(_KINDS)}"
            )
        lines: list[Window] = []
        for stride in self.strides:
            for start in starts:
                count = 1 + (k - 1 - start) // stride
                for kind in self.kinds:
                    decays = self.decays if kind == "ema" else (None,)
                    lines += [Window(kind, start, stride, count, d) for d in decays]
        return lines


def _spread(k: int, most: int) -> tuple[int, ...]:
    """Up to `most` of the positions 0..k−1, evenly spread from the first."""
    return tuple(sorted({i * k // min(k, most) for i in range(min(k, most))}))


def _windows(lines: list[Window], n_checkpoints: int) -> Iterator[Window]:
    """Every window of every line, in the order of their last checkpoints."""
    for position in range(n_checkpoints):
        for line in lines:
            if position not in line.members():
                continue
            count = 1 + line.members().index(position)
            # All weightings of one checkpoint are that checkpoint.
            if count == 1 and line.kind != "mean" and any(o.kind == "mean" for o in lines):
                continue
            yield replace(line, count=count)
