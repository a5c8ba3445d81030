from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stockpot.errors import TrainingError
from stockpot.train.ema import ExponentialMean, RunningMean, snapshot


def snapshots(dtype: torch.dtype, n: int = 7) -> list[torch.nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)) for _ in range(n)]
    return [torch.nn.Sequential(*pair).to(dtype) for pair in layers]


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def test_the_running_mean_of_0_3_6_is_3() -> None:
    mean = RunningMean()
    for value in (0.0, 3.0, 6.0):
        mean.update({"w": torch.tensor([value])})
    assert mean.state_dict()["w"].item() == 3.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_running_mean_agrees_with_torch(dtype: torch.dtype) -> None:
    models = snapshots(dtype)
    theirs, ours = AveragedModel(models[0], use_buffers=True), RunningMean()
    for model in models:
        theirs.update_parameters(model)
        ours.update(snapshot(model))
    _agree(ours.state_dict(), theirs.module, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_ema_from_a_start_agrees_with_torch(dtype: torch.dtype) -> None:
    """torch's starts from the first snapshot that it is given."""
    models = snapshots(dtype)
    theirs = AveragedModel(models[0], multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(models[0])
    ours = ExponentialMean(0.9, start=snapshot(models[0]))
    for model in models[1:]:
        theirs.update_parameters(model)
        ours.update(snapshot(model))
    _agree(ours.state_dict(), theirs.module, dtype)


def _agree(ours, module: torch.nn.Module, dtype: torch.dtype) -> None:
    theirs = module.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        if value.is_floating_point():
            limit = TOLERANCE[dtype]
            assert torch.allclose(value, theirs[name], rtol=limit, atol=limit), name


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, 0.9999999])
def test_the_debiased_ema_is_the_weighted_sum_of_its_definition(decay: float) -> None:
    values = [torch.tensor([float(i**2)], dtype=torch.float64) for i in range(1, 8)]
    ema = ExponentialMean(decay)
    for value in values:
        ema.update({"w": value})
    weights = [decay ** (7 - i) for i in range(1, 8)]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert torch.allclose(ema.state_dict()["w"], expected, rtol=1e-12)


def test_an_ema_from_the_base_is_wise_ft_of_the_debiased_one() -> None:
    """θ_EMA = dᵀ·θ₀ + (1 − dᵀ)·debiased (METHODS §7)."""
    base = {"w": torch.tensor([5.0], dtype=torch.float64)}
    values = [{"w": torch.tensor([float(i)], dtype=torch.float64)} for i in range(6)]
    free, tied = ExponentialMean(0.8), ExponentialMean(0.8, start=base)
    for value in values:
        free.update(value)
        tied.update(value)
    share = 0.8**6
    expected = share * base["w"] + (1 - share) * free.state_dict()["w"]
    assert torch.allclose(tied.state_dict()["w"], expected, rtol=1e-14)


def test_averages_that_share_their_conversions_are_those_that_do_not() -> None:
    alone = [ExponentialMean(d) for d in (0.5, 0.9)]
    shared = [ExponentialMean(d) for d in (0.5, 0.9)]
    for step in range(4):
        values = {"w": torch.rand(3), "n": torch.tensor(step)}
        widened: dict[str, torch.Tensor] = {}
        for one, other in zip(alone, shared, strict=True):
            one.update(values)
            other.update(values, widened=widened)
        assert list(widened) == ["w"]
        assert widened["w"].dtype == torch.float64
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.state_dict()["w"], other.state_dict()["w"])
        assert int(other.state_dict()["n"]) == 3


def test_integers_hold_the_latest_value_and_dtypes_stay() -> None:
    mean = RunningMean()
    for i in (3, 9):
        value = torch.tensor([float(i)], dtype=torch.bfloat16)
        mean.update({"n": torch.tensor(i), "w": value})
    state = mean.state_dict()
    assert (state["n"].item(), state["w"].item()) == (9, 6.0)
    assert (state["n"].dtype, state["w"].dtype) == (torch.int64, torch.bfloat16)


def test_tied_tensors_stay_tied() -> None:
    weight = torch.ones(2, 2)
    mean = RunningMean()
    mean.update({"a": weight, "b": weight})
    mean.update({"a": weight * 3, "b": weight * 3})
    state = mean.state_dict()
    assert state["a"].data_ptr() == state["b"].data_ptr()
    assert torch.equal(state["a"], torch.full((2, 2), 2.0))


def test_the_average_does_not_follow_the_model_afterwards() -> None:
    weight = torch.zeros(2)
    mean = RunningMean()
    mean.update({"w": weight})
    weight += 1
    assert torch.equal(mean.state_dict()["w"], torch.zeros(2))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_the_unit_interval_is_refused(decay: float) -> None:
    with pytest.raises(TrainingError, match="decay"):
        ExponentialMean(decay)


def test_an_average_of_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match="no weights"):
        RunningMean().state_dict()


def test_a_snapshot_of_another_model_is_refused() -> None:
    mean = RunningMean()
    mean.update({"a": torch.zeros(1)})
    with pytest.raises(TrainingError, match="other tensors"):
        mean.update({"b": torch.zeros(1)})
