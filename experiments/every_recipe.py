"""Every recipe and rule on the same sweeps, in one table: docs/results/recipes.md.

    python -m experiments.handwriting --out ../handwriting --seeds 20 21 22 23 24
    python -m experiments.every_recipe --demos ../handwriting --seeds 20 21 22 23 24 --out ../every

    python -m experiments.ingredients --data DATA --out ../ingredients --seeds 0 1 2
    python -m experiments.every_recipe --data DATA --ingredients ../ingredients --seeds 0 1 2 \
        --only resnet --batchnorm averaged --out ../every-resnet

Everything is chosen on held-out, scales of task vectors and α among it; the other columns only
report. The options are the papers', and were not tuned on any of these sweeps. Each sweep is a file
in `OUT/parts` that grows by a row at a time: a killed call continues. `--rows` names some of the
rows, where all would take too long.

Left out: what wants other ingredients (`trajectory`, `sparse`, `zoo`) or data with categories
(`soce`).
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import SHIFT_AVERAGE, side_by_side, values_of, write_json, write_results
from experiments.learned import Pot

import stockpot
from experiments import ingredients, learned, results
from stockpot import (
    BestSingle,
    Greedy,
    Ingredients,
    Learned,
    ModelStock,
    Pruned,
    Slerp,
    Soup,
    TaskArithmetic,
    TaskEvaluator,
    Uniform,
    WiseFT,
)
from stockpot.evaluate import scores_to_json, split_to_choose_on
from stockpot.mixing.rules.table import rule_from_text
from stockpot.recipes import Recipe, ensemble, greedy_ensemble
from stockpot.tasks.handwriting import Lab


def _merged(rule: str) -> TaskArithmetic:
    return TaskArithmetic(rule=rule_from_text(rule))


MEAN = "uniform"
"""What the others are held against, besides the best single run."""
RECIPES: Mapping[str, Recipe] = {
    results.BASELINE: BestSingle(),
    MEAN: Uniform(),
    "weights by score": Uniform(score_temperature=0.01),
    "Fisher": Uniform(weigh="fisher"),
    "RegMean": Uniform(weigh="regmean"),
    "Karcher mean": Slerp(),
    "Model Stock": ModelStock(),
    "greedy": Greedy(explain=False),
    "pruned": Pruned(),
    "learned": Learned(),
    "learned by layer": Learned(by="layer"),
    "task arithmetic": TaskArithmetic(),
    "TIES": _merged("ties"),
    "DARE": _merged("dare"),
    "Breadcrumbs": _merged("breadcrumbs"),
    "DELLA": _merged("della"),
    "SCE": _merged("sce"),
    "Iso-C": _merged("iso-c"),
    "TSV-M": _merged("tsv-m"),
}
WITHOUT_BASE = (
    results.BASELINE, "uniform", "weights by score", "Fisher", "RegMean", "greedy", "pruned",
    "learned", "learned by layer",
)  # fmt: skip
"""What is cooked of the runs alone; a base among the ingredients would change nothing."""
LINES = {
    "WiSE-FT of best single": results.BASELINE,
    "WiSE-FT of uniform": "uniform",
    "WiSE-FT of greedy": "greedy",
}
MONO = "MonoSoup of best single"
ENSEMBLE, GREEDY_ENSEMBLE = "ensemble", "greedy ensemble"
MODELS = ("base", *RECIPES, *LINES, MONO, ENSEMBLE, GREEDY_ENSEMBLE)


def study(pot: Pot, *, out: Path, models: Sequence[str] = MODELS) -> None:
    """The rows of one sweep that `out` does not hold yet, each written when it is known."""
    file = out / "parts" / pot.file
    found = json.loads(file.read_text()) if file.exists() else {}
    if {row["model"] for row in found.get("rows", ())} >= set(models):
        return
    with pot.evaluator() as evaluator:
        task = evaluator.task
        rows = {row["model"]: row for row in found.get("rows", ())}
        for name in models:
            if name in rows:
                continue
            started = time.perf_counter()
            rows[name] = _row(name, pot, evaluator, rows)
            rows[name] |= {"model": name, "seconds": time.perf_counter() - started}
            write_json(
                file,
                {
                    "experiment": pot.experiment,
                    "sweep": pot.name,
                    "metric": task.metric.name,
                    "splits": [[split, s.role.value] for split, s in task.splits.items()],
                    "runs": [Path(path).name for path in pot.paths],
                    "rows": list(rows.values()),
                },
            )


def _row(
    name: str, pot: Pot, evaluator: TaskEvaluator, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Scores by split of one model, how many runs are in it, and what is worth a note."""
    models = Ingredients(pot.paths)
    if pot.base is None:
        raise ValueError(f"the runs of {pot.name} have no base, which most rows go by")
    if name == "base":
        return _told(scores_to_json(evaluator.scores(stockpot.open(pot.base))), None)
    if name == ENSEMBLE:
        return _of_ensemble(ensemble(evaluator, list(models)))
    if name == GREEDY_ENSEMBLE:
        split = split_to_choose_on(evaluator.task)
        return _of_ensemble(greedy_ensemble(evaluator, list(models), split))
    if name == MONO:
        best = rows[results.BASELINE]["selected"]
        paths = [path for path in pot.paths if Path(path).name in best]
        soup = _merged("mono-soup").cook(Ingredients(paths, base=pot.base), evaluator=evaluator)
        return _of(soup)
    if name in LINES:
        of = rows[LINES[name]]["selected"]
        weights = tuple(float(Path(path).name in of) / len(of) for path in pot.paths)
        recipe: Recipe = WiseFT(weights=weights, curve=False)
    else:
        recipe = RECIPES[name]
    given = models if name in WITHOUT_BASE else Ingredients(pot.paths, base=pot.base)
    return _of(recipe.cook(given, evaluator=evaluator))


