"""The numbers of the figures of a diagnosis as tables, for those who cannot see them."""

from __future__ import annotations

from stockpot.report.diagnosis_info import (
    Cloud,
    Courses,
    FigureInfo,
    LandscapeInfo,
    Matrix,
    Ranges,
)
from stockpot.report.tables import Cell, Row, Table


def figure_table(info: FigureInfo) -> Table:
    """One row for each mark; for a matrix one for each row; for a landscape the models."""
    if isinstance(info, Cloud):
        rows = [
            Row(p.name, "", (Cell(g.name, g.name), _number(p.x), _number(p.y)))
            for g in info.groups
            for p in g.points
        ]
        return Table(("kind", info.x_name, info.y_name), tuple(rows))
    if isinstance(info, Courses):
        rows = [
            Row(c.name, "", (_number(x), _number(y)))
            for c in info.courses
            for x, y in zip(c.x, c.y, strict=True)
        ]
        return Table((info.x_name, info.y_name), tuple(rows))
    if isinstance(info, Matrix):
        rows = [
            Row(name, "", tuple(map(_number, values)))
            for name, values in zip(info.rows, info.values, strict=True)
        ]
        return Table(info.columns, tuple(rows))
    if isinstance(info, Ranges):
        rows = [Row(r.name, "", tuple(map(_number, (r.value, r.low, r.high)))) for r in info.rows]
        return Table((info.x_name, "low", "high"), tuple(rows))
    return _landscape(info)


def _landscape(info: LandscapeInfo) -> Table:
    rows = [
        Row(m.name, m.kind if m.kind != "midpoint" else "soup",
            tuple(map(_number, (m.loss, m.score, m.x, m.y, m.distance))))
        for m in info.marks
    ]  # fmt: skip
    return Table(("loss", "score", "x", "y", "distance from the plane"), tuple(rows))


def _number(value: float | None) -> Cell:
    return Cell("–", "") if value is None else Cell(f"{value:.4g}", repr(value))
