"""The figures of a soup with what stands around them."""

from __future__ import annotations

import dataclasses

from stockpot.report.soup_parts import soup_parts

from .example import example


def test_there_is_a_part_for_each_thing_that_was_recorded() -> None:
    parts = {part.id: part for part in soup_parts(example())}
    assert list(parts) == ["path-greedy", "coefficients-learned", "phases"]
    assert len(parts["path-greedy"].table.rows) == 12
    assert parts["coefficients-learned"].table.columns[0] == "run-00"
    assert len(parts["phases"].table.rows) == 12


def test_a_report_without_any_has_no_part() -> None:
    bare = dataclasses.replace(example(), steps={}, mixing={}, phases=())
    assert list(soup_parts(bare)) == []
