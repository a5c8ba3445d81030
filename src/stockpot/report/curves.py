"""A record of WiSE-FT curves, from what their soups tell of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot import __version__
from stockpot.errors import ReportError
from stockpot.report.info import format_value, split_name
from stockpot.report.records import (
    SHIFT_AVERAGE,
    CurvePoint,
    CurveRecord,
    ModelRecord,
    Report,
    ScoreRecord,
)

_Told = Mapping[str, Any]


def curve_report(
    told: Mapping[str, _Told], *, base: str, roles: Mapping[str, str], commands: Sequence[str] = ()
) -> Report:
    """One page for the curves of one base: each is a line of the scatter and a figure of its own.

    Args:
        told: path of the tuned model → `Soup.to_json()` of its WiSE-FT soup, with a curve.
        base: path of the base.
        roles: split → `"held-out"`, `"test"` or `"shift"`, in the task's order.
        commands: what made this.

    Raises:
        ReportError: two tuned models have the same name.
    """
    names = {path: Path(path).stem or path for path in told}
    if len(set(names.values())) < len(names):
        raise ReportError("two tuned models have the same name: report them apart")
    curves = {names[path]: one for path, one in told.items()}
    first = next(iter(curves.values()))
    by_role = {
        role: [split for split, found in roles.items() if found == role]
        for role in ("held-out", "test", "shift")
    }
    chosen_on = first["chosen_on"] or (by_role["held-out"] or list(roles))[0]
    models = [_model("base", "base", _point(first, 0.0), path=base)]
    for path, one in told.items():
        models += _models(names[path], path, one)
    return Report(
        title="From the base to what was tuned from it",
        verdict=tuple(text for name, one in curves.items() for text in _verdict(name, one)),
        chosen_on=chosen_on,
        reported_on=(*by_role["test"], *by_role["shift"]),
        shifts=tuple(by_role["shift"]),
        headline=tuple(model.name for model in models),
        models=tuple(models),
        curves=tuple(_curve(name, one) for name, one in curves.items()),
        provenance={"stockpot": __version__},
        commands=tuple(commands),
        notes=tuple(dict.fromkeys(note for one in curves.values() for note in one["notes"])),
        higher_is_better=first["direction"] == "max",
    )


def _models(name: str, path: str, told: _Told) -> list[ModelRecord]:
    chosen, rule = told["chosen"], told["rule"]
    found = [
        _model(name, "run", _point(told, 1.0), path=path),
        _model(f"{name}, α = {chosen['alpha']:g}", "wise-ft", chosen["scores"], note=rule),
    ]
    if chosen["alpha"] != 0.5 and "half" in told:
        found.append(_model(f"{name}, α = 0.5", "wise-ft", told["half"]["scores"]))
    if "ensemble" in told:
        middle = next(p["scores"] for p in told["ensemble"] if p["alpha"] == 0.5)
        found.append(_model(f"{name}, ensemble", "ensemble", middle, note="logits, α = 0.5"))
    return found


def _model(name: str, kind: Any, scores: _Told, *, path: str | None = None, note: str = "") -> Any:
    return ModelRecord(name=name, kind=kind, scores=_scores(scores), path=path, note=note)


def _scores(scores: _Told) -> dict[str, ScoreRecord | None]:
    return {s: None if v is None else ScoreRecord(**v) for s, v in scores.items()}


def _point(told: _Told, alpha: float) -> _Told:
    found: _Told = next(p["scores"] for p in told["curve"] if p["alpha"] == alpha)
    return found


def _curve(name: str, told: _Told) -> CurveRecord:
    points = tuple(CurvePoint(p["alpha"], _scores(p["scores"])) for p in told["curve"])
    return CurveRecord(name, points, chosen=told["chosen"]["alpha"])


def _verdict(name: str, told: _Told) -> list[str]:
    """What the chosen point gains over either end, with intervals, in words."""
    alpha = told["chosen"]["alpha"]
    texts = [f"{name}: α = {alpha:g} ({told['rule']})."]
    for end, gains in (told.get("gains") or {}).items():
        reference = next(iter(told["best"]))
        shown = [s for s in dict.fromkeys((*_tests(gains, reference), SHIFT_AVERAGE)) if s in gains]
        parts = [_said(s, gains[s], told["curve"][0]["scores"][s]["metric"]) for s in shown]
        if parts and alpha != {"base": 0, "tuned": 1}[end]:
            texts.append(f"Against the {end} model: {'; '.join(parts)}.")
    return texts


def _tests(gains: _Told, reference: str) -> list[str]:
    return [s for s in ("test", reference) if s in gains][:1]


def _said(split: str, gain: _Told, metric: str) -> str:
    values = [gain[key] for key in ("difference", "low", "high")]
    texts = [_signed(v, metric) for v in values if v is not None]
    interval = f" [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ""
    noise = ", within noise" if gain["within_noise"] else ""
    return f"{split_name(split)} {texts[0]}{interval}{noise}"


def _signed(value: float, metric: str) -> str:
    return ("−" if value < 0 else "+") + format_value(abs(value), metric)
