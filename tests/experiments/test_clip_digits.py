"""The small CLIP's experiment: one seed of a tiny size, run for real, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stockpot
from experiments import clip_digits

TINY = clip_digits.Lab(
    n_print=200,
    width=16,
    n_layers=1,
    steps=4,
    sets=2,
    n_train=40,
    n_held_out=50,
    n_test=40,
    n_fonts=20,
    tune=replace(clip_digits.TUNE, epochs=1, batch_size=20, score_every=1),
    probe_epochs=1,
    alphas=(0.0, 0.5, 1.0),
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("digits")
    return out, clip_digits.main(["--out", str(out), "--seeds", "0", "1"], lab=TINY)


def test_every_row_has_every_column_and_gains_an_interval(ran: tuple[Path, str]) -> None:
    out, text = ran
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(row.count("|") == len(clip_digits.COLUMNS) + 2 for row in rows)
    for name in ("zero-shot", "linear probe", "LP-FT, chosen α", *clip_digits.GAINS):
        assert any(row.startswith(f"| {name} |") for row in rows), name
    assert (out / "clip-digits.md").read_text() == text + "\n"
    assert "<dc:title>Accuracy on test, shifts" in (out / "clip-digits.svg").read_text()


def test_the_table_says_what_the_curves_hold(ran: tuple[Path, str]) -> None:
    out, text = ran
    seeds = json.loads((out / "clip-digits.json").read_text())
    test = [seed["curves"]["fine-tuned"]["1.0"]["test"] for seed in seeds]
    row = next(line for line in text.splitlines() if line.startswith("| fine-tuned |"))
    assert row.split(" | ")[2].startswith(f"{100 * np.mean(test):.1f} ±")


def test_the_ends_of_a_line_are_the_models_themselves(ran: tuple[Path, str]) -> None:
    out, _ = ran
    folder = out / "seed-0"
    result = clip_digits.run(folder, TINY, seed=0)
    task = clip_digits.make_task(folder / "zero-shot", TINY, seed=0)
    evaluator = stockpot.TaskEvaluator(task, cache=None)
    for way in ("fine-tuned", "LP-FT"):
        for alpha, name in ((0.0, "zero-shot"), (1.0, way)):
            found = evaluator.score(stockpot.open(folder / name), "test").value
            assert result.curves[way][alpha]["test"] == found


def test_what_is_there_is_not_made_again(
    ran: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, text = ran
    monkeypatch.setattr(clip_digits, "train_clip", None)
    monkeypatch.setattr(stockpot, "fine_tune", None)
    assert clip_digits.main(["--out", str(out), "--seeds", "0", "1"], lab=TINY) == text


def test_the_command_line_finds_the_task_of_a_folder(
    ran: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP_DIGITS", str(ran[0]))
    task = clip_digits.task()
    assert task.classes == clip_digits.CLASSES
    assert set(task.splits) == {"held-out", "test", *clip_digits.SHIFTS}


def test_ink_becomes_pixels_without_loss() -> None:
    images = np.arange(17, dtype=np.float32).repeat(4)[:64].reshape(1, 8, 8)
    (pixels,) = clip_digits.rgb(images)
    assert pixels.shape == (8, 8, 3)
    assert len(np.unique(pixels)) == len(np.unique(images))
