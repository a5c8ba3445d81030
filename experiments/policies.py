"""What the BatchNorm policy does to a ResNet-20: docs/results/batchnorm.md.

    python -m experiments.sparse resnet --data DATA --out ../sparse --seeds 0 --epochs 1 \
        --train-images 10000
    python -m experiments.policies --data DATA --out ../sparse

reads the dense model and the candidates of seed 0 that `experiments.sparse` made, and scores, under
each policy and on all examples, the line from the base to the dense model, and each phase's
candidates beside their mean: what averaging gives when everything is treated alike, and what seems
to be gained where only the soup is recalibrated. Writes `policies.json` and `policies.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiments.common import POLICIES, write_json

import stockpot
from experiments import cifar_resnet, sparse, sparse_study, tables
from stockpot.evaluate import with_splits

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = ("held-out", "test", "lossless", "natural", "tiny-imagenet")
MEASURES = {"test": "test", "ece": "ECE", "worst_class": "worst class"}


def line(lab: sparse_study.Lab, seed: int) -> dict[str, Any]:
    """Policy → α → split → score, from the base to the dense model."""
    judge, place = lab.judge(seed), lab.place(seed)
    ends = stockpot.Ingredients([place / f"{name}.safetensors" for name in ("base", "dense")])
    points = {
        str(alpha): stockpot.Mixture(ends, stockpot.Coefficients.per_model([1 - alpha, alpha]))
        for alpha in ALPHAS
    }
    return {
        policy: {
            alpha: {
                split: score.value
                for split, score in judge.with_batchnorm(policy).scores(point).items()
            }
            for alpha, point in points.items()
        }
        for policy in POLICIES
    }


def phases(lab: sparse_study.Lab, seed: int) -> dict[str, Any]:
    """Policy → phase → soup and mean candidate → measures, on the test split."""
    whole = lab.judge(seed)
    judge = whole.over(with_splits(whole.task, {"test": whole.task.splits["test"]}))
    target = lab.study.sparsities[0]
    found: dict[str, Any] = {policy: {} for policy in POLICIES}
    for phase, _ in lab.study.points(target):
        folder = lab.place(seed) / f"{target:g}-uniform" / f"phase-{phase}"
        candidates = [
            stockpot.open(folder / f"candidate-{i}.safetensors")
            for i in range(lab.study.n_candidates)
        ]
        mean = stockpot.Mixture(stockpot.Ingredients(candidates))
        for policy in POLICIES:
            own = judge.with_batchnorm(policy)
            found[policy][str(phase)] = {
                "soup": sparse.measure(own, mean),
                "mean candidate": sparse.mean_of([sparse.measure(own, c) for c in candidates]),
            }
    return found


def markdown(told: Mapping[str, Any]) -> str:
    """The line, and the phases."""
    rows = [
        [policy, alpha, *(f"{100 * scores[split]:.2f}" for split in COLUMNS)]
        for policy, by in told["line"].items()
        for alpha, scores in by.items()
    ]
    parts = [
        "From the base (α = 0) to the dense model (α = 1), accuracy in percent:", "",
        *tables.table(["statistics", "α", *COLUMNS], rows),
    ]  # fmt: skip
    every = list(next(iter(told["phases"].values())))
    rows = [
        [policy, model, *(f"{100 * by[phase][model][m]:.2f}" for m in MEASURES for phase in every)]
        for policy, by in told["phases"].items()
        for model in ("soup", "mean candidate")
    ]
    # What was published compared the first of these with the second.
    mixed = [
        100 * (told["phases"]["clean"][p]["soup"][m] - told["phases"]["averaged"][p][c][m])
        for m in MEASURES
        for p in every
        for c in ["mean candidate"]
    ]
    rows.append(["clean − averaged", "soup − candidate", *(f"{gap:+.2f}" for gap in mixed)])
    for policy, by in told["phases"].items():
        gaps = [
            100 * (by[p]["soup"][m] - by[p]["mean candidate"][m]) for m in MEASURES for p in every
        ]
        rows.append([policy, "soup − candidate", *(f"{gap:+.2f}" for gap in gaps)])
    head = [f"{name}, phase {phase}" for name in MEASURES.values() for phase in every]
    return "\n".join(
        [*parts, "", "Phases of the sparse soup, on test, in percent:", "",
         *tables.table(["statistics", "model", *head], rows)]
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with cifar10/ and resnet_cifar10/")
    parser.add_argument("--out", type=Path, required=True, help="that of experiments.sparse")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=cifar_resnet.N_TRAIN)
    parser.add_argument("--quick", action="store_true", help="what was made with --quick")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = replace(sparse_study.RESNET, epochs=1)
    if options.quick:
        study = sparse_study.quickly(study)
    out = options.out.absolute()
    lab = sparse_study.Lab(
        study, out, options.data, quick=options.quick, n_train=options.train_images
    )
    told = {"line": line(lab, options.seed), "phases": phases(lab, options.seed)}
    write_json(out / "policies.json", told)
    text = markdown(json.loads(json.dumps(told)))
    (out / "policies.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    print(main())
