"""Time and memory of one learned-soup step: streamed from disk against everything in memory.

    python benchmarks/learned.py --data /tmp/learned --k 4 8 16
    python benchmarks/learned.py --data /tmp/learned --k 72 --streamed-only --limit 6GiB
    python benchmarks/learned.py --data /tmp/learned --k 4 8 16 --passes --rounds 15
    python benchmarks/learned.py --agreement --device cuda

The network has the size of a ViT-B/32 (88 M parameters); ingredients are one random network plus
relative noise of 0.3 %, stored as float32 or bfloat16 safetensors. A *step* is one evaluation of
the loss with its gradient in the coefficients, and one move to new coefficients: what an optimiser
does. The reference mixes all k models inside an autograd graph (`torch.func.functional_call`), as
the public code of the paper does; `--one-model` adds the forward and backward pass of one model,
which shows what activations and gradient take. Each measurement runs in a process of its own;
methods alternate; first steps are left out. Memory is anonymous memory (RssAnon), sampled every
10 ms, imports and data included; on an accelerator, the most that torch had allocated there. A
plain read goes through all files by as many threads as compute, a MiB at a time.

`--passes` measures the two passes of a step alone, in one process, each after a plain read of the
same files: GB/s, and the medians of their ratios to the read before.

`--agreement` compares gradients instead: streamed against float64 autograd through all ingredients
in memory, on a small network, normwise per group; the worst group is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

N_CLASSES = 1000
METHODS = ("streamed", "in_memory", "one_model")
Step = Callable[[], tuple[Any, dict[str, float]]]


def build(width: int = 768, depth: int = 12, patch: int = 32, image: int = 224) -> Any:
    """A vision transformer; with the defaults of the size of ViT-B/32: 88 M parameters."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, patch, patch)
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            self.positions = nn.Parameter(torch.zeros(1, 1 + (image // patch) ** 2, width))
            layer = nn.TransformerEncoderLayer(
                width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, N_CLASSES)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
            logits: torch.Tensor = self.head(self.norm(self.blocks(x))[:, 0])
            return logits

    return Transformer()


def make_ingredients(folder: Path, k: int, dtype: str, size: dict[str, int]) -> list[str]:
    """k checkpoints in `folder`; those that are there already stay."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = build(**size).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"run-{i:02}-{dtype}.safetensors" for i in range(k)]
    for i, path in enumerate(paths):
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(i + 1)
        state = {}
        for name, value in base.items():
            noise = torch.randn(value.shape, generator=generator)
            state[name] = noise.mul_(0.003).add_(1).mul_(value).to(getattr(torch, dtype))
        save_file(state, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return [str(path) for path in paths]


class AnonymousMemory:
    """Peak RssAnon of this process, sampled by a thread while the `with` block runs."""

    def __enter__(self) -> AnonymousMemory:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        from benchmarks.measuring import anonymous_bytes

        while not self._stop.wait(0.01):
            self.peak = max(self.peak, anonymous_bytes())


def child(options: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in this process."""
    import torch
    from torch.utils.data import TensorDataset

    from benchmarks.measuring import parse_bytes

    if options["limit"]:
        limit = parse_bytes(options["limit"])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(options["threads"])
    n, edge = options["examples"], options["size"].get("image", 224)
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(n, 3, edge, edge, generator=generator)
    labels = torch.randint(0, N_CLASSES, (n,), generator=generator)
    method = {"streamed": streamed, "in_memory": in_memory, "one_model": one_model}[
        options["method"]
    ]
    device = torch.device(options["device"])
    with AnonymousMemory() as memory:
        data = TensorDataset(images.to(device), labels.to(device))
        step = method(options, data)
        seconds, gradients, parts = [], [], []
        for _ in range(options["steps"]):
            begin = time.perf_counter()
            gradient, told = step()
            gradients.append(gradient.tolist())
            seconds.append(time.perf_counter() - begin)
            parts.append(dict(told))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory.peak
    return {
        "seconds": seconds[1:] or seconds,
        "peak_bytes": peak,
        "gradient": gradients[0],
        "parts": {
            name: (parts[-1][name] - parts[0][name]) / max(len(parts) - 1, 1) for name in parts[0]
        },
        "pass_bytes": parts[0] and ingredient_bytes(options["paths"]),
    }


def ingredient_bytes(paths: list[str]) -> int:
    """What one pass over all ingredients reads."""
    import stockpot

    return sum(stockpot.open(path).n_bytes for path in paths)


def streamed(options: dict[str, Any], data: Any) -> Step:
    """A step of stockpot: θ and its gradient resident, ingredients on disk."""
    import torch

    import stockpot
    from stockpot.recipes.learned.objective import MixtureLoss, Numerics
    from stockpot.recipes.learned.optimisers import Point, Softmax

    task = stockpot.ClassificationTask(
        build=lambda: build(**options["size"]),
        splits={"val": stockpot.Split(data, role="held-out")},
        batch_size=options["batch"],
    )
    ingredients = [stockpot.open(path) for path in options["paths"]]
    loss = MixtureLoss(
        task,
        ingredients,
        start=ingredients[0],
        row_of=dict.fromkeys(ingredients[0], 0),
        numerics=Numerics(device=options["device"], max_memory=options["max_memory"]),
    )
    raw = torch.zeros(1, len(ingredients), dtype=torch.float64)
    loss.load(Softmax().coefficients(raw))

    def step() -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal raw
        value = loss.value(Point(raw, 1.0), Softmax(), data, range(len(data)))
        raw = raw - 0.05 * value.raw.sign()
        loss.load(Softmax().coefficients(raw))
        return value.raw[0], vars(loss.timings)

    return step


def in_memory(options: dict[str, Any], data: Any) -> Step:
    """The same step with all ingredients in memory and a graph through their mixture."""
    import torch
    from safetensors.torch import load_file
    from torch.func import functional_call

    device = options["device"]
    states = [load_file(path, device=device) for path in options["paths"]]
    model = build(**options["size"]).to(device).eval()
    raw = torch.zeros(len(states), dtype=torch.float64)
    images, labels = data.tensors

    def step() -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal raw
        free = raw.clone().requires_grad_()
        c = free.softmax(0).float().to(device)
        mixed = {
            name: sum(c[i] * state[name].float() for i, state in enumerate(states))
            for name in states[0]
        }
        total: Any = sum(
            torch.nn.functional.cross_entropy(
                functional_call(model, mixed, (images[i : i + options["batch"]],)),
                labels[i : i + options["batch"]],
                reduction="sum",
            )
            for i in range(0, len(images), options["batch"])
        )
        (total / len(images)).backward()
        assert free.grad is not None
        raw = raw - 0.05 * free.grad.sign()
        return free.grad, {}

    return step


def one_model(options: dict[str, Any], data: Any) -> Step:
    """Forward and backward of one ingredient: what a step takes where nothing is mixed."""
    import torch
    from safetensors.torch import load_file

    model = build(**options["size"]).to(options["device"]).eval()
    model.load_state_dict(load_file(options["paths"][0]))
    images, labels = data.tensors

    def step() -> tuple[torch.Tensor, dict[str, float]]:
        model.zero_grad(set_to_none=True)
        for i in range(0, len(images), options["batch"]):
            outputs = model(images[i : i + options["batch"]])
            labelled = labels[i : i + options["batch"]]
            loss = torch.nn.functional.cross_entropy(outputs, labelled, reduction="sum")
            (loss / len(images)).backward()  # type: ignore[no-untyped-call]  # torch's has no types
        return torch.zeros(1), {}

    return step


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """`child` in a fresh process, with the same stockpot as this one."""
    import stockpot

    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(options)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(stockpot.__file__).parents[1])},
    )  # fmt: skip
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def read_floor(paths: list[str], threads: int) -> float:
    """GB/s of reading all files once, as the page cache stands."""

    def read(path: str) -> int:
        buffer, total = bytearray(1 << 20), 0
        with Path(path).open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                total += n
        return total

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, paths))
    return total / (time.perf_counter() - begin) / 1e9


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each k."""
    size = {"width": 64, "depth": 2, "image": 64} if args.small else {}
    methods = ["streamed"] if args.streamed_only else ["streamed", "in_memory"]
    methods += ["one_model"] if args.one_model else []
    rows = []
    for k in args.k:
        paths = make_ingredients(Path(args.data), k, args.dtype, size)
        options = {
            "paths": paths, "size": size, "examples": args.examples, "batch": args.batch,
            "steps": args.steps, "limit": args.limit, "threads": args.threads,
            "device": args.device, "max_memory": args.max_memory,
        }  # fmt: skip
        found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
        for _ in range(args.rounds):
            for method in methods:
                found[method].append(measure(options | {"method": method}))
        model = Path(paths[0]).stat().st_size * (2 if args.dtype == "bfloat16" else 1)
        row: dict[str, Any] = {
            "k": k,
            "model_bytes": model,
            "read": read_floor(paths, args.threads),
        }
        for method, results in found.items():
            errors = [result["error"] for result in results if "error" in result]
            row[method] = {"error": errors[0]} if errors else summary(results)
        rows.append(row)
    return rows


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and fastest step, and the highest peak."""
    seconds = [s for result in results for s in result["seconds"]]
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "all_seconds": seconds,
        "peak_bytes": max(result["peak_bytes"] for result in results),
        "gradient": results[0]["gradient"],
        "pass_bytes": results[0]["pass_bytes"],
        "parts": {
            name: statistics.median(result["parts"][name] for result in results)
            for name in results[0]["parts"]
        },
    }


