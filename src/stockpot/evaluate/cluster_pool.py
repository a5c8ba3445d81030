"""Forward passes divided between the workers of a Ray cluster, each with a model of its own.

As `WorkerPool`, but nothing is shared: task and data are sent once, and the weights of each model
that is scored once through Ray's object store. A worker that is lost is replaced, and its part is
run again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stockpot._tracebacks import one_line
from stockpot.errors import EvaluationError
from stockpot.evaluate.batchnorm import BatchNormPolicy, BatchStatistics
from stockpot.evaluate.pool import divide, packed, plain, portable
from stockpot.workers.cluster import connected
from stockpot.workers.processes import thread_variables

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.runner import ModelRunner

_State: TypeAlias = dict[str, npt.NDArray[np.uint8]]

_RETRIES = 2
"""How often a part is run again after its worker was lost."""


@dataclass(frozen=True)
class Cluster:
    """Where forward passes run.

    Attributes:
        address: of the Ray cluster: `"auto"`, `"host:port"`, or `"local"` to start one here.
        gpus_per_worker: 0 runs models on processors; a fraction shares a GPU.
        n_workers: None for as many as the cluster has room for now.
    """

    address: str
    gpus_per_worker: float = 0.0
    n_workers: int | None = None


class ClusterPool:
    """Copies of a model on a Ray cluster. It has state: the connection and the workers.

    Args:
        runner: the model, on this machine's processor; it computes nothing then.
        cluster: where the workers are.

    Raises:
        EvaluationError: the task cannot be sent to workers, or the cluster has no room for one.
    """

    def __init__(self, runner: ModelRunner, cluster: Cluster) -> None:
        self._runner = runner
        self._opened = contextlib.ExitStack()
        self._ray = self._opened.enter_context(connected(cluster.address))
        try:
            self._make = self._ray.remote(
                num_cpus=1,
                num_gpus=cluster.gpus_per_worker,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": thread_variables(1)},
            )(_Worker)
            self._sent = self._ray.put(packed(runner))
            self._workers = [self._worker() for _ in range(self._room(cluster))]
        except BaseException:
            self._opened.close()
            raise
        # Parameters and buffers, each with the version of what was sent last.
        self._states: list[tuple[int, Any]] = [(0, None), (0, None)]
        self._version = 0

    @property
    def n_workers(self) -> int:
        """How many copies there are."""
        return len(self._workers)

    def send_parameters(self) -> None:
        """Give all workers the parameters of the model here."""
        self._send(0, dict(self._runner.model.named_parameters()))

    def send_buffers(self) -> None:
        """Give all workers the buffers of the model here, statistics among them."""
        self._send(1, dict(self._runner.model.named_buffers()))

    def _send(self, place: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self._version += 1
        state = self._ray.put({name: _bytes(tensor) for name, tensor in tensors.items()})
        self._states[place] = self._version, state

    def outputs(self, split: str, indices: Sequence[int], *, unit: int) -> npt.NDArray[np.float32]:
        """As `ModelRunner.outputs`; parts are multiples of `unit` examples."""
        ranges = divide(len(indices), self.n_workers, unit)
        return np.concatenate(
            self._gather([("outputs", split, list(indices[a:b])) for a, b in ranges])
        )

    def statistics(
        self, order: Sequence[Sequence[int]], policy: BatchNormPolicy
    ) -> list[BatchStatistics]:
        """As `ModelRunner.statistics`, of the same batches in the same order."""
        n_parts = min(self.n_workers, len(order))
        edges = [len(order) * i // n_parts for i in range(n_parts + 1)]
        jobs = [("statistics", [list(i) for i in order[a:b]], policy) for a, b in pairwise(edges)]
        return [batch for part in self._gather(jobs) for batch in part]

    def close(self) -> None:
        """End the workers and leave the cluster."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers.clear()
        self._opened.close()

    def _room(self, cluster: Cluster) -> int:
        kind, each = ("GPU", cluster.gpus_per_worker) if cluster.gpus_per_worker else ("CPU", 1.0)
        if self._ray.cluster_resources().get(kind, 0) < each:
            raise EvaluationError(
                f"the Ray cluster at {cluster.address} has no room for a worker of {each:g} {kind}s"
            )
        # What other work holds is waited for by the first worker alone.
        free = int(self._ray.available_resources().get(kind, 0) / each)
        return max(1, free if cluster.n_workers is None else min(free, cluster.n_workers))

    def _worker(self) -> Any:
        return self._make.remote(self._sent)

    def _gather(self, jobs: list[Any]) -> list[Any]:
        """What comes of jobs, one for each worker, in their order."""
        found: dict[int, Any] = {}
        lost = ""
        for _ in range(1 + _RETRIES):
            running = {
                i: self._workers[i].run.remote(jobs[i], *itertools.chain(*self._states))
                for i in range(len(jobs))
                if i not in found
            }
            for i, reference in running.items():
                try:
                    ok, value = self._ray.get(reference)
                except self._ray.exceptions.RayError as error:
                    self._workers[i], lost = self._worker(), one_line(error)
                    continue
                if not ok:
                    raise value
                found[i] = value
            if len(found) == len(jobs):
                return [found[i] for i in range(len(jobs))]
        raise EvaluationError(
            f"workers of the Ray cluster were lost {1 + _RETRIES} times ({lost}); what was scored "
            "before is in the journal: run again, with fewer --workers if memory was short"
        )


class _Worker:
    """One copy of the model, on its node."""

    def __init__(self, sent: bytes) -> None:
        import pickle

        import torch

        torch.set_num_threads(1)
        # Bytes that the program which owns this worker packed for it; never those of a file.
        self._runner: ModelRunner = pickle.loads(sent)
        if torch.cuda.is_available():  # Ray shows a worker the GPUs that are its own
            self._runner.device = torch.device("cuda")
            self._runner.model.to("cuda")  # statistics may be asked for before buffers are sent
        self._versions = [0, 0]

    def run(
        self,
        job: tuple[Any, ...],
        parameters_version: int,
        parameters: _State,
        buffers_version: int,
        buffers: _State,
    ) -> tuple[bool, Any]:
        """Whether `job` went well with weights of these versions, and what came of it."""
        try:
            model = self._runner.model
            if parameters_version != self._versions[0]:
                self._load(dict(model.named_parameters()), parameters)
            if buffers_version != self._versions[1]:
                self._load(dict(model.named_buffers()), buffers)
            self._versions = [parameters_version, buffers_version]
            kind, *rest = job
            if kind == "statistics":
                return True, plain(self._runner.statistics(*rest))
            split, indices = rest
            dataset = self._runner.task.splits[split].dataset
            return True, self._runner.outputs(dataset, indices)
        except Exception as error:  # whatever the user's code raises is raised again there
            return False, portable(error)

    def _load(self, tensors: Mapping[str, torch.Tensor], state: _State) -> None:
        import torch

        for name, tensor in tensors.items():
            # What Ray gives is read-only memory that it may reuse.
            values = torch.from_numpy(state[name].copy()).view(tensor.dtype)
            tensor.data = values.reshape(tensor.shape).to(self._runner.device)


def _bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The values as bytes: NumPy has no bfloat16."""
    import torch

    found: npt.NDArray[np.uint8] = (
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    )
    return found
