"""Learned soups where a program gives scores and no gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stockpot.errors import RecipeError, SplitRoleError
from stockpot.evaluate.command import CommandEvaluator
from stockpot.recipes import Learned
from stockpot.recipes.record import verify

# Nearly nothing instead of zeros, with which models would count as pruned.
ROWS = np.maximum(
    np.float32([[1, 0, 0, 0, 2, 1], [0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]]), np.float32(1e-3)
)
TARGET = np.array([0.6, 0.3, 0.1]) @ ROWS


class Distance(CommandEvaluator):
    """A program that says how far the weights are from a target, without a process for each run.

    `steps` rounds its score, as an accuracy is; `offset` moves the target of the deciding program.
    """

    def __init__(self, *, steps: float = 0.0, offset: float = 0.0, dies_at=(), **options) -> None:
        super().__init__("fit {checkpoint}", **options)
        self.steps, self.offset, self.dies_at = steps, offset, dies_at
        self.runs: list[str] = []

    def _run(self, path, split, key, variables):
        self.runs.append(split)
        if len(self.runs) in self.dies_at:
            raise KeyboardInterrupt
        weights = load_file(path)
        flat = np.concatenate([weights["a.w"].ravel(), weights["b.w"].ravel()])
        score = -float(np.abs(flat - TARGET - (self.offset if split == "deciding" else 0)).sum())
        return {"score": round(score / self.steps) * self.steps if self.steps else score, "n": 100}


@pytest.fixture
def paths(tmp_path) -> list[str]:
    found = []
    for i, row in enumerate(ROWS):
        found.append(str(tmp_path / f"m{i}.safetensors"))
        save_file({"a.w": row[:4].reshape(2, 2), "b.w": row[4:]}, found[-1])
    return found


@pytest.mark.parametrize("constraint", ["softmax", "free", "hyperplane"])
def test_the_search_finds_the_coefficients_that_made_the_target(paths, constraint) -> None:
    soup = Learned(constraint=constraint, budget=160).cook(paths, evaluator=Distance())
    assert soup.details.taken == "learned"
    np.testing.assert_allclose(list(soup.coefficients.values()), [0.6, 0.3, 0.1], atol=0.05)
    assert soup.details.beta is None
    assert soup.details.losses is None


def test_layers_can_have_coefficients_of_their_own(paths, tmp_path) -> None:
    soup = Learned(by="layer", budget=120).cook(paths, evaluator=Distance())
    assert set(soup.coefficients) == {"a", "b"}
    for group in soup.coefficients.values():
        assert math.fsum(group.values()) == pytest.approx(1)
    soup.save(tmp_path / "soup.safetensors")
    assert verify(tmp_path / "soup.safetensors") == []


def test_the_budget_bounds_the_evaluations_beside_those_of_greedy(paths) -> None:
    evaluator = Distance()
    soup = Learned(budget=40).cook(paths, evaluator=evaluator)
    assert 30 <= soup.details.n_evaluations <= 40
    greedy = 2 * len(paths) - 1
    assert len(evaluator.runs) <= 40 + greedy
    scores = [epoch["score"] for epoch in soup.details.epochs[soup.details.start]]
    assert scores == sorted(scores)  # the best so far
    assert soup.details.epochs[soup.details.start][-1]["evaluations"] <= 40


def test_a_budget_without_room_for_one_generation_is_refused(paths) -> None:
    with pytest.raises(RecipeError, match=r"give at least \d+ \(--budget\)"):
        Learned(budget=5).cook(paths, evaluator=Distance())


def test_scores_with_steps_are_no_trouble(paths) -> None:
    soup = Learned(budget=200).cook(paths, evaluator=Distance(steps=0.25))
    assert soup.details.parts["learned"]["fitting"] >= -0.25
    assert soup.details.parts["uniform"]["fitting"] < -0.9


def test_a_killed_search_ends_where_an_undisturbed_one_does_and_runs_nothing_twice(
    paths, tmp_path
) -> None:
    whole = Distance(cache=tmp_path / "whole")
    undisturbed = Learned(budget=40).cook(paths, evaluator=whole)
    runs = 0
    for _ in range(2):
        killed = Distance(cache=tmp_path / "killed", dies_at=(12,))
        with pytest.raises(KeyboardInterrupt):
            Learned(budget=40).cook(paths, evaluator=killed)
        runs += len(killed.runs) - 1
    last = Distance(cache=tmp_path / "killed")
    resumed = Learned(budget=40).cook(paths, evaluator=last)
    assert resumed.to_json() == undisturbed.to_json()
    assert runs + len(last.runs) == len(whole.runs)


def test_workers_run_the_candidates_of_a_generation_side_by_side_and_change_nothing(paths) -> None:
    alone, shared = Distance(), Distance(n_workers=3)
    soups = [Learned(budget=30).cook(paths, evaluator=evaluator) for evaluator in (alone, shared)]
    assert soups[0].to_json() == soups[1].to_json()
    assert len(shared.runs) - len(alone.runs) <= 3  # what greedy tried ahead and did not need


def test_the_search_leaves_the_random_numbers_of_others_alone(paths) -> None:
    np.random.seed(3)  # noqa: NPY002 - the very state that is looked at
    want = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    Learned(budget=20).cook(paths, evaluator=Distance())
    assert np.random.random() == want  # noqa: NPY002


def test_a_second_program_decides_and_the_better_of_the_others_is_taken(paths) -> None:
    agreeing = Distance(deciding="decide {checkpoint}")
    soup = Learned(budget=60, decide_on="deciding").cook(paths, evaluator=agreeing)
    assert soup.details.taken == "learned"
    assert set(soup.scores) == {"held-out", "deciding"}
    assert not any("favours" in note for note in soup.notes)
    # Once for each soup that competes and for the best single, which stands beside the result: it
    # plays no part in the search.
    assert agreeing.runs.count("deciding") == 4

    other = Distance(deciding="decide {checkpoint}", offset=-5.0)
    soup = Learned(budget=60, decide_on="deciding").cook(paths, evaluator=other)
    parts = {name: part["deciding"] for name, part in soup.details.parts.items()}
    assert soup.details.taken != "learned"
    assert parts[soup.details.taken] == max(parts.values())


def test_without_a_deciding_program_it_is_said_whom_the_comparison_favours(paths) -> None:
    soup = Learned(budget=20).cook(paths, evaluator=Distance())
    assert any("favours" in note and "--eval-deciding" in note for note in soup.notes)


def test_a_split_cannot_both_fit_and_decide(paths) -> None:
    evaluator = Distance(deciding="decide {checkpoint}", test={"test": "report {checkpoint}"})
    with pytest.raises(SplitRoleError, match="both fit and decide"):
        Learned(decide_on="deciding").cook(paths, evaluator=evaluator, choose_on="deciding")
    with pytest.raises(SplitRoleError, match="role is test"):
        Learned(decide_on="test").cook(paths, evaluator=evaluator)
