"""WiSE-FT from the base to the best run and to the greedy soup of every sweep, and robustness.

    python -m experiments.wise_ft --out ../wise-ft --only handwriting --seeds 0 1 2 3 4
    python -m experiments.wise_ft --data DATA --ingredients ../ingredients --out ../wise-ft \
        --only resnet --only sst2 --only cola --only rte --seeds 0 1 2 --device cuda --jobs 12

writes `wise_ft.json` and `wise_ft.md`, and a file for each sweep that a call which was killed goes
on from. `handwriting` makes its own sweep (that of `stockpot demo`; `OUT/handwriting/seed-N`) and
also fits effective robustness to baselines that were trained on handwriting alone; the others read
what `experiments.ingredients` made. α is chosen on held-out; test and shifts only report. The best
α of a column is looked up on that column, so it flatters, and is said to.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import SHIFT_AVERAGE, side_by_side, values_of, write_json, write_results

import stockpot
from experiments import ingredients, robustness, tables
from stockpot import train as training
from stockpot.tasks.handwriting import FULL, QUICK, Lab, make_base, make_network
from stockpot.train import read_runs, run_sweep

HANDWRITING = "handwriting"
EXPERIMENTS = (HANDWRITING, *(e.name for e in ingredients.EXPERIMENTS.values() if e.start))
COARSE = (0.25, 0.75)
TUNED = ("best single", "greedy soup")
TEST = "test"

BASELINES = tuple((width, epochs) for width in (8, 16, 32, 48) for epochs in (2, 4, 12, 40))
"""Width and epochs of the networks that saw handwriting only; sixteen of them."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One sweep of one experiment, and how much of it to do."""

    experiment: str
    seed: int
    out: Path
    sweep: ingredients.Sweep | None = None
    lab: Lab = FULL
    quick: bool = False
    alphas: tuple[float, ...] | None = None
    best_only: bool = False

    @property
    def grid(self) -> tuple[float, ...] | None:
        """Points of the curves; None for the paper's 21."""
        return COARSE if self.quick else self.alphas

    @property
    def file(self) -> Path:
        """What was found of it."""
        return self.out / self.experiment.replace(", ", "-") / f"seed-{self.seed}.json"


def curves(
    evaluator: stockpot.Evaluator,
    models: stockpot.Ingredients,
    *,
    alphas: tuple[float, ...] | None,
) -> dict[str, Any]:
    """What is told of the curves to the best single run and to the greedy soup."""
    best = stockpot.BestSingle().cook(models, evaluator=evaluator)
    greedy = stockpot.Greedy().cook(models, evaluator=evaluator)
    found = {}
    for name, soup in zip(TUNED, (best, greedy), strict=True):
        shares = tuple(float(soup.coefficients.get(m.path, 0.0)) for m in models)  # type: ignore[arg-type]
        recipe = stockpot.WiseFT(alphas=alphas, weights=shares)
        found[name] = recipe.cook(models, evaluator=evaluator).to_json()
    return found


def variants(
    evaluator: stockpot.Evaluator,
    models: stockpot.Ingredients,
    *,
    alphas: tuple[float, ...] | None,
) -> dict[str, Any]:
    """Other ways between the base and the best single run: by Fisher information, by layer."""
    best = stockpot.BestSingle().cook(models, evaluator=evaluator).selected[0]
    alone = stockpot.Ingredients([m for m in models if m.path == best], base=models.base)
    recipes = {
        "Fisher-weighted": stockpot.WiseFT(alphas=alphas, fisher=True),
        "by layer": stockpot.WiseFT(alphas=alphas, by="layer"),
        "plain": stockpot.WiseFT(alphas=alphas, alternatives=True),
    }
    return {n: _in_short(r.cook(alone, evaluator=evaluator).to_json()) for n, r in recipes.items()}


def _in_short(told: Mapping[str, Any]) -> dict[str, Any]:
    """A soup without its curves, of which tables show single points."""
    short = {name: value for name, value in told.items() if name not in ("curve", "ensemble")}
    others = told.get("alternatives", {})
    return {**short, "alternatives": {n: [robustness.at(p, 0.5)] for n, p in others.items()}}


def _value(point: Mapping[str, Any], split: str) -> float:
    found: float = point["scores"][split]["value"]
    return found


