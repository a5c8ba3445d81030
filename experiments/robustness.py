"""Effective robustness on the JPEG copy of CIFAR-10: is WiSE-FT above the line of plain networks?

    python -m experiments.robustness --data DATA --curves ../wise-ft/wise_ft.json \
        --out ../robustness

trains ResNets of several depths, widths and lengths from nothing on JPEG images (`NETWORKS`), fits
their mean score on the shifts to that on test, on logit axes, and measures how far the points of
the curves that `experiments.wise_ft --only resnet` wrote lie above the fit. The published ResNets,
which saw the originals of the same images, stand beside it. What was trained stays in
`OUT/baselines`: a killed call goes on after the last network.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.common import SHIFT_AVERAGE, write_results

import stockpot
from experiments import cifar_resnet, ingredients, tables
from stockpot import train as training
from stockpot.analysis import fit_baseline

TEST = "test"
MEASURED = ("zero-shot", "fine-tuned", "α = 0.5", "chosen α", "ensemble, α = 0.5")
"""What effective robustness is measured of."""

NETWORKS = (
    *((20, 16, epochs) for epochs in (1, 2, 4, 8, 16)),
    *((8, 16, epochs) for epochs in (2, 8)),
    (20, 8, 4),
)
"""Depth, width and epochs of the networks that saw JPEG images only."""
PUBLISHED = (20, 32, 44, 56)
"""Depths of the networks that saw the originals."""
N_TRAIN = 40_000
QUICK = {"n_train": 100, "n_held_out": 40}


@dataclass(frozen=True)
class Baseline:
    """A network that is trained from nothing on what is fine-tuned on, and on nothing else.

    Attributes:
        name: for people, such as `"width 8, 2 epochs"`.
        task: what it is trained and scored on.
        config: how.
        start: seed of its initialisation.
        seed: of its training.
    """

    name: str
    task: stockpot.Task
    config: training.TrainConfig
    start: int
    seed: int


def scored(baseline: Baseline, path: Path, evaluator: stockpot.TaskEvaluator) -> dict[str, Any]:
    """Its scores on test and over the shifts; trained into `path`, unless it is there.

    `evaluator` gives journal, seed and precision; statistics of BatchNorm are the network's own.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(baseline.start)
            start = baseline.task.build().state_dict()
        training.fine_tune(
            baseline.task, start, baseline.config, out=path, seed=baseline.seed, device="cpu"
        )
    own = stockpot.TaskEvaluator(
        baseline.task,
        cache=evaluator.journal,
        device="cpu",
        seed=evaluator.seed,
        precision=evaluator.precision,
        batchnorm="averaged",
    )
    return {"name": baseline.name, **_row(own.scores(stockpot.open(path)))}


def _row(scores: Mapping[str, Any]) -> dict[str, float]:
    return {"test": scores[TEST].value, "shift": scores[SHIFT_AVERAGE].value}


