"""The numbers of paths, heat maps and phases are those of the record."""

from __future__ import annotations

import dataclasses

import pytest

from stockpot.errors import ReportError
from stockpot.report.soup_info import get_heat_info, get_path_info, get_phase_info

from .example import example


def test_a_path_has_every_decision_with_its_score_or_bound() -> None:
    report = example()
    info = get_path_info(report, "greedy")
    assert [point.candidate for point in info.points] == [
        s.candidate for s in report.steps["greedy"]
    ]
    assert [point.at_most for point in info.points] == [False] * 4 + [True] * 8
    assert info.current == tuple((i + 1, 0.978 + i / 1000) for i in range(4))
    assert info.split == "held-out"


def test_a_heat_map_has_groups_in_natural_order() -> None:
    report = example()
    info = get_heat_info(report, "learned")
    assert info.groups[:3] == ("block.0", "block.1", "block.2")
    assert info.groups[10] == "block.10"
    told = report.mixing["learned"]
    for group, row in zip(info.groups, info.values, strict=True):
        assert dict(zip(info.ingredients, row, strict=True)) == told[group]


def test_phases_are_on_the_test() -> None:
    info = get_phase_info(example())
    assert info.split == "test"
    assert [p.sparsity for p in info.soups] == [0.536, 0.785, 0.9]
    assert len(info.candidates) == 9
    assert info.dense is None


def test_what_a_report_lacks_is_named() -> None:
    report = example()
    with pytest.raises(ReportError, match="no decisions of 'pruned'"):
        get_path_info(report, "pruned")
    with pytest.raises(ReportError, match="no coefficients by group of 'greedy'"):
        get_heat_info(report, "greedy")
    with pytest.raises(ReportError, match="no phase"):
        get_phase_info(dataclasses.replace(report, phases=()))
