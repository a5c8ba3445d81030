"""The loss of a mixture as a function of its coefficients, with one model in memory.

`Layout` says which coefficients there are, and `MixtureLoss` what the loss is at them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot._types import JSON
from stockpot.evaluate.runner import resolve_device, to_device
from stockpot.evaluate.task import are_class_logits
from stockpot.io.memory import anonymous_bytes
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.coefficients import group_names
from stockpot.mixing.device_blocks import ingredient_blocks
from stockpot.recipes.learned.optimisers import Parametrisation, Point, Softmax, Value

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from stockpot.evaluate.task import Task
    from stockpot.formats.base import Checkpoint
    from stockpot.mixing.ingredients import Ingredients
    from stockpot.recipes.context import RecipeContext


_SMOOTHING = 0.9
"""A softmax cannot hold an exact 0, so a greedy start keeps this much and spreads the rest."""


@dataclass(frozen=True)
class Layout:
    """Groups of tensors, with a row of coefficients each.

    In rows (groups, k) ingredients stand in canonical order, so that neither the order of arguments
    nor where files lie changes a bit of the fit; in mixtures and JSON they stand as given.

    Attributes:
        context: the ingredients.
        row_of: the row of each tensor that is mixed, of tied ones of the first.
        index: the row of each group.
        group_of: the group of every averaged tensor, counters included.
        is_whole: whether there is one group because none were asked for.
        any_sum: whether coefficients may have any sum.
    """

    context: RecipeContext
    row_of: Mapping[str, int]
    index: Mapping[str, int]
    group_of: Mapping[str, str]
    is_whole: bool
    any_sum: bool

    @classmethod
    def of(
        cls,
        context: RecipeContext,
        names: Iterable[str],
        *,
        by: str,
        groups: tuple[tuple[str, str], ...],
        any_sum: bool,
    ) -> Layout:
        """The layout for tensors `names`, grouped `by` after the (pattern, group) of `groups`."""
        given = context.ingredients
        group_of = group_names(names, by, tied=given.tied, patterns=dict(groups))
        index = {group: row for row, group in enumerate(dict.fromkeys(group_of.values()))}
        # Counters and the like are not mixed by coefficients, but the mixture wants some for them.
        rest = dict.fromkeys(given.averaged - set(group_of), next(iter(index)))
        return cls(
            context,
            {name: index[group] for name, group in group_of.items()},
            index,
            group_of | rest,
            by == "model" and not groups,
            any_sum,
        )

    def mixture(self, rows: torch.Tensor) -> Mixture:
        """The mixture with coefficients `rows`."""
        rows = self.in_order(rows)
        if not self.any_sum:
            # Softmax rounds; the rest of the last bit would be the coefficients' error, not ours.
            rows = rows / rows.sum(dim=1, keepdim=True)
        values = {group: rows[row].tolist() for group, row in self.index.items()}
        coefficients = (
            Coefficients.per_model(next(iter(values.values())), any_sum=self.any_sum)
            if self.is_whole
            else Coefficients.per_group(values, group_of=self.group_of, any_sum=self.any_sum)
        )
        return self.context.mixed(coefficients)

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` with the ingredients as they were given."""
        canonical = self.context.ingredients.canonical
        return rows[:, [canonical.index(i) for i in range(len(canonical))]]

    def lists(self, rows: torch.Tensor) -> JSON:
        """`rows` as a list of numbers, or one for each group."""
        rows = self.in_order(rows)
        if len(rows) == 1:
            return list(rows[0].tolist())
        return {group: rows[row].tolist() for group, row in self.index.items()}

    def rows_of(self, mixture: Mixture) -> torch.Tensor:
        """The coefficients of a mixture that has one vector for the whole model: (groups, k)."""
        import torch

        vector = mixture.coefficients.vectors[""]
        canonical = self.context.ingredients.canonical
        row = torch.tensor([vector[i] for i in canonical], dtype=torch.float64)
        return row.repeat(len(self.index), 1)


def coefficients_by_path(mixture: Mixture) -> dict[str, JSON]:
    """`{path: c}` with zeros, or `{group: {path: c}}` where groups have their own."""
    paths = mixture.ingredients.labels
    vectors = mixture.coefficients.vectors
    named: dict[str, JSON] = {
        key: dict(zip(paths, vector, strict=True)) for key, vector in vectors.items()
    }
    only = named.get("")
    return only if isinstance(only, dict) else named


