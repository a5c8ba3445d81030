"""Learned soups beside uniform, greedy and ensemble: the tables of docs/results/learned.md.

    python -m experiments.handwriting --out ../handwriting            # makes the sweeps
    python -m experiments.learned --demos ../handwriting --seeds 0 1 2 3 4 --out ../learned

    python -m experiments.ingredients --data DATA --out ../ingredients --seeds 0 1 2
    python -m experiments.learned --data DATA --ingredients ../ingredients --seeds 0 1 2 \
        --out ../learned-real --device cuda --jobs 12

    python -m experiments.learned --task my_task.py:task --runs runs/ --out ../learned-mine

Uniform and greedy are chosen on the fitting part of the held-out split, as `Learned` does it, so
that all soups of a row had the same data to choose on. The learned soups are scored whether or not
`Learned` takes them; the last table says which were taken. Each sweep is a file in `OUT/parts`: a
killed call continues, within a fit too.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.common import side_by_side, values_of, write_json
from experiments.rounding import whole_float32

from experiments import ingredients, tables
from stockpot import (
    BestSingle,
    Coefficients,
    Evaluator,
    Ingredients,
    Learned,
    Mixture,
    Role,
    Task,
    TaskEvaluator,
    expand_paths,
)
from stockpot.evaluate import paired_difference
from stockpot.mixing.coefficients import group_names
from stockpot.recipes import ensemble
from stockpot.tasks import resolve
from stockpot.tasks.handwriting import FULL, QUICK, Lab
from stockpot.train import read_runs

ROWS = ("best-single", "uniform", "greedy", "learned", "learned by layer", "ensemble")
LEARNED = {"learned": "model", "learned by layer": "layer"}
EXPERIMENTS = ("resnet", "pacs", "sst2", "cola", "rte")
NOISE = 0.05


@dataclass(frozen=True)
class Study:
    """What one sweep gave: row → column → value, and so on.

    `intervals` are over examples, of the columns that report; `p_values` those of no difference
    between a learned soup and the greedy one there; `taken` and `beta` belong to learned rows.
    """

    experiment: str
    name: str
    values: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, Sequence[float | None]]]
    p_values: Mapping[str, Mapping[str, float]]
    taken: Mapping[str, str]
    beta: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Pot:
    """One sweep to be studied: where its runs and their base are, and what makes its task."""

    experiment: str
    name: str
    paths: Sequence[str]
    task: Callable[[], Task]
    cache: Path
    device: str = "auto"
    max_memory: str | None = None
    batchnorm: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    base: Path | None = None

    @property
    def file(self) -> str:
        """The name of the file that holds what was found of it."""
        return f"{self.name.replace('/', '-').replace(' ', '-')}.json"

    def evaluator(self) -> TaskEvaluator:
        """Scores its models."""
        whole_float32()
        return TaskEvaluator(
            self.task(), cache=self.cache, device=self.device, batchnorm=self.batchnorm,
            precision=self.precision,
        )  # fmt: skip


def study(pot: Pot, *, epochs: int) -> Study:
    """Cook and score everything on one sweep."""
    evaluator = pot.evaluator()
    try:
        return _study(pot, evaluator, Ingredients(pot.paths), epochs=epochs)
    finally:
        evaluator.close()


def _study(pot: Pot, evaluator: Evaluator, given: Ingredients, *, epochs: int) -> Study:
    reporting = [s for s, split in evaluator.task.splits.items() if split.role is not Role.HELD_OUT]
    models: dict[str, Mixture] = {
        "best-single": BestSingle().cook(given, evaluator=evaluator).mixture
    }
    values: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    taken, beta, seconds = {}, {}, {}
    for row, by in LEARNED.items():
        begin = time.perf_counter()
        soup = Learned(by=by, n_epochs=epochs, max_memory=pot.max_memory).cook(  # type: ignore[arg-type]
            given, evaluator=evaluator, report=False
        )
        seconds[row] = time.perf_counter() - begin
        taken[row], beta[row] = (
            str(soup.details.to_json()["taken"]),
            float(soup.details.to_json()["beta"]),
        )  # type: ignore[arg-type]
        told: Any = soup.details.to_json()["learned_coefficients"]
        models[row] = Mixture(given, _coefficients(given, told, by))
        parts: Any = soup.details.to_json()["parts"]
        values[row] |= parts["learned"]
        for other in ("uniform", "greedy"):
            values[other] |= parts[other]
            fitting: Any = soup.details.to_json()["choices"]
            models[other] = Mixture(given, _coefficients(given, fitting[other], "model"))
    scores = {row: evaluator.scores(mixture, reporting) for row, mixture in models.items()}
    scores["ensemble"] = ensemble(evaluator, list(given)).scores
    reported = {
        row: {s: score for s, score in found.items() if s in (*reporting, "shift_average")}
        for row, found in scores.items()
    }
    for row, found in reported.items():
        values[row] |= {s: score.value for s, score in found.items()}
    return Study(
        pot.experiment,
        pot.name,
        values,
        {row: {s: (x.low, x.high) for s, x in found.items()} for row, found in reported.items()},
        _p_values(evaluator, models, reporting),
        taken,
        beta,
        seconds,
    )


def _p_values(
    evaluator: Evaluator, models: Mapping[str, Mixture], splits: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Of no difference between each learned soup and the greedy one, on the same examples."""
    found: dict[str, dict[str, float]] = {row: {} for row in LEARNED}
    for split in splits:
        other = evaluator.predictions(models["greedy"], split).per_example
        for row in LEARNED:
            own = evaluator.predictions(models[row], split).per_example
            if own is not None and other is not None:
                found[row][split] = paired_difference(own, other).p_value
    return found


