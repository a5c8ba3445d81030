"""How the gain of soups depends on what their base was pretrained on: docs/results/base-size.md.

    python -m experiments.base_size --out ../base-size --seeds 20 21 22 23 24

makes the sweep of `stockpot demo` from four bases per seed: trained on all 12,000 printed digits,
on a quarter of them, on a sixteenth, and for a single step. The first three take equally many
steps. Everything else of a seed is the same, also where the network begins: the last base is
training from scratch with one initialisation for all runs.

Held-out chooses; test and shifts only report. Each base and seed is a file in OUT, and a killed
call goes on. Writes `base_size.json` and `base_size.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from experiments.common import SHIFT_AVERAGE, write_json, write_results
from experiments.handwriting import BASELINE, MEAN_RUN, value

from experiments import tables
from stockpot.demo import run
from stockpot.tasks.handwriting import FULL, QUICK, Lab

SHARES = tuple(map(Fraction, ("1", "1/4", "1/16", "0")))
"""Of the base's printed digits; 0 is one step on all of them."""
TRIED = replace(
    QUICK, n_base=640, n_runs=2, epochs=(1, 2), n_test=100, n_fonts=50,
    base=replace(QUICK.base, epochs=1, score_every=1),
)  # fmt: skip
"""What `--quick` makes."""
MODELS = ("base", MEAN_RUN, BASELINE, "uniform", "greedy", "wise-ft", "ensemble")
COLUMNS = {"test": "Test", SHIFT_AVERAGE: "Mean of the shifts without fonts"}
MOST, LEAST = "1", ("1/16", "0")


def lab_with(share: Fraction, lab: Lab) -> Lab:
    """`lab` with a base that sees only a share of its digits, in about as many steps."""
    if not share:
        return replace(lab, base=replace(lab.base, max_steps=1))
    epochs = round(lab.base.epochs / share)
    base = replace(lab.base, epochs=epochs, score_every=epochs)
    return lab if share == 1 else replace(lab, n_base=round(lab.n_base * share), base=base)


def made(share: Fraction, seed: int, out: Path, *, lab: Lab, workers: int) -> dict[str, Any]:
    """The scores of every model of one base and seed, or what an earlier call found."""
    name = f"{str(share).replace('/', '-')}-seed-{seed}"
    file = out / "parts" / f"{name}.json"
    if not file.exists():
        result = run(out / name, lab=lab_with(share, lab), seed=seed, n_workers=workers)
        scores = {m: {split: value(result, m, split) for split in COLUMNS} for m in MODELS}
        write_json(
            file,
            {"share": str(share), "seed": seed, "scores": scores, "kept": len(result.kept),
             "alpha": result.alpha},
        )  # fmt: skip
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def gains(found: Sequence[Mapping[str, Any]], share: str, model: str, split: str) -> list[float]:
    """Accuracy of `model` less that of the best single run, one for each seed."""
    return [
        one["scores"][model][split] - one["scores"][BASELINE][split]
        for one in sorted(found, key=lambda one: one["seed"])
        if one["share"] == share
    ]


def more(found: Sequence[Mapping[str, Any]], than: str, model: str, split: str) -> list[float]:
    """How much more `model` gains from the base that saw most than from another one, by seed."""
    return tables.less(gains(found, MOST, model, split), gains(found, than, model, split))


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies and gains on test and on the shifts; a row for each base."""
    shares = list(dict.fromkeys(one["share"] for one in found))
    n_seeds = len({one["seed"] for one in found})
    lines = [f"Means over {n_seeds} seeds, with 95 % t-intervals.", ""]
    for split, title in COLUMNS.items():
        accuracies, above = [], []
        for share in shares:
            values = {m: [one["scores"][m][split] for one in found if one["share"] == share]
                      for m in MODELS}  # fmt: skip
            accuracies.append([_seen(share), *(tables.percent(values[m])
                                       for m in MODELS)])  # fmt: skip
            above.append(
                [_seen(share), *_points(gains(found, share, m, split) for m in MODELS[3:])]
            )
        above += [
            [f"all − {_seen(share)}", *_points(more(found, share, m, split) for m in MODELS[3:])]
            for share in LEAST
            if {MOST, share} <= set(shares)
        ]
        lines += [
            f"{title}, accuracy in percent:", "",
            *tables.table(["printed digits of the base", *MODELS], accuracies), "",
            f"{title}, points above {BASELINE}, paired by seed; (n): the interval holds 0:", "",
            *tables.table(["printed digits of the base", *MODELS[3:]], above), "",
        ]  # fmt: skip
    kept = {s: [one["kept"] for one in found if one["share"] == s] for s in shares}
    counted = (f"{statistics.fmean(n):.1f} ({_seen(share)})" for share, n in kept.items())
    return "\n".join([*lines, f"Runs that greedy kept, by base: {', '.join(counted)}."])


def _seen(share: str) -> str:
    return {"0": "one step", MOST: "all"}.get(share, share)


def _points(each: Any) -> list[str]:
    return [tables.in_points(tables.over_seeds(values)) for values in each]


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shares", type=Fraction, nargs="+", default=list(SHARES))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="small sizes, at most two seeds")
    given = parser.parse_args(arguments)
    seeds = given.seeds[:2] if given.quick else given.seeds
    sizes = lab if lab is not None else TRIED if given.quick else FULL
    found = [
        made(share, seed, given.out, lab=sizes, workers=given.workers)
        for seed in seeds
        for share in given.shares
    ]
    return write_results(given.out, "base_size", found, markdown(found))


if __name__ == "__main__":
    print(main())
