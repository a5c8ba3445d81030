"""The tables hold the record's numbers, unrounded where they are sorted by."""

from __future__ import annotations

import dataclasses

from stockpot.report.info import get_alpha_curve_info, get_scatter_info
from stockpot.report.records import ModelRecord, ScoreRecord, StepRecord
from stockpot.report.tables import (
    curve_table,
    headline_table,
    models_table,
    scatter_table,
    shares_table,
    steps_table,
)

from .example import SHIFTS, example


def test_the_headline_has_the_models_in_order_and_what_chose_first() -> None:
    report = example()
    table = headline_table(report)
    assert [row.name for row in table.rows] == list(report.headline)
    assert table.columns == ("held-out", "test", "shift average", *SHIFTS)


def test_every_number_of_the_headline_is_that_of_the_record() -> None:
    report = example()
    table = headline_table(report)
    splits = ["held-out", "test", "shift_average", *SHIFTS]
    for row in table.rows:
        for split, cell in zip(splits, row.cells, strict=True):
            score = report.model(row.name).scores[split]
            assert score is not None
            assert float(cell.sort) == score.value
            assert cell.text == f"{100 * score.value:.1f}"
            assert cell.interval == f"{100 * (score.low or 0):.1f}–{100 * (score.high or 0):.1f}"


def test_the_best_is_marked_among_models_of_one_pass() -> None:
    """The ensemble has the best test score here, and costs as many passes as it has members."""
    report = example()
    table = headline_table(report)
    values = {row.name: row.cells[1] for row in table.rows}
    single = {n: float(c.sort) for n, c in values.items() if n != "ensemble"}
    assert [n for n, c in values.items() if c.best] == [max(single, key=single.__getitem__)]
    lowest = headline_table(dataclasses.replace(report, higher_is_better=False))
    assert [row.name for row in lowest.rows if row.cells[1].best] == ["base"]


def test_a_score_that_was_not_computed_is_a_dash() -> None:
    report = example()
    models = (ModelRecord("base", "base", {"test": ScoreRecord(0.5), "held-out": None}),)
    table = headline_table(
        dataclasses.replace(report, models=models, headline=("base",), shifts=())
    )
    held_out, test, *_ = table.rows[0].cells
    assert (held_out.text, held_out.sort) == ("–", "")
    assert (test.text, test.interval) == ("50.0", "")


def test_all_models_are_listed_with_their_hyperparameters() -> None:
    report = example()
    table = models_table(report)
    assert [row.name for row in table.rows] == [model.name for model in report.models]
    assert table.columns[3:] == ("lr", "epochs", "label smoothing", "augment")
    (run,) = [row for row in table.rows if row.name == "run-03"]
    assert float(run.cells[3].sort) == report.model("run-03").hyperparameters["lr"]
    assert run.cells[6].text == "shift+rotate"
    assert table.rows[0].cells[3].text == "–"


def test_shares_show_which_ingredients_a_soup_has() -> None:
    table = shares_table(example())
    assert table is not None
    assert table.columns == ("uniform", "greedy", "wise-ft")
    shares = {row.name: [cell.text for cell in row.cells] for row in table.rows}
    assert shares["run-00"][:2] == ["0.083", "0.25"]
    assert shares["run-07"][1] == "–"
    assert [row.name for row in table.rows][:2] == ["base", "run-00"]
    for column in range(3):
        assert abs(sum(float(row.cells[column].sort) for row in table.rows) - 1) < 1e-12


def test_without_coefficients_there_is_no_table_of_shares() -> None:
    report = dataclasses.replace(example(), models=example().models[:3], headline=())
    assert shares_table(report) is None


def test_steps_say_what_was_decided_and_on_what() -> None:
    steps = (
        StepRecord("run-02", True, 0.9812),
        StepRecord("run-01", True, 0.983, p_value=0.5, reason="within noise"),
        StepRecord("run-00", False, score_at_most=0.979),
        StepRecord("run-03", False),
    )
    table = steps_table(steps, "accuracy")
    shown = [[cell.text for cell in row.cells] for row in table.rows]
    assert shown == [
        ["1", "accepted", "98.1", "–", ""],
        ["2", "accepted", "98.3", "0.5", "within noise"],
        ["3", "rejected", "at most 97.9", "–", ""],
        ["4", "rejected", "–", "–", ""],
    ]


def test_the_tables_below_the_figures_hold_their_numbers() -> None:
    report = example()
    scatter, curve = get_scatter_info(report), get_alpha_curve_info(report, report.curves[0])
    rows = {row.name: row for row in scatter_table(scatter).rows}
    assert len(rows) == len(scatter.points) + sum(len(t.points) for t in scatter.traces)
    assert float(rows["greedy"].cells[1].sort) == 0.848
    table = curve_table(curve)
    assert [float(row.cells[1].sort) for row in table.rows] == list(curve.lines[1].y)
    assert [float(row.name) for row in table.rows] == list(curve.lines[0].x)