def streamed_names(given: Ingredients, known: Iterable[str] | None = None) -> list[str]:
    """Floating tensors that are averaged and `known` to the model; of tied ones the first."""
    repeated = {name for group in given.tied for name in group[1:]}
    kept = set(given.specs if known is None else known)
    return [
        name
        for name in given.specs
        if name in given.averaged
        and name in kept
        and name not in repeated
        and given.specs[name].dtype.mixable
    ]


@dataclass(frozen=True)
class Part:
    """The examples of a held-out split that fit, or that decide."""

    split: str
    indices: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """How a fit from every start went, the best one first of all.

    Attributes:
        start: the soup from which the best fit began.
        beta: inverse temperature that was fitted along; None without gradients.
        losses: of the best fit on the fitting part, by epoch; None without gradients.
        epochs: by start, a record of each epoch.
        peak_bytes: most anonymous memory after a backward pass, interrupted runs included; None
            without gradients.
        n_held: ingredients that were held in memory.
        n_evaluations: scores that a search took; None where there were gradients.
    """

    start: str
    beta: float | None = None
    losses: tuple[float, ...] | None = None
    epochs: Mapping[str, JSON] = field(default_factory=dict)
    peak_bytes: int | None = None
    n_held: int = 0
    n_evaluations: int | None = None


@dataclass(frozen=True)
class Fitted:
    """The best mixture that was fitted, how, and what a person should know of it."""

    mixture: Mixture
    record: FitRecord
    notes: tuple[str, ...] = ()


def start_of(mixture: Mixture, layout: Layout, made: Parametrisation) -> torch.Tensor:
    """The free numbers that give `mixture`, or nearly, where a softmax cannot hold its zeros."""
    rows = layout.rows_of(mixture)
    if isinstance(made, Softmax) and bool((rows == 0).any()):
        rows = _SMOOTHING * rows + (1 - _SMOOTHING) / rows.shape[1]
    return made.start(rows)