def analyse(job: Job) -> dict[str, Any]:
    """Everything that is reported of one sweep."""
    started = time.perf_counter()
    found = _handwriting(job) if job.sweep is None else _reference(job, job.sweep)
    return {
        "experiment": job.experiment,
        "seed": job.seed,
        **found,
        "seconds": time.perf_counter() - started,
    }


def _reference(job: Job, sweep: ingredients.Sweep) -> dict[str, Any]:
    records = {sweep.runs / run.path: run for run in read_runs(sweep.runs) if run.error is None}
    with sweep.evaluator() as evaluator:
        task = evaluator.task
        if job.best_only:
            best = max(records, key=lambda path: _held_out_score(records[path]))
            recipe = stockpot.WiseFT(alphas=job.grid)
            soup = recipe.cook([best], base=sweep.base, evaluator=evaluator)
            return {**_facts(task), "tuned": {TUNED[0]: soup.to_json()}}
        models = stockpot.Ingredients(records, base=sweep.base)
        return {**_facts(task), "tuned": curves(evaluator, models, alphas=job.grid)}


def _held_out_score(run: Any) -> float:
    """What the sweep itself measured; all experiments have one held-out split and higher scores
    are better."""
    found: float = run.scores["held-out"]["value"]
    return found


def _handwriting(job: Job) -> dict[str, Any]:
    folder = job.out / HANDWRITING / f"seed-{job.seed}"
    base = folder / "base.safetensors"
    if not base.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_base(base, job.lab, seed=job.seed)
    made = run_sweep(
        job.lab.task_maker(seed=job.seed), str(base), job.lab.sweep(seed=job.seed),
        out=folder / "runs", cache=folder / "journal",
    )  # fmt: skip
    task = job.lab.task(seed=job.seed)
    models = stockpot.Ingredients(made.paths, base=base)

    alphas = job.grid
    with stockpot.TaskEvaluator(
        task, cache=folder / "journal", device="cpu", seed=job.seed
    ) as evaluator:
        tuned = curves(evaluator, models, alphas=alphas)
        baselines = [
            robustness.scored(
                _baseline(width, epochs, task),
                folder / "baselines" / f"width-{width}-epochs-{epochs}.safetensors",
                evaluator,
            )
            for width, epochs in (BASELINES[::3] if job.quick else BASELINES)
        ]
        return {
            **_facts(task),
            "tuned": tuned,
            "variants": variants(evaluator, models, alphas=alphas),
            "robustness": robustness.above(baselines, tuned["best single"]),
        }


def _baseline(width: int, epochs: int, task: stockpot.ClassificationTask) -> robustness.Baseline:
    build = functools.partial(make_network, width)
    return robustness.Baseline(
        f"width {width}, {epochs} epochs",
        dataclasses.replace(task, build=build, version=f"{task.version}-width-{width}"),
        training.TrainConfig(
            lr=2e-3, epochs=epochs, batch_size=32, warmup_fraction=0.1, score_every=epochs
        ),
        start=width * 1000 + epochs,
        seed=epochs,
    )


def _facts(task: stockpot.Task) -> dict[str, Any]:
    splits = [[name, stockpot.Role(s.role).value] for name, s in task.splits.items()]
    return {"metric": task.metric.name, "splits": splits}


def made(job: Job) -> dict[str, Any]:
    """`analyse`, or what an earlier call found."""
    if not job.file.exists():
        job.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(job.file, analyse(job))
    found: dict[str, Any] = json.loads(job.file.read_text())
    return found


Row = Callable[[Mapping[str, Any]], Callable[[str], float]]
"""What was found of a sweep and of one tuned model → split → value."""


