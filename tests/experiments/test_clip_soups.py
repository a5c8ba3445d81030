"""Soups of a small CLIP, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiments.test_clip_digits import TINY

from experiments import clip_soups
from stockpot.evaluate import Predictions


def test_every_model_has_its_row_and_nothing_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    monkeypatch.setitem(clip_soups.SPACE, "epochs", 1)
    arguments = ["--out", str(tmp_path), "--seeds", "0"]
    text = clip_soups.main(arguments, lab=TINY)
    (found,) = json.loads((tmp_path / "clip_soups.json").read_text())
    assert set(found["rows"]) == {
        "base", "mean of the runs", "best single", "uniform", "greedy", "WiSE-FT of uniform",
        "WiSE-FT of uniform, α = 0.5", "ensemble", "greedy ensemble",
    }  # fmt: skip
    rows = found["rows"]
    assert rows["uniform"]["kept"] == rows["ensemble"]["kept"] == 2
    assert rows["best single"]["held-out"] >= rows["mean of the runs"]["held-out"]
    assert rows["greedy"]["held-out"] >= rows["best single"]["held-out"]
    monkeypatch.setattr(clip_soups, "train_clip", None)
    monkeypatch.setattr(clip_soups, "run_sweep", None)
    assert clip_soups.main(arguments, lab=TINY) == text


def test_images_are_ranked_by_their_similarity_to_a_prompt() -> None:
    targets = torch.tensor([0, 1, 0, 1])
    ranked = np.float32([[4, 0], [1, 3], [3, 2], [2, 1]])
    found = Predictions(ranked, targets, None)
    # Of class 0 both come first; of class 1 the first and the third: (1 + 2/3) / 2.
    assert clip_soups.precision_by_text(found) == pytest.approx((1 + 5 / 6) / 2)
