"""The trials of the demo's set-up, in a small case."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from experiments.handwriting_setup import TRIALS, Trial, gains, moved

from experiments import handwriting_setup
from stockpot.tasks.handwriting import initial_weights
from stockpot.train.augment import move_images

SMALL = {"n_train": 60, "n_held_out": 40, "n_test": 40, "n_runs": 2, "epochs": (1, 1)}


@pytest.mark.parametrize("name", ["first", "300, a fifth look-alikes", "100 labels"])
def test_a_trial_gives_points_of_both_soups_on_both_kinds_of_data(name: str) -> None:
    trial = TRIALS[name]
    small = Trial(replace(trial.lab, **SMALL), trial.fixed, trial.wrong, trial.look_alike)
    found = gains(small, initial_weights(0), 300)
    assert set(found) == {f"{s} on {d}" for s in ("uniform", "greedy") for d in ("test", "shifts")}
    assert all(-100 < value < 100 for value in found.values())
    assert found == gains(small, initial_weights(0), 300)


def test_images_move_as_those_of_the_library() -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    draws = 2 * torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) - 1
    ours = moved(images, 0.5, 10.0, draws)
    theirs = move_images(
        images, torch.Generator().manual_seed(1), shift_pixels=0.5, rotate_degrees=10.0
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_every_trial_is_of_the_published_table() -> None:
    assert list(TRIALS)[-1] == "100 labels"
    assert handwriting_setup.FULL.n_train == 100