def _coefficients(given: Ingredients, told: Mapping[str, Any], by: str) -> Coefficients:
    if by == "model":
        return Coefficients.per_model([told[c.path] for c in given])
    names = [n for n in given.specs if n in given.averaged]
    first = next(iter(told))
    group_of = {
        n: g if g in told else first for n, g in group_names(names, by, tied=given.tied).items()
    }
    values = {group: [shares[c.path] for c in given] for group, shares in told.items()}
    return Coefficients.per_group(values, group_of=group_of)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def markdown(studies: Sequence[Study]) -> str:
    """The tables of every experiment."""
    names = list(dict.fromkeys(s.experiment for s in studies))
    return "\n\n".join(
        _section(name, [s for s in studies if s.experiment == name]) for name in names
    )


def _section(name: str, studies: Sequence[Study]) -> str:
    """One table of scores in percent, one of gains, and one of what was taken."""
    first = ["fitting", "deciding", "test", "shift_average"]
    known = studies[0].values["learned"]
    columns = [c for c in first if c in known] + sorted(c for c in known if c not in first)
    head = [c.replace("_", " ") for c in columns]
    n = len(studies)
    kind = (
        f"mean over {n} sweeps ± half of its 95 % t-interval"
        if n > 1
        else "with half of the 95 % interval over examples"
    )
    scores = [[row, *(_cell(studies, row, c) for c in columns)] for row in ROWS]
    lines = [f"### {name}", "", f"In percent, {kind}.", "", *tables.table(["model", *head], scores)]
    if n > 1:
        gains = [[row, *(_gain(studies, row, c) for c in columns[1:])] for row in LEARNED]
        lines += [
            "", "Points above greedy, paired by sweep, with 95 % t-intervals; (n): the interval "
            "holds 0. In braces: in how many sweeps the difference is beyond noise on the examples "
            f"(p ≤ {NOISE}).", "",
            *tables.table(["model", *head[1:]], gains),
        ]  # fmt: skip
    taken = [
        [s.name, *(f"{s.taken[row]}, {s.beta[row]:.2f}" for row in LEARNED),
         f"{sum(s.seconds.values()):.0f}"]
        for s in studies
    ]  # fmt: skip
    head = ["sweep", "learned: taken, β", "by layer: taken, β", "seconds"]
    return "\n".join([*lines, "", *tables.table(head, taken)])