def above(baselines: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> dict[str, Any]:
    """How far the points of a curve lie above the line of the baselines.

    Args:
        baselines: what `scored` says of each.
        told: the JSON of a WiSE-FT soup with its curve and ensemble.
    """
    fit = fit_baseline([row["test"] for row in baselines], [row["shift"] for row in baselines])
    return {
        "baselines": list(baselines),
        "slope": fit.slope,
        "intercept": fit.intercept,
        "r_squared": fit.r_squared,
        "residuals": list(fit.residuals),
        "models": {
            name: {
                "test": test,
                "shift": shift,
                "rho": fit.effective_robustness(test, shift),
                "inside": fit.covers(test),
            }
            for name, (test, shift) in _measured(told).items()
        },
        "curve": [
            {"alpha": point["alpha"], "rho": fit.effective_robustness(*_scores(point))}
            for point in told["curve"]
        ],
    }


def _measured(told: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    curve = told["curve"]
    points = (curve[0], curve[-1], told["half"], told["chosen"], at(told["ensemble"], 0.5))
    return {name: _scores(point) for name, point in zip(MEASURED, points, strict=True)}


def at(points: Sequence[Mapping[str, Any]], alpha: float) -> Mapping[str, Any]:
    """The point of a curve at `alpha`."""
    return next(point for point in points if point["alpha"] == alpha)


def _scores(point: Mapping[str, Any]) -> tuple[float, float]:
    scores = point["scores"]
    return scores[TEST]["value"], scores[SHIFT_AVERAGE]["value"]


# ── ResNets on JPEG images ────────────────────────────────────────────────────────────────────────


def networks(data: Path, *, quick: bool = False) -> list[Baseline]:
    """The baselines of `NETWORKS`; with `quick` four of them, of two steps."""
    found = []
    for depth, width, epochs in NETWORKS[4:8] if quick else NETWORKS:
        sizes = QUICK if quick else {"n_train": N_TRAIN}
        task = _task(data, quick=quick, depth=depth, width=width, **sizes)
        config = training.TrainConfig(
            optimizer="sgd", lr=0.1, weight_decay=5e-4, epochs=epochs, batch_size=128,
            warmup_fraction=0.1, precision="bf16", score_every=epochs,
            max_steps=2 if quick else None,
        )  # fmt: skip
        name = f"ResNet-{depth}, width {width}, {epochs} epoch{'s' * (epochs != 1)}"
        found.append(Baseline(name, task, config, start=1000 * depth + width, seed=epochs))
    return found


def _task(data: Path, *, quick: bool, **sizes: Any) -> stockpot.Task:
    task = cifar_resnet.make_task(data, **sizes)
    return ingredients.first_examples(task, ingredients.QUICK_EXAMPLES) if quick else task


def study(data: Path, curves: Sequence[Mapping[str, Any]], out: Path, quick: bool) -> list[Any]:
    """For each sweep: the fit, and its points above it; the published networks in each."""
    make = functools.partial(_task, data, quick=quick, **(QUICK if quick else {}))
    with stockpot.TaskEvaluator(
        make(), cache=out / "journal", device="cpu", precision="bf16"
    ) as evaluator:
        baselines = []
        for number, one in enumerate(networks(data, quick=quick)):
            print(one.name, flush=True)
            baselines.append(scored(one, out / "baselines" / f"{number}.safetensors", evaluator))
        published = [_published(depth, data, make(depth=depth), evaluator) for depth in PUBLISHED]
    found = []
    for sweep in curves:
        of = above(baselines, sweep["tuned"]["best single"])
        found.append({"experiment": sweep["experiment"], "seed": sweep["seed"],
                      "robustness": of, "published": published})  # fmt: skip
    return found


def _published(
    depth: int, data: Path, task: stockpot.Task, evaluator: stockpot.TaskEvaluator
) -> dict[str, Any]:
    own = stockpot.TaskEvaluator(
        task, cache=evaluator.journal, device="cpu", precision=evaluator.precision,
        batchnorm="averaged",
    )  # fmt: skip
    scores = own.scores(stockpot.from_state_dict(cifar_resnet.base(data, depth=depth)))
    return {"name": f"ResNet-{depth}, originals", **_row(scores)}


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def lines(sweeps: Sequence[Mapping[str, Any]], what: str) -> list[str]:
    """Effective robustness over sweeps, the fits, and what is left of each baseline.

    Args:
        sweeps: each with its `"seed"` and, as `above` found it, `"robustness"`.
        what: all that the baselines saw, such as `"handwriting"`.
    """
    fits = [one["robustness"] for one in sweeps]
    models = []
    for name in MEASURED:
        rho = tables.over_seeds([fit["models"][name]["rho"] for fit in fits])
        inside = sum(fit["models"][name]["inside"] for fit in fits)
        models.append([name, tables.in_points(rho), f"{inside} of {len(fits)}"])
    # Sweeps may share their baselines, and then have one fit.
    if all(fit["baselines"] == fits[0]["baselines"] for fit in fits):
        named = [("all sweeps", fits[0])]
    else:
        named = [(f"seed {one['seed']}", fit) for one, fit in zip(sweeps, fits, strict=True)]
    rows = [
        [
            name,
            str(len(fit["residuals"])),
            f"{fit['slope']:.3f}",
            f"{fit['intercept']:+.3f}",
            f"{fit['r_squared']:.3f}",
            f"{max(map(abs, fit['residuals'])):.3f}",
            "{:.1f} – {:.1f}".format(*_range([b["test"] for b in fit["baselines"]])),
        ]
        for name, fit in named
    ]
    head = ["", "baselines", "a", "b", "R²", "largest residual (logits)", "their test scores"]
    left = [
        [baseline["name"], *(f"{fit['residuals'][i]:+.3f}" for _, fit in named)]
        for i, baseline in enumerate(named[0][1]["baselines"])
    ]
    return [
        "#### Effective robustness", "",
        f"ρ in points over β(x) = σ(a·logit x + b), fitted to networks that saw {what} only:",
        "", *tables.table(["", "ρ", "inside the range of the baselines"], models), "",
        "The fits:", "", *tables.table(head, rows), "",
        "Their residuals, logits:", "",
        *tables.table(["baseline", *(name for name, _ in named)], left), "",
    ]  # fmt: skip


def _range(values: Sequence[float]) -> tuple[float, float]:
    return 100 * min(values), 100 * max(values)


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The tables of `lines`, and the scores behind them."""
    fit = found[0]["robustness"]
    rows = [
        [row["name"], f"{100 * row['test']:.2f}", f"{100 * row['shift']:.2f}"]
        for row in (*fit["baselines"], *found[0]["published"])
    ]
    text = [
        *lines(found, "JPEG images"),
        "Scores of the baselines and of the published networks, in percent:", "",
        *tables.table(["network", "test", "shift average"], rows), "",
    ]  # fmt: skip
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder with cifar10/, …")
    parser.add_argument("--curves", required=True, type=Path, help="wise_ft.json of the sweeps")
    parser.add_argument("--out", required=True, type=Path, help="outside the repository")
    parser.add_argument("--quick", action="store_true", help="try everything in a few steps")
    given = parser.parse_args(arguments)
    told = json.loads(given.curves.read_text()) if given.curves.is_file() else []
    curves = [one for one in told if one["experiment"].startswith("resnet")]
    if not curves:
        parser.error(
            f"{given.curves} holds no curve of resnet: make it by experiments.wise_ft --only resnet"
        )
    out = given.out.resolve()
    found = study(cifar_resnet.data_folder(given.data), curves, out, given.quick)
    return write_results(out, "robustness", found, markdown(found))


if __name__ == "__main__":
    print(main())
