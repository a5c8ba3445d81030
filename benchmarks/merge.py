"""Merging model folders by mergekit configurations: stockpot beside mergekit, as whole processes.

    python benchmarks/merge.py --mergekit VENV/bin/mergekit-yaml --models 3 --size 1GB

makes a base and moves from it, as `benchmarks/average.py` does (sharded, bfloat16), and runs both
on each method, alternated: seconds of wall and of CPU, and the peak of anonymous memory. The row
`ties-model` is TIES over the whole network, which mergekit does not have: `stockpot arithmetic`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

from benchmarks.average import MERGEKIT_FLAGS, environment, measure  # noqa: E402
from benchmarks.llama import make_models, write_json  # noqa: E402
from benchmarks.measuring import parse_bytes  # noqa: E402

METHODS = (
    "linear", "slerp", "nuslerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della",
    "breadcrumbs", "model_stock", "karcher", "sce", "ties-model",
)  # fmt: skip
_WITH_DENSITY = ("ties", "dare_linear", "dare_ties", "della", "breadcrumbs")
_STOCKPOT = [sys.executable, "-c", "import sys; from stockpot.cli import main; sys.exit(main())"]


def config_of(method: str, models: Sequence[Path]) -> dict[str, object]:
    """The configuration; the first model is the base."""
    base, *tuned = map(str, models)
    found: dict[str, object] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "linear":
        every = [base, *tuned]
    elif method == "slerp":
        every, found["parameters"] = tuned[:1], {"t": 0.4}
    else:
        every = tuned
    if method not in ("linear", "karcher"):
        found["base_model"] = base
    if method == "sce":
        found["parameters"] = {"select_topk": 0.5}
    names = ("weight", "density") if method in _WITH_DENSITY else ("weight",)
    own = {} if method in ("karcher", "model_stock", "sce") else dict.fromkeys(names, 0.5)
    return {**found, "models": [{"model": one, "parameters": own} for one in every]}


def command(tool: str, method: str, models: Sequence[Path], work: Path, mergekit: str) -> list[str]:
    """The command line of one run."""
    out = str(work / "out")
    if method == "ties-model":
        base, *tuned = map(str, models)
        rule = ["--rule", "ties,keep=0.2", "--scale", "1", "-o", out]
        return [*_STOCKPOT, "arithmetic", *tuned, "--base", base, *rule]
    write_json(work / "merge.yml", config_of(method, models))  # JSON is YAML
    if tool == "stockpot":
        return [*_STOCKPOT, "merge", str(work / "merge.yml"), "-o", out]
    return [mergekit, str(work / "merge.yml"), out, *MERGEKIT_FLAGS]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", required=True)
    parser.add_argument("--models", type=int, default=3, help="The base among them.")
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("1GB"), help="Of each.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--data", help="Folder for the data; default: a temporary one.")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.data) as place:
        work = Path(place)
        models = make_models(work / "models", given.models, given.size, moved=0.05)
        print("| method | tool | wall, s | CPU, s | peak anonymous, MB |\n|---|---|---|---|---|")
        for method in given.methods.split(","):
            tools = ("stockpot",) if method == "ties-model" else ("stockpot", "mergekit")
            runs: dict[str, list[tuple[float, float, int]]] = {tool: [] for tool in tools}
            for _ in range(given.repeat):
                for tool in tools:
                    for old in ("out", "cache"):
                        shutil.rmtree(work / old, ignore_errors=True)
                    line = command(tool, method, models, work, given.mergekit)
                    *figures, ended = measure(line, environment(work / "cache"))
                    if ended.returncode:
                        raise SystemExit(f"{tool} {method}:\n{ended.stderr[-2000:]}")
                    runs[tool].append((figures[0], figures[1], figures[2]))
            for tool, found in runs.items():
                wall, cpu, peak = (statistics.median(column) for column in zip(*found, strict=True))
                print(
                    f"| {method} | {tool} | {wall:.1f} | {cpu:.1f} | {peak / 1e6:.0f} |", flush=True
                )


if __name__ == "__main__":
    main()
