"""What the page shows of a sparse soup: its phases and its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stockpot._figures import AnyFigure, Role
from stockpot._records import parse
from stockpot.errors import ReportError
from stockpot.evaluate.task import Score
from stockpot.recipes.result import Details, Names, ScoredModel, SoupSummary
from stockpot.report.format1 import sparse_phases_chart
from stockpot.report.model import Scores


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: str
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Phase:
    sparsity: float
    candidates: tuple[_Candidate, ...]
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Baseline:
    scores: Scores
    models: int = 1


_ROLES: Mapping[str, Role] = {
    "dense": "base", "imp": "run", "best-candidate": "run", "mean-candidate": "run",
    "ensemble": "ensemble",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SparseDetails(Details):
    """The part of a sparse soup's record that a page shows.

    Attributes:
        sparsity: share of the prunable weights that are zero.
        phases: one for each cycle of pruning, retraining and averaging.
        baselines: by name.
    """

    sparsity: float
    phases: tuple[_Phase, ...]
    baselines: Mapping[str, _Baseline] = field(default_factory=dict)

    def sentences(self, summary: SoupSummary) -> tuple[str, ...]:
        """How sparse it is, after how many phases."""
        n = len(self.phases)
        return (
            f"{100 * self.sparsity:.2f} % of the prunable weights are zero, after {n} "
            f"phase{'s' * (n != 1)}.",
        )

    def models(self, soup: ScoredModel) -> tuple[ScoredModel, ...]:
        """The soup and its baselines."""
        higher = all(s.higher_is_better for s in soup.scores.values() if s is not None)
        return (
            soup,
            *(
                ScoredModel(
                    name=name,
                    scores=_typed(found.scores, higher),
                    role=_ROLES.get(name, "soup"),
                    models=found.models,
                )
                for name, found in self.baselines.items()
                if name != "soup"
            ),
        )


def sparse_summary(summary: SoupSummary, data: object) -> tuple[SoupSummary, list[AnyFigure]]:
    """A sparse soup's summary with typed details, and the chart of its phases.

    Raises:
        ReportError: the record is damaged; the message names the place.
    """
    details = parse(SparseDetails, data, error=ReportError)
    split = (*summary.splits("test"), summary.chosen_on or "", *summary.scores)[0]
    scores = [score for score in summary.scores.values() if score is not None]
    dense = details.baselines.get("dense")
    score = None if dense is None else dense.scores.get(split)
    names: Names = {
        c.path: f"candidate {i}" for p in details.phases for i, c in enumerate(p.candidates)
    }
    chart = sparse_phases_chart(
        [
            (
                phase.sparsity,
                {names[c.path]: c.scores.get(split) for c in phase.candidates},
                phase.scores.get(split),
            )
            for phase in details.phases
        ],
        split=split,
        metric=scores[0].metric if scores else "score",
        dense=None if score is None else score.value,
    )
    return replace(summary, details=details), [] if chart is None else [chart]


def _typed(scores: Scores, higher_is_better: bool) -> dict[str, Score | None]:
    return {
        split: None
        if s is None
        else Score(s.value, s.n or 0, s.low, s.high, s.metric, split, higher_is_better)
        for split, s in scores.items()
    }
