"""The whole method on real handwriting: a caller of the sweep, the recipes and the report.

What an earlier, killed call with the same settings left is used: finished runs are not trained
again and scores not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stockpot import __version__
from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.evaluate.compare import (
    SHIFT_AVERAGE,
    Difference,
    Predictions,
    difference,
    scores_to_json,
    shift_difference,
    shifts_among,
)
from stockpot.evaluate.task import Score
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes import Auto, BestSingle, Greedy, Soup, Uniform, WiseFT, ensemble
from stockpot.recipes.gain import Gain
from stockpot.report import Report, open_report, render, save
from stockpot.tasks.handwriting.lab import FULL, QUICK, WIDE, Lab, make_base
from stockpot.train.run_folder import RunFolder
from stockpot.train.sweep.run import run_sweep
from stockpot.workers import WorkerOptions

HEADLINE = ("base", "best-single", "uniform", "greedy", "wise-ft", "ensemble")
"""The models that are compared, simplest first."""

NAMED = "uniform"
"""The recipe that was named when the demo was set up, on other seeds than those reported."""

TEST = "test"
_OWNED = (
    "base.safetensors", ".base.safetensors.state", "runs/run-*", "runs/.run-*", "runs/runs.*",
    "runs/sweep.json", "soups/*.safetensors", "soups/*.safetensors.stockpot.json",
    "journal/journal.sqlite*", "report.json", "report.html",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured, and where it wrote what it made.

    Attributes:
        folder: as given.
        scores: model → split → score; with `shift_average`, the mean over the shifts but `fonts`.
        gains: model → `test` or `shift_average` → difference to the best single run.
        soups: name → checkpoint.
        best: name of the run that is `best-single`.
        kept: names of the runs in the greedy soup, in order of acceptance.
        alpha: that of `wise-ft`.
        curve: points `{"alpha", "scores"}` from the base (0) to the best single run (1).
        chosen: the recipe that `auto` takes.
        headline: the gain of the recipe that was named beforehand (`NAMED`), in a sentence.
        gain: the same with its differences by split.
        report: the page.
        seconds: wall time of this call.
    """

    folder: str
    scores: Mapping[str, Mapping[str, Score]]
    gains: Mapping[str, Mapping[str, Difference]]
    soups: Mapping[str, str]
    best: str
    kept: tuple[str, ...]
    alpha: float
    curve: tuple[Mapping[str, JSON], ...]
    chosen: str
    headline: str
    gain: Gain
    report: str
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """What `stockpot demo --json` prints."""
        gains: dict[str, JSON] = {
            name: {
                split: {"difference": gain.value, "low": gain.low, "high": gain.high}
                for split, gain in found.items()
            }
            for name, found in self.gains.items()
        }
        return {
            "scores": {name: scores_to_json(found) for name, found in self.scores.items()},
            "gains": gains,
            "soups": dict(self.soups),
            "best_single": self.best,
            "greedy_kept": list(self.kept),
            "alpha": self.alpha,
            "chosen": self.chosen,
            "named": NAMED,
            "headline": self.headline,
            "gain": self.gain.to_json(),
            "report": self.report,
            "seconds": self.seconds,
        }


def run(
    out: StrPath,
    *,
    lab: Lab = FULL,
    seed: int = 0,
    force: bool = False,
    n_workers: int | None = None,
    progress: Progress = no_progress,
) -> DemoResult:
    """Make ingredients from real handwriting, choose soups, and report on data that did not choose.

    Writes `base.safetensors`, `runs/run-00.safetensors`, …, `soups/NAME.safetensors` with their
    records, `report.json` and `report.html` into `out`.

    Args:
        out: a folder, which is made; one with other files in it is refused.
        lab: sizes, and what the sweep is drawn from: `FULL`, `QUICK` or others.
        seed: of the split, the shifts, the base and the sweep.
        force: replace a demo with other settings; files of other origin are never touched.
        n_workers: processes with one thread each; None for one per core. Changes no result.
        progress: called within each stage.

    Raises:
        OutputExistsError: `out` holds something else.
        WorkerError: fine-tuning failed.
    """
    started = time.perf_counter()
    folder = Path(out)
    place = RunFolder(
        path=folder, marker="demo.json", kind="a demo", owned=_OWNED, alone=True,
        force="force=True (--force)", other="--output",
    )  # fmt: skip
    # Before anything is trained: the data need packages that may be missing.
    task = lab.task(seed=seed)
    place.claim({"stockpot": __version__, "seed": seed, "lab": lab.to_json()}, force=force)
    base, journal = folder / "base.safetensors", folder / "journal"
    if not base.exists():
        make_base(base, lab, seed=seed, progress=progress)
    sweep = run_sweep(
        lab.task_maker(seed=seed), str(base), lab.sweep(seed=seed), out=folder / "runs",
        workers=WorkerOptions(n_workers=n_workers), cache=journal, progress=progress,
    )  # fmt: skip
    sweep.raise_failures()
    runs = {run.name: path for run, path in zip(sweep.runs, sweep.paths, strict=True)}
    with (
        _one_thread(),
        TaskEvaluator(task, cache=journal, device="cpu", seed=seed) as evaluator,
    ):
        result = _cook(evaluator, base, runs, folder, progress)
    save(_report(folder, result, lab, seed), folder)
    page = render(folder, force=True)
    return replace(result, report=str(page), seconds=time.perf_counter() - started)


