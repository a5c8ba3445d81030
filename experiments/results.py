"""Soups of the reference ingredients: the tables of docs/results.md.

    python -m experiments.results --data ../shared/data --ingredients ../runs --out ../results

writes NAME.json and NAME.md for each experiment whose ingredients are there. Every choice is made
on held-out; test and shifts only report. Scores are journalled beside the output, so a run that was
killed goes on. `--threads` and `--precision` are kept in the tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import stockpot
from experiments import cifar_resnet, ingredients
from stockpot.evaluation import scores_to_json
from stockpot.evaluation.choosing import split_to_choose_on
from stockpot.measures.barrier import barrier
from stockpot.measures.paired import compare
from stockpot.models.metrics import CrossEntropy
from stockpot.recipes.ensembles import ensemble, greedy_ensemble

ALPHAS = (0.25, 0.5, 0.75)
N_BARRIER_POINTS = 11
REPORT_ON = "test"


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
        ("greedy", stockpot.Greedy().cook(models, task, evaluator=evaluator), ""),
    ]
    rows = [Row("mean of singles", _mean_scores(evaluator, models))]
    if models.base is not None:
        rows.insert(0, Row("base", scores_to_json(evaluator.scores(models.base))))
        for name in ("best single", "greedy"):
            found = next(soup for label, soup, _ in soups if label == name)
            soups += _interpolated(evaluator, models, found, name, alphas)
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
    alpha = chosen.extra["alpha"]
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
    return None if parts[0] is None or parts[1] is None else asdict(compare(parts[0], parts[1]))


def path_losses(
    evaluator: stockpot.Evaluator, pair: stockpot.Ingredients, *, n_points: int = N_BARRIER_POINTS
) -> tuple[list[float], list[float]]:
    """Alphas and held-out cross-entropy in nats along the line between two models.

    BatchNorm statistics are recalibrated at every inner point, as they are for a soup.
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
        found = barrier(alphas, losses)
        rows.append(
            {
                "pair": [a.stem, b.stem],
                "height": found.height,
                "alpha": found.alpha,
                "alphas": alphas,
                "losses": losses,
            }
        )
    return rows


def average_rows(evaluator: stockpot.Evaluator, runs: Path) -> list[dict[str, Any]]:
    """Raw weights, EMA and SWA of the same runs: the better single models, the better soups?

    Choices on held-out, values on test. Runs without an average of a kind are left out of it.
    """
    raw = sorted(runs.glob("run-*.safetensors"))
    kinds: dict[str, list[Path]] = {"raw": raw}
    for file in sorted((runs / "averages").glob("run-*.safetensors")):
        kinds.setdefault(file.stem.split("-", 2)[2], []).append(file)
    rows = []
    for kind, files in kinds.items():
        if len(files) < 2:
            continue
        models = stockpot.Ingredients(files)
        cooked = {
            "best_single": stockpot.BestSingle(),
            "uniform": stockpot.Uniform(),
            "greedy": stockpot.Greedy(),
        }
        scores = {
            name: recipe.cook(models, evaluator.task, evaluator=evaluator).scores[REPORT_ON]
            for name, recipe in cooked.items()
        }
        rows.append(
            {
                "kind": kind,
                "runs": len(files),
                "mean_single": _mean_scores(evaluator, models)[REPORT_ON]["value"],
                **scores_to_json(scores),
            }
        )
    return rows


def analyse(
    name: str,
    task: stockpot.Task,
    folder: Path,
    *,
    cache: Path,
    precision: str = "fp32",
    barriers: int = 0,
    averages: bool = False,
) -> dict[str, Any]:
    """Everything that is reported of one experiment whose ingredients lie in `folder`.

    `barriers` is the number of ingredients between which barriers are measured.
    """
    evaluator = stockpot.Evaluator(task, cache=cache, precision=precision, device="cpu")
    files = sorted((folder / "runs").glob("run-*.safetensors"))
    base = folder / "base.safetensors"
    models = stockpot.Ingredients(files, base=base if base.exists() else None)
    records = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    return {
        "experiment": name,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "splits": {split: s.role.value for split, s in task.splits.items()},
        "rows": [asdict(row) for row in soup_table(evaluator, models)],
        "runs": [
            {
                "run": record["run"],
                "lr": record["hyperparameters"]["lr"],
                "optimizer": record["hyperparameters"]["optimizer"],
                "seconds": record["seconds"],
                "scores": scores_to_json(evaluator.scores(model)),
            }
            for record, model in zip(records, models, strict=True)
        ],
        "averages": average_rows(evaluator, folder / "runs") if averages else [],
        "barriers": barrier_rows(evaluator, files[:barriers]) if barriers > 1 else [],
        "notes": list(evaluator.notes),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of one experiment."""
    shown = [*found["splits"], *(["shift_average"] if "shift" in found["splits"].values() else [])]
    metric = found["rows"][0]["scores"][shown[0]]["metric"]
    lines = [
        f"### {found['experiment']}: {len(found['runs'])} runs, {metric}",
        "",
        "| model | kept | " + " | ".join(shown) + " | test, against best single |",
        "|---|---|" + "---|" * len(shown) + "---|",
    ]
    for row in found["rows"]:
        cells = [_cell(row["scores"].get(split)) for split in shown]
        label = row["model"] + (f" ({row['note']})" if row["note"] else "")
        kept = "" if row["kept"] is None else str(row["kept"])
        lines.append(f"| {label} | {kept} | {' | '.join(cells)} | {_versus_cell(row)} |")
    lines += _average_lines(found["averages"]) + _barrier_lines(found["barriers"])
    lines += ["", f"Scored in {found['precision']} with {found['threads']} threads.", ""]
    return "\n".join(lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    interval = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{score['value']:.3f}{interval}"


def _versus_cell(row: Mapping[str, Any]) -> str:
    found = row["versus_best"]
    if found is None:
        return ""
    return (
        f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], "
        f"p = {found['p_value']:.2g}"
    )


def _average_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "| weights (test) | runs | mean of singles | best single | uniform | greedy |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['kind']} | {row['runs']} | {row['mean_single']:.3f} | "
        + " | ".join(_cell(row[key]) for key in ("best_single", "uniform", "greedy"))
        + " |"
        for row in rows
    ]


def _barrier_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["", "| pair | barrier (nats, held-out) | at a | ends |", "|---|---|---|---|"]
    return lines + [
        f"| {' – '.join(row['pair'])} | {row['height']:.3f} | {row['alpha']:.1f} | "
        f"{row['losses'][0]:.3f}, {row['losses'][-1]:.3f} |"
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--ingredients", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", choices=ingredients.EXPERIMENTS, action="append")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = cifar_resnet.data_folder(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or list(ingredients.EXPERIMENTS):
        folder = options.ingredients / name
        if not list((folder / "runs").glob("run-*.safetensors")):
            print(f"{name}: no ingredients in {folder}", file=sys.stderr)
            continue
        found = analyse(
            name,
            ingredients.EXPERIMENTS[name].make_task(data),
            folder,
            cache=options.out / "cache",
            precision=options.precision,
            barriers={"scratch": 3, "resnet": 3}.get(name, 0),
            averages=name == "resnet",
        )
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=1))
        (options.out / f"{name}.md").write_text(markdown(found))
        print(options.out / f"{name}.md")


if __name__ == "__main__":
    main()
