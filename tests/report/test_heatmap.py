"""Heat maps of coefficients."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockpot.errors import OutputExistsError, ReportError
from stockpot.report.canvas import DARK
from stockpot.report.heatmap import (
    coefficients_map,
    get_coefficients_info,
    save_coefficients_map,
)

LAYERS = {f"block.{i}": {"runs/a.pt": 1 - i / 10, "runs/b.pt": i / 10} for i in range(10)}


def test_the_numbers_are_those_of_the_soup_in_the_order_of_its_layers() -> None:
    info = get_coefficients_info(LAYERS)
    assert info.groups == tuple(LAYERS)
    assert info.ingredients == ("a", "b")
    assert info.values[3] == (0.7, 0.3)
    assert info.largest == 1
    assert not info.is_signed


def test_a_soup_without_groups_is_one_row_and_what_is_left_out_is_zero() -> None:
    info = get_coefficients_info({"x/run.pt": 1.2, "y/run.pt": -0.2})
    assert info.groups == ("model",)
    assert info.ingredients == ("x/run.pt", "y/run.pt")  # the stems would be the same
    assert info.is_signed
    assert get_coefficients_info({"a": {"p": 1.0}, "b": {"q": 1.0}}).values == ((1, 0), (0, 1))
    with pytest.raises(ReportError, match="no coefficients"):
        get_coefficients_info({})


def test_every_cell_is_drawn_with_its_value_and_every_layer_named() -> None:
    axes = coefficients_map(LAYERS, palette=DARK).axes[0]
    assert axes.get_images()[0].get_array().tolist() == [
        list(row) for row in get_coefficients_info(LAYERS).values
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LAYERS)


def test_hundreds_of_tensors_fit_a_page_with_some_of_their_names() -> None:
    many = {f"layer.{i}.weight": {"a": 0.5, "b": 0.5} for i in range(400)}
    figure = coefficients_map(many)
    assert figure.get_size_inches()[1] < 20
    shown = figure.axes[0].get_yticklabels()
    assert 40 < len(shown) <= 100


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_it_is_written_whole_and_never_over_something(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"map.{ending}"
    save_coefficients_map(LAYERS, path)
    first = path.read_bytes()
    assert len(first) > 2000
    with pytest.raises(OutputExistsError):
        save_coefficients_map(LAYERS, path)
    save_coefficients_map(LAYERS, path, force=True)
    assert path.read_bytes() == first


def test_an_ending_that_is_no_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"\.svg, \.png or \.pdf"):
        save_coefficients_map(LAYERS, tmp_path / "map.txt")
