"""One model goes through candidates among adapters: only what they change is written, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.formats.lora import network, save_adapter, save_base

import stockpot
from stockpot.mixing import Coefficients, Ingredients, Mixture

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load


@pytest.fixture
def evaluator() -> stockpot.TaskEvaluator:
    data = torch.utils.data.TensorDataset(torch.randn(8, 6), torch.zeros(8, dtype=torch.long))
    splits = {"held-out": stockpot.Split(data, role=stockpot.Role.HELD_OUT)}
    return stockpot.TaskEvaluator(stockpot.ClassificationTask(build=network, splits=splits))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rank", [None, 2])
def test_no_trace_of_earlier_candidates_is_left(
    rank: int | None,
    threads: int,
    evaluator: stockpot.TaskEvaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    base = save_base(tmp_path / "base.safetensors")
    sorts = ({}, {"r": 2, "target_modules": ["lin"]}, {"modules_to_save": ["head"]})
    folders = [save_adapter(tmp_path / f"a{i}", i, **sort) for i, sort in enumerate(sorts)]
    form = stockpot.mixing.Reconcile(rank=rank)
    given = Ingredients(folders, base=base, reconcile=form)
    for shares in ([0.5, 0.5, 0], [0, 1, 0], [0.2, 0.3, 0.5], [0, 0, 1], [0.5, 0.5, 0]):
        candidate = Mixture(given, Coefficients.per_model(shares))
        evaluator.load(candidate)
        candidate.save(tmp_path / "saved", force=True)
        saved = stockpot.Adapter(base, tmp_path / "saved")
        state = evaluator.runner.model.state_dict()
        assert all(torch.equal(state[name], saved.read(name)) for name in saved)


def test_what_no_adapter_changes_is_written_once(
    evaluator: stockpot.TaskEvaluator, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base.safetensors")
    given = Ingredients([save_adapter(tmp_path / f"a{i}", i) for i in range(2)], base=base)
    evaluator.load(Mixture(given, Coefficients.per_model([1, 0])))
    state = evaluator.runner.model.state_dict()
    with torch.no_grad():
        state["norm.weight"].fill_(7)  # shows whether it is written again
        state["lin.weight"].fill_(7)
    evaluator.load(Mixture(given, Coefficients.per_model([0, 1])))
    assert bool((state["norm.weight"] == 7).all())
    assert torch.equal(state["lin.weight"], given[1].read("lin.weight"))
    evaluator.load(stockpot.from_state_dict(network(seed=3)))
    assert torch.equal(state["norm.weight"], network(seed=3).state_dict()["norm.weight"])
