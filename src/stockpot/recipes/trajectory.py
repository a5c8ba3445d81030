"""The best average over checkpoints of one run, in the order in which they were saved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, final

from stockpot._figures import AnyFigure, Axis, Column, Heatmap, Line, LineChart, Row, Table
from stockpot._options import numbers, option
from stockpot._types import JSON
from stockpot.errors import CheckpointError, RecipeError
from stockpot.evaluate.compare import p_value
from stockpot.evaluate.evaluator import Evaluator
from stockpot.formats.runs import read_steps, steps_in_table, steps_of
from stockpot.recipes.base import Recipe, Reference, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.result import Details, Names, SoupSummary
from stockpot.recipes.window_search import coarse_to_fine
from stockpot.recipes.windows import Kind, Order, Window, post_hoc_coefficients

_KINDS: tuple[Kind, ...] = ("mean", "ema", "1-sqrt", "cosine", "power")
_DEFAULT_KINDS: tuple[Kind, ...] = ("mean", "ema", "1-sqrt")
_STORED = re.compile(r"sigma-([0-9.]+)-step-([0-9]+)")
"""What names of stored power averages say: their σ_rel and their step."""
_SHOWN = 10
"""Windows in the table."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryDetails(Details):
    """What averages along a run have to say.

    Attributes:
        window: that was taken.
        curve: every window that was scored, and its score on the split that decides.
        p_value: of no difference to the last checkpoint on that split.
        n_scored: different averages that were scored; windows of one checkpoint, say, are equal.
        n_grid: different averages of all windows; None in records of older versions.
        saved_at: steps at which the checkpoints were saved, where they are known.
    """

    window: Window
    curve: tuple[tuple[Window, float], ...]
    p_value: float | None = None
    n_scored: int | None = None
    n_grid: int | None = None
    saved_at: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, JSON]:
        """All fields; a point of the curve is its window with a `score`."""
        return {
            "window": self.window.to_json(),
            "curve": [{**window.to_json(), "score": score} for window, score in self.curve],
            "p_value": self.p_value,
            "n_scored": self.n_scored,
            "n_grid": self.n_grid,
            "saved_at": None if self.saved_at is None else list(self.saved_at),
        }

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """The window that was taken, and how many of all were scored."""
        window = self.window
        where = "" if self.saved_at is None else f" (step {self._when(window.start)})"
        taken = (
            f"Of {_counted(len(self.curve), 'window')} the {window.label} of "
            f"{_counted(window.count, 'checkpoint')} from {window.start}{where} in steps of "
            f"{window.stride} was taken."
        )
        if self.n_scored is None or self.n_scored == self.n_grid:
            return (taken,)
        return (
            taken,
            f"{self.n_scored} of the {self.n_grid} averages of the full grid were scored, from "
            "coarse to fine: a better one may be among the others.",
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
        """Where the good windows lie, for each weighting."""
        if self.window.kind == "post-hoc":
            points = sorted((float(window.decay or 0), score) for window, score in self.curve)
            if len(points) < 2:
                return ()
            line = Line(name="score", x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
            return (
                LineChart(
                    name="widths",
                    title="Averages of several lengths",
                    explanation="Made afterwards from two averages that the run stored.",
                    x=Axis(name="relative width σ"),
                    y=Axis(name="score on the data that chose"),
                    lines=(line,),
                ),
            )
        best = dict(self.curve).get(self.window)
        behind = {w: abs(score - best) for w, score in self.curve if best is not None}
        kinds = dict.fromkeys(window.label for window in behind)
        return tuple(
            self._landscape(label, i, {w: d for w, d in behind.items() if w.label == label}, behind)
            for i, label in enumerate(kinds)
        )

    def _landscape(
        self, label: str, number: int, own: Mapping[Window, float], every: Mapping[Window, float]
    ) -> Heatmap:
        """How far behind the best the windows of one weighting are, by beginning and end."""
        rows = sorted({(window.stride, window.start) for window in own})
        columns = sorted({window.members()[-1] for window in every})
        cells = {((w.stride, w.start), w.members()[-1]): behind for w, behind in own.items()}
        strides = {stride for stride, _ in rows}
        return Heatmap(
            name=f"windows-{number}",
            title=f"Windows along the run: {label}",
            explanation="A row for each first checkpoint, a column for each last one. The fainter "
            "the better: colour is how far a window scores behind the best of all, on the data "
            "that chose.",
            rows=tuple(
                f"from {self._when(start)}" + (f" by {stride}" if len(strides) > 1 else "")
                for stride, start in rows
            ),
            columns=tuple(f"to {self._when(last)}" for last in columns),
            values=tuple(tuple(cells.get((row, last)) for last in columns) for row in rows),
            scale=Axis(name="behind"),
            least=max(every.values()),  # one scale for all weightings
        )

    def _when(self, position: int) -> str:
        """The step of a checkpoint, or its position."""
        return str(position) if self.saved_at is None else f"{self.saved_at[position]:.10g}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrajectoryDetails:
        """The value that `to_json` was made from."""
        points = [dict(point) for point in data["curve"]]
        scores = [float(point.pop("score")) for point in points]
        return cls(
            window=_window(data["window"]),
            curve=tuple((_window(p), score) for p, score in zip(points, scores, strict=True)),
            p_value=data["p_value"],
            n_scored=data.get("n_scored"),
            n_grid=data.get("n_grid"),
            saved_at=None if data.get("saved_at") is None else tuple(data["saved_at"]),
        )


def _steps_of_text(text: str) -> tuple[float, ...] | dict[str, float]:
    """Numbers, or a table in a file."""
    if not text.endswith((".csv", ".tsv")):
        return numbers(text)
    try:
        return read_steps(text)
    except CheckpointError as error:
        raise ValueError(str(error)) from None


def _window(data: Mapping[str, Any]) -> Window:
    return Window(**{**data, "rates": tuple(data.get("rates", ()))})


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


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
        kinds: which weightings, of `"mean"`, `"ema"`, `"1-sqrt"`, `"cosine"`, `"power"`.
        rates: a decay of the learning rate of your own, from 1 to 0 at even times and linear in
            between: the weights that stand for it, from each start.
        powers: γ of power averages from each start.
        orders: in which the weights are given to the checkpoints of a window.
        steps: at which checkpoints were saved, or tokens they had seen: one for each, or by name;
            None for those in their names or their `trainer_state.json`, else evenly.
        sigma_rel: relative widths of power averages that are made, afterwards, of those that a
            running soup stored (`RunningSoup(sigma_rel=…)`); in place of windows.
        seed: of random orders.
        budget: different averages to score at most, from coarse to fine; None for all.

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
        'stockpot trajectory run/ --eval "python score.py {checkpoint}" --workers 4 '
        "--budget 60 -o best/",
    )
    details_type = TrajectoryDetails

    starts: tuple[int, ...] | None = option(
        None, metavar="0,4", help="Where windows begin; default: up to eight."
    )
    strides: tuple[int, ...] = option(
        (1,), metavar="1,2", help="Steps between checkpoints averaged."
    )
    decays: tuple[float, ...] = option(
        (0.5, 0.8), metavar="0.5,0.8", help="Of exponential averages."
    )
    kinds: tuple[Kind, ...] = option(
        _DEFAULT_KINDS, flags=("--kind",), help="A weighting; may be given again."
    )
    powers: tuple[float, ...] = option((2.0,), metavar="1,4", help="Of --kind power: t^(γ+1).")
    rates: tuple[float, ...] = option(
        (), metavar="1,0.4,0", help="A decay of the rate of your own, from 1 to 0 at even times."
    )
    orders: tuple[Order, ...] = option(
        ("sequential",), flags=("--order",), help="Of the weights in a window; may be given again."
    )
    steps: tuple[float, ...] | Mapping[str, float] | None = option(
        None,
        metavar="100,300",
        parse=_steps_of_text,
        help="When they were saved, or a table.csv of names and steps or tokens; default: by names "
        "or trainer_state.json.",
    )
    sigma_rel: tuple[float, ...] = option(
        (), metavar="0.05,0.1", help="Widths of power averages to make of two that were stored."
    )
    seed: int = option(0, help="Of random orders.")
    budget: int | None = option(
        None, metavar="N", minimum=2, help="Averages to score, coarse to fine; default: all."
    )

    @property
    def chooses(self) -> bool:
        """Whether there are several windows."""
        return len(self.sigma_rel) != 1

    def solve(self, context: RecipeContext) -> Solution:
        """Score every window, or as many as the budget allows, and take the best.

        Raises:
            RecipeError: no task, or starts, strides, decays, kinds or a budget that mean nothing
                here.
        """
        k = len(context.ingredients)
        steps = self._steps(context.paths)
        made = self._coefficients(context.paths, steps)
        if not self.chooses and context.evaluator is None:
            ((only, vector),) = made.items()
            return Solution(
                mixture=context.mixture(vector),
                selected=context.paths,
                details=TrajectoryDetails(window=only, curve=(), saved_at=steps),
            )
        scoring = context.choosing if self.chooses else context.scoring
        evaluator, split = scoring(self.name)
        # The last checkpoint comes first: what fails for everything fails there.
        last = evaluator.predictions(context.uniform([k - 1]), split)
        names = {vector: f"the window {window}" for window, vector in made.items()}
        found = self._search(context, evaluator, split, names)
        scores = {window: found[vector] for window, vector in made.items() if vector in found}

        def standing(window: Window) -> tuple[float, ...]:
            return evaluator.standing_of(
                scores[window], lambda: context.mixture(made[window]), split
            )

        # Of equal scores the longest window, whose score is the least of an accident.
        simplest = {window: -i for i, window in enumerate(sorted(scores, key=_simplicity))}
        best = max(scores, key=lambda w: (*standing(w), w.count, simplest[w]))
        mixture = context.mixture(made[best])
        chosen = evaluator.predictions(mixture, split)
        n = evaluator.n_examples(split)
        return Solution(
            mixture=mixture,
            selected=[context.paths[i] for i in best.members()],
            details=TrajectoryDetails(
                window=best,
                curve=tuple(scores.items()),
                p_value=p_value(chosen, last, seed=evaluator.seed),
                n_scored=len(found),
                n_grid=len(names),
                saved_at=steps,
            ),
            examples=n * len(found),
            examples_plain=n * len(made),
        )

    def references(self, context: RecipeContext) -> list[Reference]:
        """The last checkpoint; the best single one where its search takes no runs of a program.

        Neither do they under a budget, which is for windows.
        """
        model = context.ingredients[len(context.ingredients) - 1]
        last = Reference(name="last", model=model, path=model.path)
        evaluator = context.evaluator
        if self.budget is not None or (evaluator is not None and not evaluator.has_outputs):
            return [replace(last, is_target=True)]
        others = list(super().references(context))
        return others if any(one.model is model for one in others) else [*others, last]

    def _search(
        self,
        context: RecipeContext,
        evaluator: Evaluator,
        split: str,
        names: Mapping[tuple[float, ...], str],
    ) -> dict[tuple[float, ...], float]:
        """The scores of all different averages, or of as many as the budget allows."""
        vectors = list(names)
        alone = (*(0.0,) * (len(context.ingredients) - 1), 1.0)
        budget = len(vectors)
        if self.budget is not None:
            # The last checkpoint was scored, whether or not it is among the windows.
            budget = min(budget, self.budget - (alone not in names))
        values: dict[tuple[float, ...], float] = {}

        def qualities(positions: list[int]) -> list[float]:
            mixtures = [context.mixture(vectors[i]) for i in positions]
            evaluator.score_ahead(mixtures if evaluator.n_ahead else [], split)
            for i, mixture in zip(positions, mixtures, strict=True):
                found = evaluator.predictions(mixture, split)
                score = evaluator.score_of(found, split, name=names[vectors[i]], interval=False)
                values[vectors[i]] = score.value
                evaluator.progress(len(values), budget, "windows")
            return [evaluator.metric.quality(values[vectors[i]]) for i in positions]

        coarse_to_fine(
            vectors,
            qualities,
            budget=budget,
            first=vectors.index(alone) if alone in names else 0,
        )
        return values

    def _steps(self, paths: list[str]) -> tuple[float, ...] | None:
        """At which each was saved: as given, else as noted; None where the intervals are equal.

        Raises:
            RecipeError: those given are not one for each, each more than the last.
            CheckpointError: a table of steps has no row for one.
        """
        given = self.steps
        if isinstance(given, Mapping):
            given = steps_in_table(paths, given)
        if given is None:
            noted = steps_of(paths)
            apart = [] if noted is None else [b - a for a, b in pairwise(noted)]
            return noted if apart and min(apart) > 0 else None
        if len(given) != len(paths) or any(b <= a for a, b in pairwise((0.0, *given))):
            raise RecipeError(
                f"steps are {', '.join(f'{s:g}' for s in given)}; expected one for each of "
                f"{len(paths)} checkpoints, each more than the last"
            )
        return given

    def _coefficients(
        self, paths: list[str], steps: tuple[float, ...] | None
    ) -> dict[Window, tuple[float, ...]]:
        """Every window with its weights."""
        k = len(paths)
        if self.sigma_rel:
            stored = _stored(paths)
            last = max(step for _, step in stored)
            try:
                return {
                    Window("post-hoc", 0, 1, k, sigma): tuple(
                        post_hoc_coefficients(stored, sigma, last)
                    )
                    for sigma in self.sigma_rel
                }
            except ValueError as error:
                raise RecipeError(str(error)) from None
        windows = _windows(self._lines(k), k)
        return {window: window.coefficients(k, steps) for window in windows}

    def _lines(self, k: int) -> list[Window]:
        """One window for each start, stride and weighting, at its full length."""
        starts = _spread(k, 8) if self.starts is None else self.starts
        problems = [f"start {s} (there are {k} checkpoints)" for s in starts if not 0 <= s < k]
        problems += [f"stride {s}" for s in self.strides if s < 1]
        problems += [f"decay {d}" for d in self.decays if not 0 < d < 1]
        problems += [f"power {p}" for p in self.powers if not p >= 0]
        problems += [f"kind {kind!r}" for kind in self.kinds if kind not in _KINDS]
        if self.rates and (len(self.rates) < 2 or (self.rates[0], self.rates[-1]) != (1, 0)):
            problems.append(f"rates {', '.join(f'{r:g}' for r in self.rates)} (from 1 to 0)")
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
                    decays: tuple[float | None, ...] = (None,)
                    decays = {"ema": self.decays, "power": self.powers}.get(kind, decays)
                    # A mean has the same weight everywhere.
                    orders = self.orders if kind != "mean" else ("sequential",)
                    lines += [Window(kind, start, stride, count, d, order, self.seed)
                              for d in decays for order in orders]  # fmt: skip
                if self.rates:
                    own = Window("given", start, stride, count, seed=self.seed, rates=self.rates)
                    lines += [replace(own, order=order) for order in self.orders]
        return lines


def _simplicity(window: Window) -> tuple[int, int]:
    kinds = (*_KINDS, "given", "post-hoc")
    return kinds.index(window.kind), ("sequential", "reversed", "random").index(window.order)


def _stored(paths: list[str]) -> list[tuple[float, float]]:
    """σ_rel and step of stored averages, by their names.

    Raises:
        RecipeError: a name says neither.
    """
    found = [_STORED.search(Path(path).name) for path in paths]
    unknown = [path for path, one in zip(paths, found, strict=True) if one is None]
    if unknown:
        raise RecipeError(
            f"{unknown[0]} is no stored power average: expected names such as sigma-0.05-step-"
            "00001000.safetensors, as RunningSoup(sigma_rel=(0.05, 0.1)) writes them"
        )
    return [(float(one[1]), float(one[2])) for one in found if one is not None]


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