def render(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| k | method | s/step | × in memory | fastest | × in memory | forward+backward "
        "| inner products | rebuild | passes, GB/s | plain read, GB/s | peak memory "
        "| in float32 models |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines += [_line(row, m, row[m]) for m in METHODS if m in row]
    return "\n".join(lines)


def _line(row: dict[str, Any], method: str, cell: dict[str, Any]) -> str:
    start = f"| {row['k']} | {method.replace('_', ' ')} "
    if "error" in cell:
        return f"{start}| {cell['error']} |||||||||||"
    parts, shown, rate = cell["parts"], ["", "", ""], ""
    if parts:
        spent = [parts[p] for p in ("forward_backward", "inner_products", "rebuild")]
        shown = [f"{s:.2f}" for s in spent]
        # Inner products and rebuild each go over all ingredients once a step.
        rate = f"{2 * cell['pass_bytes'] / (spent[1] + spent[2]) / 1e9:.1f}"
    times = {"seconds": cell["seconds"], "fastest": cell["fastest"]}
    reference = row.get("in_memory", {}) if method == "streamed" else {}
    both = [
        f"{value:.2f} | {value / reference[name]:.2f}" if name in reference else f"{value:.2f} | "
        for name, value in times.items()
    ]
    return (
        f"{start}| {' | '.join(both)} | {' | '.join(shown)} | {rate} "
        f"| {row['read']:.1f} | {cell['peak_bytes'] / 2**20:.0f} MiB "
        f"| {cell['peak_bytes'] / row['model_bytes']:.2f} |"
    )


def passes(args: argparse.Namespace) -> list[str]:
    """Lines of a table: the passes beside plain reads, in turns."""
    import torch

    import stockpot
    from stockpot.mixing.device_blocks import ingredient_blocks

    torch.set_num_threads(args.threads)
    lines = [
        "| k | plain read, GB/s | inner products, GB/s | of the read before | rebuild, GB/s "
        "| of the read before |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for k in args.k:
        size = {"width": 64, "depth": 2, "image": 64} if args.small else {}
        paths = make_ingredients(Path(args.data), k, args.dtype, size)
        given = [stockpot.open(path) for path in paths]
        blocks = ingredient_blocks(given, list(given[0]))
        targets = {name: torch.zeros(spec.shape) for name, spec in given[0].items()}
        gradients = {name: torch.randn(spec.shape) for name, spec in given[0].items()}
        rows = dict.fromkeys(targets, 0)
        shares = torch.full((1, k), 1 / k, dtype=torch.float64)
        work = {
            "inner products": lambda b=blocks, g=gradients, r=rows: b.inner_products(g, r, 1),
            "rebuild": lambda b=blocks, s=shares, r=rows, t=targets: b.rebuild(s, r, t),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for turn in range(args.rounds + 1):
            for name, one in work.items():
                read = read_floor(paths, args.threads)
                begin = time.perf_counter()
                one()
                rate = blocks.n_bytes / (time.perf_counter() - begin) / 1e9
                if turn:  # the first maps the files
                    found[name].append((read, rate))
        reads = statistics.median(read for pairs in found.values() for read, _ in pairs)
        cells = [
            f"{statistics.median(rate for _, rate in pairs):.1f} "
            f"| {statistics.median(rate / read for read, rate in pairs):.2f}"
            for pairs in found.values()
        ]
        lines.append(f"| {k} | {reads:.1f} | {' | '.join(cells)} |")
    return lines


def agreement(device: str, k: int = 5) -> dict[str, dict[str, float]]:
    """Worst normwise difference of a group's gradient from float64 autograd: by → dtype → it."""
    import torch
    from torch.func import functional_call
    from torch.utils.data import TensorDataset

    import stockpot
    from stockpot import from_state_dict
    from stockpot.mixing.coefficients import group_names
    from stockpot.recipes.learned.objective import MixtureLoss, Numerics
    from stockpot.recipes.learned.optimisers import Free, Point

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    size = {"width": 64, "depth": 2, "image": 64}
    base = {name: value.double() for name, value in build(**size).state_dict().items()}
    scale = {n: 0.003 * (v.std() if v.std() > 0 else 1.0) for n, v in base.items()}
    noisy = [{n: v + scale[n] * torch.randn_like(v) for n, v in base.items()} for _ in range(k)]
    images = torch.randn(16, 3, 64, 64, dtype=torch.float64, device=device)
    labels = torch.randint(0, N_CLASSES, (16,), device=device)
    found: dict[str, dict[str, float]] = {}
    for by in ("model", "layer", "tensor"):
        groups = group_names(base, by)
        index = {group: row for row, group in enumerate(dict.fromkeys(groups.values()))}
        rows = {name: index[group] for name, group in groups.items()}
        c = torch.rand(len(index), k, dtype=torch.float64)
        c /= c.sum(dim=1, keepdim=True)
        for dtype in (torch.float32, torch.float64):
            states = [{n: v.to(dtype) for n, v in state.items()} for state in noisy]
            free = c.clone().to(device).requires_grad_()
            mixed = {
                n: torch.einsum(
                    "k,k...->...",
                    free[rows[n]],
                    torch.stack([state[n].double() for state in states]).to(device),
                )
                for n in base
            }
            model = build(**size).to(device, torch.float64).eval()
            torch.nn.functional.cross_entropy(
                functional_call(model, mixed, (images,)), labels
            ).backward()
            assert free.grad is not None
            data = TensorDataset(images.to(dtype), labels)
            task = stockpot.ClassificationTask(
                build=lambda: build(**size), splits={"val": stockpot.Split(data, role="held-out")}
            )
            given = [from_state_dict(state) for state in states]
            loss = MixtureLoss(
                task,
                given,
                start=given[0],
                row_of=rows,
                numerics=Numerics(device=device, dtype=dtype),
            )
            value = loss.value(Point(c, 1.0), Free(), data, range(len(data)))
            # What a softmax passes on: the part that does not move all coefficients alike.
            want = free.grad.cpu() - free.grad.cpu().mean(dim=1, keepdim=True)
            got = value.raw - value.raw.mean(dim=1, keepdim=True)
            error = (got - want).norm(dim=1) / want.norm(dim=1)
            found.setdefault(by, {})[str(dtype).removeprefix("torch.")] = float(error.max())
    return found


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="one learned-soup step, streamed and in memory")
    parser.add_argument("--data", help="folder for the ingredients (0.35 GB each in float32)")
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-memory", type=int, help="bytes for model, gradient and held runs")
    parser.add_argument("--agreement", action="store_true", help="compare gradients, not times")
    parser.add_argument("--passes", action="store_true", help="passes alone, beside plain reads")
    parser.add_argument("--limit", default="", help="RLIMIT_DATA of the measured process")
    parser.add_argument("--streamed-only", action="store_true")
    parser.add_argument("--one-model", action="store_true", help="also a step without mixing")
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--remove", action="store_true", help="delete the ingredients afterwards")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return []
    if args.agreement:
        for by, errors in agreement(args.device).items():
            shown = ", ".join(f"{dtype} {error:.1e}" for dtype, error in errors.items())
            print(f"by {by} on {args.device}: {shown}")
        return []
    if args.passes:
        print("\n".join(passes(args)))
        return []
    rows = compare(args)
    print(render(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2))
    if args.remove:
        shutil.rmtree(args.data)
    return rows


if __name__ == "__main__":
    main()
