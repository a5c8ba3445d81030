"""The experiment on Zoo-Tuning, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments.standins import TINY

from experiments import zoo

SIZES = zoo.Sizes(lab=TINY, n_pretrain=128, pretrain_epochs=1, epochs=2, rates=(1e-3, 1e-2))


def test_letters_fill_their_box_and_differ_by_class() -> None:
    images, labels = zoo.letters(zoo.CAPITALS, 200, seed=0)
    assert images.shape == (200, 1, 8, 8)
    assert labels.bincount().tolist() == [20] * 10
    assert 0 <= images.min() <= images.max() <= 1
    assert images.flatten(1).sum(1).min() > 4
    means = torch.stack([images[labels == c].mean(0).flatten() for c in range(10)])
    assert torch.pdist(means).min() > 0.5
    again, _ = zoo.letters(zoo.CAPITALS, 200, seed=0)
    assert torch.equal(images, again)


def test_methods_have_equal_budgets_and_rates_are_chosen_on_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = zoo.main(["--out", str(tmp_path), "--seeds", "3"], sizes=SIZES)
    found = json.loads((tmp_path / "zoo.json").read_text())["3"]
    assert set(found["pretrained"]) == set(zoo.KINDS)
    scores = found["scores"]
    assert scores[zoo.BEST]["held-out"] == max(scores[name]["held-out"] for name in zoo.SINGLES)
    for name in (*zoo.SINGLES, zoo.BEST, zoo.LONGER, zoo.MEAN, zoo.PLAIN, zoo.ZOO):
        assert f"| {name} |" in text
    place = tmp_path / "seed-3"
    made = {path.name for path in (place / "tuned").glob("*.safetensors")}
    assert len(made) == 2 * (3 + 3 + 1)
    # All start from the same new head, and the zoo's folded network is a plain one.
    digits = load_file(place / "digits.safetensors")
    folded = load_file(place / "zoo-0.01" / "folded.safetensors")
    assert {n: v.shape for n, v in folded.items()} == {n: v.shape for n, v in digits.items()}
    monkeypatch.setattr(zoo, "adapt", None)
    assert zoo.main(["--out", str(tmp_path), "--seeds", "3"], sizes=SIZES) == text
