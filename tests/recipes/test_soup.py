from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot.errors import OutputExistsError, VerificationError
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import BestSingle, Greedy, Soup, Uniform, WiseFT
from stockpot.recipes.record import verify


def test_the_record_lies_beside_the_checkpoint_and_loads_again(lab, tmp_path):
    soup = Greedy().cook(lab.paths, lab.task)
    out = tmp_path / "soup.safetensors"
    soup.save(out)
    loaded = Soup.load(out)
    assert loaded.to_json() == soup.to_json()
    assert loaded.steps == soup.steps
    assert loaded.scores == soup.scores
    assert loaded.mixture.key == soup.mixture.key
    assert json.loads((tmp_path / "soup.safetensors.stockpot.json").read_text())["output"]


@pytest.mark.parametrize("name", ["soup.safetensors", "folder"])
def test_verify_finds_no_difference_in_what_was_saved(lab, tmp_path, name):
    Uniform().cook(lab.paths[:3]).save(tmp_path / name)
    assert verify(tmp_path / name) == []


def test_verify_names_a_tensor_that_was_changed(lab, tmp_path):
    out = tmp_path / "soup.safetensors"
    WiseFT(alpha=0.5).cook(lab.paths[:2], base=lab.base).save(out)
    weights = load_file(out)
    weights["3.bias"][0] += 1
    save_file(weights, out)
    (difference,) = verify(out)
    assert "3.bias" in difference


def test_moved_ingredients_are_found_by_fingerprint(lab, tmp_path):
    here = [str(shutil.copy(p, tmp_path)) for p in lab.paths[:2]]
    out = tmp_path / "soup.safetensors"
    Uniform().cook(here).save(out)
    (tmp_path / "archive" / "deep").mkdir(parents=True)
    shutil.move(here[0], tmp_path / "archive" / "deep" / "renamed.safetensors")
    with pytest.raises(VerificationError, match="--search") as caught:
        verify(out)
    assert len(caught.value.differences) == 1
    assert verify(out, search=[tmp_path / "archive"]) == []


def test_an_ingredient_that_changed_is_not_taken_for_the_old_one(lab, tmp_path):
    here = [str(shutil.copy(p, tmp_path)) for p in lab.paths[:2]]
    out = tmp_path / "soup.safetensors"
    Uniform().cook(here).save(out)
    shutil.copy(lab.paths[2], here[0])
    with pytest.raises(VerificationError, match="have changed"):
        verify(out)


def test_a_checkpoint_without_a_record_cannot_be_verified(lab):
    with pytest.raises(VerificationError, match="has no record"):
        verify(lab.paths[0])


def test_an_existing_output_is_kept(lab, tmp_path):
    out = tmp_path / "soup.safetensors"
    Uniform().cook(lab.paths[:2]).save(out)
    before = out.read_bytes()
    with pytest.raises(OutputExistsError):
        Uniform().cook(lab.paths[:3]).save(out)
    assert out.read_bytes() == before


def test_batchnorm_statistics_are_saved_as_scored_and_verified_by_hash(bn_lab, tmp_path):
    soup = Uniform().cook(bn_lab.paths[:4], bn_lab.task)
    out = tmp_path / "soup.safetensors"
    soup.save(out)
    saved = load_file(out)
    as_saved = TaskEvaluator(bn_lab.task, batchnorm="averaged")
    score = as_saved.score(stockpot.open(out), "test")
    assert score.value == soup.scores["test"].value
    assert soup.batchnorm.policy == Soup.load(out).batchnorm.policy == "recalibrated"
    assert set(soup.batchnorm.to_json()) >= {"before", "after", "calibration_examples"}
    assert verify(out) == []
    assert Soup.load(out).mixture.key == soup.mixture.key
    saved["1.running_mean"] += 1
    save_file(saved, out)
    (difference,) = verify(out)
    assert "override" in difference


def test_one_batchnorm_model_is_saved_as_it_is_unless_it_was_chosen_with_other_statistics(
    bn_lab, tmp_path
):
    alone = Uniform().cook(bn_lab.paths[:1], bn_lab.task)
    assert alone.mixture.overrides is None
    for name, value in load_file(bn_lab.paths[0]).items():
        assert torch.equal(alone.mixture.read(name), value)
    assert any("saved with its own" in note for note in alone.notes)
    chosen = BestSingle().cook(bn_lab.paths[:3], bn_lab.task)
    out = tmp_path / "best.safetensors"
    chosen.save(out)
    as_saved = TaskEvaluator(bn_lab.task, batchnorm="averaged")
    assert as_saved.score(stockpot.open(out), "test").value == chosen.scores["test"].value
    assert verify(out) == []


@pytest.mark.parametrize("policy", ["averaged", "recalibrated", "clean"])
def test_a_table_is_scored_under_one_batchnorm_policy(bn_lab, policy):
    evaluator = TaskEvaluator(bn_lab.task, batchnorm=policy)
    best = BestSingle().cook(bn_lab.paths[:3], evaluator=evaluator)
    single = evaluator.score(stockpot.open(best.selected[0]), "held-out")
    assert best.scores["held-out"] == single
    greedy = Greedy().cook(bn_lab.paths[:3], evaluator=evaluator)
    assert greedy.steps[0].score == single.value
    assert greedy.scores["held-out"].value >= single.value
    if len(greedy.selected) > 1:
        assert greedy.batchnorm.policy == policy
