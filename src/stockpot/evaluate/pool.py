"""Forward passes divided between processes that share one model's weights.

Parameters live in shared memory, so the parent loads weights once and every worker sees them; only
buffers (BatchNorm statistics, private because calibration changes them) are sent. Where forking is
safe, workers are forked: they inherit task and data as they are. Elsewhere they start afresh and
are sent both, by cloudpickle, so that lambdas and classes of the person's own file may be there.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stockpot._tracebacks import one_line
from stockpot.errors import EvaluationError
from stockpot.evaluate.batchnorm import BatchNormPolicy, BatchStatistics
from stockpot.io.kernel import keep_freed_memory
from stockpot.io.scratch import scratch_folder

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from torch import nn

    from stockpot.evaluate.runner import ModelRunner


# On macOS the system's own libraries break in a forked child; Windows has no fork.
_FORKS = hasattr(os, "fork") and sys.platform != "darwin"

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
    """Copies of a model on the CPU. It has state: the processes and their pipes.

    Args:
        runner: the model; its parameters are moved to shared memory.
        n_workers: processes; the parent only waits while they run.
        threads: of each worker.

    Raises:
        EvaluationError: the model is not on the CPU, or the task cannot be sent to workers.
    """

    def __init__(self, runner: ModelRunner, n_workers: int, *, threads: int = 1) -> None:
        if runner.device.type != "cpu":
            raise EvaluationError(
                f"workers divide forward passes on the CPU, and the model is on {runner.device}; "
                "use one worker there, or --device cpu"
            )
        self._runner = runner
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._files = contextlib.ExitStack()
        context = multiprocessing.get_context("fork" if _FORKS else "spawn")
        if _FORKS:
            _share(runner.model, None)
        else:
            folder = self._files.enter_context(scratch_folder())
            _share(runner.model, folder)
            sent = packed(runner)
        for _ in range(n_workers):
            ours, theirs = context.Pipe()
            if _FORKS:
                target: Any = _work
                given: tuple[Any, ...] = (runner, theirs, [*self._connections, ours], threads)
            else:
                target, given = _work_afresh, (sent, folder, theirs, threads)
            process = context.Process(target=target, args=given, daemon=True)  # type: ignore[attr-defined]
            with warnings.catch_warnings():
                # Newer Pythons warn of forking beside threads; the child uses none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def n_workers(self) -> int:
        """How many processes there are."""
        return len(self._processes)

    def send_parameters(self) -> None:
        """Nothing to do: workers see the parameters of the parent's model."""

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
        self._files.close()

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
    keep_freed_memory()
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
                found = plain(runner.statistics(*rest))
            connection.send((True, found))
        except Exception as error:  # whatever the user's code raises is raised again in the parent
            connection.send((False, portable(error)))


def _work_afresh(sent: bytes, folder: Path, connection: Connection, threads: int) -> None:
    """In a process that was not forked."""
    import pickle

    # Bytes that this very program packed, sent to its own worker; never those of a file.
    runner: ModelRunner = pickle.loads(sent)
    _share(runner.model, folder)
    _work(runner, connection, [], threads)


def packed(runner: ModelRunner) -> bytes:
    """A runner without the values of its parameters, which workers get in another way."""
    import cloudpickle

    held = [(parameter, parameter.data) for parameter in runner.model.parameters()]
    # Modules of task files are known by these names in this process alone.
    files = [m for name, m in list(sys.modules.items()) if name.startswith("_stockpot_task_")]
    try:
        for module in files:
            cloudpickle.register_pickle_by_value(module)
        for parameter, data in held:
            if data.numel():
                parameter.data = data.new_zeros(1).expand(data.shape)
        sent: bytes = cloudpickle.dumps(runner)
    except Exception as error:  # whatever the user's task holds
        raise EvaluationError(
            "this task cannot be sent to worker processes, which start afresh on this system "
            f"({one_line(error)}): use one worker"
        ) from error
    finally:
        for parameter, data in held:
            parameter.data = data
        for module in files:
            cloudpickle.unregister_pickle_by_value(module)
    return sent


def plain(batches: list[BatchStatistics]) -> list[BatchStatistics]:
    """Statistics whose tensors are pickled as arrays."""
    # Tensors would be sent through files in /dev/shm, which containers keep small.
    return [
        {name: (_Array(mean), _Array(var), n) for name, (mean, var, n) in batch.items()}  # type: ignore[misc]
        for batch in batches
    ]


def portable(error: Exception) -> Exception:
    """`error`, or one with its text if it cannot be pickled."""
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


def _share(model: nn.Module, folder: Path | None) -> None:
    """Move every parameter to memory that workers share: of forked children, or of files.

    Files that are there already keep their values, and the parameters get these.
    """
    import torch

    for number, parameter in enumerate(model.parameters()):
        if parameter.numel() == 0:
            continue
        n_bytes, first = parameter.numel() * parameter.element_size(), True
        if folder is None:
            memory = mmap.mmap(-1, n_bytes)
        else:
            path = folder / f"parameter-{number}"
            first = not path.exists()
            with path.open("w+b" if first else "r+b") as file:
                file.truncate(n_bytes)
                memory = mmap.mmap(file.fileno(), n_bytes)
        shared = torch.frombuffer(memory, dtype=parameter.dtype).reshape(parameter.shape)
        if first:
            shared.copy_(parameter.detach())
        parameter.data = shared
