"""What the core costs: seconds and megabytes of its installation, and commands without torch.

    python benchmarks/install.py

A fresh environment. Packages come from pip's cache where it has them: the network is not what is
measured. Times are the best of five, of the whole process, warm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What an environment has without stockpot, and NumPy, which is counted apart.
_APART = ("numpy", "pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")


def megabytes(packages: Path) -> tuple[float, float]:
    """Of what stockpot brings beside NumPy, and of NumPy."""
    sizes = {True: 0, False: 0}
    for part in packages.iterdir():
        if part.name.startswith(_APART[1:]):
            continue
        files = [part] if part.is_file() else part.rglob("*")
        sizes[part.name.startswith("numpy")] += sum(f.stat().st_size for f in files if f.is_file())
    return sizes[False] / 1e6, sizes[True] / 1e6


def best_of(n: int, command: Sequence[object], folder: Path) -> float:
    """Seconds of the fastest of `n` runs."""
    times = []
    for _ in range(n):
        started = time.perf_counter()
        subprocess.run([*map(str, command)], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return min(times)


def write_models(folder: Path, *, n: int, n_bytes: int) -> None:
    """Checkpoints of one bf16 tensor each, random but finite."""
    for i in range(n):
        raw = bytearray(os.urandom(n_bytes))
        raw[1::2] = bytes(b & 0xBF for b in raw[1::2])
        header = {"w": {"dtype": "BF16", "shape": [n_bytes // 2], "data_offsets": [0, n_bytes]}}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (folder / f"{i}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="instead of building from the source")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        pip = [scripts / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        target = ROOT if asked.wheel is None else asked.wheel.resolve()
        installing = best_of(1, [*pip, target], folder)
        ours, numpy = megabytes(next((folder / "env").rglob("site-packages")))
        write_models(folder, n=5, n_bytes=100_000_000)
        command = scripts / "stockpot"
        files = [f"{i}.safetensors" for i in range(5)]
        rows = {
            "install, s": installing,
            "megabytes beside NumPy": ours,
            "megabytes of NumPy": numpy,
            "--help, s": best_of(5, [command, "--help"], folder),
            "inspect 5 files, s": best_of(5, [command, "inspect", *files], folder),
            "average 5 × 100 MB (bf16), s": best_of(
                5, [command, "average", *files, "-o", "soup.safetensors", "--force"], folder
            ),
        }
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for what, value in rows.items():
        print(f"{what:32} {value:8.2f}")


if __name__ == "__main__":
    main()
