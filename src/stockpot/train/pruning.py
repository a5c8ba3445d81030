"""Zeros that hold while a model trains, and pruning while it trains.

A mask holds because gradients are masked before they are clipped and applied: a weight that is zero
with a gradient of zero stays +0.0 under momentum, Adam and weight decay, which all multiply or add
zero. It costs one fused multiplication a step. That it held is checked after every epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from stockpot.errors import MaskMismatchError, Problem, TrainingError
from stockpot.mixing.mask import Mask
from stockpot.train.sparse.prunable import prunable_names
from stockpot.train.sparse.selectors import Magnitude, Selector, gradual_sparsity


@dataclass(frozen=True, kw_only=True)
class GradualPruning:
    """GMP: prune more and more while training; what is pruned stays pruned.

    At the start of every `every_epochs`-th epoch the weights are pruned to
    s_t = s·(1 − (1 − t/T)³), T being the fraction `until` of the run; the optimiser forgets what it
    knew of the pruned ones.

    Attributes:
        sparsity: at the end, over the prunable weights.
        until: fraction of the run after which it is reached; the rest recovers.
        every_epochs: epochs from one pruning to the next.
        selector: which weights go.
        include: see `prunable_names`.
        exclude: see `prunable_names`.

    Reference: Zhu & Gupta 2017, arXiv 1710.01878.
    """

    sparsity: float
    until: float = 0.75
    every_epochs: int = 1
    selector: Selector = field(default_factory=Magnitude)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.sparsity, self.until, self.every_epochs, "every_epochs")


@dataclass(frozen=True, kw_only=True)
class DynamicPruning:
    """DPF: train dense weights with the gradients of their pruned version, so errors are undone.

    Every `every_steps` steps a mask is chosen from the dense weights, to the sparsity of the
    cubic ramp; gradients at the masked point change the dense weights, so that a weight which was
    pruned too early grows back. The result holds the masked weights.

    Attributes:
        sparsity: at the end, over the prunable weights.
        until: fraction of the run after which it is reached.
        every_steps: optimiser steps from one mask to the next.
        selector: which weights go.
        include: see `prunable_names`.
        exclude: see `prunable_names`.

    Reference: Lin et al. 2020, arXiv 2006.07253, Algorithm 1.
    """

    sparsity: float
    until: float = 0.75
    every_steps: int = 16
    selector: Selector = field(default_factory=Magnitude)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.sparsity, self.until, self.every_steps, "every_steps")


Pruning: TypeAlias = Mask | GradualPruning | DynamicPruning
"""A mask that holds from the first step, or a plan that makes one on the way."""


def _check(sparsity: float, until: float, every: int, unit: str) -> None:
    problems = [
        text
        for broken, text in (
            (not 0 <= sparsity < 1, f"sparsity is {sparsity}, expected a fraction below 1"),
            (not 0 < until <= 1, f"until is {until}, expected a fraction of the run above 0"),
            (every < 1, f"{unit} is {every}, expected at least 1"),
        )
        if broken
    ]
    if problems:
        raise TrainingError("this pruning cannot be done: " + "; ".join(problems))


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has come: its optimiser steps that are done, of all, and those of an epoch."""

    done_steps: int
    total_steps: int
    steps_per_epoch: int


