"""The smaller questions, asked of a tiny sweep, and what their tables are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.experiments.test_handwriting import TINY

from experiments import questions
from stockpot import demo
from stockpot.train.sweep.named import parse_space

LAB = replace(TINY, n_runs=3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything of one seed."""
    folder = tmp_path_factory.mktemp("questions")
    demo.run(folder / "demos" / "seed-0", lab=LAB, seed=0, n_workers=1)
    arguments = ["--demos", str(folder / "demos"), "--out", str(folder / "out"), "--seeds", "0"]
    patch = pytest.MonkeyPatch()
    patch.setenv("LOKY_MAX_CPU_COUNT", "1")
    text = questions.main(arguments, lab=LAB)
    patch.setattr(questions, "lines", None)
    assert questions.main(arguments, lab=LAB) == text, "nothing is made twice"
    patch.undo()
    assert (folder / "out" / "questions.md").read_text() == text + "\n"
    told: list[dict[str, Any]] = json.loads((folder / "out" / "questions.json").read_text())
    (one,) = told
    assert text == questions.markdown([one])
    return one


def test_lines_go_from_the_base_to_each_run(found: dict[str, Any]) -> None:
    assert len(found["lines"]) == LAB.n_runs
    assert {line["0.0"]["test"] for line in found["lines"]} == {found["training"]["base"]["test"]}
    assert len({line["1.0"]["test"] for line in found["lines"]}) > 1


def test_pairs_and_numbers_are_of_the_same_runs(found: dict[str, Any]) -> None:
    assert len(found["pairs"]["runs"]) == 3
    assert len(found["pairs"]["base"]) == 3
    assert [row["k"] for row in found["numbers"]] == [1, 2, 3]
    one, _, three = found["numbers"]
    assert one["soup"] == one["ensemble"] == one["mean run"]
    ends = [line["1.0"] for line in found["lines"]]
    for column in ("test", "shift_average"):
        mean = sum(end[column] for end in ends) / 3
        assert three["mean run"][column] == pytest.approx(mean)


def test_the_strength_of_a_pull_is_chosen_on_held_out(found: dict[str, Any]) -> None:
    rows = found["training"]
    for kind, by in questions.STRENGTHS.items():
        chosen = rows[f"{kind}, chosen"]
        assert chosen in [rows[name] for name in by]
        assert chosen["held-out"] == max(rows[name]["held-out"] for name in by)
        assert len({tuple(rows[name].values()) for name in by}) > 1, "strengths differ"
    strongest = rows["pull to the start, 0.3"]
    away = abs(rows["fine-tuned"]["fonts"] - rows["base"]["fonts"])
    assert abs(strongest["fonts"] - rows["base"]["fonts"]) <= away


def test_losses_and_crops_vary_in_one_of_two_sweeps_that_are_alike_otherwise(
    found: dict[str, Any],
) -> None:
    plain, varied = found["choices"].values()
    assert plain != varied
    assert list(plain) == ["mean run", "best single", "uniform", "greedy"] == list(varied)
    ends = [line["1.0"]["test"] for line in found["lines"]]
    assert plain["mean run"]["test"] == pytest.approx(sum(ends) / len(ends))
    assert questions.by_varied([found], "loss and crops too", "greedy", "best single", "held-out")[
        0
    ] == pytest.approx(varied["greedy"]["held-out"] - varied["best single"]["held-out"])
    law = parse_space({**LAB.space().as_data(), **questions.LOSS_AND_CROP})
    for i in range(3):
        ours, theirs = law.draw(i, seed=0), LAB.space().draw(i, seed=0)
        assert {name: ours[name] for name in theirs} == theirs
        assert set(ours) - set(theirs) == {"loss", "min_crop"}


def test_a_change_of_nothing_changes_nothing(found: dict[str, Any]) -> None:
    unchanged = found["severities"]["base"]["turned by 0"]["accuracy"]
    assert unchanged == pytest.approx(found["training"]["base"]["test"], abs=1 / 40)
    assert set(found["severities"]) == {"base", "best single", "greedy", "uniform", "ensemble"}


def test_changes_grow_and_stay_in_range() -> None:
    images = np.random.default_rng(0).random((5, 8, 8))
    splits = questions.severities(images, torch.arange(5), seed=0)
    assert next(iter(splits)) == "turned by 0"
    away = {
        name: float(np.abs(split.dataset.tensors[0][:, 0].numpy() - images).mean())  # type: ignore[attr-defined]
        for name, split in splits.items()
    }
    noise = [away[f"noise of {sd}"] for sd in questions.NOISE[1:]]
    assert noise == sorted(noise)
    assert away["turned by 0"] < 1e-6 < away["turned by 10"] < away["turned by 50"]


def _seed(*lines: dict[str, float]) -> dict[str, Any]:
    return {
        "lines": [{a: {"held-out": v, "test": v / 2} for a, v in line.items()} for line in lines]
    }


def test_alphas_are_chosen_by_held_out_and_spread_over_runs() -> None:
    found = [_seed({"0.5": 0.8, "1.0": 0.4}, {"0.5": 0.6, "1.0": 0.6})]
    assert questions.at_alpha(found, "test", "0.5") == [pytest.approx(0.35)]
    assert questions.at_alpha(found, "test", "chosen") == [pytest.approx((0.4 + 0.3) / 2)]
    assert questions.at_alpha(found, "test", "best") == questions.at_alpha(found, "test", "chosen")
    assert questions.spread(found, "held-out", "1.0") == [pytest.approx(0.2 / 2**0.5)]


def test_correlations_are_by_seed() -> None:
    pairs = [{"differ": d, "ensemble": 2 * d, "soup": -d} for d in (0.1, 0.2, 0.4)]
    found = [{"pairs": {"runs": pairs}}]
    assert questions.correlation(found, "ensemble") == [pytest.approx(1)]
    assert questions.correlation(found, "soup") == [pytest.approx(-1)]
    assert questions.difference(found, "runs") == [pytest.approx(0.7 / 3)]
