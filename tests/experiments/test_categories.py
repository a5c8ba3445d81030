"""The experiment on the constraint of categories, on tiny data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.experiments.standins import TINY

from experiments import categories

LAB = replace(TINY, n_test=120, n_fonts=60, n_runs=2, epochs=(1, 1))


def test_what_chooses_and_what_reports_share_no_digit_in_any_category() -> None:
    task = categories.halves(LAB, seed=1)
    plain: dict[str, dict[bytes, int]] = {}
    for name, split in task.splits.items():
        assert split.categories is not None
        counts = {one: split.categories.count(one) for one in categories.CATEGORIES.values()}
        assert counts == {one: 30 if one == "print" else 60 for one in counts}
        images = [image for image, _ in split.dataset]
        plain[name] = {
            image.numpy().tobytes(): i
            for i, image in enumerate(images)
            if split.categories[i] == "plain"
        }
        assert len(plain[name]) > 50
        # The corrupted digits of a part are those of its plain ones: blur is nearest to its own.
        blurred = torch.stack([images[i] for i in range(120, 180)]).flatten(1)
        own = torch.stack(images[:60]).flatten(1)
        assert (torch.cdist(blurred, own).argmin(1) == torch.arange(60)).float().mean() > 0.8
    assert not set(plain["held-out"]) & set(plain["test"])


def test_the_small_case_measures_all_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = categories.main(["--out", str(tmp_path), "--seeds", "3"], lab=LAB)
    found = json.loads((tmp_path / "categories.json").read_text())["3"]
    assert list(found) == list(categories.MODELS)
    for name, one in found.items():
        shares = one["accuracy"]
        whole = sum(shares[c] * (30 if c == "print" else 60) for c in shares if c != categories.ALL)
        assert whole / 450 == pytest.approx(shares[categories.ALL])
        assert name == categories.BASE or f"| 3, {name} | {one['chosen']} |" in text
        for category, (value, low, high) in one["lost"].items():
            assert low <= value <= high < 0
            assert value == pytest.approx(
                shares[category] - found[categories.BASE]["accuracy"][category]
            )
    assert found[categories.BASE]["lost"] == {}
    monkeypatch.setattr(categories, "make_base", None)
    monkeypatch.setattr(categories, "run_sweep", None)
    assert categories.main(["--out", str(tmp_path), "--seeds", "3"], lab=LAB) == text
    # What a demo left is used as it is.
    words = ["--demos", str(tmp_path), "--out", str(tmp_path / "again"), "--seeds", "3"]
    assert categories.main(words, lab=LAB) == text


def test_the_difference_is_paired_by_seed() -> None:
    def seed(plain: float, kept: float) -> dict[str, object]:
        names = (categories.ALL, *categories.CATEGORIES.values())
        return {
            model: {
                "chosen": model,
                "accuracy": dict.fromkeys(names, value),
                "lost": {"print": [-0.125, -0.2, -0.05]} if model == categories.PLAIN else {},
            }
            for model, value in zip(categories.MODELS, (0.5, 0.6, plain, kept), strict=True)
        }

    text = categories.markdown({"0": seed(0.8, 0.7), "1": seed(0.6, 0.5)})
    assert "| print | 50.00 ± 0.00 | 60.00 ± 0.00 |" in text
    assert "| -10.00 [-10.00, -10.00] |" in text
    assert "| 1, auto | auto | print -12.5 (-20.0 to -5.0) |" in text
    assert "| 1, auto --keep-categories | auto --keep-categories | none |" in text
