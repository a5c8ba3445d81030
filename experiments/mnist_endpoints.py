"""Two published MNIST networks, trained from different seeds: they must not be averaged.

    STOCKPOT_DATA=DATA stockpot auto \
        DATA/mnist_cnn_endpoints/edpt1_epoch200.safetensors \
        DATA/mnist_cnn_endpoints/edpt2_epoch200.safetensors \
        --task experiments/mnist_endpoints.py:task -o soup.safetensors

    python -m experiments.mnist_endpoints --data DATA

runs `inspect`, `greedy` and `auto` on the pair and says what each of them says: that the two share
no basin, and that one is kept. Exit code 1 where one of them does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import stockpot

N_HELD_OUT, N_TEST = 2_000, 2_000
ROOT = Path(__file__).resolve().parents[1]


def build() -> nn.Module:
    """The network of the published files; inputs in 0..1."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 10),
    )  # fmt: skip


def task() -> stockpot.ClassificationTask:
    """Two disjoint parts of MNIST's test digits, from the folder that `STOCKPOT_DATA` names."""
    return make_task(Path(os.environ["STOCKPOT_DATA"]))


def make_task(data: Path) -> stockpot.ClassificationTask:
    """The task on the data in a folder."""
    with np.load(data / "digits" / "mnist.npz") as z:
        images, labels = z["test_images"], z["test_labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy(images[order]).float().reshape(-1, 1, 28, 28) / 255
    y = torch.from_numpy(labels[order].astype(np.int64))
    held_out, test = slice(0, N_HELD_OUT), slice(N_HELD_OUT, N_HELD_OUT + N_TEST)
    return stockpot.ClassificationTask(
        build=build,
        splits={
            "held-out": stockpot.Split(TensorDataset(x[held_out], y[held_out]), role="held-out"),
            "test": stockpot.Split(TensorDataset(x[test], y[test]), role="test"),
        },
    )


def told(data: Path) -> dict[str, Any]:
    """What the three commands say of the pair: their JSON, and what a person reads."""
    pair = [
        str(data / "mnist_cnn_endpoints" / f"edpt{seed}_epoch200.safetensors") for seed in (1, 2)
    ]
    found: dict[str, Any] = {"inspect": {"text": _run(data, "inspect", *pair)}}
    with tempfile.TemporaryDirectory() as scratch:
        for command in ("greedy", "auto"):
            out = ["--task", f"{__file__}:task", "--no-journal", "-o"]
            text = _run(data, command, *pair, *out, f"{scratch}/{command}-shown.safetensors")
            plain = _run(data, command, *pair, *out, f"{scratch}/{command}.safetensors", "--json")
            found[command] = {"text": text, "json": json.loads(plain[plain.index("{\n") :])}
    return found


def _run(data: Path, *words: str) -> str:
    """What a command says, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "stockpot", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        env={**os.environ, "STOCKPOT_DATA": str(data), "PYTHONPATH": str(ROOT / "src")},
    )
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with mnist_cnn_endpoints/")
    found = told(parser.parse_args().data.resolve())
    for command, what in found.items():
        print(f"## {command}\n\n{what['text']}")
    kept = [len(found[command]["json"]["selected"]) for command in ("greedy", "auto")]
    said = {
        "inspect": "share no basin" in " ".join(found["inspect"]["text"].split()),
        **{c: "not in one basin" in " ".join(found[c]["text"].split()) for c in ("greedy", "auto")},
    }
    print(json.dumps({"kept": kept, "said": said}))
    return int(kept != [1, 1] or not all(said.values()))


if __name__ == "__main__":
    sys.exit(main())
