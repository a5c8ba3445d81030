"""One model into which weights are loaded, and the forward passes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from stockpot._tracebacks import one_line
from stockpot._types import kind_of
from stockpot.errors import EvaluationError, StockpotError
from stockpot.evaluate.batchnorm import (
    BatchNormPolicy,
    BatchStatistics,
    batch_statistics,
    calibration_set,
    has_batchnorm,
)

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from stockpot.evaluate.task import Task
    from stockpot.formats.base import Checkpoint


Precision = Literal["fp32", "bf16", "fp16"]


def resolve_device(device: str) -> torch.device:
    """`"auto"`: the accelerator if there is one, else the CPU; `"accelerate"`: what it assigns."""
    import torch

    if device == "auto":
        from stockpot.tensors._devices_torch import accelerator_here

        return accelerator_here() or torch.device("cpu")
    if device == "accelerate":
        from accelerate import PartialState

        assigned: torch.device = PartialState().device
        return assigned
    try:
        named = torch.device(device)
    except RuntimeError:
        raise EvaluationError(
            f"{device!r} is no device; for example auto, cpu, cuda, cuda:1, xpu or mps"
        ) from None
    try:
        torch.empty(1, device=named)
    # What is raised differs: a missing driver, a build without CUDA, a number that is too large.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise EvaluationError(
            f"device {device!r} cannot be used here ({reason}); auto takes what there is"
        ) from error
    return named


def build_model(task: Task) -> nn.Module:
    """The task's model, newly made.

    Raises:
        EvaluationError: the task's `build` fails or returns no module.
    """
    from torch import nn

    try:
        model = task.build()
    except StockpotError:
        raise
    except Exception as error:  # whatever the task's code raises
        raise EvaluationError(f"the task's build() fails: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise EvaluationError(
            f"the task's build() returns {kind_of(model)}; expected a torch.nn.Module"
        )
    return model


def on_examples(task: Task, dataset: Dataset[Any], part: Sequence[int], error: Exception) -> str:
    """`"split 'val', example 17"`: which examples of which split made an error.

    Where reading one example alone fails in the same way, it is that one.
    """
    names = [name for name, split in task.splits.items() if split.dataset is dataset]
    split = f"split {names[0]!r}" if names else "the data"
    for index in part:
        try:
            dataset[index]
        except Exception as other:
            if type(other) is type(error):
                return f"{split}, example {index}"
            break
    if len(part) == 1:
        return f"{split}, example {part[0]}"
    return f"{split}, examples {part[0]} to {part[-1]}"


class ModelRunner:
    """A model of the task's architecture into which weights are loaded.

    It has state because building it and moving it to the device is done once. Out of memory halves
    the batch size for good, down to one example.

    Args:
        task: builds the model and predicts.
        device: where it lives, as `resolve_device` understands it.
        precision: fp32, or bf16/fp16 by autocast.
        batch_size: examples of a forward pass; None means the task's.
        seed: of the order of the calibration pass.
    """

    def __init__(
        self,
        task: Task,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if precision not in ("fp32", "bf16", "fp16"):
            raise EvaluationError(f"precision is {precision!r}, expected fp32, bf16 or fp16")
        self.task = task
        self.device = resolve_device(device)
        self.precision: Precision = precision
        self.batch_size = task.batch_size if batch_size is None else batch_size
        self.seed = seed
        self.model: nn.Module = build_model(task).to(self.device).eval()
        self.has_batchnorm = has_batchnorm(self.model)
        self.loaded_key: object = None
        """Identity of the loaded weights; None if unknown."""
        self._owners: dict[str, Checkpoint] = {}
        self._parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}

    def load(self, weights: Checkpoint) -> None:
        """Replace all weights; parameters that are known to be in the model already stay.

        So a candidate among adapters of one base rewrites only what adapters change.
        """
        self.loaded_key = None
        owners = {name: weights.owner(name) for name in weights}
        known, self._owners = self._owners, {}
        same = {name for name, owner in owners.items() if known.get(name) is owner}
        weights.load_into(self.model, unchanged=same & self._parameters)
        self._owners = {name: owner for name, owner in owners.items() if owner is not weights}

    def outputs(self, dataset: Dataset[Any], indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """Outputs (n, …) of the examples at `indices`, in that order, in float32."""
        import torch

        parts: list[npt.NDArray[np.float32]] = []
        done = 0
        with torch.inference_mode():
            while done < len(indices):
                part = indices[done : done + self.batch_size]
                try:
                    for batch in self.task.batches(dataset, part, batch_size=len(part)):
                        parts.append(self._predict(self.model, batch).float().cpu().numpy())  # noqa: PERF401
                except StockpotError:
                    raise
                except Exception as error:  # whatever the task's code raises
                    if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
                        raise self._failed(error, dataset, part) from error
                    self._halve(error)
                    continue
                done += len(part)
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def statistics(
        self, order: Sequence[Sequence[int]], policy: BatchNormPolicy
    ) -> list[BatchStatistics]:
        """BatchNorm statistics of the given batches of a pass, for `apply_statistics`."""
        data = calibration_set(self.task, policy)
        if data is None:
            raise EvaluationError("the task has no training set to recalibrate BatchNorm with")
        batches = data.batches(self.task, order, seed=self.seed)
        return batch_statistics(self.model, batches, self._predict)

    def _predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        import torch

        batch = to_device(batch, self.device)
        if self.precision == "fp32":
            return self.task.predict(model, batch)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        with torch.autocast(self.device.type, dtype=dtype):
            return self.task.predict(model, batch)

    def _failed(
        self, error: Exception, dataset: Dataset[Any], part: Sequence[int]
    ) -> EvaluationError:
        """What failed, on which examples of which split, and where in the person's own code."""
        where = on_examples(self.task, dataset, part, error)
        return EvaluationError(f"{where}: {one_line(error)}")

    def _halve(self, error: RuntimeError) -> None:
        from stockpot.tensors._devices_torch import release_memory

        if self.batch_size == 1:
            raise EvaluationError(
                f"one example alone does not fit on {self.device} ({error}); use a larger device "
                "or a lower --precision"
            ) from error
        self.batch_size //= 2
        release_memory(self.device)


def to_device(batch: Any, device: torch.device | str) -> Any:
    """`batch` with every tensor in it on `device`; lists, tuples and mappings are followed.

    As accelerate's `send_to_device`, without the seconds that importing accelerate takes.
    """
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is out-of-memory, on an accelerator or on the CPU.

    The allocator of the CPU raises a plain `RuntimeError`; its text is all that sets it apart.

    >>> is_out_of_memory(RuntimeError("[enforce fail] you tried to allocate memory: too much"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
