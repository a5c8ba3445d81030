"""Early rejection: a candidate is scored against the current best until it cannot win any more.

Exact: the decision is the one that full scores would give. What decides is the sum of per-example
scores; as long as what the unseen examples could still add does not reach what is needed, they need
not be seen. What one may add is bounded by the range that the metric declares; without a finite
bound on that side, every candidate is scored in full. Sums are correctly rounded (`math.fsum`),
which is monotone in every term and does not depend on their order, so bounding them by their best
possible values is safe in floating point too. Where further metrics decide between equal sums, only
a smaller sum has lost early; equal ones are seen to the end, in the batches of a plain loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.metrics import Accuracy
from stockpot.evaluate.task_evaluator import TaskEvaluator

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


Accept = Literal["ge", "gt"]

_MIN_BLOCK = 64
"""Batches below this many examples may differ in the last bits from larger ones."""
_TIE = {"fp32": 2e-5, "bf16": 0.05, "fp16": 0.01}
"""Relative logit margins below which a prediction may flip between batch shapes."""
_ACCELERATOR_TIE = 2e-4
"""For fp32 on accelerators, which choose another algorithm for another batch."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is accepted, and what deciding took.

    `value` and `predictions` are None when it was rejected early; `bound` is then the best value
    that it could still have had.
    """

    accepted: bool
    value: float | None
    bound: float | None
    examples: int
    predictions: Predictions | None


@dataclass(frozen=True)
class AcceptanceRule:
    """When a candidate is accepted.

    Attributes:
        accept: `"ge"` also accepts equal scores, `"gt"` only better ones.
        min_gain: improvement per example that is needed at least (0 with `"ge"`: equal will do).
        early: stop when a candidate cannot pass any more.
    """

    accept: Accept = "ge"
    min_gain: float = 0.0
    early: bool = True


def passes(
    total: float, current: float, n: int, rule: AcceptanceRule, *, higher_is_better: bool = True
) -> bool:
    """Whether a sum over n examples beats the current one by the rule, without rounding.

    >>> rules = [AcceptanceRule(accept, min_gain=0.01) for accept in ("ge", "gt")]
    >>> [passes(91, 90, 100, rule) for rule in rules]
    [True, False]
    """
    gain = Fraction(total) - Fraction(current)
    lead = (gain if higher_is_better else -gain) - Fraction(str(rule.min_gain)) * n
    return lead >= 0 if rule.accept == "ge" else lead > 0


def margins(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Floats:
    """True-class logit minus the largest other, float64 (n,); negative where it is wrong.

    Between two infinite ones of a sign it is 0: neither is the larger.

    >>> margins(np.array([[2.0, 5.0]], np.float32), np.array([0])).tolist()
    [-3.0]
    """
    rows = np.arange(len(targets))
    own = outputs[rows, targets].astype(np.float64)
    others = outputs.astype(np.float64).copy()
    others[rows, targets] = -np.inf
    with np.errstate(invalid="ignore"):
        result: Floats = own - others.max(-1)
    return np.nan_to_num(result, nan=0.0, posinf=np.inf, neginf=-np.inf)


def decide(
    evaluator: Evaluator,
    candidate: Checkpoint,
    split: str,
    *,
    current: Predictions,
    rule: AcceptanceRule,
    predicted: npt.NDArray[np.float32] | None = None,
) -> Decision:
    """Decide whether `candidate` passes against `current` on `split`.

    Args:
        evaluator: runs and journals the forward passes.
        candidate: weights to try.
        split: the one that decides.
        current: predictions of the model to beat, on all examples.
        rule: when a candidate is accepted.
        predicted: a guess of the candidate's outputs (n, …), by which hard examples come first; it
            decides how much is computed, never the outcome.

    Raises:
        EvaluationError: the candidate's score is not a number.
    """
    metric = evaluator.metric
    can_stop = metric.per_example is not None and metric.best is not None
    if not isinstance(evaluator, TaskEvaluator) or not rule.early or not can_stop:
        return _in_full(evaluator, candidate, split, current, rule)
    return _Scoring(evaluator, candidate, split, current, rule).decide(predicted)


def _in_full(
    evaluator: Evaluator,
    candidate: Checkpoint,
    split: str,
    current: Predictions,
    rule: AcceptanceRule,
) -> Decision:
    found = evaluator.predictions(candidate, split)
    value = evaluator.score_of(found, split, interval=False).value
    n = len(found.targets)
    if found.per_example is not None and current.per_example is not None:
        total, bar = math.fsum(found.per_example), math.fsum(current.per_example)
    else:
        total, bar = value * n, evaluator.score_of(current, split, interval=False).value * n
    accepted = _wins(evaluator, split, (found, total), (current, bar), rule)
    return Decision(accepted, value, None, n, found)


def _wins(
    evaluator: Evaluator,
    split: str,
    found: tuple[Predictions, float],
    current: tuple[Predictions, float],
    rule: AcceptanceRule,
) -> bool:
    """Whether a candidate that was scored in full passes: by the metric, else by `then`.

    With a least gain, models of equal scores are no tie that something else could decide.
    """
    (one, total), (other, bar) = found, current
    n, higher = len(one.targets), evaluator.metric.higher_is_better
    if not evaluator.then or rule.min_gain != 0 or total != bar:
        return passes(total, bar, n, rule, higher_is_better=higher)
    mine, theirs = (evaluator.tie_breakers(p, split) for p in (one, other))
    return mine >= theirs if rule.accept == "ge" else mine > theirs


def _tie(evaluator: TaskEvaluator) -> float:
    """Relative logit margin below which a prediction may flip between batch shapes."""
    import torch

    if evaluator.precision != "fp32" or evaluator.runner.device.type == "cpu":
        return _TIE[evaluator.precision]
    # TF32, which torch allows for convolutions unless set otherwise, keeps as many bits as fp16.
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return _TIE["fp16"] if tf32 else _ACCELERATOR_TIE


class _Scoring:
    """The scoring of one candidate. It has state: which examples were seen, with what outputs."""

    def __init__(
        self,
        evaluator: TaskEvaluator,
        candidate: Checkpoint,
        split: str,
        current: Predictions,
        rule: AcceptanceRule,
    ) -> None:
        best = evaluator.metric.best
        if current.per_example is None or best is None:
            raise ValueError("early rejection needs per-example scores with a finite best value")
        self.evaluator, self.candidate, self.split = evaluator, candidate, split
        self.current, self.rule, self.metric = current, rule, evaluator.metric
        # An equal sum has not lost yet where other metrics may decide.
        self.bound = replace(rule, accept="ge") if evaluator.then else rule
        # Whole batches of the plain loop where the last bits of outputs may decide.
        self.by_example = isinstance(self.metric, Accuracy) and not evaluator.then
        self.targets = evaluator.targets(split)
        self.n = len(self.targets)
        self.bar = math.fsum(current.per_example)
        self.best = best
        self.values = np.full(self.n, self.best)
        self.seen = np.zeros(self.n, bool)
        self.outputs: npt.NDArray[np.float32] | None = None
        self.settled = np.zeros(self.n, bool)
        self.examples = 0
        self.known = evaluator.known(candidate, split)

    def decide(self, predicted: npt.NDArray[np.float32] | None) -> Decision:
        order = self._order(predicted)
        position = 0
        while True:
            if not self._can_pass(self.values):
                if self._settle(only_if_decisive=True):
                    continue
                return self._rejected()
            if position >= len(order):
                if self._settle(only_if_decisive=False):
                    continue
                return self._finished()
            block, position = self._block(order, position)
            self._see(block)

    def _order(self, predicted: npt.NDArray[np.float32] | None) -> npt.NDArray[np.int64]:
        """Examples, hardest first; whole batches of the plain loop where single ones will not do.

        Only for accuracy is it known when a prediction may flip between batches; for other metrics
        the batches are those of the plain loop, where nothing does.
        """
        import torch

        if predicted is None:
            hardness = np.zeros(self.n)
        elif isinstance(self.metric, Accuracy):
            hardness = -margins(predicted, self.targets.numpy())
        else:
            if self.metric.per_example is None:
                raise AssertionError("metrics that are no means are computed in full")
            values = self.metric.per_example(torch.from_numpy(predicted), self.targets)
            hardness = np.abs(values.double().numpy() - self.best)
        if self.by_example:
            order: npt.NDArray[np.int64] = np.argsort(-hardness, kind="stable")
            return order
        size = self.evaluator.task.batch_size
        starts = range(0, self.n, size)
        sums = np.array([hardness[start : start + size].sum() for start in starts])
        return np.concatenate(
            [
                np.arange(b * size, min((b + 1) * size, self.n))
                for b in np.argsort(-sums, kind="stable")
            ]
        )

    def _block(
        self, order: npt.NDArray[np.int64], position: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        if self.by_example:
            size = max(_MIN_BLOCK, self._errors_left())
        else:
            size = self.evaluator.task.batch_size
            first = order[position] // size
            size = int((order[position : position + size] // size == first).sum())
        stop = min(position + size, self.n)
        if self.n - stop < _MIN_BLOCK and self.by_example:
            stop = self.n  # avoid a tiny last block
        return order[position:stop], stop

    def _errors_left(self) -> int:
        """How many more errors make the candidate lose."""
        low, high = 1, self.n + 1
        total = math.fsum(self.values)
        while low < high:
            middle = (low + high) // 2
            lost = not passes(total - middle, self.bar, self.n, self.bound)
            low, high = (low, middle) if lost else (middle + 1, high)
        return low

    def _can_pass(self, values: Floats) -> bool:
        higher = self.metric.higher_is_better
        return passes(math.fsum(values), self.bar, self.n, self.bound, higher_is_better=higher)

    def _see(self, indices: npt.NDArray[np.int64], *, again: bool = False) -> None:
        """Run the examples at `indices`, or take them from an earlier run that was cut off."""
        missing = indices
        if self.known is not None and not again:
            missing = indices[~np.isin(indices, self.known[0])]
            old = indices[np.isin(indices, self.known[0])]
            if len(old):
                self._note(old, self.known[1][np.searchsorted(self.known[0], old)])
        if len(missing):
            rows = missing.tolist()
            self._note(missing, self.evaluator.run(self.candidate, self.split, rows))
        self.examples += len(indices)

    def _note(self, indices: npt.NDArray[np.int64], outputs: npt.NDArray[np.float32]) -> None:
        import torch

        if self.metric.per_example is None:
            raise AssertionError("metrics that are no means are computed in full")
        if self.outputs is None:
            self.outputs = np.zeros((self.n, *outputs.shape[1:]), np.float32)
        self.outputs[indices] = outputs
        values = self.metric.per_example(
            torch.from_numpy(np.array(outputs)), self.targets[torch.from_numpy(indices)]
        )
        found = values.double().numpy()
        self.evaluator.require_numbers(found, self.split, name=self.candidate.path)
        self.evaluator.require_in_range(found, self.split, indices=indices)
        self.values[indices] = found
        self.seen[indices] = True

    def _settle(self, *, only_if_decisive: bool) -> bool:
        """Repeat, in the batches of the plain loop, predictions that another batch could flip."""
        doubtful = self._doubtful()
        if len(doubtful) == 0:
            return False
        if only_if_decisive:
            generous = self.values.copy()
            generous[doubtful] = self.best
            if not self._can_pass(generous):
                return False
        size = self.evaluator.task.batch_size
        for batch in np.unique(doubtful // size):
            self._see(np.arange(batch * size, min((batch + 1) * size, self.n)), again=True)
            self.settled[batch * size : (batch + 1) * size] = True
        return True

    def _doubtful(self) -> npt.NDArray[np.int64]:
        if self.outputs is None or not self.by_example:
            return np.empty(0, np.int64)
        at = np.flatnonzero(self.seen & ~self.settled)
        if len(at) == 0:
            return at
        scale = float(np.abs(self.outputs[at]).max())
        near = np.abs(margins(self.outputs[at], self.targets.numpy()[at])) < (
            _tie(self.evaluator) * scale
        )
        doubtful: npt.NDArray[np.int64] = at[near]
        return doubtful

    def _rejected(self) -> Decision:
        if self.seen.all():
            return self._finished()
        return Decision(False, None, math.fsum(self.values) / self.n, self.examples, None)

    def _finished(self) -> Decision:
        if self.outputs is None:
            raise AssertionError("no examples were scored")
        found = Predictions(self.outputs, self.targets, self.values)
        if self.evaluator.then:
            found = self.evaluator.from_outputs(self.outputs, self.split)
        total = math.fsum(self.values)
        accepted = _wins(
            self.evaluator, self.split, (found, total), (self.current, self.bar), self.rule
        )
        return Decision(accepted, total / self.n, None, self.examples, found)
