"""Forward passes divided between processes that share one model's weights.

Parameters live in anonymous shared memory, so the parent loads weights once and every worker sees
them; only buffers (BatchNorm statistics, private because calibration changes them) are sent.
Workers are forked: they inherit task and data as they are, and nothing has to be picklable.
"""

from __future__ import annotations

import mmap
import multiprocessing
import warnings
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stockpot.errors import EvaluationError
from stockpot.evaluate.batchnorm import BatchNormPolicy, BatchStatistics

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from torch import nn

    from stockpot.evaluate.runner import ModelRunner


MIN_PART = 32
"""No part of a block is smaller: small batches are slow, and round differently."""


def divide(n: int, n_parts: int, unit: int) -> list[tuple[int, int]]:
    """At most `n_parts` contiguous ranges of 0..n, each but the last a multiple of `unit`.

    >>> divide(100, 2, 1), divide(100, 2, 64), divide(40, 4, 1)
    ([(0, 50), (50, 100)], [(0, 64), (64, 100)], [(0, 40)])
    """
    n_units = -(-n // unit)
    most = n_parts if unit > 1 else max(1, n // MIN_PART)
    parts = max(1, min(n_parts, most, n_units))
    edges = [min(n, unit * (n_units * i // parts)) for i in range(parts + 1)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


class WorkerPool:
    """Forked copies of a model on the CPU. It has state: the processes and their pipes.

    Args:
        runner: the model; its parameters are moved to shared memory.
        n_workers: processes; the parent only waits while they run.
        threads: of each worker.

    Raises:
        EvaluationError: the model is not on the CPU.
    """

    def __init__(self, runner: ModelRunner, n_workers: int, *, threads: int = 1) -> None:
        if runner.device.type != "cpu":
            raise EvaluationError(
                f"workers divide forward passes on the CPU, and the model is on {runner.device}; "
                "use one worker there, or --device cpu"
            )
        self._runner = runner
        _share(runner.model)
        context = multiprocessing.get_context("fork")
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(n_workers):
            ours, theirs = context.Pipe()
            inherited = [*self._connections, ours]
            process = context.Process(
                target=_work, args=(runner, theirs, inherited, threads), daemon=True
            )
            with warnings.catch_warnings():
                # Newer Pythons warn of forking beside threads; the child uses none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def send_buffers(self) -> None:
        """Give all workers the buffers of the parent's model."""
        buffers = {name: b.numpy().copy() for name, b in self._runner.model.named_buffers()}
        for connection in self._connections if buffers else ():
            self._send(connection, ("buffers", buffers))

    def outputs(self, split: str, indices: Sequence[int], *, unit: int) -> npt.NDArray[np.float32]:
        """As `ModelRunner.outputs`; parts are multiples of `unit` examples."""
        ranges = divide(len(indices), len(self._connections), unit)
        jobs = [("outputs", split, list(indices[a:b])) for a, b in ranges]
        return np.concatenate(self._gather(jobs))

    def statistics(
        self, order: Sequence[Sequence[int]], policy: BatchNormPolicy
    ) -> list[BatchStatistics]:
        """As `ModelRunner.statistics`, of the same batches in the same order."""
        n_parts = min(len(self._connections), len(order))
        edges = [len(order) * i // n_parts for i in range(n_parts + 1)]
        jobs = [("statistics", [list(i) for i in order[a:b]], policy) for a, b in pairwise(edges)]
        return [batch for part in self._gather(jobs) for batch in part]

    def close(self) -> None:
        """End the workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()

    def _gather(self, jobs: list[Any]) -> list[Any]:
        for connection, job in zip(self._connections, jobs, strict=False):
            self._send(connection, job)
        results: list[Any] = []
        failures: list[Exception] = []
        for connection, _ in zip(self._connections, jobs, strict=False):
            try:
                ok, value = connection.recv()
            except (EOFError, ConnectionResetError):
                raise EvaluationError(
                    "a worker died (perhaps of memory); what it had scored before is in the "
                    "journal: run again with fewer --workers"
                ) from None
            (results if ok else failures).append(value)
        if failures:
            raise failures[0]
        return results

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except BrokenPipeError:
            raise EvaluationError(
                "a worker has died (perhaps of memory); run again with fewer --workers"
            ) from None


def _work(
    runner: ModelRunner, connection: Connection, inherited: list[Connection], threads: int
) -> None:
    import torch

    # The parent's ends must close when the parent dies, or workers would outlive it.
    for other in inherited:
        other.close()
    torch.set_num_threads(threads)
    buffers = dict(runner.model.named_buffers())
    while True:
        try:
            kind, *rest = connection.recv()
        except EOFError:
            return
        try:
            if kind == "buffers":
                for name, value in rest[0].items():
                    buffers[name].copy_(torch.from_numpy(value))
                continue
            if kind == "outputs":
                split, indices = rest
                found: Any = runner.outputs(runner.task.splits[split].dataset, indices)
            else:
                found = _plain(runner.statistics(*rest))
            connection.send((True, found))
        except Exception as error:  # whatever the user's code raises is raised again in the parent
            connection.send((False, _portable(error)))


def _plain(batches: list[BatchStatistics]) -> list[BatchStatistics]:
    # Tensors would be sent through files in /dev/shm, which containers keep small.
    return [
        {name: (_Array(mean), _Array(var), n) for name, (mean, var, n) in batch.items()}  # type: ignore[misc]
        for batch in batches
    ]


def _portable(error: Exception) -> Exception:
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception that cannot be sent: its text can
        return EvaluationError(f"a worker failed: {type(error).__name__}: {error}")
    return error


class _Array:
    """A tensor that is pickled as an array and unpickled as a tensor."""

    def __init__(self, tensor: Any) -> None:
        self.array = tensor.numpy()

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        import torch

        return torch.from_numpy, (self.array,)


def _share(model: nn.Module) -> None:
    """Move every parameter to anonymous memory that forked children share."""
    import torch

    for parameter in model.parameters():
        if parameter.numel() == 0:
            continue
        memory = mmap.mmap(-1, parameter.numel() * parameter.element_size())
        shared = torch.frombuffer(memory, dtype=parameter.dtype).reshape(parameter.shape)
        shared.copy_(parameter.detach())
        parameter.data = shared