def _of(soup: Soup) -> dict[str, Any]:
    """The row of a soup; the note is its scale or α, or what a learned soup took instead."""
    details = soup.details.to_json()
    found = next((details[key] for key in ("taken", "scale", "alpha") if key in details), "")
    note = found if isinstance(found, str) else f"{found:.3g}"
    names = [Path(path).name for path in soup.selected]
    return {**_told(scores_to_json(soup.scores), len(names)), "selected": names, "note": note}


def _of_ensemble(made: Any) -> dict[str, Any]:
    return _told(scores_to_json(made.scores), len(made.members))


def _told(scores: Mapping[str, Any], kept: int | None) -> dict[str, Any]:
    return {"scores": scores, "kept": kept, "note": ""}


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


_MOST_SPLITS = 6
_APART = "fonts"
"""The shift of handwriting that its average leaves out, being what the base was trained for."""


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Scores, and points above the best single run and the plain mean, of every experiment."""
    lines = []
    for name in dict.fromkeys(one["experiment"] for one in found):
        sweeps = [_in_short(one) for one in found if one["experiment"] == name]
        runs = len(sweeps[0]["runs"])
        lines += [f"### {name}: {len(sweeps)} sweeps of {runs} runs, every recipe", ""]
        lines += results.soup_lines(sweeps)
        if any(row["model"] == MEAN for row in sweeps[0]["rows"]):
            lines += results.above_lines(sweeps, MEAN)
        lines += _notes(sweeps)
    return "\n".join(lines)


def _in_short(sweep: Mapping[str, Any]) -> Mapping[str, Any]:
    """A sweep without its single shifts, where there are many: their average stands for them."""
    splits = [[name, role] for name, role in sweep["splits"] if role != "shift" or name == _APART]
    if len(sweep["splits"]) <= _MOST_SPLITS:
        return sweep
    return {**sweep, "splits": [*splits, [SHIFT_AVERAGE, "average"]]}


def _notes(sweeps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What held-out chose in each sweep, and how long it took: one line for each recipe."""
    rows = []
    for place, first in enumerate(sweeps[0]["rows"]):
        each = [one["rows"][place] for one in sweeps]
        if any(row["note"] for row in each):
            rows.append([first["model"], ", ".join(row["note"] for row in each)])
    return [
        "λ, α, or what a learned soup took on the part that decides, by sweep:", "",
        *results.tables.table(["model", "chosen"], rows), "",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--demos", type=Path, help="folder that experiments.handwriting wrote")
    ingredients.add_arguments(parser, needs_data=False)
    ingredients.add_scoring_arguments(parser)
    parser.add_argument("--rows", nargs="+", choices=MODELS, default=MODELS, help="only these")
    given = parser.parse_args(arguments)
    given.out, given.task = given.out.resolve(), None
    wanted = {pot.name: pot for pot in learned.pots(given, lab)}
    work: Callable[[Pot], None] = functools.partial(
        study, out=given.out, models=[name for name in MODELS if name in given.rows]
    )
    values_of(side_by_side(work, wanted, n_jobs=given.jobs))
    found = [json.loads((given.out / "parts" / pot.file).read_text()) for pot in wanted.values()]
    return write_results(given.out, "every", found, markdown(found))


if __name__ == "__main__":
    print(main())
