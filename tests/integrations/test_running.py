from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.tasks import TinyTask

from stockpot.errors import OutputExistsError, TrainingError
from stockpot.integrations import RunningSoup


def model(value: float) -> torch.nn.Module:
    found = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(found.weight, value)
    return found


def test_snapshots_are_taken_when_they_are_due(tmp_path: Path) -> None:
    soup = RunningSoup(tmp_path, ema_decays=(), every_steps=2, start_step=4)
    for step in range(1, 10):
        soup.step(step, model(float(step)))
    files = soup.finish(model(0))
    assert load_file(files.uniform)["weight"].item() == 6.0  # of 4, 6 and 8


def test_the_best_candidates_are_kept_in_either_direction(tmp_path: Path) -> None:
    scores = [0.5, 0.9, 0.1, float("nan"), 0.7]
    for higher, best in ((True, [1, 4]), (False, [2, 0])):
        soup = RunningSoup(tmp_path / str(higher), top_k=2, higher_is_better=higher)
        for step, score in enumerate(scores):
            soup.candidate(step, model(float(step)), score)
        kept = list(soup.finish(model(0)).candidates)
        assert [load_file(path)["weight"].item() for path in kept] == best
        assert len(list((tmp_path / str(higher) / "candidates").iterdir())) == 2


def test_nothing_is_written_without_a_snapshot(tmp_path: Path) -> None:
    files = RunningSoup(tmp_path).finish(model(0))
    assert files.uniform is None
    assert not list(tmp_path.iterdir())


def test_earlier_results_are_not_overwritten(tmp_path: Path) -> None:
    for force in (False, True):
        soup = RunningSoup(tmp_path, force=force)
        soup.step(1, model(1.0))
        if not force:
            soup.finish(model(0))
            with pytest.raises(OutputExistsError):
                soup.finish(model(0))
    assert soup.finish(model(0)).uniform is not None


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="every_steps is 0"):
        RunningSoup(tmp_path, every_steps=0)
    with pytest.raises(TrainingError, match="needs candidates: top_k is 1"):
        RunningSoup(tmp_path, top_k=1, task=TinyTask())
