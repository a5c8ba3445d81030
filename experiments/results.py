"""Soups of the reference ingredients, sweep by sweep, and the tables over sweeps.

    python -m experiments.results --data DATA --ingredients ../ingredients --out ../results

reads what `experiments.ingredients` made (give both the same `--seeds`, `--only` and `--quick`) and
writes `results.json` and `results.md`, and per sweep a file in `OUT/sweep-N` that a call which was
killed goes on from. Every choice is made on held-out; test and shifts only report. With `--device
cuda` models are scored there, `--jobs` sweeps side by side.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.common import barrier, side_by_side, values_of, write_json, write_results

import stockpot
from experiments import ingredients, tables
from stockpot.evaluate import CrossEntropy, paired_difference, scores_to_json, split_to_choose_on
from stockpot.recipes import ensemble, greedy_ensemble
from stockpot.train import read_runs

ALPHAS = (0.25, 0.5, 0.75)
N_BARRIER_POINTS = 11
N_BARRIER_RUNS = 3
REPORT_ON = "test"
BASELINE = "best single"


@dataclass(frozen=True)
class Row:
    """One line of a table; `versus_best` compares with the best single ingredient on test."""

    model: str
    scores: Mapping[str, Any]
    kept: int | None = None
    note: str = ""
    versus_best: Mapping[str, float] | None = None


def soup_table(
    evaluator: stockpot.Evaluator, models: stockpot.Ingredients, *, alphas: Sequence[float] = ALPHAS
) -> list[Row]:
    """Base, best single, uniform, greedy, WiSE-FT of best single and of greedy, ensembles."""
    task = evaluator.task
    best = stockpot.BestSingle().cook(models, task, evaluator=evaluator)
    soups: list[tuple[str, stockpot.Soup, str]] = [
        ("best single", best, Path(best.selected[0]).name),
        ("uniform", stockpot.Uniform().cook(models, task, evaluator=evaluator), ""),
        ("greedy", stockpot.Greedy(explain=False).cook(models, task, evaluator=evaluator), ""),
    ]
    rows = [Row("mean of singles", _mean_scores(evaluator, models))]
    if models.base is not None:
        rows.insert(0, Row("base", scores_to_json(evaluator.scores(models.base))))
        soups += _interpolated(evaluator, models, best, "best single", alphas)
    rows += [
        Row(
            name,
            scores_to_json(soup.scores),
            len(soup.selected),
            note,
            None if soup is best else _versus(evaluator, soup.mixture, best.mixture),
        )
        for name, soup, note in soups
    ]
    return [*rows, *_ensembles(evaluator, models)]


def _interpolated(
    evaluator: stockpot.Evaluator,
    models: stockpot.Ingredients,
    soup: stockpot.Soup,
    name: str,
    alphas: Sequence[float],
) -> list[tuple[str, stockpot.Soup, str]]:
    """WiSE-FT of a soup at α = 0.5, and at the α that held-out prefers."""
    paths = [model.path for model in models]
    shares = tuple(float(soup.coefficients.get(path, 0.0)) for path in paths)  # type: ignore[arg-type]
    chosen = stockpot.WiseFT(alphas=tuple(alphas), weights=shares).cook(
        models, evaluator.task, evaluator=evaluator
    )
    half = stockpot.WiseFT(alpha=0.5, weights=shares).cook(
        models, evaluator.task, evaluator=evaluator
    )
    alpha = chosen.details.to_json()["alpha"]
    return [
        (f"WiSE-FT of {name}, chosen", chosen, f"a = {alpha}"),
        (f"WiSE-FT of {name}, a = 0.5", half, ""),
    ]


def _ensembles(evaluator: stockpot.Evaluator, models: stockpot.Ingredients) -> list[Row]:
    split = split_to_choose_on(evaluator.task)
    found = {
        "logit ensemble of all": ensemble(evaluator, list(models)),
        "greedy logit ensemble": greedy_ensemble(evaluator, list(models), split),
    }
    return [
        Row(name, scores_to_json(e.scores), len(e.members), f"{len(e.members)} forward passes")
        for name, e in found.items()
    ]


def _mean_scores(evaluator: stockpot.Evaluator, models: stockpot.Ingredients) -> dict[str, Any]:
    """Mean over ingredients, with the smallest and largest in place of an interval."""
    each = [evaluator.scores(model) for model in models]
    out = {}
    for split in each[0]:
        values = [scores[split].value for scores in each]
        out[split] = {
            "value": statistics.fmean(values),
            "low": min(values),
            "high": max(values),
            "n": each[0][split].n,
            "metric": each[0][split].metric,
        }
    return out


def _versus(
    evaluator: stockpot.Evaluator, one: stockpot.Mixture, other: stockpot.Mixture
) -> dict[str, float] | None:
    """Difference on test with its interval and p-value; None for metrics that are no means."""
    parts = [evaluator.predictions(mixture, REPORT_ON).per_example for mixture in (one, other)]
    return (
        None
        if parts[0] is None or parts[1] is None
        else paired_difference(parts[0], parts[1]).to_json()
    )


def path_losses(
    evaluator: stockpot.Evaluator, pair: stockpot.Ingredients, *, n_points: int = N_BARRIER_POINTS
) -> tuple[list[float], list[float]]:
    """Alphas and held-out cross-entropy in nats along the line between two models.

    BatchNorm statistics are those of the evaluator's policy, at the ends as within.
    """
    split = split_to_choose_on(evaluator.task)
    alphas = [i / (n_points - 1) for i in range(n_points)]
    losses = []
    for alpha in alphas:
        shares = stockpot.Coefficients.per_model([1 - alpha, alpha])
        found = evaluator.predictions(stockpot.Mixture(pair, shares), split)
        outputs = torch.from_numpy(found.outputs)
        losses.append(CrossEntropy().compute(outputs, torch.as_tensor(found.targets)))
    return alphas, losses


def barrier_rows(
    evaluator: stockpot.Evaluator, paths: Sequence[Path], *, n_points: int = N_BARRIER_POINTS
) -> list[dict[str, Any]]:
    """The barrier between every two of the models."""
    rows = []
    for a, b in itertools.combinations(paths, 2):
        alphas, losses = path_losses(evaluator, stockpot.Ingredients([a, b]), n_points=n_points)
        height, alpha = barrier(alphas, losses)
        rows.append(
            {
                "pair": [a.stem, b.stem],
                "height": height,
                "alpha": alpha,
                "alphas": alphas,
                "losses": losses,
            }
        )
    return rows


def averages_of(runs: Path, *, only: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """The raw weights of the runs, and their EMA and SWA by kind; `only` names the kinds.

    Runs without an average of a kind are left out of it, and so are kinds of fewer than two.
    """
    kinds = {"raw": sorted(runs.glob("run-*.safetensors"))}
    for file in sorted((runs / "averages").glob("run-*.safetensors")):
        kinds.setdefault(file.stem.split("-", 2)[2], []).append(file)
    wanted = kinds if only is None else ("raw", *only)
    return {kind: files for kind, files in kinds.items() if kind in wanted and len(files) > 1}


def average_row(evaluator: stockpot.Evaluator, kind: str, files: Sequence[Path]) -> dict[str, Any]:
    """Better single models, better soups? Choices on held-out, values on test."""
    models = stockpot.Ingredients(files)
    cooked = {
        "best_single": stockpot.BestSingle(),
        "uniform": stockpot.Uniform(),
        "greedy": stockpot.Greedy(explain=False),
    }
    soups = {
        name: recipe.cook(models, evaluator.task, evaluator=evaluator, report=False)
        for name, recipe in cooked.items()
    }
    singles = [evaluator.score(model, REPORT_ON).value for model in models]
    return {
        "kind": kind,
        "runs": len(files),
        "mean_single": statistics.fmean(singles),
        **{name: evaluator.score(soup.scored_as, REPORT_ON).value for name, soup in soups.items()},
    }


def analyse(
    sweep: ingredients.Sweep,
    *,
    n_barrier_runs: int = N_BARRIER_RUNS,
    averages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything that is reported of one sweep; barriers are between its first runs."""
    started = time.perf_counter()
    evaluator = sweep.evaluator()
    task = evaluator.task
    records = read_runs(sweep.runs)
    files = [sweep.runs / record.path for record in records]
    base = sweep.base if sweep.base.exists() else None
    models = stockpot.Ingredients(files, base=base)
    return {
        "experiment": sweep.label,
        "sweep": sweep.seed,
        "metric": task.metric.name,
        "splits": [[split, s.role.value] for split, s in task.splits.items()],
        "rows": [asdict(row) for row in soup_table(evaluator, models)],
        "runs": [
            {
                "run": record.index,
                "hyperparameters": dict(record.hyperparameters),
                "n_steps": record.n_steps,
                "seconds": record.seconds,
                "scores": scores_to_json(evaluator.scores(model)),
            }
            for record, model in zip(records, models, strict=True)
        ],
        "averages": [
            average_row(evaluator, kind, kept)
            for kind, kept in averages_of(sweep.runs, only=averages).items()
        ],
        "barriers": barrier_rows(evaluator, files[:n_barrier_runs]),
        "environment": dict(records[0].environment),
        "notes": list(evaluator.notes),
        "seconds": time.perf_counter() - started,
    }


