"""The trials by which the demo was set up, on seeds 300 and above (docs/handwriting.md).

    python -m experiments.handwriting_setup --seeds 300 301 302 303

Each trial is a sweep of twelve runs that draws as `Lab.space` does, in a plain loop that keeps
nothing, so that a sweep takes seconds. Printed are points of the uniform and of the greedy soup
above the best single run, on test and on the shifts without `fonts`.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from stockpot.tasks.handwriting import (
    FULL,
    SHIFTS,
    Lab,
    base_task,
    initial_weights,
    make_network,
)

_Weights = dict[str, torch.Tensor]
_Data = tuple[torch.Tensor, torch.Tensor]
_STILL = {"shift_pixels": 0.0, "rotate_degrees": 0.0}
_ALIKE = {"shift_pixels": 0.5, "rotate_degrees": 10.0}
_PLAIN = {"label_smoothing": 0.0, "mixup": 0.0}
_DRAWN = replace(FULL, n_train=150, n_fonts=10, epochs=(8, 20), regularised=True)


@dataclass(frozen=True)
class Trial:
    """A sweep: what is drawn, what is the same in all runs, and the share of labels that lie.

    A wrong label is any other, or with `look_alike` the class whose mean is nearest to the image.
    """

    lab: Lab
    fixed: Mapping[str, float]
    wrong: float = 0.0
    look_alike: bool = False


TRIALS: Mapping[str, Trial] = {
    "first": Trial(replace(_DRAWN, lr_exponents=(2.2, 3.2), epochs=(4, 16)), {}),
    "same movements": Trial(replace(_DRAWN, lr_exponents=(2.3, 3.0)), _ALIKE),
    "no smoothing, no mixup": Trial(_DRAWN, {**_ALIKE, **_PLAIN}),
    "no movements": Trial(_DRAWN, {**_STILL, **_PLAIN}),
    "higher rates": Trial(replace(_DRAWN, lr_exponents=(1.8, 2.5)), {**_ALIKE, **_PLAIN}),
    "a fifth wrong": Trial(_DRAWN, {**_ALIKE, **_PLAIN}, 0.2),
    "300, a fifth wrong": Trial(replace(_DRAWN, n_train=300), {**_ALIKE, **_PLAIN}, 0.2),
    "300, a fifth look-alikes": Trial(
        replace(_DRAWN, n_train=300), {**_ALIKE, **_PLAIN}, 0.2, look_alike=True
    ),
    "100 labels": Trial(replace(_DRAWN, n_train=100, epochs=FULL.epochs), {**_ALIKE, **_PLAIN}),
}


def moved(images: torch.Tensor, cells: float, degrees: float, draws: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, 8, 8), each turned and shifted by its `draws` (N, 3) in -1..1 of the limits."""
    angles = draws[:, 0] * math.radians(degrees)
    turned = torch.zeros(len(images), 2, 3)
    turned[:, 0, 0] = turned[:, 1, 1] = angles.cos()
    turned[:, 0, 1], turned[:, 1, 0] = -angles.sin(), angles.sin()
    turned[:, :, 2] = draws[:, 1:] * cells * 2 / images.shape[-1]
    grid = functional.affine_grid(turned, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(start: _Weights, data: _Data, values: Mapping[str, Any], seed: int) -> _Weights:
    """One run: AdamW, a tenth of warm-up, cosine to zero, gradients clipped to norm 1."""
    network = make_network()
    network.load_state_dict(start)
    images, labels = data
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=values["lr"], weight_decay=values["weight_decay"]
    )
    size = values["batch_size"]
    per_epoch = len(labels) // size
    total = per_epoch * values["epochs"]
    warm, step = max(1, total // 10), 0
    for _ in range(values["epochs"]):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order[: per_epoch * size].split(size):
            draws = 2 * torch.rand(size, 3, generator=generator) - 1
            x = moved(images[rows], values["shift_pixels"], values["rotate_degrees"], draws)
            past = (step - warm) / max(1, total - warm)
            factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * past))
            for group in optimiser.param_groups:
                group["lr"] = values["lr"] * factor
            share = float(rng.beta(values["mixup"], values["mixup"])) if values["mixup"] else 1.0
            other = torch.randperm(size, generator=generator) if values["mixup"] else slice(None)
            outputs = network(share * x + (1 - share) * x[other])
            loss = sum(
                part * functional.cross_entropy(
                    outputs, labels[rows][picked], label_smoothing=values["label_smoothing"]
                )
                for part, picked in ((share, slice(None)), (1 - share, other))
                if part
            )  # fmt: skip
            optimiser.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            step += 1
    return {name: value.clone() for name, value in network.state_dict().items()}


