"""Sparse soups against the length of retraining, and by what varies: docs/results/sparse.md.

    python -m experiments.sparse_lengths --out ../sparse-lengths --seeds 0 1 2 3 4 --jobs 2

prunes one dense network for handwriting per seed to 90 and 98 %, in three phases of three
candidates, with 1, 3, 10, 30 and 100 epochs of retraining after each. Beside the uniform soup stand
its candidates, IMP of as many epochs as one of them has, and IMP of as many as all three together.
At 10 epochs the candidates also vary in weight decay, learning rate or length, in place of the
seed.

Nothing is chosen here but the best candidate, on held-out; test and shifts only report. Every piece
is a file in `OUT/epochs-N/handwriting/parts`, and a killed call goes on. Writes
`sparse_lengths.json` and `sparse_lengths.md`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common import SHIFT_AVERAGE, side_by_side, values_of, write_results
from experiments.sparse import Piece, mean_of, work
from experiments.sparse_study import HANDWRITING, Lab, quickly

from experiments import tables

LENGTHS = (1, 3, 10, 30, 100)
SPARSITIES = (0.9, 0.98)
KINDS = ("uniform", "imp-long", "imp-0")
VARIED = ("weight-decay", "lr", "retrain-length")
VARIED_AT = 10
"""Epochs of retraining at which other things than the seed vary."""
SOUP, BEST, MEAN = "soup", "best candidate", "mean candidate"
IMP, LONGER = "IMP", "IMP, 3× the epochs"
MODELS = (MEAN, BEST, SOUP, IMP, LONGER)
COLUMNS = {"test": "test", SHIFT_AVERAGE: "mean of the shifts"}


def lab_of(epochs: int, out: Path, *, quick: bool) -> Lab:
    """Where sparse soups with so much retraining are made; quickly, two epochs stand for any."""
    study = replace(HANDWRITING, during_epochs=0)
    study = replace(quickly(study), epochs=2) if quick else replace(study, epochs=epochs)
    return Lab(replace(study, sparsities=SPARSITIES), out / f"epochs-{epochs}", quick=quick)


def make_dense(labs: Sequence[Lab], seed: int) -> None:
    """One dense network per seed, for every length."""
    first = labs[0]
    first.make_dense(seed)
    for lab in labs[1:]:
        lab.place(seed).mkdir(parents=True, exist_ok=True)
        for name in ("base.safetensors", "dense.safetensors"):
            if not (lab.place(seed) / name).exists():
                part = lab.place(seed) / f".{name}"
                shutil.copyfile(first.place(seed) / name, part)
                part.replace(lab.place(seed) / name)


def pieces(labs: Mapping[int, Lab], seeds: Sequence[int]) -> list[tuple[int, Piece]]:
    """All that has to be made, each with its length of retraining, the longest first."""
    found = []
    for epochs in sorted(labs, reverse=True):
        varied = [f"vary-{what}" for what in VARIED] if epochs == VARIED_AT else []
        found += [
            (epochs, Piece(labs[epochs], seed, sparsity, kind))
            for kind in (*KINDS, *varied)
            for sparsity in SPARSITIES
            for seed in seeds
        ]
    return found


def row(epochs: int, piece: Piece) -> dict[str, Any]:
    """What is kept of a piece: the scores of its soup, and of its candidates."""
    (told,) = json.loads(piece.file.read_bytes())["rows"]
    under = told["under"]["averaged"]
    scores = {SOUP: under["soup"]}
    if "candidates" in under:
        scores |= {
            BEST: max(under["candidates"], key=lambda one: one["held-out"]),
            MEAN: mean_of(under["candidates"]),
        }
    return {
        "epochs": epochs,
        "sparsity": piece.sparsity,
        "kind": piece.kind,
        "seed": piece.seed,
        "scores": {name: {c: one[c] for c in COLUMNS} for name, one in scores.items()},
    }


Found = Sequence[Mapping[str, Any]]


def values(found: Found, epochs: int, sparsity: float, model: str, column: str) -> list[float]:
    """Accuracy of a model, one for each seed. IMP is a soup of one candidate."""
    kind = {IMP: "imp-0", LONGER: "imp-long"}.get(model, "uniform")
    return varied(found, kind, sparsity, SOUP if model in (IMP, LONGER) else model, column, epochs)


def varied(
    found: Found, kind: str, sparsity: float, model: str, column: str, epochs: int
) -> list[float]:
    """Accuracy of the soup or the candidates of one kind of piece, one for each seed."""
    there = [
        one for one in found
        if (one["epochs"], one["sparsity"], one["kind"]) == (epochs, sparsity, kind)
    ]  # fmt: skip
    return [one["scores"][model][column] for one in sorted(there, key=lambda one: one["seed"])]


def markdown(found: Found) -> str:
    """Tables by length, and by what varied."""
    lengths = sorted({one["epochs"] for one in found})
    n_seeds = len({one["seed"] for one in found})
    lines = [f"Means over {n_seeds} seeds, with 95 % t-intervals; (n): the interval holds 0.", ""]
    for sparsity in SPARSITIES:
        for column, title in COLUMNS.items():
            rows = []
            for epochs in lengths:
                by = {m: values(found, epochs, sparsity, m, column) for m in MODELS}
                rows.append(
                    [str(epochs), *(tables.percent(by[m]) for m in MODELS),
                     tables.points(by[SOUP], by[BEST]), tables.points(by[SOUP], by[LONGER])]
                )  # fmt: skip
            head = ["epochs", *MODELS, "soup − best candidate", f"soup − {LONGER}"]
            lines += [
                f"{100 * sparsity:g} % zeros, {title}, accuracy in percent, differences in points:",
                "", *tables.table(head, rows), "",
            ]  # fmt: skip
    if VARIED_AT in lengths:
        lines += _varied(found)
    return "\n".join(lines).rstrip()


def _varied(found: Found) -> list[str]:
    rows = []
    for sparsity in SPARSITIES:
        for kind, name in (("uniform", "seed"), *((f"vary-{what}", what) for what in VARIED)):
            by = {
                m: varied(found, kind, sparsity, m, "test", VARIED_AT) for m in (SOUP, BEST, MEAN)
            }
            by_seed = varied(found, "uniform", sparsity, SOUP, "test", VARIED_AT)
            rows.append(
                [f"{100 * sparsity:g} %, {name.replace('-', ' ')}",
                 tables.percent(by[SOUP]), tables.points(by[SOUP], by[BEST]),
                 tables.points(by[SOUP], by[MEAN]), tables.points(by[SOUP], by_seed)]
            )  # fmt: skip
    head = ["what varied", "soup", "soup − best candidate", "soup − mean candidate",
            "soup − that of varied seeds"]  # fmt: skip
    return [
        f"By what varied between the candidates, at {VARIED_AT} epochs, on test:", "",
        *tables.table(head, rows),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="a few steps, two seeds and lengths")
    given = parser.parse_args(arguments)
    seeds, lengths = given.seeds, given.lengths
    if given.quick:
        seeds, lengths = seeds[:2], lengths[:2]
    out = given.out.resolve()
    labs = {epochs: lab_of(epochs, out, quick=given.quick) for epochs in lengths}
    for seed in seeds:
        make_dense(list(labs.values()), seed)
    asked = pieces(labs, seeds)
    jobs = {f"epochs-{n}-{piece.name}": piece for n, piece in asked if not piece.file.exists()}
    values_of(side_by_side(work, jobs, n_jobs=given.jobs))
    found = [row(epochs, piece) for epochs, piece in asked]
    return write_results(given.out, "sparse_lengths", found, markdown(found))


if __name__ == "__main__":
    print(main())
