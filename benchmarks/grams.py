"""What keeping Gram matrices would save: processor seconds of hashing, and of inner products.

    python benchmarks/grams.py --models 2 6 12

makes float32 models of ten matrices (31 MB each by default) that moved 1 % from a base, and
measures in one process what a key of their contents takes, then the passes that could be kept.
Files are in the page cache, and fingerprints are not known before. Figures: docs/design/grams.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import stockpot
from stockpot.analysis.geometry import measure_moves, tensor_grams


def made(folder: Path, n_models: int, width: int) -> tuple[list[Path], Path]:
    """Files of `n_models` models and of their base."""
    rng = np.random.default_rng(0)
    start = {
        f"layer.{i}.weight": rng.normal(size=(width, width)).astype(np.float32) for i in range(10)
    }
    paths = [folder / f"run-{i:02d}.safetensors" for i in range(n_models)]
    for path in paths:
        moved = {
            name: value + (0.01 * rng.normal(size=value.shape)).astype(np.float32)
            for name, value in start.items()
        }
        save_file(moved, path)
    save_file(start, folder / "base.safetensors")
    return paths, folder / "base.safetensors"


def measured(paths: Sequence[Path], base: Path) -> dict[str, float]:
    """Processor seconds of each way of reading all of the files once."""
    models, start = [stockpot.open(path) for path in paths], stockpot.open(base)

    def spent(work: Callable[[], object]) -> float:
        before = time.process_time()
        work()
        return time.process_time() - before

    return {
        "fingerprints": spent(lambda: [model.fingerprint for model in models]),
        "inner products": spent(lambda: tensor_grams(models, start)),
        "moves": spent(lambda: measure_moves(models, start)),
    }


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, nargs="+", default=[2, 6, 12])
    parser.add_argument("--width", type=int, default=886, help="rows and columns of a matrix")
    given = parser.parse_args(arguments)
    lines = []
    for n_models in given.models:
        with tempfile.TemporaryDirectory() as folder:
            paths, base = made(Path(folder), n_models, given.width)
            size = sum(path.stat().st_size for path in paths) / 1e6
            seconds = ", ".join(f"{k} {v:.3f} s" for k, v in measured(paths, base).items())
        lines.append(f"{n_models} models, {size:.0f} MB: {seconds}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(main())
