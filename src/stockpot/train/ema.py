"""Averages of weights along a run: the running mean (SWA) and exponential moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from stockpot.errors import TrainingError
from stockpot.tensors._devices_torch import widest


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `model`, detached; values are the live tensors, not copies."""
    return {name: value.detach() for name, value in model.state_dict().items()}


class _Average:
    """A mean that moves along a run: float64 means of what floats, copies of the rest.

    Integers and flags (`num_batches_tracked`) hold the latest value. A tensor that appears under
    two names is kept once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._means: dict[str, torch.Tensor] = {}
        self._others: dict[str, torch.Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._alias: dict[str, str] = {}

    def _step(
        self,
        fraction: float,
        values: Mapping[str, torch.Tensor],
        widened: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Move every mean by `fraction` of its way to `values`."""
        if not self._dtypes:
            self._prepare(values)
        elif self._dtypes.keys() != values.keys():
            raise TrainingError("a snapshot names other tensors than the first one of this average")
        for name, value in values.items():
            if name in self._others:
                self._others[name] = value.detach().clone()
        names = list(self._means)
        wide = {} if widened is None else widened
        for name in names:
            if name not in wide:
                wide[name] = values[name].detach().to(widest(values[name].device))
        news = [wide[name] for name in names]
        if fraction == 1:
            for name, new in zip(names, news, strict=True):
                self._means[name].copy_(new)
        elif names:
            torch._foreach_lerp_([self._means[name] for name in names], news, fraction)

    def _prepare(self, values: Mapping[str, torch.Tensor]) -> None:
        seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
        for name, value in values.items():
            self._dtypes[name] = value.dtype
            place = (value.data_ptr(), value.shape, value.stride())
            first = seen.setdefault(place, name) if value.numel() else name
            if first != name:
                self._alias[name] = first
            elif value.is_floating_point():
                self._means[name] = torch.zeros_like(value, dtype=widest(value.device))
            else:
                self._others[name] = value.detach().clone()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average now, in the dtypes of the model (rounded once); tied names share storage.

        Raises:
            TrainingError: nothing was averaged yet.
        """
        if self.count == 0:
            raise TrainingError("this average has seen no weights yet; update it first")
        found = {n: mean.to(self._dtypes[n], copy=True) for n, mean in self._means.items()}
        found.update({n: value.clone() for n, value in self._others.items()})
        return {name: found[self._alias.get(name, name)] for name in self._dtypes}

    def save_state(self) -> dict[str, object]:
        """What `load_state` needs to go on bit for bit: tensors, numbers and strings only."""
        return {
            "count": self.count, "means": dict(self._means), "others": dict(self._others),
            "dtypes": dict(self._dtypes), "alias": dict(self._alias),
        }  # fmt: skip

    def load_state(self, state: Mapping[str, object], device: torch.device | None = None) -> None:
        """Take over what `save_state` gave."""
        self.count = state["count"]  # type: ignore[assignment]
        self._means = {k: v.to(device) for k, v in state["means"].items()}  # type: ignore[attr-defined]
        self._others = {k: v.to(device) for k, v in state["others"].items()}  # type: ignore[attr-defined]
        self._dtypes = dict(state["dtypes"])  # type: ignore[call-overload]
        self._alias = dict(state["alias"])  # type: ignore[call-overload]


class RunningMean(_Average):
    """The equal mean of every snapshot given (SWA): w ← w + (x − w)/(n + 1).

    >>> mean = RunningMean()
    >>> for x in (0.0, 3.0, 6.0):
    ...     mean.update({"w": torch.tensor([x])})
    >>> mean.state_dict()["w"]
    tensor([3.])

    Reference: Izmailov et al. 2018, arXiv 1803.05407, Algorithm 1.
    """

    def update(self, values: Mapping[str, torch.Tensor], *, share: float | None = None) -> None:
        """Add one snapshot (name → tensor; not kept) with weight 1/(n + 1), or `share` in 0..1."""
        self._step(1 / (self.count + 1) if share is None or self.count == 0 else share, values)
        self.count += 1


class ExponentialMean(_Average):
    """Exponential moving average, debiased unless it starts from given weights.

    From nothing, after t updates: w = Σ dᵗ⁻ⁱ xᵢ (1 − d)/(1 − dᵗ), kept in that form at every step,
    so that a decay of 0.9999999 is a plain mean at first and never a stand-in near zero. With
    `start` it is w ← d·w + (1 − d)·x from w = start, as torch's `get_ema_multi_avg_fn` does from
    its first snapshot; and that equals dᵗ·start + (1 − dᵗ)·(the debiased average).

    >>> ema = ExponentialMean(0.5)
    >>> for x in (0.0, 3.0):
    ...     ema.update({"w": torch.tensor([x])})
    >>> ema.state_dict()["w"]
    tensor([2.])
    """

    def __init__(self, decay: float, *, start: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise TrainingError(f"an EMA's decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.debiased = start is None
        if start is not None:
            self._step(1, start)

    def update(
        self,
        values: Mapping[str, torch.Tensor],
        *,
        widened: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Take one snapshot (name → tensor; not kept).

        Averages that are updated with the same values can share a dict, empty at first, as
        `widened`: each tensor is then converted to float64 once for all of them.
        """
        self.count += 1
        self._step(self._fraction(), values, widened)

    def _fraction(self) -> float:
        """(1 − d)/(1 − dᵗ) when debiased: `expm1` keeps its digits for d close to 1."""
        if not self.debiased:
            return 1 - self.decay
        if self.decay == 0 or self.count == 1:
            return 1.0
        log_decay = math.log(self.decay)
        return math.expm1(log_decay) / math.expm1(self.count * log_decay)


class PowerMean(_Average):
    """The average with weights proportional to τ^γ at the τ-th update: w ← β·w + (1 − β)·x.

    β = (1 − 1/t)^(γ+1) at the t-th update, so that the average has the same relative width at any
    time, and none of what came before the first.

    Reference: Karras et al. 2024, arXiv 2312.02696, §3.1.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        if not gamma > -1:
            raise TrainingError(f"the power of an average is {gamma}, expected more than -1")
        self.gamma = gamma

    def update(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take one snapshot (name → tensor; not kept)."""
        self.count += 1
        self._step(1 - (1 - 1 / self.count) ** (self.gamma + 1), values)
