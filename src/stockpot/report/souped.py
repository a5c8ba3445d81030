"""Reports of what commands recorded: the record beside a soup, and the runs of a sweep.

Every command that makes a soup writes what it decided and measured beside it. A page of it computes
nothing anew, so it shows what that command printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stockpot._types import StrPath
from stockpot.errors import ReportError
from stockpot.formats.output import RECORD
from stockpot.formats.table import record_path
from stockpot.report.info import format_value, split_name
from stockpot.report.records import (
    PAGE_NAME,
    RECORD_NAME,
    SHIFT_AVERAGE,
    CurvePoint,
    CurveRecord,
    ModelRecord,
    PhaseRecord,
    Report,
    ScoreRecord,
    StepRecord,
    load,
)

_Scores = Mapping[str, ScoreRecord | None]
_Told = Mapping[str, Any]
_TITLES = {
    "uniform": "Uniform soup", "greedy": "Greedy soup", "pruned": "Pruned soup",
    "learned": "Learned soup", "wise-ft": "WiSE-FT", "auto": "Every recipe that applies",
    "sparse": "Sparse soup", "trajectory": "Average along a run", "best-single": "Best single run",
}  # fmt: skip


def open_report(source: StrPath) -> Report:
    """The report of a folder, a soup, or a record.

    Args:
        source: a folder with `report.json`; a soup, file or folder, with the record that its
            command wrote; that record; or the folder of a sweep.

    Raises:
        ReportError: there is nothing to report on, or it is damaged.
    """
    path = Path(source)
    if path.name == RECORD_NAME or (path / RECORD_NAME).is_file():
        return load(path)
    record = path if path.name.endswith(RECORD) else record_path(path)
    for candidate in (record, path / RECORD):
        if candidate.is_file():
            return soup_report(_read(candidate), name=candidate.name.removesuffix(f".{RECORD}"))
    if path.is_dir() and any(path.glob("run-*.json")):
        return sweep_report([_read(one) for one in sorted(path.glob("run-*.json"))])
    raise ReportError(
        f"{source} holds no {RECORD_NAME}, no soup with its record ({record.name}), and no runs of "
        "a sweep: give what a command of stockpot wrote"
    )


def page_beside(source: StrPath) -> Path:
    """Where the page of `open_report(source)` goes: into a folder, beside a file.

    >>> str(page_beside("out/soup.safetensors")), str(page_beside("out/report.json"))
    ('out/soup.report.html', 'out/report.html')
    """
    path = Path(source)
    if path.is_dir():
        return path / PAGE_NAME
    if path.name in (RECORD_NAME, RECORD):
        return path.with_name(PAGE_NAME)
    stem = path.name.removesuffix(f".{RECORD}")
    return path.with_name(f"{Path(stem).stem}.report.html")


def _read(path: Path) -> _Told:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} is not a record of stockpot: {error}") from error
    if not isinstance(data, dict):
        raise ReportError(f"{path} is not a record of stockpot: it is no JSON object")
    return data


def soup_report(record: _Told, *, name: str = "soup") -> Report:
    """The report of one soup.

    Args:
        record: as it is kept beside the soup.
        name: of the soup's file.

    Raises:
        ReportError: the record lacks something, or nothing was scored.
    """
    try:
        return _Soup(record, name).report()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"the record of {name} is damaged: {error!r}") from error


class _Soup:
    """One record, and the names that the page gives its models."""

    def __init__(self, record: _Told, name: str) -> None:
        self.record, self.file = record, name
        self.told: _Told = record["soup"]
        self.recipe = str(self.told["recipe"]["name"])
        paths = [one["path"] for one in record["ingredients"]]
        if record.get("base") is not None:
            paths.append(record["base"]["path"])
        self.names = _short_names(paths)
        scores = self.told["scores"]
        if not any(value is not None for value in scores.values()):
            raise ReportError(
                f"nothing was scored when {name} was made; give the command a task (--task)"
            )
        roles = self.told.get("roles") or _guessed_roles(scores)
        self.by_role = {
            role: tuple(split for split, found in roles.items() if found == role)
            for role in ("held-out", "test", "shift")
        }
        held_out = self.by_role["held-out"] or tuple(roles)
        self.chosen_on = self.told.get("chosen_on") or held_out[0]

    def report(self) -> Report:
        headline, curves = self._headline(), self._curves()
        singles = self._singles({model.name for model in headline})
        steps = tuple(self._step(step) for step in self.told["steps"])
        return Report(
            title=f"{_TITLES.get(self.recipe, self.recipe)}: {self.file}",
            verdict=tuple(self._verdict(headline)),
            chosen_on=self.chosen_on,
            reported_on=(*self.by_role["test"], *self.by_role["shift"]),
            shifts=self.by_role["shift"],
            headline=tuple(model.name for model in headline),
            models=(*headline, *singles),
            curves=curves,
            steps={self._own_name: steps} if steps else {},
            provenance=self._provenance(),
            commands=(f"stockpot verify {self.file}", f"stockpot report {self.file}"),
            notes=tuple(str(note) for note in self.told["notes"]),
            higher_is_better=self.told.get("direction", "max") == "max",
            mixing=self._mixing(),
            phases=self._phases(),
        )

    @property
    def _own_name(self) -> str:
        return "greedy" if self.recipe == "greedy" else self.recipe

    def _name(self, path: str) -> str:
        """Of a model, by its path as given or, as ingredients are recorded, in full."""
        known = self.names.get(path) or self.names.get(str(Path(path).absolute()))
        return known or Path(path.rstrip("/")).stem

    def _headline(self) -> list[ModelRecord]:
        told = self.told
        if "table" in told:
            return [self._row(row) for row in told["table"]]
        models = [
            ModelRecord(
                self._own_name, _kind(self.recipe), _scores(told["scores"]), self.file,
                coefficients=self._shares(told["coefficients"]),
                fingerprint=self.record.get("output"),
            )
        ]  # fmt: skip
        if told.get("curve") and "alpha" in told["curve"][0]:
            first, last = told["curve"][0], told["curve"][-1]
            models.insert(0, ModelRecord("base", "base", _scores(first["scores"])))
            models.insert(1, ModelRecord("fine-tuned", "run", _scores(last["scores"])))
        for row, values in told.get("baselines", {}).items():
            if row != "soup":
                costs = {
                    "epochs of retraining": values["epochs"],
                    "forward passes": values["models"],
                }
                scores = _scores(values["scores"])
                models.append(ModelRecord(row, _kind(row), scores, hyperparameters=costs))
        return models

    def _row(self, row: _Told) -> ModelRecord:
        shares = row.get("coefficients") or {}
        return ModelRecord(
            row["recipe"],
            _kind(row["recipe"]),
            _scores(row["scores"]),
            hyperparameters={"p against best-single": row.get("p_value")},
            coefficients=self._shares(shares),
        )

    def _shares(self, told: _Told) -> dict[str, float]:
        """Coefficients of whole models; those of groups are shown apart."""
        return {self._name(p): float(c) for p, c in told.items() if isinstance(c, int | float)}

    def _singles(self, taken: set[str]) -> list[ModelRecord]:
        """The ingredients: what choosing knew of them, and what a sweep keeps beside them."""
        singles = {self._name(p): value for p, value in self.told.get("singles", {}).items()}
        shown = []
        metric = _metric(self.told["scores"])
        for one in self.record["ingredients"]:
            name, run = self._name(one["path"]), _run_beside(one["path"])
            scores: dict[str, ScoreRecord | None] = dict(_scores(run.get("scores") or {}))
            value = singles.get(name)
            if value is not None and scores.get(self.chosen_on) is None:
                scores[self.chosen_on] = ScoreRecord(float(value), metric=metric)
            if name not in taken:
                shown.append(
                    ModelRecord(
                        name, "run", scores, one["path"], run.get("hyperparameters") or {},
                        fingerprint=one["fingerprint"],
                    )
                )  # fmt: skip
        return shown

    def _curves(self) -> tuple[CurveRecord, ...]:
        curve = self.told.get("curve") or []
        if not curve or "alpha" not in curve[0]:
            return ()
        points = tuple(CurvePoint(point["alpha"], _scores(point["scores"])) for point in curve)
        tuned = " + ".join(self._name(path) for path in self.told["selected"][:3]) or "tuned"
        return (CurveRecord(tuned, points, chosen=self.told.get("alpha")),)

    def _step(self, step: _Told) -> StepRecord:
        noise = "within noise" if step.get("within_noise") and not step["reason"] else ""
        return StepRecord(
            self._name(step["candidate"]), step["accepted"], step["score"], step["score_at_most"],
            step["p_value"], step["reason"] or noise,
        )  # fmt: skip

    def _mixing(self) -> dict[str, dict[str, dict[str, float]]]:
        groups = {g: v for g, v in self.told["coefficients"].items() if isinstance(v, Mapping)}
        if not groups:
            return {}
        return {self._own_name: {group: self._shares(told) for group, told in groups.items()}}

    def _phases(self) -> tuple[PhaseRecord, ...]:
        return tuple(
            PhaseRecord(
                phase["sparsity"],
                {Path(c["path"]).stem: _scores(c["scores"]) for c in phase["candidates"]},
                _scores(phase["scores"]),
            )
            for phase in self.told.get("phases", ())
        )

    def _provenance(self) -> dict[str, str]:
        record, shown = self.record, {"stockpot": str(self.record["stockpot"])}
        recipe = {
            k: v for k, v in self.told["recipe"].items() if k != "name" and v not in (None, [])
        }
        shown["recipe"] = ", ".join([self.recipe, *(f"{k} {_plain(v)}" for k, v in recipe.items())])
        if record.get("output"):
            shown["fingerprint of the soup"] = record["output"]
        if record.get("mask"):
            shown["fingerprint of its mask"] = record["mask"]["fingerprint"]
        if record.get("base"):
            shown["base"] = f"{record['base']['path']}, {record['base']['fingerprint']}"
        n = {
            s: v["n"]
            for s, v in self.told["scores"].items()
            if v is not None and v["n"] and s != SHIFT_AVERAGE
        }
        shown["examples"] = ", ".join(f"{count} {split_name(split)}" for split, count in n.items())
        return shown

    def _verdict(self, headline: Sequence[ModelRecord]) -> list[str]:
        told, own = self.told, self._own_name
        sentences = []
        if "table" in told:
            own = str(told["chosen"])
            row = next(row for row in told["table"] if row["recipe"] == own)
            p = row.get("p_value")
            noise = ""
            if p is not None and own != "best-single":
                noise = f"; there p = {p:.2g} against the best single run"
                noise += ", which is within noise" if p > 0.05 else ""
            sentences.append(
                f"Of {len(told['table'])} recipes and baselines, {own} was chosen on "
                f"{split_name(self.chosen_on)}{noise}."
            )
        elif self.recipe in ("greedy", "pruned"):
            kept, n = len(told["selected"]), len(self.record["ingredients"])
            sentences.append(f"The {self.recipe} soup keeps {kept} of {n} ingredients.")
            weak = sum(bool(s["accepted"] and s.get("within_noise")) for s in told["steps"])
            taken = sum(bool(s["accepted"] and s["reason"] != "first") for s in told["steps"])
            if taken:
                sentences[0] += f" Of {taken} accepted steps, {weak} are within noise."
        elif self.recipe == "learned":
            sentences.append(
                f"The {told['taken']} soup was taken: it decided best on data that no "
                "coefficient was fitted to."
            )
        elif self.recipe == "wise-ft":
            sentences.append(
                f"α = {told['alpha']:g} of the way from the base"
                + (f", which {split_name(self.chosen_on)} chose." if told.get("chosen") else ".")
            )
        elif self.recipe == "sparse":
            sentences.append(
                f"{100 * told['sparsity']:.2f} % of the prunable weights are zero, after "
                f"{len(told['phases'])} phase{'s' * (len(told['phases']) != 1)}."
            )
        chosen = next((model for model in headline if model.name == own), headline[-1])
        return [*sentences, self._scored(chosen)]

    def _scored(self, model: ModelRecord) -> str:
        tests = [s for s in self.by_role["test"] if model.scores.get(s) is not None]
        splits = [*tests, *([SHIFT_AVERAGE] if model.scores.get(SHIFT_AVERAGE) else [])]
        found = [
            f"{_said(score)} on {split_name(split)}"
            for split in splits or [self.chosen_on]
            if (score := model.scores.get(split)) is not None
        ]
        if not splits:
            return (
                f"It scores {', '.join(found)}, which chose it; nothing independent was measured."
            )
        return f"It scores {' and '.join(found)}, which had no part in the choice."


def sweep_report(runs: Sequence[_Told]) -> Report:
    """The report of a sweep, from the records of its runs.

    Raises:
        ReportError: no run was scored, or a record is damaged.
    """
    done = [run for run in runs if run.get("scores")]
    if not done:
        raise ReportError("no run of the sweep was scored; finish it, or give it a task")
    try:
        roles = _guessed_roles(done[0]["scores"])
        by_role = {
            role: tuple(split for split, found in roles.items() if found == role)
            for role in ("held-out", "test", "shift")
        }
        chosen_on = (by_role["held-out"] or tuple(roles))[0]
        models = tuple(
            ModelRecord(
                run["name"], "run", _scores(run["scores"]), run["path"], run["hyperparameters"],
                fingerprint=run.get("fingerprint"),
            )
            for run in done
        )  # fmt: skip
        ranked = sorted(
            (model for model in models if model.scores.get(chosen_on) is not None),
            key=lambda model: -model.scores[chosen_on].value,  # type: ignore[union-attr]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"the record of a run is damaged: {error!r}") from error
    failed = len(runs) - len(done)
    verdict = [
        f"{len(done)} runs were fine-tuned from one base"
        + (f"; {failed} failed or were not scored." if failed else ".")
    ]
    if ranked:
        best, worst = ranked[0], ranked[-1]
        verdict.append(
            f"On {split_name(chosen_on)} they range from {_said(worst.scores[chosen_on])} "
            f"({worst.name}) to {_said(best.scores[chosen_on])} ({best.name})."
        )
    environment = done[0].get("environment") or {}
    return Report(
        title="Sweep",
        verdict=tuple(verdict),
        chosen_on=chosen_on,
        reported_on=(*by_role["test"], *by_role["shift"]),
        shifts=by_role["shift"],
        headline=tuple(model.name for model in ranked[:5]),
        models=models,
        provenance={str(k): str(v) for k, v in environment.items()},
        notes=("The table of scores has the five best runs on the split that chooses.",)
        if len(ranked) > 5
        else (),
    )


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The stem of each path, or the whole path where two stems agree."""
    stems = {path: Path(path.rstrip("/")).stem or path for path in dict.fromkeys(paths)}
    taken = list(stems.values())
    return {path: stem if taken.count(stem) == 1 else path for path, stem in stems.items()}


