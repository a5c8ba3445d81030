"""Whether wheels give the same bytes under several Pythons and NumPys, without a compiler.

    python scripts/same_bytes.py dist/*.whl --python python3.11 python3.13 --numpy 1.26.0 newest
    python scripts/same_bytes.py dist/*.whl --recipes    # greedy and learned, with torch

Each wheel is installed into a fresh environment for each Python and NumPy, with nothing on PATH
but that environment. There it averages and interpolates the same seeded checkpoints of three types,
and the SHA-256 of all outputs is compared. Combinations that NumPy has no wheel for are named.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs in the environment: nothing but NumPy and stockpot is there.
PROGRAM = """
import hashlib, pathlib, sys
import numpy, stockpot
from stockpot.tensors import compiled
files = sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors"))
out = pathlib.Path(sys.argv[2])
digest = hashlib.sha256()
for dtype in ("BF16", "F16", "F32"):
    given = [str(f) for f in files if f.name.startswith(dtype)]
    for name, options in {"mean": {}, "bf16": {"dtype": "bf16"}}.items():
        target = out / f"{dtype}-{name}.safetensors"
        stockpot.average(given, **options).save(target)
        digest.update(target.read_bytes())
    target = out / f"{dtype}-mix.safetensors"
    stockpot.interpolate(given[0], given[1], alpha=0.3).save(target)
    digest.update(target.read_bytes())
print(sys.version.split()[0], numpy.__version__, bool(compiled.available("F32", "F32")),
      digest.hexdigest())
"""


# Runs with the torch of this Python, and the wheel before whatever else it has.
RECIPES = """
import hashlib, pathlib, sys
import torch, stockpot
from torch.utils.data import TensorDataset
from stockpot.tensors import compiled
from stockpot.evaluate import Split
from stockpot.tasks import ClassificationTask
assert sys.argv[1] in stockpot.__file__, stockpot.__file__
def build():
    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))
torch.manual_seed(0)
torch.set_num_threads(1)
teacher, x = build(), torch.randn(3000, 20)
y = (teacher(x) + 0.5 * torch.randn(3000, 5)).argmax(1)
start = build().state_dict()
models = []
for seed in range(6):
    torch.manual_seed(seed)
    model = build()
    model.load_state_dict(start)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.003 * (seed + 1))
    for _ in range(60):
        part = torch.randint(0, 1000, (64,))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()
    models.append(model.state_dict())
data = [TensorDataset(x[a:a + 1000], y[a:a + 1000]) for a in (1000, 2000)]
splits = {"held_out": Split(data[0]), "test": Split(data[1], role="test")}
task = ClassificationTask(build=build, splits=splits)
digest = hashlib.sha256()
for name in ("greedy", "learned"):
    target = pathlib.Path(sys.argv[1]) / f"{name}.safetensors"
    given = [stockpot.from_state_dict(m, path=f"model {i}") for i, m in enumerate(models)]
    getattr(stockpot, name)(given, task=task).save(target)
    digest.update(target.read_bytes())
print(sys.version.split()[0], torch.__version__, bool(compiled.available("F32", "F32")),
      digest.hexdigest())
"""


def checkpoints(folder: Path, *, n: int = 5, values: int = 100_003) -> None:
    """Seeded checkpoints, written by hand: of every bit pattern that a finite number can have."""
    for dtype, size in (("BF16", 2), ("F16", 2), ("F32", 4)):
        for i in range(n):
            raw = hashlib.shake_256(f"{dtype}{i}".encode()).digest(values * size)
            data = bytearray(raw)
            for at in range(size - 1, len(data), size):
                data[at] &= 0xBB  # no exponent of ones: all are finite, and so are their means
            header = {"w": {"dtype": dtype, "shape": [values], "data_offsets": [0, len(data)]}}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            path = folder / f"{dtype}-{i}.safetensors"
            path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def run(wheel: Path, python: str, numpy: str, given: Path) -> str:
    """What the program prints in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        which = "numpy" if numpy == "newest" else f"numpy=={numpy}"
        asked = [*pip, "--only-binary", ":all:", which, wheel]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode:
            return "not to be had: " + done.stderr.strip().splitlines()[-1]
        out = Path(folder) / "out"
        out.mkdir()
        env = {"PATH": str(inside.parent), "STOCKPOT_CACHE": str(out / "cache")}
        return subprocess.run(
            [inside, "-c", PROGRAM, given, out],
            check=True, capture_output=True, text=True, env=env, cwd=folder,
        ).stdout.strip()  # fmt: skip


def run_recipes(wheel: Path) -> str:
    """What the second program prints with this wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", folder, wheel], check=True)
        env = {**os.environ, "PYTHONPATH": folder, "STOCKPOT_CACHE": str(Path(folder) / "cache")}
        return subprocess.run(
            [sys.executable, "-c", RECIPES, folder],
            check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=folder,
        ).stdout.strip()  # fmt: skip


def main() -> int:
    """Print a line for each combination; 1 where two differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--numpy", nargs="+", default=["newest"])
    parser.add_argument("--recipes", action="store_true", help="greedy and learned, with torch")
    asked = parser.parse_args()
    digests = set()
    if asked.recipes:
        for wheel in asked.wheels:
            line = run_recipes(wheel.resolve())
            print(f"{wheel.name}: Python, torch, compiled, SHA-256: {line}", flush=True)
            digests.add(line.split()[-1])
        asked.wheels = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints(Path(folder))
        for wheel, python, numpy in itertools.product(asked.wheels, asked.python, asked.numpy):
            line = run(wheel.resolve(), python, numpy, Path(folder))
            print(f"{wheel.name}: Python, NumPy, compiled, SHA-256: {line}", flush=True)
            if not line.startswith("not to be had"):
                digests.add(line.split()[-1])
    print("the same bytes" if len(digests) == 1 else f"DIFFERENT: {len(digests)} results")
    return int(len(digests) != 1)


if __name__ == "__main__":
    sys.exit(main())
