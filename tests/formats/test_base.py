"""What every checkpoint offers beside its values: ties, state dicts, loading into a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import stockpot
from stockpot.errors import MismatchError
from stockpot.formats.memory import from_state_dict
from stockpot.formats.names import RenamedCheckpoint


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_names_have_a_leader_and_are_counted_once() -> None:
    checkpoint = from_state_dict(Tied())
    assert checkpoint.tied == (("embed.weight", "head.weight"),)
    assert checkpoint.leaders == {"embed.weight": "embed.weight", "head.weight": "embed.weight"}
    assert checkpoint.distinct == ("embed.weight",)
    assert checkpoint.n_parameters == 15


def test_a_state_dict_keeps_ties_and_is_a_copy() -> None:
    model = Tied()
    state = from_state_dict(model).state_dict()
    assert list(state) == list(model.state_dict())
    assert state["embed.weight"] is state["head.weight"]
    state["embed.weight"].zero_()
    assert model.embed.weight.abs().sum() > 0


def test_loading_into_a_model_makes_it_the_one_that_was_saved(tmp_path: Path) -> None:
    saved, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3).to(torch.bfloat16)
    saved(torch.randn(8, 3))
    torch.save({"model": saved.state_dict()}, tmp_path / "run.pt")
    stockpot.open(tmp_path / "run.pt").load_into(model)
    assert model.num_batches_tracked == 1
    assert model.running_mean is not None
    assert saved.running_mean is not None
    assert model.running_mean.dtype == torch.bfloat16
    torch.testing.assert_close(model.running_mean, saved.running_mean.to(torch.bfloat16))


def test_a_model_that_does_not_fit_is_not_touched_and_everything_wrong_is_said() -> None:
    checkpoint = from_state_dict({"weight": torch.ones(3, 2), "extra": torch.ones(1)}, path="a.pt")
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    with pytest.raises(MismatchError, match=r"a\.pt does not fit Linear: 3 tensors") as caught:
        checkpoint.load_into(model)
    found = {(p.tensor, p.found, p.expected) for p in caught.value.problems}
    assert found == {
        ("bias", "missing", "a tensor"),
        ("extra", "a tensor", "not in the model"),
        ("weight", "(3, 2)", "(3, 3)"),
    }
    torch.testing.assert_close(model.weight.detach(), before)


def test_a_renamed_checkpoint_has_its_own_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
    torch.save({"a.w": torch.ones(2), "b": torch.zeros(1)}, tmp_path / "run.pt")
    plain = stockpot.open(tmp_path / "run.pt")
    renamed = RenamedCheckpoint(plain, {"a.w": "w"}, notes=("a. was removed",))
    assert sorted(renamed) == ["b", "w"]
    assert renamed["w"].name == "w"
    assert renamed.notes[0] == "a. was removed"
    same = from_state_dict({"w": torch.ones(2), "b": torch.zeros(1)})
    for _ in range(2):  # the second one from the cache
        again = RenamedCheckpoint(stockpot.open(tmp_path / "run.pt"), {"a.w": "w"})
        assert again.fingerprint == same.fingerprint != plain.fingerprint