def _cell(studies: Sequence[Study], row: str, column: str) -> str:
    found = [s.values[row][column] for s in studies if column in s.values[row]]
    if not found:
        return "–"
    if len(found) > 1:
        return tables.in_percent(tables.over_seeds(found))
    low, high = studies[0].intervals.get(row, {}).get(column, (None, None))
    spread = "" if low is None or high is None else f" ± {50 * (high - low):.2f}"
    return f"{100 * found[0]:.2f}{spread}"


def _gain(studies: Sequence[Study], row: str, column: str) -> str:
    gains = [s.values[row][column] - s.values["greedy"][column] for s in studies]
    known = [s.p_values[row][column] for s in studies if column in s.p_values.get(row, {})]
    sure = f" {{{sum(p <= NOISE for p in known)} of {len(known)}}}" if known else ""
    return tables.in_points(tables.over_seeds(gains)) + sure


# ── sweeps ────────────────────────────────────────────────────────────────────────────────────────


def made(pot: Pot, *, out: Path, epochs: int) -> None:
    """The study of a sweep, as a file; what an earlier call found stays."""
    file = out / "parts" / pot.file
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(study(pot, epochs=epochs)))


def collected(out: Path) -> list[Study]:
    """All studies in a folder, of this call and earlier ones."""
    return [Study(**json.loads(file.read_text())) for file in sorted((out / "parts").glob("*"))]


def pots(given: argparse.Namespace, lab: Lab | None) -> list[Pot]:
    """The sweeps that the command line asks for; those without runs are named and left out."""
    cache = given.out / "cache"
    if given.task is not None:
        paths = expand_paths(given.runs)
        return [Pot(given.task, "the sweep", paths, functools.partial(resolve, given.task), cache)]
    if given.ingredients is not None:
        return _real(given)
    sizes = lab if lab is not None else QUICK if given.quick else FULL
    return [
        Pot(
            "handwriting",
            f"seed {seed}",
            expand_paths([str(given.demos / f"seed-{seed}" / "runs")]),
            functools.partial(sizes.task, seed=seed),
            cache,
            base=given.demos / f"seed-{seed}" / "base.safetensors",
        )
        for seed in given.seeds
    ]


def _real(given: argparse.Namespace) -> list[Pot]:
    found = []
    for name, sweep in ingredients.asked_for(given, given.only or EXPERIMENTS).items():
        paths = [str(sweep.runs / record.path) for record in read_runs(sweep.runs)]
        memory = None if sweep.device == "cpu" else "3GB"
        found.append(
            Pot(
                sweep.label,
                name,
                paths,
                sweep.task,
                sweep.cache,
                sweep.device,
                memory,
                sweep.batchnorm,
                sweep.precision,
                sweep.base,
            )
        )
    return found


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demos", type=Path, help="folder that experiments.handwriting wrote")
    parser.add_argument("--task", help="instead of these: a task as --task takes it")
    parser.add_argument("--runs", nargs="+", help="with --task: checkpoints or their folder")
    parser.add_argument("--epochs", type=int, default=30)
    ingredients.add_arguments(parser, needs_data=False)
    ingredients.add_scoring_arguments(parser)
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    work = functools.partial(made, out=given.out, epochs=given.epochs)
    values_of(side_by_side(work, {pot.name: pot for pot in pots(given, lab)}, n_jobs=given.jobs))
    studies = collected(given.out)
    text = markdown(studies)
    (given.out / "learned.md").write_text(text + "\n")
    write_json(given.out / "learned.json", [asdict(s) for s in studies])
    return text


if __name__ == "__main__":
    print(main())
