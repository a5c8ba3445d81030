"""The figures of a report as matplotlib figures, for papers and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot.errors import ReportError
from stockpot.report.canvas import LIGHT, Palette
from stockpot.report.diagnosis_drawing import draw_figure
from stockpot.report.diagnosis_info import get_diagnosis_infos
from stockpot.report.drawing import draw_curve, draw_scatter
from stockpot.report.info import Axes, get_alpha_curve_info, get_scatter_info
from stockpot.report.records import Report
from stockpot.report.soup_drawing import draw_heat, draw_path, draw_phases
from stockpot.report.soup_info import get_heat_info, get_path_info, get_phase_info

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from matplotlib.figure import Figure


def scatter(report: Report, *, palette: Palette = LIGHT, axes: Axes = "auto") -> Figure:
    """In-distribution score against the average over shifts, one mark per model.

    Up is robust, right is accurate; soups worth having lie above and to the right of their
    ingredients. Both axes are logit-scaled when the scores are fractions, unless `axes` says
    `"linear"`.

    Raises:
        ReportError: the report has no shifts.
    """
    return draw_scatter(get_scatter_info(report, axes=axes), palette=palette).figure


def alpha_curve(report: Report, name: str, *, palette: Palette = LIGHT) -> Figure:
    """Scores along the line from the base (α = 0) to the fine-tuned model (α = 1).

    Raises:
        ReportError: the report has no curve of this name.
    """
    for curve in report.curves:
        if curve.name == name:
            return draw_curve(get_alpha_curve_info(report, curve), palette=palette).figure
    raise ReportError(f"the report has no curve {name!r}")


def diagnosis_figures(
    diagnosis: Mapping[str, Any], *, palette: Palette = LIGHT
) -> dict[str, Figure]:
    """Every figure that a diagnosis has numbers for, by its id: `"landscape"`, `"lines"`, ….

    Args:
        diagnosis: what `stockpot diagnose --json` printed, or `Diagnosis.to_json()`.
    """
    return {
        info.id: draw_figure(info, palette=palette).figure
        for info in get_diagnosis_infos(diagnosis)
    }


def greedy_path(report: Report, name: str = "greedy", *, palette: Palette = LIGHT) -> Figure:
    """The decisions of a greedy or pruned soup in order, with its score as it grew.

    Raises:
        ReportError: the report has no decisions of a soup of this name.
    """
    return draw_path(get_path_info(report, name), palette=palette).figure


def coefficients(report: Report, name: str = "learned", *, palette: Palette = LIGHT) -> Figure:
    """Coefficients by group of tensors and ingredient, as a heat map.

    Raises:
        ReportError: the report has none by group of a soup of this name.
    """
    return draw_heat(get_heat_info(report, name), palette=palette).figure


def sparse_phases(report: Report, *, palette: Palette = LIGHT) -> Figure:
    """Scores of candidates and soups after each phase of a sparse soup, by sparsity.

    Raises:
        ReportError: the report is none of a sparse soup.
    """
    return draw_phases(get_phase_info(report), palette=palette).figure