def made(
    sweep: ingredients.Sweep, *, out: Path, averages: Sequence[str] | None = None, **sizes: Any
) -> dict[str, Any]:
    """`analyse`, or what an earlier call found, with the averages it was not asked for."""
    file = out / f"sweep-{sweep.seed}" / f"{sweep.label.replace(', ', '-')}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, analyse(sweep, averages=averages, **sizes))
    found: dict[str, Any] = json.loads(file.read_text())
    there = {row["kind"] for row in found["averages"]}
    for kind, files in averages_of(sweep.runs, only=averages).items():
        if kind not in there:
            found["averages"].append(average_row(sweep.evaluator(), kind, files))
            write_json(file, found)
    return found


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """All tables; `found` holds one entry per sweep, of any experiments."""
    lines = []
    for name in dict.fromkeys(one["experiment"] for one in found):
        sweeps = [one for one in found if one["experiment"] == name]
        lines += [f"### {name}: {_heading(sweeps)}", ""]
        lines += soup_lines(sweeps) + _average_lines(sweeps) + _sweep_lines(sweeps)
    return "\n".join(lines)


def _heading(sweeps: Sequence[Mapping[str, Any]]) -> str:
    runs = len(sweeps[0]["runs"])
    return f"{len(sweeps)} sweeps of {runs} runs, {sweeps[0]['metric']}"


