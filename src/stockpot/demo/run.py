"""The demo: one call that makes, cooks, reports, and continues when it was killed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stockpot import __version__
from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.demo.record import make_report
from stockpot.demo.study import Study, cook
from stockpot.errors import OutputExistsError
from stockpot.evaluate.compare import Difference, scores_to_json
from stockpot.evaluate.task import Score
from stockpot.io import atomic as _io
from stockpot.report import page, records
from stockpot.tasks.handwriting.lab import FULL, QUICK, Lab, make_base, make_runs

_MARKER = "demo.json"
_WRITTEN = (
    "base.safetensors", ".base.safetensors.state", "runs/run-*.safetensors", "runs/.run-*.state",
    "soups/*.safetensors", "soups/*.safetensors.stockpot.json", "journal/journal.sqlite*",
    "report.json", "report.html",
)  # fmt: skip


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, and where it wrote what it made.

    Attributes:
        folder: as given.
        scores: model → split → score; with `shift_average`, the plain mean over the seven shifts.
        gains: model of the headline → `test` or `shift_average` → gain over the best single run.
        soups: name → checkpoint.
        best: name of the run that is `best-single`.
        kept: names of the runs in the greedy soup, in order of acceptance.
        alpha: that of `wise-ft`.
        curve: points `{"alpha", "scores"}` from the base (0) to the best single run (1).
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
    report: str
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """What `stockpot demo --json` prints."""
        scores: dict[str, JSON] = {n: scores_to_json(found) for n, found in self.scores.items()}
        gains: dict[str, JSON] = {
            name: {
                split: {"difference": gain.value, "low": gain.low, "high": gain.high}
                for split, gain in found.items()
            }
            for name, found in self.gains.items()
        }
        return {
            "scores": scores,
            "gains": gains,
            "soups": dict(self.soups),
            "best_single": self.best,
            "greedy_kept": list(self.kept),
            "alpha": self.alpha,
            "report": self.report,
            "seconds": self.seconds,
        }


def run(
    out: StrPath,
    *,
    quick: bool = False,
    seed: int = 0,
    force: bool = False,
    lab: Lab | None = None,
    n_workers: int | None = None,
    progress: Progress = no_progress,
) -> DemoResult:
    """Make ingredients from real handwriting, cook them, and report on data not used to choose.

    What an earlier, killed call with the same settings left in `out` is used: finished runs are not
    trained again and scores not computed again. A finished demo is only reported again.

    Writes `base.safetensors`, `runs/run-00.safetensors`, …, `soups/NAME.safetensors` with their
    records, `report.json` and `report.html` into `out`.

    Args:
        out: a folder, which is made; one with other files in it is refused.
        quick: fewer and shorter runs.
        seed: of the split, the shifts, the base and the sweep.
        force: replace a demo with other settings; files of other origin are never touched.
        lab: sizes of one's own instead of those that `quick` chooses.
        n_workers: processes with one thread each; None for one per core. Changes no result.
        progress: called within each stage.

    Raises:
        OutputExistsError: `out` holds something else.
        WorkerError: fine-tuning failed.
    """
    started = time.perf_counter()
    sizes = lab if lab is not None else QUICK if quick else FULL
    folder = Path(out)
    _claim(folder, sizes, seed=seed, force=force)
    base = folder / "base.safetensors"
    if not base.exists():
        make_base(base, sizes, seed=seed, progress=progress)
    journal = folder / "journal"
    runs = make_runs(
        folder / "runs", base, sizes, seed=seed, journal=journal, n_workers=n_workers,
        progress=progress,
    )  # fmt: skip
    with _one_thread():
        study = cook(
            sizes.task(seed=seed), base, runs, journal=journal, seed=seed, progress=progress
        )
    soups = {name: folder / "soups" / f"{name}.safetensors" for name in study.soups}
    for name, path in soups.items():
        # The same bytes when an earlier call wrote it: what decides them is in the marker.
        study.soups[name].save(path, force=True)
    seconds = time.perf_counter() - started
    records.save(make_report(study, sizes, seed=seed, seconds=seconds), folder)
    report = page.render(folder, force=True)
    return _result(study, str(out), soups, str(report), time.perf_counter() - started)


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


def _result(
    study: Study, folder: str, soups: Mapping[str, Path], report: str, seconds: float
) -> DemoResult:
    return DemoResult(
        folder=folder,
        scores=study.scores,
        gains=study.gains,
        soups={name: str(path) for name, path in soups.items()},
        best=study.best,
        kept=study.kept,
        alpha=study.alpha,
        curve=study.curve,
        report=report,
        seconds=seconds,
    )


def _claim(folder: Path, lab: Lab, *, seed: int, force: bool) -> None:
    """Make `folder` the place of this very demo.

    Raises:
        OutputExistsError: it holds files that are not those of a demo with these settings.
    """
    settings: JSON = {"stockpot": __version__, "seed": seed, "lab": lab.to_json()}
    marker = folder / _MARKER
    if marker.exists():
        if marker.read_bytes() == _io.dump_json(settings):
            return
        if not force:
            raise OutputExistsError(f"{folder}, a demo with other settings,")
        for path in (path for pattern in _WRITTEN for path in folder.glob(pattern)):
            path.unlink()
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            str(folder),
            f"{folder} holds something that is no demo, and is left alone, even with force: "
            "choose a new or an empty folder",
        )
    _io.write_json(marker, settings)
