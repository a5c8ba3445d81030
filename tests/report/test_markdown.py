"""The Markdown card says what the page says."""

from __future__ import annotations

import dataclasses

from stockpot.report.info import format_value
from stockpot.report.markdown import to_markdown

from .example import example


def test_every_score_of_the_headline_is_in_the_card() -> None:
    report = example()
    scores = to_markdown(report).partition("## What each soup")[0]
    lines = {line.split(" | ")[0]: line for line in scores.splitlines()}
    for name in report.headline:
        for score in report.model(name).scores.values():
            assert score is not None
            assert format_value(score.value, score.metric) in lines[f"| {name}"]


def test_verdict_notes_and_commands_are_there() -> None:
    report = example()
    card = to_markdown(report)
    assert card.startswith("# Handwriting\n\nThe greedy soup of 4 of 12 runs")
    assert "```\nstockpot demo -o stockpot-demo --seed 0\n```" in card
    assert report.notes[0] in card
    assert "runs/run-00.safetensors" in card


def test_names_cannot_become_markup() -> None:
    report = dataclasses.replace(example(), title="a|b_c <script>")
    assert "# a\\|b\\_c &lt;script>" in to_markdown(report)
