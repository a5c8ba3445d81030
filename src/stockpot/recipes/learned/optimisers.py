"""The options of a fit: how free numbers become mixing coefficients, AdamW and L-BFGS over them.

Nothing here knows of models or data: a point is a float64 tensor, and `Evaluate` says what the loss
and its gradient are there. Both optimisers are deterministic: run again, they ask for the same
points.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from stockpot._options import option
from stockpot._types import parse_bytes
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


def parametrisation(constraint: str, spreads: torch.Tensor | None = None) -> Parametrisation:
    """How free numbers become coefficients; `spreads` are those of `IngredientBlocks`."""
    if constraint == "hyperplane" and spreads is not None:
        return Hyperplane(spreads)
    return Free() if constraint == "free" else Softmax()


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of AdamW.

    The learning rate rises linearly over the fraction `warmup` of all steps and then stays, or
    falls to zero along a cosine.

    Attributes:
        n_batches: steps of an epoch; with 1 every step sees all of the data.
        lr: highest learning rate.
        warmup: fraction of all steps, 0..1.
        cosine: whether the learning rate falls.
    """

    n_batches: int = 1
    lr: float = 0.05
    warmup: float = 0.0
    cosine: bool = False

    def lr_factor(self, step: int, n_steps: int) -> float:
        """What `lr` is multiplied with at `step` of `n_steps`."""
        n_warm = self.warmup * n_steps
        if step < n_warm:
            return (step + 1) / n_warm
        if not self.cosine:
            return 1.0
        return float(0.5 * (1 + np.cos(np.pi * (step - n_warm) / max(n_steps - n_warm, 1))))


def _group(text: str) -> tuple[str, str]:
    pattern, _, name = text.partition("=")
    if not pattern or not name:
        raise ValueError(f"{text!r}: write PATTERN=NAME, for example '*.attn.*=attention'")
    return pattern, name


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Which coefficients there are, and how they are fitted.

    Attributes:
        by: one vector of coefficients for the `"model"`, each `"layer"`, or each `"tensor"`.
        groups: (shell pattern, group name) pairs that come before `by`.
        constraint: `"softmax"` (positive, summing to one; the paper's better choice), `"free"`, or
            `"hyperplane"` (summing to one, any sign, steps in units of distance; MEHL-Soup).
        optimiser: `"lbfgs"` (all of the fitting part at each evaluation) or `"adamw"`.
        n_epochs: most iterations of L-BFGS, or passes over the fitting part.
        batch_size: examples of one AdamW step; None takes all, which reads the ingredients least.
        lr: of AdamW; None means 0.05 for softmax and 0.01 for the other two.
        learn_beta: fit β; otherwise it stays 1.
        stopping: share of the fitting part that is not fitted: the epoch with the lowest loss on it
            is kept.
        patience: stop after this many epochs without a lower loss on that share.
        max_memory: bytes, or a size such as `"4GB"`, for the model, its gradient, buffers, and as
            many ingredients as then fit; None holds no ingredient.
        budget: evaluations of a search without gradients, beside the 2k − 1 of the greedy soup.
        seed: of the division of the held-out data, of mini-batches and of the search.
    """

    by: Literal["model", "layer", "tensor"] = option(
        "model", help="What has coefficients of its own."
    )
    groups: tuple[tuple[str, str], ...] = option(
        (), metavar="PATTERN=NAME", parse=_group, many=tuple, help="Tensors that form a group."
    )
    constraint: Literal["softmax", "free", "hyperplane"] = option(
        "softmax", help="Positive and summing to 1; any; any that sum to 1."
    )
    optimiser: Literal["lbfgs", "adamw"] = option("lbfgs", help="How the loss is minimised.")
    n_epochs: int = option(
        30, flags=("--epochs",), minimum=1, help="Most iterations, or passes over the data."
    )
    batch_size: int | None = option(
        None, flags=("--step-size",), minimum=1, help="Examples of one AdamW step; default: all."
    )
    lr: float | None = option(None, help="Learning rate of AdamW.")
    learn_beta: bool = True
    stopping: float = option(0.2, help="Share of the fitting data that decides when to stop.")
    patience: int = option(5, minimum=1, help="Epochs without a lower loss on that share.")
    max_memory: int | str | None = option(
        None, metavar="SIZE", parse=parse_bytes, help="Memory to stay under: 1GB, 2GiB."
    )
    budget: int = option(200, minimum=1, help="With --eval: evaluations of the search.")
    seed: int = option(0, help="Of everything that is drawn at random.")

    def problems(self) -> list[str]:
        """What is wrong with these options, a sentence each."""
        problems = []
        if not 0 <= self.stopping < 1:
            problems.append(f"stopping is {self.stopping}, expected a share from 0 to below 1")
        if self.optimiser == "lbfgs" and self.batch_size is not None:
            problems.append(
                "L-BFGS needs all data at every step: leave batch_size out, or use adamw"
            )
        return problems

    @property
    def steps(self) -> Steps:
        """The steps of AdamW over one batch."""
        plane = self.constraint == "hyperplane"
        default = 0.05 if self.constraint == "softmax" else 0.01
        lr = default if self.lr is None else self.lr
        return Steps(lr=lr, warmup=0.2 if plane else 0.0, cosine=plane)


def adamw(
    start: Point,
    evaluate: Evaluate,
    visit: Visit,
    *,
    n_epochs: int,
    learn_beta: bool = True,
    steps: Steps | None = None,
) -> Point:
    """Minimise by AdamW without weight decay. A loss that is no number ends it."""
    import torch

    steps = Steps() if steps is None else steps
    raw = start.raw.clone().requires_grad_()
    beta = torch.tensor(start.beta, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([raw, beta], lr=steps.lr, weight_decay=0.0)
    n_batches = steps.n_batches
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: steps.lr_factor(step, n_epochs * n_batches)
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
