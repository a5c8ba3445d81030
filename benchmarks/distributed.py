"""Averaging folders of torch.distributed.checkpoint, beside the same weights as safetensors.

    python benchmarks/distributed.py --size 2GB --ranks 4 --models 3 --rounds 3

makes models of llama-like shapes in bfloat16 and writes each twice: as a model folder, and by
`torch.distributed.checkpoint.save` from so many processes (gloo), every tensor sharded by rows.
Then `stockpot average` runs on both in turn, as whole processes with empty caches, the inputs in
the page cache. Printed are the wall time, GB/s of inputs and output together, the peak of anonymous
memory (RssAnon, every 10 ms), the median ratio of rates, and whether the results are the same.

The data go to `--data` (a temporary folder by default) and are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

from benchmarks.average import command, environment, hardware, measure, warm_up  # noqa: E402
from benchmarks.llama import make_models  # noqa: E402
from benchmarks.measuring import parse_bytes  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the inputs, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=parse_bytes, default="2GB", help="of one model")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    chosen = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="distributed-", dir=chosen.data))
    try:
        plain = make_models(work / "plain", chosen.models, chosen.size, moved=0.05)
        sharded = [
            write_sharded(one, work / f"dcp{i}", chosen.ranks) for i, one in enumerate(plain)
        ]
        print(f"{hardware()}; {chosen.models} × {chosen.size / 1e9:g} GB, {chosen.ranks} ranks\n")
        print("| round | inputs | seconds | GB/s | anonymous memory |")
        print("|---|---|--:|--:|--:|")
        ratios = [compare(number, plain, sharded, work) for number in range(1, chosen.rounds + 1)]
        print(f"\nmedian rate: {statistics.median(ratios):.2f} of that of safetensors")
        print(f"same weights: {fingerprint(work / 'soup-plain') == fingerprint(work / 'soup-dcp')}")
    finally:
        shutil.rmtree(work)


def compare(number: int, plain: list[Path], sharded: list[Path], work: Path) -> float:
    """One round, both kinds in turn; the ratio of their rates."""
    seconds = {}
    order = [("plain", plain), ("dcp", sharded)]
    for kind, inputs in order if number % 2 else order[::-1]:
        output = work / f"soup-{kind}"
        for old in (output, work / "cache"):
            shutil.rmtree(old, ignore_errors=True)
        warm_up(inputs)
        line = command("stockpot", output, inputs, work, "")
        wall, _, peak, ended = measure(line, environment(work / "cache"))
        if ended.returncode != 0:
            raise SystemExit(f"{kind} failed:\n{ended.stdout}\n{ended.stderr}")
        seconds[kind] = wall
        moved = sum(file.stat().st_size for path in (*inputs, output) for file in path.iterdir())
        name = "safetensors" if kind == "plain" else "distributed"
        rate = moved / wall / 1e9
        cells = (number, name, f"{wall:.2f}", f"{rate:.2f}", f"{peak / 1e6:.0f} MB")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return seconds["plain"] / seconds["dcp"]


def fingerprint(path: Path) -> str:
    """Of the weights, whatever their form."""
    import stockpot

    return stockpot.open(path).fingerprint


def write_sharded(model: Path, folder: Path, n_ranks: int) -> Path:
    """The weights of `model`, saved by torch.distributed.checkpoint from `n_ranks` processes."""
    import torch.multiprocessing as processes

    meeting = folder.with_suffix(".meeting")
    processes.spawn(_save_rank, (n_ranks, str(model), str(folder), str(meeting)), nprocs=n_ranks)
    meeting.unlink(missing_ok=True)
    return folder


def _save_rank(rank: int, n_ranks: int, model: str, folder: str, meeting: str) -> None:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    import stockpot

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=n_ranks)
    mesh = init_device_mesh("cpu", (n_ranks,))
    source = stockpot.open(model)
    state: dict[str, Any] = {}
    for name, spec in source.items():
        part = source.read(name).chunk(n_ranks)[rank].clone()
        state[name] = DTensor.from_local(
            part, mesh, [Shard(0)], run_check=False, shape=torch.Size(spec.shape),
            stride=torch.empty(spec.shape, device="meta").stride(),
        )  # fmt: skip
    dcp.save(state, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
