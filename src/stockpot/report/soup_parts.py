"""The figures of how soups were made, each with its caption and its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stockpot.report.canvas import Drawing
from stockpot.report.info import split_name
from stockpot.report.records import Report
from stockpot.report.soup_drawing import draw_heat, draw_path, draw_phases
from stockpot.report.soup_info import (
    HeatInfo,
    PathInfo,
    PhaseInfo,
    get_heat_info,
    get_path_info,
    get_phase_info,
)
from stockpot.report.svg import PAGE
from stockpot.report.tables import Cell, Row, Table, plain_cell


class SoupPart(NamedTuple):
    """A figure with what stands around it; `id` is unique in a page and names its file."""

    id: str
    title: str
    drawing: Drawing
    caption: str
    table: Table


def soup_parts(report: Report) -> Iterator[SoupPart]:
    """Paths of chosen soups, coefficients by group, and sparse phases, where there are any."""
    for name in report.steps:
        path = get_path_info(report, name)
        if path.points:
            yield SoupPart(
                f"path-{name}", f"The path of the {name} soup", draw_path(path, palette=PAGE),
                f"Scores on {split_name(path.split)}, which chose. The line is the soup as it "
                "stood. Triangles are bounds: those candidates had lost before all examples "
                "were seen.",
                _path_table(path),
            )  # fmt: skip
    for name in report.mixing:
        heat = get_heat_info(report, name)
        yield SoupPart(
            f"coefficients-{name}", f"Coefficients of the {name} soup",
            draw_heat(heat, palette=PAGE),
            "A row for each group of tensors, a column for each ingredient; the stronger the "
            "colour, the larger the share.",
            _heat_table(heat),
        )  # fmt: skip
    if report.phases:
        phases = get_phase_info(report)
        yield SoupPart(
            "phases", "Phases of the sparse soup", draw_phases(phases, palette=PAGE),
            f"Scores on {split_name(phases.split)} after each phase. Candidates share the zeros "
            "of their soup, whose line has its 95 % intervals.",
            _phase_table(phases),
        )  # fmt: skip


def _path_table(info: PathInfo) -> Table:
    rows = [
        Row(
            point.candidate, "",
            (
                plain_cell(point.step),
                plain_cell(point.value),
                Cell("at most" if point.at_most else "", str(int(point.at_most))),
                Cell("accepted" if point.accepted else "rejected", str(int(point.accepted))),
                plain_cell(point.p_value),
            ),
        )
        for point in info.points
    ]  # fmt: skip
    return Table(("step", "score", "bound", "decision", "p"), tuple(rows))


def _heat_table(info: HeatInfo) -> Table:
    rows = [
        Row(group, "", tuple(plain_cell(value) for value in row))
        for group, row in zip(info.groups, info.values, strict=True)
    ]
    return Table(info.ingredients, tuple(rows))


def _phase_table(info: PhaseInfo) -> Table:
    rows = [
        Row(point.name, kind, (plain_cell(point.sparsity), plain_cell(point.value)))
        for kind, points in (("run", info.candidates), ("soup", info.soups))
        for point in points
    ]
    return Table(("sparsity", split_name(info.split)), tuple(rows))
