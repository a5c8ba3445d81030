"""The numerical half of learned soups: how free numbers become coefficients, and how they move.

Nothing here knows of models or data: a point is a float64 tensor, and `Evaluate` says what the loss
and its gradient are there. Every evaluation is written to a log before it is used, and both
optimisers are deterministic, so a killed run continues by being run again: it asks for the same
points, and the log answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from stockpot.mixing.blocks import InnerProducts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Point:
    """Where the loss is evaluated.

    Attributes:
        raw: float64 (groups, k), the numbers that a `Parametrisation` turns into coefficients.
        beta: inverse temperature that multiplies the logits.
    """

    raw: torch.Tensor
    beta: float

    def key(self, salt: str) -> str:
        """A digest of exactly these numbers and of `salt`, which says what is evaluated there."""
        state = hashlib.sha256(salt.encode())
        state.update(self.raw.contiguous().numpy().tobytes())
        state.update(np.float64(self.beta).tobytes())
        return state.hexdigest()


@dataclass(frozen=True)
class Value:
    """Loss at a `Point` and its derivatives there; `raw` has the shape of the point's."""

    loss: float
    raw: torch.Tensor
    beta: float


Evaluate: TypeAlias = Callable[[Point, int], Value]
"""Loss and gradient at a point over mini-batch n, counted over epochs; -1: all of the data."""

Visit: TypeAlias = Callable[[int, Point, float], bool]
"""Called after epoch n with its point and mean loss; returning True stops the optimiser."""


