from __future__ import annotations

import pytest

from stockpot.report.canvas import DARK, LIGHT
from stockpot.report.diagnosis_drawing import draw_figure
from stockpot.report.diagnosis_info import get_diagnosis_infos
from stockpot.report.diagnosis_tables import figure_table
from stockpot.report.figures import diagnosis_figures
from stockpot.report.svg import PAGE, to_svg

from .diagnosis_example import told

INFOS = {info.id: info for info in get_diagnosis_infos(told())}


@pytest.mark.parametrize("name", INFOS)
def test_every_mark_has_a_name_and_the_drawing_takes_its_colours_from_the_page(name: str) -> None:
    drawing = draw_figure(INFOS[name], palette=PAGE)
    svg = to_svg(drawing, name=name, label="A figure.")
    assert drawing.tips
    for gid in drawing.tips:
        assert f'id="{name}-{gid}"' in svg
    assert "#0102" not in svg
    assert "var(--" in svg


@pytest.mark.parametrize("name", INFOS)
def test_the_table_below_holds_a_number_for_each_mark(name: str) -> None:
    info = INFOS[name]
    table = figure_table(info)
    assert all(len(row.cells) == len(table.columns) for row in table.rows)
    n_marks = len(draw_figure(info, palette=LIGHT).tips)
    n_cells = len(table.rows) * len(table.columns)
    assert n_cells >= n_marks


def test_figures_are_there_for_papers_and_notebooks(tmp_path) -> None:
    figures = diagnosis_figures(told(), palette=DARK)
    assert list(figures) == list(INFOS)
    figures["landscape"].savefig(tmp_path / "landscape.png")
    assert (tmp_path / "landscape.png").stat().st_size > 5000


def test_a_flat_landscape_can_be_drawn() -> None:
    data = told()
    for point in (*data["landscape"]["spots"], *data["landscape"]["marks"]):
        point["loss"] = 0.5
    (info,) = [i for i in get_diagnosis_infos(data) if i.id == "landscape"]
    assert draw_figure(info, palette=LIGHT).tips
