"""The best average over checkpoints of one run, in the order in which they were saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stockpot._types import JSON
from stockpot.errors import RecipeError
from stockpot.evaluate.compare import p_value
from stockpot.evaluate.evaluator import Evaluator
from stockpot.mixing.ingredients import Ingredients, OnMismatch, Source
from stockpot.recipes.base import Kitchen, prepare
from stockpot.recipes.soup import Soup, serve
from stockpot.tensors.spec import DType, TensorSpec
from stockpot.train.ema import ExponentialMean, RunningMean

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.task import Task


_Kind = Literal["mean", "ema", "1-sqrt"]
_KINDS: tuple[_Kind, ...] = ("mean", "ema", "1-sqrt")


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

    def to_json(self) -> dict[str, JSON]:
        """All fields."""
        return {
            "kind": self.kind, "start": self.start, "stride": self.stride, "count": self.count,
            "decay": self.decay,
        }  # fmt: skip


@dataclass(frozen=True)
class Trajectory:
    """Average the window of one run's checkpoints that scores best on held-out data.

    Give the checkpoints in the order in which they were saved. Every window that begins at one of
    `starts` is scored at every length, from sums that run along: each checkpoint is read once,
    however many windows there are, and each (start, stride, kind) holds one model in float64. Many
    windows are compared on one held-out set, so the winner's score there is optimistic: read the
    others.

    Attributes:
        starts: positions where windows begin; None for up to eight, evenly spread.
        strides: distances between the checkpoints of a window.
        decays: of exponential averages from each start; empty for none.
        kinds: which weightings, of `"mean"`, `"ema"`, `"1-sqrt"`.

    Reference: Izmailov et al. 2018, arXiv 1803.05407; Kaddour 2022, arXiv 2209.14981 (LAWA).
    """

    starts: tuple[int, ...] | None = None
    strides: tuple[int, ...] = (1,)
    decays: tuple[float, ...] = (0.5, 0.8)
    kinds: tuple[_Kind, ...] = _KINDS

    name = "trajectory"

    def cook(
        self,
        ingredients: Ingredients | Iterable[Source],
        task: Task | None = None,
        *,
        base: Source | None = None,
        evaluator: Evaluator | None = None,
        choose_on: str | None = None,
        on_mismatch: OnMismatch = "error",
        dtype: DType | str | None = None,
        report: bool = True,
    ) -> Soup:
        """Choose a window; see `Recipe.cook`.

        Raises:
            RecipeError: no task, or starts, strides, decays or kinds that mean nothing here.
        """
        kitchen = prepare(
            ingredients, task, base=base, evaluator=evaluator, choose_on=choose_on,
            on_mismatch=on_mismatch, dtype=dtype, report=report,
        )  # fmt: skip
        judge, split = kitchen.scoring(self.name)
        lines = self._lines(len(kitchen.ingredients))
        scores: dict[Window, float] = {}
        before = judge.counters.examples
        for number, (window, sums) in enumerate(_along(kitchen, lines), 1):
            found = judge.predictions(_Averaged(kitchen, window, sums), split)
            name = f"the window {window}"
            scores[window] = judge.score_of(found, split, name=name, interval=False).value
            judge.progress(number, None, "windows")
        quality = judge.metric.quality
        # Of equal scores the longest window, whose score is the least of an accident.
        best = max(scores, key=lambda w: (quality(scores[w]), w.count, -_KINDS.index(w.kind)))
        mixture = kitchen.mixture(best.coefficients(len(kitchen.ingredients)))
        last = kitchen.uniform([len(kitchen.ingredients) - 1])
        against_last = p_value(
            judge.predictions(mixture, split), judge.predictions(last, split), seed=judge.seed
        )
        n = judge.n_examples(split)
        return serve(
            self, kitchen, mixture, selected=list(best.members()),
            examples=judge.counters.examples - before, examples_plain=n * len(scores),
            extra={
                "window": best.to_json(),
                "curve": [{**w.to_json(), "score": value} for w, value in scores.items()],
                "p_value": against_last,
            },
        )  # fmt: skip

    def _lines(self, k: int) -> list[Window]:
        """One window for each running sum, at its full length."""
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


def _along(kitchen: Kitchen, lines: list[Window]) -> Iterator[tuple[Window, _Sums]]:
    """Every window of every line as its last checkpoint is read; each checkpoint is read once."""
    sums: dict[Window, _Sums] = {}
    for position, checkpoint in enumerate(kitchen.ingredients):
        names = [name for name in kitchen.ingredients.specs if name in checkpoint]
        values = {name: checkpoint.read(name) for name in names}
        for line in lines:
            if position not in line.members():
                continue
            running = sums.setdefault(line, _Sums(line))
            running.add(values)
            count = running.count
            # All weightings of one checkpoint are that checkpoint.
            if count == 1 and line.kind != "mean" and any(o.kind == "mean" for o in lines):
                continue
            window = Window(line.kind, line.start, line.stride, count, line.decay)
            yield window, running


class _Sums:
    """The weighted mean of the checkpoints of a line so far; one model in float64."""

    def __init__(self, line: Window) -> None:
        self.count = 0
        self._plain = RunningMean()
        self._exponential = None if line.decay is None else ExponentialMean(line.decay)
        self._rooted = line.kind == "1-sqrt"

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take the next checkpoint."""
        self.count += 1
        if self._exponential is not None:
            self._exponential.update(values)
        else:
            # Weights √(i+1) − √i sum to √n: the newest one's share is (√n − √(n−1))/√n.
            rooted = 1 - math.sqrt(1 - 1 / self.count)
            self._plain.update(values, share=rooted if self._rooted else None)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The mean now."""
        return (self._exponential or self._plain).state_dict()


class _Averaged:
    """A window as the evaluator sees it: values of the running sum, rounded to the output's type.

    Its journal key is the mixture's, marked: the last bit may differ from the mixture's own values,
    whose scores are made anew for the window that is chosen.
    """

    def __init__(self, kitchen: Kitchen, window: Window, sums: _Sums) -> None:
        mixture = kitchen.mixture(window.coefficients(len(kitchen.ingredients)))
        self.key = mixture.key if window.count == 1 else f"running {mixture.key}"
        self.path = f"the window {window}"
        self.n_mixed = window.count
        self.specs: Mapping[str, TensorSpec] = dict(mixture)
        self._sums = sums
        self._values: dict[str, torch.Tensor] | None = None

    def read(self, name: str) -> Any:
        """The values of tensor `name`."""
        from stockpot.tensors._torch import torch_dtype

        if self._values is None:
            self._values = self._sums.state_dict()
        return self._values[name].to(torch_dtype(self.specs[name].dtype))
