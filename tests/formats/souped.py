"""What tests of libraries share: all that a person does with checkpoints, and means by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import stockpot
from stockpot.analysis.inspection import inspect_checkpoints

State = dict[str, torch.Tensor]

MEET = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
rank, meeting, *folders = sys.argv[1:]
n = int(os.environ["WORLD_SIZE"])
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{meeting}", rank=int(rank), world_size=n)
mesh = init_device_mesh("cpu", (n,))
"""
"""How a program of `in_ranks` begins: its arguments are a file to meet at, and folders."""

PART = """
dist.barrier()
os._exit(0)  # taken down one by one, threads of gloo abort now and then
"""
"""How such a program ends."""


def in_ranks(program: str, n: int, *arguments: str, **environment: str) -> None:
    """Run `program` in `n` processes, each with its rank before the arguments."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(n),
                 **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(n)
    ]  # fmt: skip
    for rank in ranks:
        _, said = rank.communicate(timeout=600)
        assert rank.returncode == 0, said.decode()[-2000:]


def souped(paths: Sequence[Path], out: Path, **options: Any) -> Path:
    """The average of `paths`, after everything a person would do with it."""
    found = inspect_checkpoints(paths, **options)
    assert found.compatible, found.problems
    stockpot.average(paths, **options).save(out)
    assert stockpot.verify(out) == []
    return out


def mean(states: Sequence[State]) -> State:
    """The mean by hand."""
    first, *_ = states
    return {
        name: torch.stack([one[name].double() for one in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def copied(state: State) -> State:
    """The tensors as they are now."""
    return {name: value.clone() for name, value in state.items()}


def aligned(model: Any) -> Any:
    """`model`, its weights in memory of torch's own: sums depend on where values lie."""
    for value in (*model.parameters(), *model.buffers()):
        value.data = value.data.clone()
    return model.eval()


def moved(model: torch.nn.Module, seed: int, scale: float = 0.05) -> torch.nn.Module:
    """A run from the same start: `model` with small moves of all its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(scale * torch.randn(value.shape, generator=generator))
    return model.eval()
