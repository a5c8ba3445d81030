"""Reports: the tables and the scatter hold the record's numbers, and the record comes back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from stockpot._figures import Estimate, IntervalChart
from stockpot.errors import ReportError
from stockpot.report import load, save
from stockpot.report.model import (
    FORMAT,
    ModelRecord,
    Report,
    ScoreRecord,
    best_cells,
    files_table,
    gains_chart,
    lead_chart,
    models_table,
    report_figures,
    scatter,
    scores_table,
    shares_table,
)

from .example import SHIFTS, example

SPLITS = ("held-out", "test", "shift_average", *SHIFTS)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    assert load(tmp_path) == load(path) == example()


def _damaged(**changed: Any) -> str:
    return json.dumps({**example().to_json(), **changed})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "names no format"),
        ("{}", "names no format"),
        ("{", "cannot be read"),
        ('{"format": true}', "names no format"),
        (_damaged(format=FORMAT + 1), "from a newer stockpot"),
        (_damaged(title=None), "title: expected text"),
        (_damaged(models=[{"name": "a"}]), r"models\[0\] lacks 'kind'"),
        (_damaged(figures=[{"kind": "pie"}]), r"figures\[0\]: 'pie' is no kind"),
        (_damaged(headline=["nobody"]), "models without scores: nobody"),
        (_damaged(shifts=["nowhere"]), "not reported on: nowhere"),
        (_damaged(models=[{"name": "a", "kind": "run", "scores": {"t": {"value": "x"}}}]),
         r"models\[0\].scores.t.value: expected a number"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused_with_the_place(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=why):
        load(tmp_path)
    (tmp_path / "report.json").unlink()
    with pytest.raises(ReportError, match=r"holds no report\.json"):
        load(tmp_path)
    with pytest.raises(ReportError, match=r"there is nothing at .*elsewhere\.json$"):
        load(tmp_path / "elsewhere.json")


def test_the_scores_have_the_models_in_order_and_what_chose_first() -> None:
    report = example()
    table = scores_table(report)
    assert [row.name for row in table.rows] == list(report.headline)
    names = [column.name for column in table.columns]
    assert names == ["held-out", "test", "shift average", *SHIFTS]
    assert [row.name for row in table.rows if row.chosen] == ["greedy"]


def test_every_number_of_the_scores_is_that_of_the_record() -> None:
    report = example()
    for row in scores_table(report).rows:
        for split, cell in zip(SPLITS, row.cells, strict=True):
            score = report.model(row.name).scores[split]
            assert score is not None
            assert cell == Estimate(value=score.value, low=score.low, high=score.high)


def test_one_shift_needs_no_average() -> None:
    report = dataclasses.replace(example(), shifts=("blur",), reported_on=("test", "blur"))
    columns = [column.name for column in scores_table(report).columns]
    assert columns == ["held-out", "test", "blur"]


def test_the_best_is_marked_among_models_of_one_pass() -> None:
    """The ensemble has the best test score here, and costs as many passes as it has members."""
    report = example()
    table = scores_table(report)
    values = {row.name: row.cells[1].value for row in table.rows if row.name != "ensemble"}  # type: ignore[union-attr]
    best = max(values, key=values.__getitem__)
    rows = [row.name for row in table.rows]
    assert (rows.index(best), 1) in set(best_cells(table, higher_is_better=True))
    assert (rows.index("base"), 1) in set(best_cells(table, higher_is_better=False))


def test_all_models_are_listed_with_their_hyperparameters() -> None:
    report = example()
    table = models_table(report)
    assert [row.name for row in table.rows] == [model.name for model in report.models]
    names = [column.name for column in table.columns[3:]]
    assert names == ["lr", "epochs", "label smoothing", "augment"]
    (run,) = [row for row in table.rows if row.name == "run-03"]
    assert run.cells[3] == report.model("run-03").hyperparameters["lr"]
    odd = ModelRecord("odd", "run", {}, hyperparameters={"betas": [0.9, 0.99]})
    cells = models_table(dataclasses.replace(report, models=(odd,), headline=())).rows[0].cells
    assert cells[-1] == "[0.9, 0.99]"


def test_shares_show_which_ingredients_a_soup_has() -> None:
    table = shares_table(example())
    assert table is not None
    assert [column.name for column in table.columns] == ["uniform", "greedy", "wise-ft"]
    shares = {row.name: row.cells for row in table.rows}
    assert shares["run-00"][:2] == (1 / 12, 0.25)
    assert shares["run-07"][1] is None
    assert [row.name for row in table.rows][:2] == ["base", "run-00"]
    bare = dataclasses.replace(example(), models=example().models[:3], headline=())
    assert shares_table(bare) is None
    assert files_table(dataclasses.replace(bare, models=())) is None


def test_the_scatter_holds_every_model_once() -> None:
    report = example()
    chart = scatter(report)
    assert chart is not None
    names = [name for point in chart.points for name in point.name.split(", ")]
    assert sorted(names) == sorted(model.name for model in report.models)
    assert (chart.x.name, chart.y.name) == ("test (%)", "shift average (%)")
    assert chart.x.scale == chart.y.scale == "logit"
    (best,) = [point for point in chart.points if "best-single" in point.name]
    assert best.labelled
    assert best.name.count("run-") == 1


def test_a_point_has_the_scores_of_its_model() -> None:
    report = example()
    chart = scatter(report)
    assert chart is not None
    (point,) = [p for p in chart.points if p.name == "greedy"]
    test, shift = (report.model("greedy").scores[s] for s in ("test", "shift_average"))
    assert test is not None
    assert shift is not None
    assert (point.x, point.y) == (test.value, shift.value)
    assert (point.x_low, point.x_high) == (test.low, test.high)
    assert (point.y_low, point.y_high) == (shift.low, shift.high)


def test_a_model_without_a_score_is_left_out() -> None:
    report = example()
    bare = ModelRecord("late", "soup", {"test": ScoreRecord(0.9), "shift_average": None})
    more = dataclasses.replace(report, models=(*report.models, bare))
    assert scatter(more) == scatter(report)


def test_the_curves_are_in_the_scatter_point_by_point() -> None:
    report = example()
    chart = scatter(report)
    assert chart is not None
    assert len(chart.lines) == 2
    curve = report.figures[1]
    test, shift = curve.lines[:2]  # type: ignore[union-attr]
    assert (chart.lines[1].x, chart.lines[1].y) == (test.y, shift.y)


def _losses() -> Report:
    loss = {"test": ScoreRecord(1.7, metric="nll"), "shift_average": ScoreRecord(2.1, metric="nll")}
    models = tuple(ModelRecord(name, "run", loss) for name in "ab")
    models = (models[0], dataclasses.replace(models[1], kind="base"))
    return dataclasses.replace(
        example(), models=models, headline=(), figures=(), gains=(), higher_is_better=False
    )


def test_losses_are_not_put_on_logit_axes_and_lower_is_better() -> None:
    chart = scatter(_losses())
    assert chart is not None
    assert chart.x.scale == "linear"
    assert chart.explanation.startswith("Left is better")
    with pytest.raises(ReportError, match="take linear ones"):
        scatter(_losses(), axes="logit")


def test_the_lead_is_the_gain_or_the_scatter_or_the_scores() -> None:
    report = example()
    gains = lead_chart(report)
    assert gains == gains_chart(report)
    assert isinstance(gains, IntervalChart)
    assert gains.rows[0] == ("test", Estimate(value=0.004, low=-0.003, high=0.011))
    assert f"over {report.gains_over}" in gains.title
    without = dataclasses.replace(report, gains=())
    assert lead_chart(without) == scatter(without)
    alone = dataclasses.replace(without, shifts=(), reported_on=("test",))
    lead = lead_chart(alone)
    assert lead is not None
    assert lead.title == "Scores on test"
    assert lead_chart(dataclasses.replace(alone, headline=("base",))) is None
    assert [figure.name for figure in report_figures(report)][:2] == ["gains", "scatter"]