def _cook(
    evaluator: TaskEvaluator, base: Path, runs: Mapping[str, str], folder: Path, progress: Progress
) -> DemoResult:
    """Choose on the held-out digits and score on all splits; save the soups."""
    names = {path: name for name, path in runs.items()}
    ingredients = Ingredients(list(runs.values()), base=str(base))
    models = {"base": open_checkpoint(base), **dict(zip(runs, ingredients, strict=True))}
    scores: dict[str, Mapping[str, Score]] = {}
    for number, (name, model) in enumerate(models.items(), 1):
        scores[name] = evaluator.scores(model)
        progress(number, len(models), "models scored")
    best = BestSingle().cook(ingredients, evaluator=evaluator)
    line = Ingredients(list(best.selected), base=str(base))
    soups = {
        "uniform": Uniform().cook(ingredients, evaluator=evaluator),
        "greedy": Greedy().cook(ingredients, evaluator=evaluator),
        "wise-ft": WiseFT().cook(line, evaluator=evaluator.with_progress(progress)),
        "auto": Auto(learned=False).cook(ingredients, evaluator=evaluator),
    }
    together = ensemble(evaluator, list(ingredients))
    scores["best-single"] = scores[names[best.selected[0]]]
    for name, soup in soups.items():
        scores[name] = {split: s for split, s in soup.scores.items() if s is not None}
        # The same bytes when an earlier call wrote it: what decides them is in the marker.
        soup.save(folder / "soups" / f"{name}.safetensors", force=True)
    scores["ensemble"] = together.scores
    gains = _gains(evaluator, {**soups, "best-single": best}, models["base"], together.predictions)
    curve: Any = soups["wise-ft"].to_json()
    return DemoResult(
        folder=str(folder),
        scores=scores,
        gains=gains,
        soups={name: str(folder / "soups" / f"{name}.safetensors") for name in soups},
        best=names[best.selected[0]],
        kept=tuple(names[path] for path in soups["greedy"].selected),
        alpha=float(curve["alpha"]),
        curve=tuple(curve["curve"]),
        chosen=str(soups["auto"].to_json()["chosen"]),
        headline=soups[NAMED].headline,
        gain=soups[NAMED].gain or Gain(),
        report="",
        seconds=0.0,
    )


def _gains(
    evaluator: TaskEvaluator,
    soups: Mapping[str, Soup],
    base: Any,
    together: Mapping[str, Predictions],
) -> dict[str, dict[str, Difference]]:
    """Paired differences to the best single run, on the test split and averaged over the shifts."""
    splits, seed = evaluator.task.splits, evaluator.seed
    wanted = (TEST, *shifts_among(splits, splits))
    found: dict[str, Mapping[str, Predictions]] = {
        name: {split: evaluator.predictions(source, split) for split in wanted}
        for name, source in {"base": base, **{n: s.scored_as for n, s in soups.items()}}.items()
    }
    best = found.pop("best-single")
    found["ensemble"] = together
    return {
        name: {
            split: gap
            for split, gap in (
                (TEST, difference(one[TEST], best[TEST], TEST, against="best-single", seed=seed)),
                (
                    SHIFT_AVERAGE,
                    shift_difference(one, best, splits, against="best-single", seed=seed),
                ),
            )
            if gap is not None
        }
        for name, one in found.items()
    }


def _report(folder: Path, result: DemoResult, lab: Lab, seed: int) -> Report:
    """The page of `auto`, with the curve of WiSE-FT and the decisions of the greedy soup."""
    pages = {name: open_report(path) for name, path in result.soups.items()}
    sizes = {FULL: "", QUICK: " --quick", WIDE: " --wide"}
    return replace(
        pages["auto"],
        title="Soups that read handwriting",
        verdict=(
            f"{result.headline} ({NAMED}, the recipe that was named beforehand).",
            f"auto, which looks at held-out digits only, takes {result.chosen}.",
        ),
        chosen=NAMED,
        gains=pages[NAMED].gains,
        gains_over=pages[NAMED].gains_over,
        figures=tuple(
            figure for name in ("wise-ft", "greedy", "auto") for figure in pages[name].figures
        ),
        commands=(f"stockpot demo{sizes[lab]} --seed {seed}",) if lab in sizes else (),
        notes=(
            *pages["auto"].notes,
            f"Intervals are 95 %. The base saw printed digits only; the runs saw {lab.n_train} "
            "handwritten ones. Six shifts change the test digits; fonts shows printed digits of "
            "faces that the base never saw, which is what the base was trained for.",
        ),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch inside: for a network this small, two take longer than one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