@dataclass
class Timings:
    """Seconds spent so far in each part of a step, and the number of steps."""

    forward_backward: float = 0.0
    inner_products: float = 0.0
    rebuild: float = 0.0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Where and in which precision a loss is computed.

    Attributes:
        device: as `resolve_device` understands it.
        precision: of the forward pass: `"fp32"`, or `"bf16"`/`"fp16"` by autocast.
        max_memory: bytes for θ, its gradient, block buffers and held ingredients together.
        dtype: of θ; None means float32.
    """

    device: str = "auto"
    precision: str = "fp32"
    max_memory: int | None = None
    dtype: torch.dtype | None = None


class MixtureLoss:
    """Mean loss over a data set of β·f(x; Σ_i c_i θ_i), and its gradient in the coefficients.

    It has state: the model, whose parameters are overwritten at every new point, and the buffers of
    `IngredientBlocks`. What is resident is θ, its gradient and those buffers, however many
    ingredients there are. The model is in eval mode: no dropout, and BatchNorm uses running
    statistics, which are mixed with the same coefficients and are constants for the gradient.

    β multiplies the outputs when they are logits (N, C) with integer targets (N,), and is ignored
    otherwise.

    Args:
        task: builds the model; gives batches, predictions and the loss.
        checkpoints: k ingredients of the same specs.
        start: weights of everything that is not streamed (counters, tensors of the donor).
        row_of: the row of coefficients of each floating tensor to mix; of tied ones, one name.
        numerics: where and in which precision.
    """

    def __init__(
        self,
        task: Task,
        checkpoints: Sequence[Checkpoint],
        *,
        start: Checkpoint,
        row_of: Mapping[str, int],
        numerics: Numerics | None = None,
    ) -> None:
        import torch

        numerics = Numerics() if numerics is None else numerics
        self._task = task
        self._device = resolve_device(numerics.device)
        self._precision = numerics.precision
        dtype = torch.float32 if numerics.dtype is None else numerics.dtype
        self.model: nn.Module = task.build().to(self._device, dtype).eval()
        start.load_into(self.model)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        self._live = {name: {**buffers, **parameters}[name] for name in row_of}
        self._trained = {
            name: parameters[name]
            for name in row_of
            if name in parameters and parameters[name].requires_grad
        }
        self._row_of = dict(row_of)
        self._n_groups = 1 + max(row_of.values())
        self.model_bytes = sum(p.numel() * p.element_size() for p in self._live.values())
        budget = numerics.max_memory
        self.blocks = ingredient_blocks(
            checkpoints,
            list(row_of),
            dtype=dtype,
            device=self._device,
            max_memory=None if budget is None else budget - 2 * self.model_bytes,
        )
        self.timings = Timings()
        self.peak_bytes = 0
        self._loaded: torch.Tensor | None = None

    def load(self, coefficients: torch.Tensor) -> None:
        """Make the model the mixture of `coefficients` (groups, k), unless it is already."""
        import torch

        if self._loaded is not None and torch.equal(self._loaded, coefficients):
            return
        with self._timed("rebuild"):
            self.blocks.rebuild(coefficients, self._row_of, self._live)
        self._loaded = coefficients.clone()

    def spreads(self) -> torch.Tensor:
        """‖θ_i − m‖ by group and ingredient, for the hyperplane parametrisation."""
        return self.blocks.spreads(self._row_of, self._n_groups)

    def value(
        self,
        point: Point,
        parametrisation: Parametrisation,
        dataset: Dataset[Any],
        indices: Sequence[int],
    ) -> Value:
        """Loss over the examples at `indices`, with its gradient at `point`."""
        import torch

        from stockpot.tensors._devices_torch import widest

        self.load(parametrisation.coefficients(point.raw))
        beta = torch.tensor(
            point.beta, dtype=widest(self._device), device=self._device, requires_grad=True
        )
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        with self._timed("forward_backward"):
            for loss, n in self._losses(dataset, indices, beta):
                weighted = loss * (n / len(indices))
                weighted.backward()  # type: ignore[no-untyped-call]
                total += weighted.item()
                self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
        with self._timed("inner_products"):
            gradients = {n: p.grad for n, p in self._trained.items() if p.grad is not None}
            products = self.blocks.inner_products(gradients, self._row_of, self._n_groups)
        self.timings.steps += 1
        # The gradient is a model's worth of memory that nothing needs until the next step.
        self.model.zero_grad(set_to_none=True)
        slope = 0.0 if beta.grad is None else beta.grad.item()
        return Value(total, parametrisation.pullback(point.raw, products), slope)

    def loss(
        self,
        point: Point,
        parametrisation: Parametrisation,
        dataset: Dataset[Any],
        indices: Sequence[int],
    ) -> float:
        """Loss over the examples at `indices`, without a gradient."""
        import torch

        from stockpot.tensors._devices_torch import widest

        self.load(parametrisation.coefficients(point.raw))
        beta = torch.tensor(point.beta, dtype=widest(self._device), device=self._device)
        with torch.no_grad():
            return sum(
                loss.item() * n / len(indices) for loss, n in self._losses(dataset, indices, beta)
            )

    def _losses(
        self, dataset: Dataset[Any], indices: Sequence[int], beta: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, int]]:
        for batch in self._task.batches(dataset, indices):
            moved = to_device(batch, self._device)
            targets = self._task.targets(moved)
            with self._autocast():
                outputs = self._task.predict(self.model, moved)
            if not outputs.dtype.is_complex and outputs.element_size() < 4:
                outputs = outputs.float()
            if are_class_logits(outputs, targets):
                outputs = outputs * beta.to(outputs.dtype)
            yield self._task.loss(outputs, targets), len(targets)

    def _autocast(self) -> Any:
        import torch

        if self._precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float16
        return torch.autocast(self._device.type, dtype=dtype)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        from stockpot.tensors._devices_torch import wait_for

        start = time.perf_counter()
        yield
        wait_for(self._device)
        setattr(self.timings, part, getattr(self.timings, part) + time.perf_counter() - start)


def batch_indices(n: int, n_batches: int, batch: int, *, seed: int) -> list[int]:
    """The examples of mini-batch number `batch`, counted over epochs; all, in order, for −1.

    Every epoch of `n_batches` goes once through a new seeded permutation.
    """
    if batch < 0:
        return list(range(n))
    epoch, place = divmod(batch, n_batches)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [int(i) for i in np.array_split(order, n_batches)[place]]
