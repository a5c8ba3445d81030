"""The loss of a mixture as a function of its coefficients, with one model in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stockpot.evaluate.loading import load_weights
from stockpot.evaluate.runner import resolve_device, to_device
from stockpot.evaluate.task import are_class_logits
from stockpot.io.memory import anonymous_bytes
from stockpot.mixing.device_blocks import ingredient_blocks
from stockpot.recipes._learning import Parametrisation, Point, Value

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from stockpot.evaluate.task import Task
    from stockpot.formats.base import Checkpoint


@dataclass
class Timings:
    """Seconds spent so far in each part of a step, and the number of steps."""

    forward_backward: float = 0.0
    inner_products: float = 0.0
    rebuild: float = 0.0
    steps: int = 0


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
        names: floating tensors to mix; of tied ones, one name.
        group_index: the row of coefficients that each name belongs to.
        device: as `resolve_device` understands it.
        precision: `"fp32"`, or `"bf16"`/`"fp16"` by autocast.
        max_memory: bytes for θ, its gradient, block buffers and held ingredients together.
        dtype: of θ; None means float32.
    """

    def __init__(
        self,
        task: Task,
        checkpoints: Sequence[Checkpoint],
        *,
        start: Checkpoint,
        names: Sequence[str],
        group_index: Mapping[str, int],
        device: str = "auto",
        precision: str = "fp32",
        max_memory: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        import torch

        self._task = task
        self._device = resolve_device(device)
        self._precision = precision
        dtype = torch.float32 if dtype is None else dtype
        self.model: nn.Module = task.build().to(self._device, dtype).eval()
        load_weights(self.model, start)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        self._live = {name: {**buffers, **parameters}[name] for name in names}
        self._trained = {
            name: parameters[name]
            for name in names
            if name in parameters and parameters[name].requires_grad
        }
        self._group_index = dict(group_index)
        self._n_groups = 1 + max(group_index.values())
        self.model_bytes = sum(p.numel() * p.element_size() for p in self._live.values())
        self.blocks = ingredient_blocks(
            checkpoints,
            names,
            dtype=dtype,
            device=self._device,
            max_memory=None if max_memory is None else max_memory - 2 * self.model_bytes,
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
            self.blocks.rebuild(coefficients, self._group_index, self._live)
        self._loaded = coefficients.clone()

    def spreads(self) -> torch.Tensor:
        """‖θ_i − m‖ by group and ingredient, for the hyperplane parametrisation."""
        return self.blocks.spreads(self._group_index, self._n_groups)

    def value(
        self,
        point: Point,
        parametrisation: Parametrisation,
        dataset: Dataset[Any],
        indices: Sequence[int],
    ) -> Value:
        """Loss over the examples at `indices`, with its gradient at `point`."""
        import torch

        self.load(parametrisation.coefficients(point.raw))
        beta = torch.tensor(
            point.beta, dtype=torch.float64, device=self._device, requires_grad=True
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
            products = self.blocks.inner_products(gradients, self._group_index, self._n_groups)
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

        self.load(parametrisation.coefficients(point.raw))
        beta = torch.tensor(point.beta, dtype=torch.float64, device=self._device)
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
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
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
