"""A program of another library scores the soups: scikit-learn's MLP, driven by `--eval`.

    python -m experiments.sklearn_program make RUNS
    stockpot greedy RUNS -o soup.safetensors \
        --eval "python -m experiments.sklearn_program score {checkpoint} held-out" \
        --eval-test "python -m experiments.sklearn_program score {checkpoint} test"

`make` trains a multi-layer perceptron on part of scikit-learn's digits and eight continuations of
it, and writes their weights; `score` loads the file it is given into a new one and prints the
accuracy. Neither knows of stockpot.

    python -m experiments.sklearn_program try --out DIR

makes the runs, lets the program fail, hang and print NaN at its fifth call, and gives the same
command again each time: what was said, how often the program ran, and whether the soup is that of a
command that met no trouble. Exit code 1 if a message does not say what happened, or if something
was scored twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

ROOT = Path(__file__).resolve().parents[1]
N_RUNS = 8
PARTS = {"train": slice(0, 600), "held-out": slice(600, 1200), "test": slice(1200, None)}
CALLS, TROUBLE = "SKLEARN_PROGRAM_CALLS", "SKLEARN_PROGRAM_TROUBLE"
"""Environment: a file that counts the calls of `score`, and what happens at the fifth of them."""
FIFTH = 5
SAYS = {
    "crash": "the classifier fell over",
    "hang": "longer than",
    "nan": "nan",
}
"""Trouble → what the message has to say of it."""

Weights = dict[str, Any]


def digits(part: str) -> tuple[Any, Any]:
    """Images (n, 64) in 0..1 and labels (n,) of a part; parts are disjoint."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[PARTS[part]]
    return x[order] / 16, y[order]


def network(weights: Weights | None = None, **options: Any) -> MLPClassifier:
    """A perceptron of one hidden layer of 32, with these weights."""
    found = MLPClassifier((32,), random_state=0, **options)
    x, y = digits("train")
    found.partial_fit(x[:10], y[:10], classes=np.arange(10))  # it has no weights before
    if weights is not None:
        found.coefs_ = [weights[f"{i}.weight"] for i in range(2)]
        found.intercepts_ = [weights[f"{i}.bias"] for i in range(2)]
    return found


def weights_of(model: MLPClassifier) -> Weights:
    """Names and arrays, as a checkpoint holds them."""
    layers = zip(model.coefs_, model.intercepts_, strict=True)
    return {f"{i}.{n}": v for i, pair in enumerate(layers)
            for n, v in zip(("weight", "bias"), pair, strict=True)}  # fmt: skip


def train(weights: Weights | None, *, epochs: int, lr: float, seed: int) -> Weights:
    """Some epochs of Adam over the training digits in an order of their own."""
    model = network(weights, learning_rate_init=lr)
    x, y = digits("train")
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in np.array_split(random.permutation(len(y)), 20):
            model.partial_fit(x[batch], y[batch])
    return weights_of(model)


def make(folder: Path) -> list[Path]:
    """Eight runs from one start; learning rates from gentle to ruinous."""
    folder.mkdir(parents=True, exist_ok=True)
    start = train(None, epochs=20, lr=3e-3, seed=0)
    paths = []
    for i, lr in enumerate(np.geomspace(3e-4, 1e-1, N_RUNS)):
        paths.append(folder / f"run-{i:02}.safetensors")
        save_file(train(start, epochs=10, lr=float(lr), seed=i + 1), paths[-1])
    return paths


def score(checkpoint: Path, part: str) -> float:
    """Accuracy of the weights in a file."""
    return float(network(load_file(checkpoint)).score(*digits(part)))


def _trouble() -> None:
    """What the environment asks for, at the fifth call."""
    if CALLS not in os.environ:
        return
    with Path(os.environ[CALLS]).open("a") as file:
        file.write("x")
    if Path(os.environ[CALLS]).stat().st_size != FIFTH:
        return
    match os.environ.get(TROUBLE):
        case "crash":
            raise SystemExit("the classifier fell over")
        case "hang":
            time.sleep(600)
        case "nan":
            print("nan")
            raise SystemExit(0)


def attempt(
    runs: Sequence[Path], folder: Path, cache: Path, trouble: str | None = None
) -> dict[str, Any]:
    """`stockpot greedy` once: how it ended, and how often it ran the program."""
    calls = folder / f"calls-{trouble}"
    program = f"{sys.executable} -m experiments.sklearn_program score {{checkpoint}}"
    words = [sys.executable, "-m", "stockpot", "greedy", *map(str, runs), "--json"]
    words += ["--eval", f"{program} held-out", "--eval-test", f"{program} test"]
    words += ["--eval-timeout", "20", "--cache", str(cache)]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, CALLS: str(calls), TROUBLE: trouble or ""}
    done = subprocess.run(
        [*words, "-o", str(folder / "soup.safetensors")],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    told = json.loads(done.stdout)
    return {
        "code": done.returncode,
        "message": told["error"]["message"] if "error" in told else None,
        "calls": calls.stat().st_size,
        "selected": [Path(path).name for path in told.get("selected", [])],
        "scores": {name: s["value"] for name, s in told.get("scores", {}).items()},
    }


def trial(out: Path) -> dict[str, Any]:
    """Each trouble, then the same command without it; beside a command that had none."""
    runs = make(out / "runs")
    (out / "calm").mkdir(parents=True, exist_ok=True)
    calm = attempt(runs, out / "calm", out / "calm" / "cache")
    found: dict[str, Any] = {"undisturbed": calm}
    for trouble, words in SAYS.items():
        folder = out / trouble
        folder.mkdir(parents=True, exist_ok=True)
        stopped = attempt(runs, folder, folder / "cache", trouble)
        again = attempt(runs, folder, folder / "cache")
        found[trouble] = {
            **{key: stopped[key] for key in ("code", "message", "calls")},
            "said": stopped["code"] == 1 and words in stopped["message"].lower(),
            "calls of the rerun": again["calls"],
            # The call in trouble scored nothing.
            "nothing scored twice": stopped["calls"] - 1 + again["calls"] == calm["calls"],
            "the same soup": again["selected"] == calm["selected"] != [],
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("folder", type=Path)
    scoring = commands.add_parser("score")
    scoring.add_argument("checkpoint", type=Path)
    scoring.add_argument("part", choices=PARTS)
    commands.add_parser("try").add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.command == "make":
        make(given.folder)
        return 0
    if given.command == "score":
        _trouble()
        print(score(given.checkpoint, given.part))
        return 0
    found = trial(given.out.resolve())
    print(json.dumps(found, indent=1))
    checks = ("said", "nothing scored twice", "the same soup")
    return int(not all(found[trouble][check] for trouble in SAYS for check in checks))


if __name__ == "__main__":
    sys.exit(main())