class Pruner(ABC):
    """What a run does about its mask between steps; stateful, since the mask may change.

    Args:
        plan: what was asked for.
        params: the parameters that are masked, on the device of the run.
    """

    changes = True
    """Whether the mask changes while the run goes on."""

    def __init__(self, plan: Pruning, params: Mapping[str, nn.Parameter]) -> None:
        self.plan = plan
        self.params = dict(params)
        self.mask: Mask | None = None
        self._factors: list[torch.Tensor] = []

    @property
    def identity(self) -> dict[str, Any]:
        """What a saved state has to be of."""
        if isinstance(self.plan, Mask):
            return {"mask": self.plan.fingerprint}
        options = {**asdict(self.plan), "selector": repr(self.plan.selector)}
        return {"method": type(self.plan).__name__, **{k: str(v) for k, v in options.items()}}

    def set_mask(self, mask: Mask) -> None:
        """Use `mask` from now on; the weights are not touched."""
        self.mask = mask
        # Factors of the weights' own type: multiplying by booleans takes several times as long.
        self._factors = [
            torch.from_numpy(mask.kept(name)).to(p.device, p.dtype)
            for name, p in self.params.items()
        ]

    def prune(self) -> None:
        """Set what the mask has pruned to +0.0."""
        with torch.no_grad():
            for parameter, factor in zip(self.params.values(), self._factors, strict=True):
                parameter.masked_fill_(factor == 0, 0.0)

    def mask_gradients(self) -> None:
        """Multiply gradients by the mask, before they are clipped and applied."""
        pairs = [
            (p.grad, factor)
            for p, factor in zip(self.params.values(), self._factors, strict=True)
            if p.grad is not None
        ]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [factor for _, factor in pairs])

    def check(self) -> None:
        """Refuse weights that are not zero where the mask is.

        Raises:
            TrainingError: names the tensors.
        """
        broken = [
            name
            for (name, p), factor in zip(self.params.items(), self._factors, strict=True)
            if bool(((p != 0) & (factor == 0)).any())
        ]
        if broken:
            raise TrainingError(
                f"pruned weights of {', '.join(broken[:5])} are no longer zero: something besides "
                "the optimiser changes them; let the task leave its parameters alone"
            )

    def state(self) -> dict[str, torch.Tensor]:
        """The mask as tensors, for a saved state; empty before there is one."""
        mask = self.mask
        return {} if mask is None else {n: torch.from_numpy(mask.kept(n)) for n in mask}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` gave."""
        if state:
            self.set_mask(Mask({name: kept.numpy() for name, kept in state.items()}))

    def begin(self) -> None:  # noqa: B027 (most have nothing to do)
        """Before the first step of a fresh run."""

    @abstractmethod
    def before_step(self, at: Position, optimizer: torch.optim.Optimizer) -> None:
        """Before each step: change the mask if it is time."""

    @contextmanager
    def sparse(self) -> Iterator[None]:
        """While the block runs, the model has its sparse weights; afterwards those it trains."""
        yield

    def finish(self) -> None:  # noqa: B027
        """After the last step: leave sparse weights in the model."""


class _Held(Pruner):
    """A mask that was given."""

    changes = False

    def begin(self) -> None:
        assert isinstance(self.plan, Mask)
        self.set_mask(self.plan)
        self.prune()

    def before_step(self, at: Position, optimizer: torch.optim.Optimizer) -> None:
        pass


class _Gradual(Pruner):
    def before_step(self, at: Position, optimizer: torch.optim.Optimizer) -> None:
        plan = self.plan
        assert isinstance(plan, GradualPruning)
        epoch, within = divmod(at.done_steps, at.steps_per_epoch)
        n_epochs = -(-at.total_steps // at.steps_per_epoch)
        last = min(int(plan.until * n_epochs), n_epochs - 1)
        due = epoch % plan.every_epochs == 0 or epoch == last
        if within or not due or epoch > last:
            return
        # The first epoch counts as the first step of the ramp: an epoch of dense training is what
        # the start has behind it.
        sparsity = gradual_sparsity(plan.sparsity, (epoch + 1) / (last + 1))
        self.set_mask(plan.selector.select(self.params, sparsity, self.mask))
        self.prune()
        self._forget(optimizer)

    def _forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero what the optimiser remembers of pruned weights, so that it moves them no more."""
        for parameter, factor in zip(self.params.values(), self._factors, strict=True):
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    value.mul_(factor)


class _Dynamic(Pruner):
    def before_step(self, at: Position, optimizer: torch.optim.Optimizer) -> None:
        plan = self.plan
        assert isinstance(plan, DynamicPruning)
        if at.done_steps % plan.every_steps == 0 or self.mask is None:
            done = (at.done_steps + plan.every_steps) / (plan.until * at.total_steps)
            sparsity = gradual_sparsity(plan.sparsity, done)
            self.set_mask(plan.selector.select(self.params, sparsity))

    def mask_gradients(self) -> None:
        """Nothing: gradients at the masked point are for the dense weights, all of them."""

    @contextmanager
    def sparse(self) -> Iterator[None]:
        params = [p.data for p in self.params.values()]
        dense = [p.clone() for p in params]
        torch._foreach_mul_(params, self._factors)
        try:
            yield
        finally:
            torch._foreach_copy_(params, dense)

    def check(self) -> None:
        """Nothing: the weights that are trained are dense."""

    def finish(self) -> None:
        plan = self.plan
        assert isinstance(plan, DynamicPruning)
        self.set_mask(plan.selector.select(self.params, plan.sparsity))
        self.prune()


def make_pruner(plan: Pruning | None, model: nn.Module) -> Pruner | None:
    """What holds, or makes, the mask of a run of `model`; None without a plan.

    Raises:
        MaskMismatchError: the mask covers tensors that the model has not, or of other shapes.
    """
    if plan is None:
        return None
    named = dict(model.named_parameters())
    if isinstance(plan, Mask):
        _refuse_misfits(plan, named)
        return _Held(plan, {name: named[name] for name in plan})
    names = prunable_names(model, include=plan.include, exclude=plan.exclude)
    kind = _Gradual if isinstance(plan, GradualPruning) else _Dynamic
    return kind(plan, {name: named[name] for name in names})


def _refuse_misfits(mask: Mask, named: Mapping[str, nn.Parameter]) -> None:
    problems = []
    for name, shape in mask.shapes.items():
        if name not in named:
            problems.append(Problem("the model", name, "no such parameter", f"shape {shape}"))
        elif tuple(named[name].shape) != shape:
            found = f"shape {tuple(named[name].shape)}"
            problems.append(Problem("the model", name, found, f"shape {shape}"))
    if problems:
        lines = [f"  {p.tensor}: {p.found}, expected {p.expected}" for p in problems[:20]]
        raise MaskMismatchError(
            "\n".join(["the mask does not fit the model that the task builds:", *lines]), problems
        )
