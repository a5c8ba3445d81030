"""Averaging adapters of a model of 1.1 B parameters, and going from one candidate to the next.

    python benchmarks/adapters.py    # a base in bf16 with random weights, 20 adapters
    python benchmarks/adapters.py --layers 2 --adapters 4    # small, to try it

Makes a base of the shapes of TinyLlama-1.1B and adapters of rank 16 on all its linear layers, in
the layouts of transformers and PEFT, and measures, each in a process of its own:

- read: all tensors of all adapters, by safetensors, and every byte of them looked at;
- average: `stockpot average` to one exact adapter, without and with Python's start and the checks
  before; no fingerprint is known from an earlier run;
- rank: the same with `--rank 16`;
- switch: a candidate of k adapters put into a model in memory after another of them, by stockpot;
- torch: the same weights by W = W₀ + (s·c·B)·A for all adapters at once, one `addmm` a weight, in
  float64 (which is what stockpot computes) and in float32 (which rounds more than once).

Rounds take turns, and medians are told. Anonymous memory is the peak of RssAnon, every 5 ms. The
data go to `--data`, or to a temporary folder that is removed at the end. `OMP_NUM_THREADS` says
with how many threads torch and stockpot put a candidate into the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

HIDDEN, INNER, KEYS, VOCABULARY = 2048, 5632, 256, 32000
RANK, ALPHA = 16, 32
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def modules(layers: int) -> dict[str, tuple[int, int]]:
    """Every linear layer with its shape (out, in)."""
    return {
        f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in LINEAR.items()
    }


def make_base(folder: Path, layers: int) -> None:
    """A model folder in bfloat16 with random weights, written by torch."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {f"{name}.weight": shape for name, shape in modules(layers).items()}
    shapes |= {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shapes |= {"lm_head.weight": (VOCABULARY, HIDDEN)}
    tensors = {n: (0.02 * torch.randn(s)).bfloat16() for n, s in shapes.items()}
    tensors |= {
        f"model.layers.{i}.norm.weight": torch.ones(HIDDEN).bfloat16() for i in range(layers)
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def make_adapter(folder: Path, base: Path, layers: int, seed: int) -> None:
    """What PEFT writes of a LoRA adapter in float32, its factors random."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, (out, inner) in modules(layers).items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = rng.normal(size=(RANK, inner)).astype(np.float32) * 0.02
        tensors[f"{key}.lora_B.weight"] = rng.normal(size=(out, RANK)).astype(np.float32) * 0.02
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [name.rpartition(".")[2] for name in LINEAR],
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def read_adapters(folders: list[Path]) -> float:
    """Seconds to read every tensor of every adapter."""
    began = time.perf_counter()
    for folder in folders:
        for value in load_file(folder / "adapter_model.safetensors").values():
            value.view(np.uint32).max()
    return time.perf_counter() - began


def run_average(folders: list[Path], out: Path, *options: str) -> dict[str, float]:
    """Wall time of `stockpot average`, the time it reports, and its peak of anonymous memory."""
    cache = out.with_name("cache")
    for folder in (out, cache):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "stockpot", "average", *map(str, folders), "-o", str(out)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    known = {**os.environ, "STOCKPOT_CACHE": str(cache), "PYTHONPATH": paths}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, *options, "--json"], stdout=subprocess.PIPE, text=True, env=known
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    answer = process.communicate()[0]
    wall = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(answer)
    found = json.loads(answer)
    return {"wall": wall, "seconds": found["seconds"], "anonymous_mib": peak[0] / 2**20}


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], int(line.split()[1]) * 1024)
        time.sleep(0.005)


def measure_switch(base: Path, folders: list[Path], k: int, repeat: int) -> dict[str, Any]:
    """Seconds from one candidate of k adapters to the next, by stockpot and by torch; medians."""
    import torch

    import stockpot

    given = stockpot.Ingredients(folders, base=base)

    class Bare(torch.nn.Module):
        """Parameters with the names of the file, and no forward pass."""

        def __init__(self) -> None:
            super().__init__()
            for name, spec in given.specs.items():
                *path, last = name.split(".")
                place: torch.nn.Module = self
                for part in path:
                    if part not in dict(place.named_children()):
                        place.add_module(part, torch.nn.Module())
                    place = dict(place.named_children())[part]
                value = torch.empty(spec.shape, dtype=torch.bfloat16)
                place.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))

    data = torch.utils.data.TensorDataset(torch.zeros(1), torch.zeros(1, dtype=torch.long))
    splits = {"held-out": stockpot.Split(data, role=stockpot.Role.HELD_OUT)}
    task = stockpot.ClassificationTask(build=Bare, splits=splits)
    evaluator = stockpot.TaskEvaluator(task, device="cpu")
    n = len(folders)

    def candidate(first: int) -> stockpot.Mixture:
        members = {(first + i) % n for i in range(k)}
        shares = [1 / k if i in members else 0.0 for i in range(n)]
        return stockpot.Mixture(given, stockpot.Coefficients.per_model(shares))

    evaluator.load(candidate(0))  # everything else is in the model from here on
    seconds: dict[str, list[float]] = {"stockpot": [], "torch float64": [], "torch float32": []}
    for turn in range(repeat):
        began = time.perf_counter()
        evaluator.load(candidate(turn + 1))
        seconds["stockpot"].append(time.perf_counter() - began)
        for dtype in (torch.float64, torch.float32):
            began = time.perf_counter()
            by_torch(evaluator.runner.model, given, turn + 1, k, dtype)
            seconds[f"torch {str(dtype).rpartition('.')[2]}"].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def by_torch(model: Any, given: Any, first: int, k: int, dtype: Any) -> None:
    """W = W₀ + (s·c·B)·A of k adapters at once, one `addmm` for each weight."""
    import torch

    members = [given[(first + i) % len(given)] for i in range(k)]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, one in members[0].updates.items():
            scale = one.factors.scale / k
            parts = [m.updates[name] for m in members]
            up = torch.cat([m.source.read(m.factors.up) for m in parts], dim=1).to(dtype) * scale
            down = torch.cat([m.source.read(m.factors.down) for m in parts], dim=0).to(dtype)
            weight = given.base.read(name).to(dtype)
            parameters[name].copy_(torch.addmm(weight, up, down))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--members", type=int, default=8, help="adapters of a candidate")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--skip", nargs="*", default=[], choices=["rank", "switch"])
    options = parser.parse_args(arguments)
    data = Path(tempfile.mkdtemp(prefix="adapters-")) if options.data is None else options.data
    base = data / "base"
    folders = [data / f"adapter-{i:02}" for i in range(options.adapters)]
    try:
        if not base.exists():
            make_base(base, options.layers)
        for i, folder in enumerate(folders):
            if not folder.exists():
                make_adapter(folder, base, options.layers, i)
        read, runs = list[float](), list[dict[str, float]]()
        for _ in range(options.repeat):
            read.append(read_adapters(folders))
            runs.append(run_average(folders, data / "soup"))
        ratios = [run["seconds"] / seconds for run, seconds in zip(runs, read, strict=True)]
        found: dict[str, Any] = {
            "read": statistics.median(read),
            "average": {key: statistics.median(run[key] for run in runs) for key in runs[0]},
            "average in readings": [min(ratios), statistics.median(ratios), max(ratios)],
        }
        if "rank" not in options.skip:
            found["rank"] = run_average(folders, data / "soup", "--rank", str(RANK))
        if "switch" not in options.skip:
            found["switch"] = measure_switch(base, folders, options.members, options.repeat)
        print(json.dumps(found, indent=2))
    finally:
        if options.data is None:
            shutil.rmtree(data)


if __name__ == "__main__":
    main()
