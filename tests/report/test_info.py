"""The numbers of each figure, apart from its drawing."""

from __future__ import annotations

import dataclasses

import pytest

from stockpot.errors import ReportError
from stockpot.report.info import get_alpha_curve_info, get_scatter_info
from stockpot.report.records import ModelRecord, ScoreRecord

from .example import example


def test_the_scatter_holds_every_model_once() -> None:
    report = example()
    info = get_scatter_info(report)
    names = [name for point in info.points for name in point.name.split(", ")]
    assert sorted(names) == sorted(model.name for model in report.models)
    assert (info.x_split, info.y_split, info.logit) == ("test", "shift_average", True)


def test_the_best_run_and_its_second_name_are_one_point() -> None:
    report = example()
    (point,) = [p for p in get_scatter_info(report).points if "best-single" in p.name]
    run, second = point.name.split(", ")
    assert report.model(run).scores == report.model(second).scores
    assert point.label == "best-single"


def test_a_point_has_the_scores_of_its_model() -> None:
    report = example()
    (point,) = [p for p in get_scatter_info(report).points if p.name == "greedy"]
    test, shift = (
        report.model("greedy").scores["test"],
        report.model("greedy").scores["shift_average"],
    )
    assert test is not None
    assert shift is not None
    assert (point.x, point.y) == (test.value, shift.value)
    assert point.x_interval == (test.low, test.high)
    assert point.y_interval == (shift.low, shift.high)


def test_a_model_without_a_score_is_left_out() -> None:
    report = example()
    bare = ModelRecord("late", "soup", {"test": ScoreRecord(0.9), "shift_average": None})
    more = dataclasses.replace(report, models=(*report.models, bare))
    assert get_scatter_info(more).points == get_scatter_info(report).points


def test_the_curves_are_in_the_scatter_point_by_point() -> None:
    report = example()
    traces = get_scatter_info(report).traces
    assert [trace.name for trace in traces] == ["best-single", "greedy"]
    alpha, x, y = traces[1].points[10]
    there = report.curves[1].points[10]
    assert alpha == there.x
    assert x == there.scores["test"].value  # type: ignore[union-attr]
    assert y == there.scores["shift_average"].value  # type: ignore[union-attr]


def test_losses_are_not_put_on_logit_axes() -> None:
    loss = {"test": ScoreRecord(1.7, metric="nll"), "shift_average": ScoreRecord(2.1, metric="nll")}
    report = dataclasses.replace(
        example(), models=(ModelRecord("a", "run", loss),), headline=(), curves=()
    )
    assert get_scatter_info(report).logit is False


def test_a_scatter_without_shifts_is_refused() -> None:
    report = dataclasses.replace(example(), shifts=(), reported_on=("test",))
    with pytest.raises(ReportError, match="at least one shift"):
        get_scatter_info(report)


def test_a_curve_shows_test_shift_and_the_split_that_chose() -> None:
    report = example()
    info = get_alpha_curve_info(report, report.curves[0])
    assert [line.split for line in info.lines] == ["test", "shift_average", "held-out"]
    first = info.lines[0]
    assert first.x == tuple(p.x for p in report.curves[0].points)
    assert first.y[3] == report.curves[0].points[3].scores["test"].value  # type: ignore[union-attr]
    assert first.low is not None
    assert first.low[3] == report.curves[0].points[3].scores["test"].low  # type: ignore[union-attr]
    assert info.chosen == 0.75


def test_a_curve_leaves_out_what_was_not_computed() -> None:
    report = example()
    curve = report.curves[0]
    points = tuple(
        dataclasses.replace(
            p,
            scores={"test": dataclasses.replace(p.scores["test"], low=None), "held-out": None},  # type: ignore[type-var]
        )
        for p in curve.points
    )
    info = get_alpha_curve_info(report, dataclasses.replace(curve, points=points))
    (line,) = info.lines
    assert line.split == "test"
    assert line.low is None
    assert line.high is None
