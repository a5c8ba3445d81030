"""Whether these will soup, in plain words with the numbers behind each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stockpot.analysis.barrier import HIGH_BARRIER
from stockpot.analysis.geometry import outlier_text
from stockpot.analysis.pairs import advantage_correlation, approximation_correlation
from stockpot.diagnosis.result import Answer, Verdict
from stockpot.evaluate.compare import SHIFT_AVERAGE
from stockpot.io.paths import short_name

if TYPE_CHECKING:
    from stockpot.analysis.pairs import PairCorrelation
    from stockpot.diagnosis.result import Diagnosis
    from stockpot.evaluate.compare import Difference


_OPENING: dict[Answer, str] = {
    "yes": "Yes: a soup of these is better than the best of them.",
    "mixed": "Partly: a soup is better than the best of these on some data and worse on other.",
    "within noise": "These average well, but what a soup gains is within noise.",
    "no": "No: averaging these does not help.",
}


def conclude(found: Diagnosis) -> Verdict:
    """The answer, what was gained, and why: one sentence for each thing that was measured."""
    answer = _answer(found)
    return Verdict(answer, (_OPENING[answer], *_sentences(found)))


def _answer(found: Diagnosis) -> Answer:
    ranked: list[Answer] = ["yes", "mixed", "within noise", "no"]
    soups = [found.gains[name] for name in _soups(found) if name in found.gains]
    answers = [_fares(list(by.values()), found.higher_is_better) for by in soups]
    answer: Answer = min(answers, key=ranked.index) if answers else "within noise"
    apart = [pair for pair in found.pairs if pair.barrier >= HIGH_BARRIER]
    hopeless = len(_of_other_starts(found)) > 0 or 2 * len(apart) > len(found.pairs) > 0
    return "no" if answer == "within noise" and hopeless else answer


def _soups(found: Diagnosis) -> list[str]:
    """Names of the soups of several; a greedy soup of one is the best single model."""
    return ["greedy", "uniform"] if len(found.kept) > 1 else ["uniform"]


def _fares(gains: Sequence[Difference], higher_is_better: bool) -> Answer:
    """How one soup fares over several splits.

    >>> from stockpot.evaluate.compare import Difference
    >>> _fares([Difference(value=0.02, low=0.01, high=0.03)], True)
    'yes'
    """
    sign = 1 if higher_is_better else -1
    beyond = [sign * gain.value for gain in gains if not gain.within_noise]
    better, worse = any(d > 0 for d in beyond), any(d < 0 for d in beyond)
    if better:
        return "mixed" if worse else "yes"
    return "no" if worse else "within noise"


def _sentences(found: Diagnosis) -> Iterator[str]:
    yield from _start(found)
    yield from _gains(found)
    yield from _barriers(found)
    yield from _plane(found)
    yield from _angles(found)
    yield from _ensembling(found)
    yield from _calibration(found)


def _of_other_starts(found: Diagnosis) -> list[str]:
    return [
        move.path
        for move in found.moves.ingredients
        if move.same_initialisation.verdict == "different"
    ]


def _start(found: Diagnosis) -> Iterator[str]:
    others = _of_other_starts(found)
    known = [
        move.same_initialisation.correlation
        for move in found.moves.ingredients
        if move.same_initialisation.correlation is not None
    ]
    if others:
        yield (
            f"{_names(others)} most likely did not start from the base (correlation of tensors "
            f"{min(known):.2f}; fine-tuned children measure above 0.9): averages with them are "
            "worthless."
        )
    elif known:
        yield (
            f"All {len(known)} seem to come from the base: their tensors correlate with its own by "
            f"{min(known):.2f} to {max(known):.2f} (evidence, never proof)."
        )
    else:
        yield "No tensor shows whether these come from the base."
    moves = found.moves.ingredients
    far = outlier_text([m.path for m in moves], [m.distance or 0.0 for m in moves], "the base")
    if far:
        yield f"{far}. The uniform soup suffers most from them."


def _gains(found: Diagnosis) -> Iterator[str]:
    best = short_name(found.best)
    for name in ("greedy", "uniform"):
        if name == "greedy" and len(found.kept) == 1:
            alone = f"The greedy soup kept {best} alone of {len(found.ingredients)}"
            better = _answer(found) in ("yes", "mixed")
            yield alone + (
                f": by {_split(found.split)} nothing else is chosen, and what is better elsewhere "
                "is the plain mean (stockpot average)."
                if better
                else "."
            )
            continue
        parts = [
            f"{_signed(found, gain)} on {_split(split)}"
            for split, gain in found.gains.get(name, {}).items()
        ]
        if parts:
            kept = f"of {len(found.kept)} " if name == "greedy" else ""
            yield (
                f"The {name} soup {kept}against the best single run, {best}: {'; '.join(parts)}."
            )


def _barriers(found: Diagnosis) -> Iterator[str]:
    if not found.pairs:
        return
    heights = [pair.barrier for pair in found.pairs]
    worst = max(found.pairs, key=lambda pair: pair.barrier)
    apart = sum(height >= HIGH_BARRIER for height in heights)
    of = f"{len(heights)} pairs" if len(heights) > 1 else "the one pair"
    text = (
        "all below 0.1 nat: they lie in one basin"
        if apart == 0
        else f"{apart} of them 0.1 nat or more: those do not lie in one basin"
    )
    yield (
        f"On the lines between {of}, the barrier is {np.median(heights):.3f} nat in the median and "
        f"{worst.barrier:.3f} at most ({short_name(worst.a)} – {short_name(worst.b)}), {text}."
    )


def _plane(found: Diagnosis) -> Iterator[str]:
    if found.landscape is None:
        return
    marks = {mark.kind: mark for mark in found.landscape.marks[:4]}
    runs = [mark for mark in found.landscape.marks[:4] if mark.kind == "run"]
    low = marks["midpoint"].loss
    if low is None or any(run.loss is None for run in runs):
        return
    ends = " and ".join(f"{run.loss:.4f} ({short_name(run.name)})" for run in runs)
    relation = "lies lower than both" if found.landscape.lower else "does not lie lower than both"
    scores = [_score(found, mark.score) for mark in (marks["midpoint"], *runs)]
    yield (
        f"In the plane through the base and the two best runs, their average {relation}: held-out "
        f"loss {low:.4f} nat against {ends}; {found.metric} {scores[0]} against {scores[1]} and "
        f"{scores[2]}."
    )


def _angles(found: Diagnosis) -> Iterator[str]:
    known = [pair.degrees for pair in found.pairs if pair.degrees is not None]
    if len(known) < 3:
        return
    text = _correlation(advantage_correlation(found.pairs))
    yield (
        f"The moves from the base stand at {min(known):.0f}° to {max(known):.0f}° to each other; "
        f"over {len(known)} pairs, the angle and what averaging the pair gains correlate {text}."
    )


def _ensembling(found: Diagnosis) -> Iterator[str]:
    gaps = [gap for pair in found.pairs for gap in pair.gaps]
    if len(gaps) < 3:
        return
    mean = f"{np.mean([gap.measured for gap in gaps]):+.4f}".replace("-", "−")
    yield (
        f"Averaging weights instead of outputs changes the loss by {mean} nat in the mean of "
        f"{len(gaps)} points between pairs; its approximation correlates with it "
        f"{_correlation(approximation_correlation(found.pairs))}."
    )


def _calibration(found: Diagnosis) -> Iterator[str]:
    if not found.calibration:
        return
    parts = [
        f"{short_name(row.name)} {row.before.ece:.3f}, {row.after.ece:.3f} after temperature "
        "scaling"
        for row in found.calibration
    ]
    yield f"Expected calibration error on {_split(found.test)}: {'; '.join(parts)}."


def _correlation(found: PairCorrelation) -> str:
    if found.value is None:
        return "not at all, since one of them does not vary"
    text = f"with r = {found.value:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" (95 % interval over runs {found.low:+.2f} to {found.high:+.2f})"
    return text.replace("-", "−")


def _signed(found: Diagnosis, gain: Difference) -> str:
    """A difference with its interval, in points where scores are shares."""
    unit, name = (100, " points") if found.metric == "accuracy" else (1, "")
    digits = 1 if unit == 100 else 4
    numbers = [f"{unit * v:+.{digits}f}" for v in gain.numbers]
    noise = ", within noise" if gain.within_noise else ""
    text = f"{numbers[0]}{name} (95 % interval {numbers[1]} to {numbers[2]}{noise})"
    return text.replace("-", "−")


def _score(found: Diagnosis, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if found.metric == "accuracy" else f"{value:.4g}"


def _names(paths: list[str]) -> str:
    shown = ", ".join(map(short_name, paths[:5]))
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _split(name: str) -> str:
    return "the average of the shifts" if name == SHIFT_AVERAGE else f"the {name} split"
