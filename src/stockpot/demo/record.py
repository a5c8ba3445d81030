"""The record that the demo's page is made from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot import __version__
from stockpot._types import JSON
from stockpot.demo.study import CHOSEN_ON, HEADLINE, TEST, Study
from stockpot.evaluate.compare import SHIFT_AVERAGE, Difference
from stockpot.evaluate.task import Score
from stockpot.recipes import Step
from stockpot.report.records import (
    CurvePoint,
    CurveRecord,
    ModelRecord,
    Report,
    ScoreRecord,
    StepRecord,
)
from stockpot.tasks.handwriting import SHIFTS
from stockpot.tasks.handwriting.lab import FULL, QUICK, Lab, draw_runs, run_names

_SWEPT = (
    "lr", "weight_decay", "epochs", "label_smoothing", "mixup", "shift_pixels", "rotate_degrees"
)  # fmt: skip


def make_report(study: Study, lab: Lab, *, seed: int, seconds: float) -> Report:
    """What was measured, with a verdict in words that says which gains are within noise."""
    configs = dict(zip(run_names(lab), draw_runs(lab, seed=seed), strict=True))
    hyperparameters: dict[str, dict[str, JSON]] = {
        name: {field: _short(getattr(config, field)) for field in _SWEPT}
        for name, config in configs.items()
    }
    return Report(
        title="Soups that read handwriting",
        verdict=_verdict(study, lab),
        chosen_on=CHOSEN_ON,
        reported_on=(TEST, *SHIFTS),
        shifts=SHIFTS,
        headline=HEADLINE,
        models=tuple(
            _model(name, found, study, hyperparameters.get(name, {}))
            for name, found in study.scores.items()
        ),
        curves=(_curve(study),),
        steps={"greedy": tuple(_step(step) for step in study.soups["greedy"].steps)},
        provenance={
            "stockpot": __version__,
            "Python": platform.python_version(),
            "processor": platform.machine(),
            "seed": str(seed),
            "wall time of this call": f"{seconds:.0f} s",
            "examples": ", ".join(f"{n} {split}" for split, n in study.n_examples.items()),
        },
        commands=_commands(lab, seed),
        notes=(
            f"Intervals are 95 %. The base saw printed digits only; the runs saw {lab.n_train} "
            "handwritten ones. Six shifts change the test digits; fonts shows printed digits of "
            "faces that the base never saw.",
        ),
    )


def _verdict(study: Study, lab: Lab) -> tuple[str, ...]:
    test, shift = (
        {name: f"{100 * study.scores[name][split].value:.1f} %" for name in HEADLINE}
        for split in (TEST, SHIFT_AVERAGE)
    )
    kept = f"{len(study.kept)} of {lab.n_runs} runs"
    return (
        f"The greedy soup of {kept} reads {test['greedy']} of the test digits; the best single "
        f"run, {study.best}, reads {test['best-single']} "
        f"({_said(study.gains['greedy'][TEST])}).",
        f"On the average of seven shifts they reach {shift['greedy']} and "
        f"{shift['best-single']} ({_said(study.gains['greedy'][SHIFT_AVERAGE])}); the uniform "
        f"soup {shift['uniform']} ({_said(study.gains['uniform'][SHIFT_AVERAGE])}); the "
        f"ensemble of all runs, at {lab.n_runs} times the cost, {shift['ensemble']}.",
        f"WiSE-FT at α = {study.alpha:g}, which the held-out digits chose, reads "
        f"{test['wise-ft']} of the test digits and {shift['wise-ft']} on the shifts.",
    )


def _commands(lab: Lab, seed: int) -> tuple[str, ...]:
    """What makes this again; nothing for sizes that the command line does not offer."""
    options = {FULL: "", QUICK: " --quick"}
    return (f"stockpot demo{options[lab]} --seed {seed}",) if lab in options else ()


def _said(gain: Difference) -> str:
    """A difference in points with its interval.

    >>> _said(Difference(value=0.012, low=-0.001, high=0.02))
    '+1.2 points, 95 % interval −0.1 to +2.0: within noise'
    """
    points = [100 * value for value in gain.numbers]
    text = "{:+.1f} points, 95 % interval {:+.1f} to {:+.1f}".format(*points).replace("-", "−")
    return f"{text}: within noise" if gain.within_noise else text


def _model(
    name: str, found: Mapping[str, Score], study: Study, hyperparameters: Mapping[str, JSON]
) -> ModelRecord:
    soup = study.soups.get(name)
    shares: Mapping[str, Any] = {} if soup is None else soup.coefficients
    return ModelRecord(
        name=name,
        kind=_kind(name),
        scores={split: _score(score) for split, score in found.items()},
        path=_path(name, study),
        hyperparameters=hyperparameters,
        coefficients={Path(path).stem: float(share) for path, share in shares.items()},
        fingerprint=study.fingerprints.get(study.best if name == "best-single" else name),
        note=f"this is {study.best}" if name == "best-single" else "",
    )


def _kind(name: str) -> Any:
    if name in ("base", "wise-ft", "ensemble"):
        return name
    return "soup" if name in ("uniform", "greedy") else "run"


def _path(name: str, study: Study) -> str | None:
    """Where the model lies, from the folder of the report."""
    if name == "ensemble":
        return None
    if name in study.soups:
        return f"soups/{name}.safetensors"
    if name == "base":
        return "base.safetensors"
    return f"runs/{study.best if name == 'best-single' else name}.safetensors"


def _score(score: Score) -> ScoreRecord:
    return ScoreRecord(score.value, score.low, score.high, score.n, score.metric)


def _curve(study: Study) -> CurveRecord:
    points = []
    for point in study.curve:
        scores: Mapping[str, Any] = point["scores"]
        points.append(CurvePoint(point["alpha"], {s: ScoreRecord(**v) for s, v in scores.items()}))
    return CurveRecord(study.best, tuple(points), chosen=study.alpha)


def _step(step: Step) -> StepRecord:
    reason = "within noise" if step.within_noise and not step.reason else step.reason
    return StepRecord(
        candidate=Path(step.candidate).stem,
        accepted=step.accepted,
        score=step.score,
        score_at_most=step.score_at_most,
        p_value=step.p_value,
        reason=reason,
    )


def _short(value: float) -> float:
    """Three digits are enough to read.

    >>> _short(0.000123456), _short(14)
    (0.000123, 14)
    """
    return value if isinstance(value, int) else float(f"{value:.3g}")