def base_of(lab: Lab, seed: int) -> _Weights:
    """The base of a seed, trained on print by the same loop."""
    made: Any = base_task(seed=seed, n_train=lab.n_base, noise=lab.base_noise).train_set
    return train(initial_weights(seed), made.tensors, lab.base.as_dict(), seed)


def _look_alikes(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each image the class, other than its own, whose mean image is nearest."""
    means = torch.stack([images[labels == k].mean(0).flatten() for k in range(10)])
    distances = torch.cdist(images.flatten(1), means)
    distances[torch.arange(len(labels)), labels] = math.inf
    return distances.argmin(1)


def gains(trial: Trial, base: _Weights, seed: int) -> dict[str, float]:
    """Points of the two soups above the best single run."""
    lab = trial.lab
    task: Any = lab.task(seed=seed)
    data = {name: split.dataset.tensors for name, split in task.splits.items()}
    images, labels = task.train_set.tensors
    rng, labels = np.random.default_rng([seed, 99]), labels.clone()
    lying = rng.permutation(len(labels))[: round(trial.wrong * len(labels))]
    others = (labels[lying] + torch.from_numpy(rng.integers(1, 10, len(lying)))) % 10
    labels[lying] = _look_alikes(images, labels)[lying] if trial.look_alike else others
    space = lab.space()
    runs = [
        train(base, (images, labels), {**space.draw(i, seed=seed), **trial.fixed}, 1000 * seed + i)
        for i in range(lab.n_runs)
    ]

    def mean(members: Sequence[_Weights]) -> _Weights:
        return {n: torch.stack([m[n] for m in members]).mean(0) for n in members[0]}

    def accuracy(weights: _Weights, splits: Sequence[str]) -> float:
        network = make_network()
        network.load_state_dict(weights)
        with torch.no_grad():
            right = [
                (network(x).argmax(1) == y).float().mean().item()
                for x, y in (data[split] for split in splits)
            ]
        return 100 * statistics.fmean(right)

    order = sorted(runs, key=lambda run: -accuracy(run, ["held-out"]))
    kept, best = order[:1], accuracy(order[0], ["held-out"])
    for run in order[1:]:
        if (value := accuracy(mean([*kept, run]), ["held-out"])) >= best:
            kept, best = [*kept, run], value
    return {
        f"{name} on {where}": accuracy(soup, splits) - accuracy(order[0], splits)
        for name, soup in (("uniform", mean(runs)), ("greedy", mean(kept)))
        for where, splits in (("test", ["test"]), ("shifts", [s for s in SHIFTS if s != "fonts"]))
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each trial: mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[300, 301, 302, 303])
    parser.add_argument("--only", choices=TRIALS, nargs="+", default=list(TRIALS))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bases = {seed: base_of(FULL, seed) for seed in given.seeds}
    for name in given.only:
        found = [gains(TRIALS[name], base, seed) for seed, base in bases.items()]
        columns = {key: [one[key] for one in found] for key in found[0]}
        parts = [
            f"{key} {statistics.fmean(v):+.1f} ± {statistics.stdev(v) if len(v) > 1 else 0:.1f}"
            for key, v in columns.items()
        ]
        print(f"{name}: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