def soup_lines(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Scores of every model, and its gains on the best single run of the same sweep."""
    splits = _columns(sweeps[0])
    scores = []
    for model in _models(sweeps):
        kept = [row["kept"] for one in sweeps if (row := _row(one, model))["kept"] is not None]
        mean_kept = f"{statistics.fmean(kept):.1f}" if kept else ""
        cells = [tables.percent(_values(sweeps, model, split)) for split in splits]
        scores.append([model, mean_kept, *cells])
    return [
        f"{sweeps[0]['metric']} in percent, mean over sweeps ± half of its 95 % t-interval:",
        "",
        *tables.table(["model", "models in it", *_shown(splits)], scores),
        "",
        *above_lines(sweeps, BASELINE),
    ]


def above_lines(sweeps: Sequence[Mapping[str, Any]], reference: str) -> list[str]:
    """What every model gains on one of them, in points."""
    splits = _columns(sweeps[0])
    gains = [
        [model, *(tables.points(_values(sweeps, model, s), _values(sweeps, reference, s))
                  for s in splits)]
        for model in _models(sweeps) if model != reference
    ]  # fmt: skip
    return [
        f"Points above {reference}, paired by sweep, with 95 % t-intervals:",
        "",
        *tables.table(["model", *_shown(splits)], gains),
        "",
    ]


def _models(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["model"] for row in sweeps[0]["rows"]]


def _shown(splits: Sequence[str]) -> list[str]:
    return [split.replace("_", " ") for split in splits]


def _columns(one: Mapping[str, Any]) -> list[str]:
    """The splits, and the average over shifts where there are several."""
    roles = [role for _, role in one["splits"]]
    return [name for name, _ in one["splits"]] + ["shift_average"] * (roles.count("shift") > 1)


def _row(one: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(row for row in one["rows"] if row["model"] == model)
    return found


def _values(sweeps: Sequence[Mapping[str, Any]], model: str, split: str) -> list[float]:
    return [_row(one, model)["scores"][split]["value"] for one in sweeps]


def _average_lines(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Raw weights beside their averages, on test; gains of an average are paired by sweep."""
    kinds = [row["kind"] for row in sweeps[0]["averages"]]
    if len(kinds) < 2:
        return []
    columns = ("mean_single", "best_single", "uniform", "greedy")
    values = {
        (kind, column): [
            next(row for row in one["averages"] if row["kind"] == kind)[column] for one in sweeps
        ]
        for kind in kinds
        for column in columns
    }
    rows, gains = [], []
    for kind in kinds:
        found = [values[kind, column] for column in columns]
        rows.append([kind, *(tables.in_percent(tables.over_seeds(cell)) for cell in found)])
        raw = [values[kinds[0], column] for column in columns]
        above = [
            [a - b for a, b in zip(x, y, strict=True)] for x, y in zip(found, raw, strict=True)
        ]
        gains.append([kind, *(tables.in_points(tables.over_seeds(cell)) for cell in above)])
    head = ["weights", "mean of singles", "best single", "uniform", "greedy"]
    return [
        "Test, by which weights of the runs are used:", "", *tables.table(head, rows), "",
        "Points above the raw weights:", "", *tables.table(head, gains[1:]), "",
    ]  # fmt: skip


def _sweep_lines(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs from sweep to sweep: what was kept, McNemar's p, barriers."""
    rows = []
    for one in sweeps:
        greedy, uniform = _row(one, "greedy"), _row(one, "uniform")
        heights = [pair["height"] for pair in one["barriers"]]
        rows.append(
            [
                f"sweep {one['sweep']}",
                _row(one, BASELINE)["note"],
                str(greedy["kept"]),
                _p_value(greedy),
                _p_value(uniform),
                f"{min(heights):.3f} – {max(heights):.3f}" if heights else "",
            ]
        )
    head = ["", BASELINE, "kept by greedy", "p of greedy", "p of uniform", "barriers (nats)"]
    return [
        f"p is McNemar's against {BASELINE} on test; barriers are those of cross-entropy on "
        "held-out, on the lines between the first runs of the sweep:",
        "",
        *tables.table(head, rows),
        "",
    ]


def _p_value(row: Mapping[str, Any]) -> str:
    return "" if row["versus_best"] is None else f"{row['versus_best']['p_value']:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    ingredients.add_arguments(parser)
    ingredients.add_scoring_arguments(parser)
    parser.add_argument(
        "--barrier-runs", type=int, default=N_BARRIER_RUNS, help="barriers between so many runs"
    )
    parser.add_argument("--averages", nargs="*", help="only these, such as swa; none: no averages")
    options = parser.parse_args()
    there = ingredients.asked_for(options, options.only or list(ingredients.EXPERIMENTS))
    work = functools.partial(
        made, out=options.out, n_barrier_runs=options.barrier_runs, averages=options.averages
    )
    found = side_by_side(work, there, n_jobs=options.jobs)
    done = [one.value for one in found if one.value is not None]
    print(write_results(options.out, "results", done, markdown(done)))
    values_of(found)


if __name__ == "__main__":
    main()
