"""Fitting the coefficients of learned soups by descent of a loss, where models give outputs.

Every evaluation goes to the journal before it is used, and the optimisers are deterministic: a
killed fit continues by being run again, asks for the same points, and the journal answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot._records import read_regular
from stockpot._types import JSON, parse_bytes
from stockpot.errors import EvaluationError
from stockpot.evaluate.journal import Journal
from stockpot.evaluate.source_hash import source_hash
from stockpot.recipes.learned.objective import (
    FitRecord,
    Fitted,
    Layout,
    MixtureLoss,
    Numerics,
    Part,
    batch_indices,
    start_of,
    streamed_names,
)
from stockpot.recipes.learned.optimisers import (
    Evaluate,
    FitOptions,
    Parametrisation,
    Point,
    Value,
    adamw,
    lbfgs,
    parametrisation,
)

if TYPE_CHECKING:
    from stockpot.evaluate.task_evaluator import TaskEvaluator
    from stockpot.mixing import Mixture
    from stockpot.recipes.context import RecipeContext


def recorded(evaluate: Evaluate, journal: Journal, salt: str) -> Evaluate:
    """`evaluate`, asked only for what is not in the journal.

    Args:
        evaluate: loss and gradient at a point.
        journal: where they are kept, exactly.
        salt: everything beside the point that they depend on.
    """
    import torch

    def ask(point: Point, batch: int) -> Value:
        key = point.key(f"{salt}/{batch}")
        known = journal.kept(key)
        if known is None:
            value = evaluate(point, batch)
            gradient = value.raw.contiguous().numpy().astype("<f8").tobytes().hex()
            journal.keep(key, {"loss": value.loss, "beta": value.beta, "gradient": gradient})
            return value
        flat = np.frombuffer(bytes.fromhex(str(known["gradient"])), "<f8").astype(np.float64)
        gradient_ = torch.from_numpy(flat).reshape(point.raw.shape)
        return Value(float(known["loss"]), gradient_, float(known["beta"]))

    return ask


def adopt_log(path: Path, journal: Journal) -> None:
    """Put what version 0.1 kept of an unfinished fit, a file of JSON lines, into the journal.

    A line that a kill cut short is ignored.
    """
    if not path.exists():
        return
    for text in read_regular(path).splitlines():
        try:
            line = json.loads(text)
            numbers = [float.fromhex(number) for row in line["raw"] for number in row]
            gradient = np.array(numbers, "<f8").tobytes().hex()
            loss, beta = float.fromhex(line["loss"]), float.fromhex(line["beta"])
            if not line["key"].endswith("/peak"):
                journal.keep(line["key"], {"loss": loss, "beta": beta, "gradient": gradient})
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Path:
    """One descent from one start, at its best epoch.

    `loss` is that of the fitting part; `losses` and `epochs` have it and a record of every epoch;
    `is_cut` says that it ended where the loss was no number.
    """

    start: str
    point: Point
    loss: float
    losses: tuple[float, ...] = ()
    epochs: tuple[dict[str, JSON], ...] = ()
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Descent:
    """What all starts share; the model inside `loss` is overwritten by every evaluation.

    Attributes:
        options: how to fit.
        context: the ingredients.
        evaluator: of the task that the loss comes from.
        fitting: what the loss is fitted on.
        stopping: what says which epoch is the best; no part of what decides afterwards.
        layout: which coefficients there are.
        loss: the loss at given coefficients.
        made: how free numbers become coefficients.
    """

    options: FitOptions
    context: RecipeContext
    evaluator: TaskEvaluator
    fitting: Part
    stopping: Part
    layout: Layout
    loss: MixtureLoss
    made: Parametrisation

    @classmethod
    def begin(
        cls,
        options: FitOptions,
        context: RecipeContext,
        evaluator: TaskEvaluator,
        fitting: Part,
        stopping: Part,
    ) -> Descent:
        """Everything made ready; the model is the uniform soup.

        Raises:
            RecipeError: too little `max_memory`, or patterns without tensors.
        """
        import torch

        given = context.ingredients
        names = streamed_names(given, evaluator.runner.model.state_dict())
        layout = Layout.of(
            context,
            names,
            by=options.by,
            groups=options.groups,
            any_sum=options.constraint == "free",
        )
        wide = any(given.specs[name].dtype.value == "F64" for name in names)
        budget = options.max_memory
        loss = MixtureLoss(
            evaluator.task,
            [given[i] for i in given.canonical],
            start=context.uniform(range(len(given))),
            row_of={name: layout.row_of[name] for name in names},
            numerics=Numerics(
                device=str(evaluator.runner.device),
                precision=evaluator.precision,
                max_memory=None if budget is None else parse_bytes(budget),
                dtype=torch.float64 if wide else None,
            ),
        )
        spreads = loss.spreads() if options.constraint == "hyperplane" else None
        descent = cls(
            options=options,
            context=context,
            evaluator=evaluator,
            fitting=fitting,
            stopping=stopping,
            layout=layout,
            loss=loss,
            made=parametrisation(options.constraint, spreads),
        )
        if evaluator.journal.path is not None:
            folder = Path(evaluator.journal.path).parent / "learned"
            adopt_log(folder / f"{descent.salt}.jsonl", evaluator.journal)
        return descent

    @cached_property
    def salt(self) -> str:
        """A digest of everything that a loss at given coefficients depends on."""
        given, options = self.context.ingredients, self.options
        fields = {
            "ingredients": [given[i].key for i in given.canonical],
            "groups": dict(self.layout.group_of),
            "constraint": options.constraint,
            "parts": [
                [
                    self.evaluator.fingerprint(part.split),
                    hashlib.sha256(np.asarray(part.indices).tobytes()).hexdigest(),
                ]
                for part in (self.fitting, self.stopping)
            ],
            "version": self.evaluator.task.version,
            "precision": self.evaluator.precision,
            "batches": [options.batch_size, options.seed],
        }
        if len(given.averaged) < len(given.specs):
            # The rest is copied from one model, and the loss depends on it too.
            fields["copied"] = [sorted(given.averaged), given.donor.key]
        loss = getattr(self.evaluator.task, "__dict__", {}).get("loss")
        if loss is not None and not getattr(loss, "__module__", "").startswith("stockpot."):
            # Given to the task beside its class, it is no part of the version.
            fields["loss"] = source_hash(loss)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]

    def best(self, starts: Mapping[str, Mixture]) -> Fitted:
        """Descend from every start; the one with the lowest loss on the fitting part is kept."""
        paths = [self.fit(name, mixture) for name, mixture in starts.items()]
        path = min(paths, key=lambda path: path.loss)
        return Fitted(
            self.layout.mixture(self.made.coefficients(path.point.raw)),
            FitRecord(
                start=path.start,
                beta=path.point.beta,
                losses=path.losses,
                epochs={p.start: list(p.epochs) for p in paths},
                peak_bytes=self._peak_bytes(),
                n_held=self.loss.blocks.n_held,
            ),
            tuple(
                f"from the {p.start} soup the loss was no number after {len(p.epochs)} epochs, and "
                "the best of them was kept: use constraint='softmax' (--constraint softmax), or a "
                "smaller lr (--lr)"
                for p in paths
                if p.is_cut
            ),
        )

    def fit(self, start: str, mixture: Mixture) -> _Path:
        """Descend from the coefficients of `mixture` to the epoch with the lowest stopping loss."""
        options = self.options
        n = len(self.fitting.indices)
        n_batches = 1 if options.batch_size is None else -(-n // options.batch_size)
        best: tuple[float, Point, float] | None = None
        epochs: list[dict[str, JSON]] = []
        losses: list[float] = []
        n_worse = 0

        def visit(epoch: int, point: Point, loss: float) -> bool:
            nonlocal best, n_worse
            outside = self._stopping_loss(point)
            losses.append(loss)
            epochs.append(self._epoch(epoch, point, loss, outside))
            self.evaluator.progress(epoch + 1, options.n_epochs, f"epochs from the {start} soup")
            if math.isfinite(outside) and (best is None or outside < best[0]):
                best, n_worse = (outside, point, loss), 0
            else:
                n_worse += 1
            return n_worse >= options.patience

        begin = Point(start_of(mixture, self.layout, self.made), 1.0)
        evaluate = recorded(self._evaluate(n_batches), self.evaluator.journal, self.salt)
        if options.optimiser == "lbfgs":
            end = lbfgs(
                begin, evaluate, visit, n_epochs=options.n_epochs, learn_beta=options.learn_beta
            )
        else:
            end = adamw(
                begin,
                evaluate,
                visit,
                n_epochs=options.n_epochs,
                learn_beta=options.learn_beta,
                steps=replace(options.steps, n_batches=n_batches),
            )
        if best is None:  # L-BFGS found no lower point than its start, or there was no number
            loss = evaluate(end, -1).loss
            if not math.isfinite(loss):
                raise EvaluationError(
                    f"the loss is {loss} at the first steps from the {start} soup; negative "
                    "coefficients can make variances negative, and large steps overflow: use "
                    "constraint='softmax' (--constraint softmax), or a smaller lr (--lr)"
                )
            return _Path(start, end, loss)
        is_cut = options.optimiser == "adamw" and n_worse < options.patience
        is_cut = is_cut and len(epochs) < options.n_epochs
        return _Path(start, best[1], best[2], tuple(losses), tuple(epochs), is_cut)

    def _evaluate(self, n_batches: int) -> Evaluate:
        dataset = self._dataset(self.fitting)

        def evaluate(point: Point, batch: int) -> Value:
            n = len(self.fitting.indices)
            chosen = batch_indices(n, n_batches, batch, seed=self.options.seed)
            indices = [self.fitting.indices[i] for i in chosen]
            value = self.loss.value(point, self.made, dataset, indices)
            if self.loss.peak_bytes > self._peak_bytes():
                self.evaluator.journal.keep(f"{self.salt}/peak", {"bytes": self.loss.peak_bytes})
            return value

        return evaluate

    def _peak_bytes(self) -> int:
        """Most anonymous memory after a backward pass so far, interrupted runs included."""
        known = self.evaluator.journal.kept(f"{self.salt}/peak")
        return 0 if known is None else int(known["bytes"])

    def _stopping_loss(self, point: Point) -> float:
        """Loss over the stopping part; kept, so that a resumed run does not repeat it."""
        key, journal = point.key(f"{self.salt}/stopping"), self.evaluator.journal
        known = journal.kept(key)
        if known is not None:
            return float(known["loss"])
        part = self.stopping
        loss = self.loss.loss(point, self.made, self._dataset(part), part.indices)
        journal.keep(key, {"loss": loss})
        return loss

    def _dataset(self, part: Part) -> Any:
        return self.evaluator.task.splits[part.split].dataset

    def _epoch(self, epoch: int, point: Point, loss: float, outside: float) -> dict[str, JSON]:
        return {
            "epoch": epoch, "loss": loss, "stopping_loss": outside, "beta": point.beta,
            "coefficients": self.layout.lists(self.made.coefficients(point.raw)),
        }  # fmt: skip