class Parametrisation(ABC):
    """A map from free numbers (groups, k) to coefficients (groups, k)."""

    @abstractmethod
    def start(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Numbers that give `coefficients`."""

    @abstractmethod
    def coefficients(self, raw: torch.Tensor) -> torch.Tensor:
        """The coefficients that `raw` stands for."""

    @abstractmethod
    def pullback(self, raw: torch.Tensor, products: InnerProducts) -> torch.Tensor:
        """∂L/∂raw from the inner products of ∂L/∂θ with the ingredients."""


class Softmax(Parametrisation):
    """c = softmax(raw): positive, summing to one in every group. Needs starts without zeros."""

    def start(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Logarithms of `coefficients`, centred."""
        logs = coefficients.double().log()
        return logs - logs.mean(dim=1, keepdim=True)

    def coefficients(self, raw: torch.Tensor) -> torch.Tensor:
        """Softmax over the ingredients."""
        return raw.softmax(dim=1)

    def pullback(self, raw: torch.Tensor, products: InnerProducts) -> torch.Tensor:
        """J_softmaxᵀ ⟨g, θ − m⟩; the common term ⟨g, m⟩ is annihilated by J."""
        c = raw.softmax(dim=1)
        return c * (products.centred - (c * products.centred).sum(dim=1, keepdim=True))


class Free(Parametrisation):
    """c = raw: any sign, any sum."""

    def start(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The coefficients themselves."""
        return coefficients.double().clone()

    def coefficients(self, raw: torch.Tensor) -> torch.Tensor:
        """The numbers themselves."""
        return raw

    def pullback(self, raw: torch.Tensor, products: InnerProducts) -> torch.Tensor:
        """∂L/∂c_i = ⟨g, θ_i − m⟩ + ⟨g, m⟩."""
        return products.centred + products.mean[:, None]


@dataclass(frozen=True, eq=False)
class Hyperplane(Parametrisation):
    """θ = m + Σ raw_i P_i with P_i the unit vector from the mean m to ingredient i.

    The coefficients sum to one whatever `raw` is, and may be negative (MEHL-Soup, ECCV 2024).

    Attributes:
        spreads: ‖θ_i − m‖ by group and ingredient, (groups, k).
    """

    spreads: torch.Tensor

    def _lengths(self) -> torch.Tensor:
        # A group in which an ingredient equals the mean (a frozen layer) has no direction to move
        # along; any length will do, since the inner product there is zero.
        return self.spreads.where(self.spreads > 0, 1.0)

    def start(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Offsets from the uniform soup, in units of each ingredient's distance from it."""
        return (coefficients.double() - 1 / coefficients.shape[1]) * self._lengths()

    def coefficients(self, raw: torch.Tensor) -> torch.Tensor:
        """c_i = raw_i/‖θ_i−m‖ + (1 − Σ_j raw_j/‖θ_j−m‖)/k."""
        steps = raw / self._lengths()
        return steps + (1 - steps.sum(dim=1, keepdim=True)) / raw.shape[1]

    def pullback(self, raw: torch.Tensor, products: InnerProducts) -> torch.Tensor:
        """∂L/∂raw_i = ⟨g, P_i⟩."""
        return products.centred / self._lengths()


class EvaluationLog:
    """Evaluations made so far, in a file that only grows.

    It has state because it is a file. A line that a kill cut short is ignored.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values: dict[str, Value] = {}
        if path is not None and path.exists():
            self._values.update(_read_log(path))

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """The value recorded under `key`, exactly as it was."""
        return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        """Record `value`; it is on disk when this returns."""
        self._values[key] = value
        if self._path is None:
            return
        line = {
            "key": key,
            "loss": value.loss.hex(),
            "beta": value.beta.hex(),
            "raw": [[number.hex() for number in row] for row in value.raw.tolist()],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            # A newline first: whatever a kill left of the last line ends there.
            file.write("\n" + json.dumps(line))
            file.flush()

    def recorded(self, evaluate: Evaluate, salt: str) -> Evaluate:
        """`evaluate`, asked only for what is not in the log."""

        def ask(point: Point, batch: int) -> Value:
            key = point.key(f"{salt}/{batch}")
            known = self.get(key)
            if known is not None:
                return known
            value = evaluate(point, batch)
            self.put(key, value)
            return value

        return ask


def _read_log(path: Path) -> Iterator[tuple[str, Value]]:
    import torch

    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            raw = [[float.fromhex(number) for number in row] for row in line["raw"]]
            value = Value(
                float.fromhex(line["loss"]),
                torch.tensor(raw, dtype=torch.float64),
                float.fromhex(line["beta"]),
            )
        except (ValueError, KeyError, TypeError):
            continue
        yield line["key"], value


def adamw(
    start: Point,
    evaluate: Evaluate,
    visit: Visit,
    *,
    n_epochs: int,
    n_batches: int = 1,
    lr: float = 0.05,
    warmup: float = 0.0,
    cosine: bool = False,
    learn_beta: bool = True,
) -> Point:
    """Minimise by AdamW without weight decay; one epoch is `n_batches` steps.

    With `n_batches` 1 every step sees all of the data. The learning rate rises linearly over the
    fraction `warmup` of all steps and then stays, or falls to zero along a cosine. A loss that is
    no number ends it.
    """
    import torch

    raw = start.raw.clone().requires_grad_()
    beta = torch.tensor(start.beta, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([raw, beta], lr=lr, weight_decay=0.0)
    n_steps = n_epochs * n_batches
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _lr_factor(step, n_steps, warmup, cosine)
    )
    for epoch in range(n_epochs):
        total = 0.0
        for batch in range(n_batches):
            point = Point(raw.detach().clone(), beta.item())
            value = evaluate(point, -1 if n_batches == 1 else epoch * n_batches + batch)
            if not math.isfinite(value.loss):
                return point
            raw.grad = value.raw.clone()
            beta.grad = torch.tensor(value.beta if learn_beta else 0.0, dtype=torch.float64)
            optimizer.step()
            schedule.step()
            total += value.loss
        if visit(epoch, Point(raw.detach().clone(), beta.item()), total / n_batches):
            break
    return Point(raw.detach().clone(), beta.item())


def _lr_factor(step: int, n_steps: int, warmup: float, cosine: bool) -> float:
    n_warm = warmup * n_steps
    if step < n_warm:
        return (step + 1) / n_warm
    if not cosine:
        return 1.0
    return float(0.5 * (1 + np.cos(np.pi * (step - n_warm) / max(n_steps - n_warm, 1))))


def lbfgs(
    start: Point,
    evaluate: Evaluate,
    visit: Visit,
    *,
    n_epochs: int,
    learn_beta: bool = True,
) -> Point:
    """Minimise by L-BFGS-B of scipy, over all of the data; one epoch is one iteration.

    Where the loss is no number (a step that made a variance negative) the line search meets a wall
    and takes a shorter step.
    """
    import torch
    from scipy.optimize import OptimizeResult, minimize

    shape = start.raw.shape
    highest = -math.inf

    def as_point(x: np.ndarray) -> Point:
        raw = torch.from_numpy(np.array(x[:-1], dtype=np.float64)).view(shape)
        return Point(raw, float(x[-1]))

    def loss_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal highest
        value = evaluate(as_point(x), -1)
        if not math.isfinite(value.loss) and math.isfinite(highest):
            # High enough to be refused, and not so high that the next step is next to nothing.
            return highest + 10 * (1 + abs(highest)), np.zeros_like(x)
        highest = max(highest, value.loss)
        slope = value.beta if learn_beta else 0.0
        return value.loss, np.append(value.raw.reshape(-1).numpy(), slope)

    epochs = iter(range(n_epochs))

    def after(intermediate_result: OptimizeResult) -> None:
        result = intermediate_result
        if visit(next(epochs), as_point(result.x), float(result.fun)):
            raise StopIteration

    best = minimize(
        loss_and_gradient,
        np.append(start.raw.reshape(-1).numpy(), start.beta),
        jac=True,
        method="L-BFGS-B",
        callback=after,
        options={"maxiter": n_epochs},
    )
    return as_point(best.x)