def _rows(tuned: str) -> dict[str, Row]:
    """The rows of the tables of one tuned model, as functions of what was found of a sweep."""

    def point(choose: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Row:
        return lambda one: lambda split: _value(choose(one["tuned"][tuned]), split)

    return {
        "zero-shot": point(lambda told: told["curve"][0]),
        "fine-tuned": point(lambda told: told["curve"][-1]),
        "α = 0.5": point(lambda told: told["half"]),
        "chosen α": point(lambda told: told["chosen"]),
        "best α of each column": lambda one: lambda s: one["tuned"][tuned]["best"][s]["value"],
        "ensemble of logits, α = 0.5": point(lambda told: robustness.at(told["ensemble"], 0.5)),
    }


def _variant_rows() -> dict[str, Row]:
    def point(name: str, choose: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Row:
        return lambda one: lambda split: _value(choose(one["variants"][name]), split)

    def other(name: str) -> Row:
        return point("plain", lambda told: robustness.at(told["alternatives"][name], 0.5))

    return {
        "plain, chosen α": point("plain", lambda told: told["chosen"]),
        "by layer": point("by layer", lambda told: {"scores": told["scores"]}),
        "Fisher-weighted, α = 0.5": point("Fisher-weighted", lambda told: told["half"]),
        "Fisher-weighted, chosen α": point("Fisher-weighted", lambda told: told["chosen"]),
        "ensemble of probabilities, α = 0.5": other("ensemble-of-probabilities"),
        "elements at random, α = 0.5": other("random-elements"),
    }


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """All tables; `found` holds one entry per sweep, of any experiments."""
    lines = []
    for name in dict.fromkeys(one["experiment"] for one in found):
        sweeps = [one for one in found if one["experiment"] == name]
        metric, k = sweeps[0]["metric"], len(sweeps)
        lines += [f"### {name}: {k} sweep{'s' * (k != 1)}, {metric}", ""]
        for tuned in (name for name in TUNED if name in sweeps[0]["tuned"]):
            lines += [
                f"#### From the base to the {tuned}",
                "",
                *_tables(sweeps, _rows(tuned), "fine-tuned"),
            ]
            lines += _alpha_lines(sweeps, tuned)
        lines += _diversity_lines(sweeps)
        if "variants" in sweeps[0]:
            lines += ["#### Other ways to the best single run", ""]
            lines += _tables(sweeps, _variant_rows(), "plain, chosen α")
        if "robustness" in sweeps[0]:
            lines += robustness.lines(sweeps, "handwriting")
    return "\n".join(lines)


def _columns(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out, test, the shift average, each shift; files have them in another order."""
    splits = dict(sweeps[0]["splits"])
    shifts = [name for name, role in splits.items() if role == "shift"]
    average = [SHIFT_AVERAGE] if shifts else []
    return [*(name for name in splits if name not in shifts), *average, *shifts]


def _tables(
    sweeps: Sequence[Mapping[str, Any]], rows: Mapping[str, Row], baseline: str
) -> list[str]:
    """Scores, and points above one of the rows, paired by sweep."""
    columns = _columns(sweeps)
    values = {
        name: {split: [row(one)(split) for one in sweeps] for split in columns}
        for name, row in rows.items()
    }
    scores, gains = [], []
    for name, by in values.items():
        scores.append([name, *(tables.in_percent(tables.over_seeds(by[s])) for s in columns)])
        pairs = [
            [a - b for a, b in zip(by[s], values[baseline][s], strict=True)]
            for s in _headline(sweeps)
        ]
        gains.append([name, *(tables.in_points(tables.over_seeds(pair)) for pair in pairs)])
    head = ["", *(split.replace("_", " ") for split in columns)]
    n = len(_headline(sweeps))
    return [
        "In percent, mean over sweeps ± half of its 95 % t-interval:", "",
        *tables.table(head, scores), "",
        f"Points above {baseline}, paired by sweep, with 95 % t-intervals:", "",
        *tables.table(head[: n + 1], [row for row in gains if row[0] != baseline]), "",
    ]  # fmt: skip


def _headline(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns before the single shifts."""
    roles = dict(sweeps[0]["splits"])
    return [name for name in _columns(sweeps) if roles.get(name) != "shift"]


def _alpha_lines(sweeps: Sequence[Mapping[str, Any]], tuned: str) -> list[str]:
    """Which α by column, and how far above the better end it lies."""
    given = sweeps[0]["tuned"][tuned]["best"]
    objectives = [name for name in (*_columns(sweeps), "mean_of_both") if name in given]
    rows = []
    for name in objectives:
        best = [one["tuned"][tuned]["best"][name] for one in sweeps]
        above = tables.over_seeds([one["above_ends"] for one in best])
        n_above = sum(one["above_ends"] > 0 for one in best)
        alphas = ", ".join(f"{one['alpha']:g}" for one in best)
        rows.append([name.replace("_", " "), alphas, f"{n_above} of {len(best)}",
                     tables.in_points(above)])  # fmt: skip
    chosen = ", ".join(f"{one['tuned'][tuned]['alpha']:g}" for one in sweeps)
    heights = [one["tuned"][tuned]["barrier"] for one in sweeps]
    highest = max((found["height"] for found in heights if found is not None), default=None)
    barrier = "" if highest is None else f" Highest barrier on a path: {highest:.3f} nat."
    head = ["column", "best α by sweep", "above both ends", "points above the better end"]
    return [
        f"Chosen on held-out: {chosen}.{barrier} The best α of each column, looked up there:", "",
        *tables.table(head, rows), "",
    ]  # fmt: skip


def _mean_of_all(values: Sequence[float | None]) -> str:
    """Their mean, unless one is undefined, as κ is of models that predict one class."""
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if len(known) == len(values) else "–"


def _diversity_lines(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """How differently base and best single run decide, and whom α = 0.5 follows."""
    tuned = [one["tuned"][TUNED[0]]["diversity"] for one in sweeps]
    columns: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
        "one right": lambda found: found["prediction"],
        "1 − κ": lambda found: found["kappa"],
        "KL (nats)": lambda found: found["kl"],
        "1 − CKA": lambda found: found["cka"],
        "margin, base": lambda found: found["margin_base"],
        "margin, tuned": lambda found: found["margin_tuned"],
        "follows base": lambda found: found["override"]["base"],
        "follows tuned": lambda found: found["override"]["tuned"],
        "neither": lambda found: found["override"]["neither"],
    }
    splits = [name for name, _ in sweeps[0]["splits"]]
    rows = [
        [split, *(_mean_of_all([get(found[split]) for found in tuned]) for get in columns.values())]
        for split in splits
    ]
    return [
        "#### Base and best single run", "",
        "Means over sweeps: the share of examples that exactly one of the two gets right, and "
        "what else sets them apart. Then, of all examples, those on which they disagree and "
        "α = 0.5 follows the one or the other:", "",
        *tables.table(["split", *columns], rows), "",
    ]  # fmt: skip


def jobs(options: argparse.Namespace, lab: Lab | None = None) -> dict[str, Job]:
    """What is asked for, by name; sweeps that were not made are left out and named."""
    names = options.only or list(EXPERIMENTS)
    sizes = lab if lab is not None else QUICK if options.quick else FULL
    alphas = None if options.alphas is None else tuple(options.alphas)
    wanted: dict[str, Job] = {}
    others = [name for name in names if name != HANDWRITING]
    sweeps = ingredients.asked_for(options, others) if others else {}
    for name, sweep in sweeps.items():
        wanted[name] = Job(
            sweep.label, sweep.seed, options.out, sweep, quick=options.quick,
            alphas=alphas, best_only=options.best_only,
        )  # fmt: skip
    if HANDWRITING in names:
        for seed in options.seeds:
            wanted[f"{HANDWRITING}/{seed}"] = Job(
                HANDWRITING, seed, options.out, lab=sizes, quick=options.quick, alphas=alphas
            )
    return wanted


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with cifar10/, text/; not for handwriting")
    parser.add_argument("--out", type=Path, required=True)
    ingredients.add_scoring_arguments(parser)
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sweeps")
    parser.add_argument("--device", default="cpu", help="where data and models are: cpu, cuda")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--alphas", type=float, nargs="+", help="points; default: the paper's 21")
    parser.add_argument(
        "--best-only", action="store_true", help="no greedy soup, and nothing scored to find runs"
    )
    parser.add_argument("--quick", action="store_true", help="fewer points, smaller sweeps")
    options = parser.parse_args(arguments)
    found = side_by_side(made, jobs(options, lab), n_jobs=options.jobs)
    done = [one.value for one in found if one.value is not None]
    text = write_results(options.out, "wise_ft", done, markdown(done))
    values_of(found)
    return text


if __name__ == "__main__":
    # Imported by its name, so that worker processes find its functions there.
    from experiments import wise_ft

    print(wise_ft.main())
