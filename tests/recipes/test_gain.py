"""The sentence that every result begins with: verdict, numbers, and against whom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import stockpot
from stockpot.evaluate.compare import Difference
from stockpot.evaluate.splits import with_splits
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import BestSingle, Greedy, Uniform, WiseFT
from stockpot.recipes.gain import Gain

BETTER, NOISE, WORSE = (0.3, 3.7), (-1.0, 2.0), (-3.0, -0.5)


def of(split, bounds):
    low, high = (bound / 100 for bound in bounds)
    return Difference(value=(low + high) / 2, low=low, high=high, split=split)


@pytest.mark.parametrize(
    ("test", "shifts", "verdict", "decided"),
    [
        (BETTER, BETTER, "gain", "test"),
        (BETTER, NOISE, "gain", "test"),
        (NOISE, BETTER, "gain", "shift_average"),
        (NOISE, NOISE, "no-gain", "test"),
        (BETTER, WORSE, "worse", "shift_average"),
        (WORSE, BETTER, "worse", "test"),
        ((0.0, 2.0), NOISE, "no-gain", "test"),
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_the_verdict_is_that_of_the_intervals(test, shifts, verdict, decided, higher):
    def turned(bounds):
        return bounds if higher else (-bounds[1], -bounds[0])

    splits = {
        "test": of("test", turned(test)),
        "shift_average": of("shift_average", turned(shifts)),
    }
    gain = Gain(model="runs/run-07.pt", splits=splits, metric="accuracy", higher_is_better=higher)
    assert gain.verdict == verdict
    assert gain.difference.split == decided
    assert gain.to_json()["verdict"] == verdict
    assert gain.to_json()["split"] == decided


def test_the_sentence_has_points_split_interval_and_model():
    gain = Gain(model="runs/run-07.pt", splits={"test": of("test", BETTER)}, metric="accuracy")
    assert str(gain) == "GAIN +2.0 points on test (0.3 to 3.7) over run-07"
    lost = Gain(model="runs/run-07.pt", splits={"test": of("test", WORSE)}, metric="accuracy")
    assert str(lost).startswith("WORSE: -1.7 points on test (-3.0 to -0.5) against run-07")
    assert str(lost).endswith("keep run-07")
    # What decided comes first, and an interval beside 0 shows on which side of it.
    splits = {"test": of("test", (-1.0, 0.4)), "shift_average": of("shift_average", (0.01, 0.5))}
    gain = Gain(model="a.pt", splits=splits, metric="accuracy")
    assert str(gain) == (
        "GAIN +0.3 points on shift average (0.010 to 0.500), -0.3 points on test (-1.0 to 0.4) "
        "over a"
    )
    loss = Gain(
        model="a.pt", splits={"test": of("test", WORSE)}, metric="nll", higher_is_better=False
    )
    assert str(loss) == "GAIN -0.0175 on test (-0.0300 to -0.0050) over a"


def test_without_intervals_nothing_is_tested():
    gain = Gain(model="a", splits={"test": Difference(value=1.0, split="test")}, reason="numbers")
    assert gain.verdict == "untested"
    found = gain.to_json()
    assert (found["low"], found["high"], found["p_value"]) == (None, None, None)
    assert found["splits"]["test"]["difference"] == 1.0


def test_it_is_the_paired_difference_to_the_best_single_on_data_that_did_not_choose(lab):
    evaluator = TaskEvaluator(lab.task)
    soup = Greedy().cook(lab.paths, evaluator=evaluator)
    (best,) = BestSingle().cook(lab.paths, evaluator=evaluator, report=False).selected
    assert soup.gain.model == best
    assert list(soup.gain.splits) == ["test", "shift_average"]
    assert set(soup.gain.shifts) == {"noise", "shifted"}
    one, other = (
        evaluator.predictions(model, "test").per_example
        for model in (soup.mixture, stockpot.open(best))
    )
    assert soup.gain.splits["test"].value == pytest.approx(np.mean(one - other))
    rows = {row.name: row for row in soup.baselines}
    assert rows["best-single"].scores["test"].value == pytest.approx(np.mean(other))
    assert [row.name for row in soup.models()] == ["best-single", "greedy"]


def test_it_survives_the_record_and_stands_in_the_json(lab, tmp_path):
    soup = Greedy().cook(lab.paths, lab.task, base=lab.base)
    soup.save(tmp_path / "soup.safetensors")
    loaded = stockpot.Soup.load(tmp_path / "soup.safetensors")
    assert loaded.gain == soup.gain
    assert [row.name for row in loaded.baselines] == ["base", "best-single"]
    assert set(soup.to_json()["gain"]) >= {
        "verdict", "model", "split", "difference", "low", "high", "p_value", "splits",
    }  # fmt: skip
    json.dumps(soup.to_json())


def test_the_best_single_is_no_gain_over_itself(lab):
    soup = BestSingle().cook(lab.paths, lab.task)
    assert soup.gain.verdict == "no-gain"
    assert str(soup.gain) == "NO GAIN: the soup is run-07"


def test_a_line_is_held_against_the_better_of_its_ends(lab):
    soup = WiseFT(alphas=(0.5,)).cook(lab.paths[:1], lab.task, base=lab.base)
    assert [row.name for row in soup.baselines] == ["base", "tuned"]
    assert soup.gain.model == lab.paths[0]
    worse = WiseFT(alphas=(0.5,)).cook([lab.base], lab.task, base=lab.paths[0])
    assert worse.gain.model == lab.paths[0]


def test_without_data_that_reports_it_is_untested(lab):
    only = with_splits(lab.task, {"held-out": lab.task.splits["held-out"]})
    soup = Greedy().cook(lab.paths[:3], only)
    assert soup.gain.verdict == "untested"
    assert "no part in the choice" in str(soup.gain)


def test_there_is_none_without_a_task_or_where_only_choosing_was_scored(lab):
    assert Uniform().cook(lab.paths[:2]).gain is None
    assert Greedy().cook(lab.paths[:2], lab.task, report=False).gain is None
    assert "gain" not in Uniform().cook(lab.paths[:2]).to_json()


def test_a_soup_prints_three_lines_that_begin_with_it(lab):
    soup = Greedy().cook(lab.paths, lab.task)
    first, second, third = str(soup).splitlines()
    assert first == str(soup.gain)
    assert second.startswith(f"greedy: {len(soup.selected)} of 8 (")
    assert "held-out" in second
    assert "(chose)" in second
    assert "state_dict" in third
    assert repr(soup) == str(soup)


def test_a_notebook_shows_tables_and_runs_nothing_of_a_hostile_name(lab, tmp_path):
    bad = tmp_path / "<script>"
    bad.mkdir()
    path = bad / "<b>.safetensors"
    path.write_bytes(Path(lab.paths[0]).read_bytes())
    soup = Greedy().cook([str(path), lab.paths[1]], lab.task)
    page = soup._repr_html_()
    assert "<table>" in page
    assert "<script>" not in page
    assert "<b>.safetensors" not in page


def test_a_frame_has_a_row_for_each_model_and_a_column_for_each_split(lab):
    frame = Greedy().cook(lab.paths, lab.task).to_frame()
    assert list(frame.index) == ["best-single", "greedy"]
    assert set(frame.columns) == {*lab.task.splits, "shift_average"}


def test_a_soup_is_loaded_into_a_model(lab):
    soup = Uniform().cook(lab.paths[:3])
    model, other = lab.task.build(), lab.task.build()
    model.load_state_dict(soup.state_dict())
    soup.load_into(other)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert one.equal(two)