def _guessed_roles(scores: _Told) -> dict[str, str]:
    """Roles of splits by their names, for records that do not say them."""
    shifted = SHIFT_AVERAGE in scores
    roles = {}
    for split in scores:
        if split == SHIFT_AVERAGE:
            continue
        if split.startswith(("held", "val", "dev")):
            roles[split] = "held-out"
        else:
            roles[split] = "shift" if shifted and not split.startswith("test") else "test"
    return roles


def _kind(name: str) -> Literal["base", "run", "soup", "wise-ft", "ensemble"]:
    if name in ("base", "dense"):
        return "base"
    if "ensemble" in name:
        return "ensemble"
    if name.startswith("wise-ft"):
        return "wise-ft"
    return "run" if name in ("best-single", "best-candidate", "mean-candidate", "imp") else "soup"


def _scores(told: _Told) -> _Scores:
    return {
        split: None
        if value is None
        else ScoreRecord(value["value"], value["low"], value["high"], value["n"], value["metric"])
        for split, value in told.items()
    }


def _metric(told: _Told) -> str:
    return next(str(value["metric"]) for value in told.values() if value is not None)


def _said(score: ScoreRecord | None) -> str:
    """A score with its interval, for a sentence."""
    if score is None:
        return "–"
    unit = " %" if score.metric == "accuracy" else ""
    text = f"{format_value(score.value, score.metric)}{unit}"
    if score.low is None or score.high is None:
        return text
    low, high = (format_value(bound, score.metric) for bound in (score.low, score.high))
    return f"{text} ({low}–{high})"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _run_beside(path: str) -> _Told:
    """The record that a sweep keeps beside the checkpoint of a run; empty without one."""
    beside = Path(path).with_suffix(".json")
    return _read(beside) if beside.name.startswith("run-") and beside.is_file() else {}
