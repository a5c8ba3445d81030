"""Each figure of the page is also a matplotlib figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from stockpot.errors import ReportError
from stockpot.report.canvas import DARK
from stockpot.report.figures import (
    alpha_curve,
    coefficients,
    greedy_path,
    scatter,
    sparse_phases,
)

from .example import example


def test_figures_can_be_saved_like_any_other(tmp_path: Path) -> None:
    report = example()
    for i, figure in enumerate(
        (
            scatter(report, axes="linear"),
            alpha_curve(report, "greedy", palette=DARK),
            greedy_path(report),
            coefficients(report),
            sparse_phases(report),
        )
    ):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{i}.pdf")
        assert (tmp_path / f"{i}.pdf").stat().st_size > 5000


def test_an_unknown_curve_is_named() -> None:
    with pytest.raises(ReportError, match="no curve 'learned'"):
        alpha_curve(example(), "learned")
