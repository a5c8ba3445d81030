"""What every checkpoint offers beside its values: ties, state dicts, loading into a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stockpot
from stockpot.errors import MismatchError
from stockpot.formats.memory import from_state_dict
from stockpot.formats.names import RenamedCheckpoint
from stockpot.mixing import Ingredients, Mixture


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


def test_values_are_copied_into_the_same_tensors() -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    kept = model.weight
    from_state_dict(other.state_dict()).load_into(model)
    assert model.weight is kept
    assert torch.equal(model.weight, other.weight)


def test_buffers_and_counters_are_copied() -> None:
    model, other = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    other.running_mean.fill_(3)
    other.num_batches_tracked.fill_(9)
    from_state_dict(other.state_dict()).load_into(model)
    assert model.running_mean.tolist() == [3, 3]
    assert model.num_batches_tracked == 9


def test_half_precision_weights_are_widened() -> None:
    model = torch.nn.Linear(2, 2)
    values = {k: v.to(torch.bfloat16) for k, v in torch.nn.Linear(2, 2).state_dict().items()}
    from_state_dict(values).load_into(model)
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, values["weight"].float())


def test_a_wrong_shape_is_refused_even_when_not_strict() -> None:
    with pytest.raises(MismatchError, match=r"weight: \(2, 4\), expected \(2, 3\)"):
        narrow = from_state_dict({"weight": torch.zeros(2, 4)})
        narrow.load_into(torch.nn.Linear(3, 2), strict=False)


def test_not_strict_fills_what_is_there() -> None:
    model = torch.nn.Linear(3, 2)
    given = from_state_dict({"weight": torch.ones(2, 3), "other": torch.ones(1)})
    given.load_into(model, strict=False)
    assert torch.equal(model.weight, torch.ones(2, 3))


def test_one_name_of_a_tied_pair_is_enough() -> None:
    model = Tied()
    from_state_dict({"embed.weight": torch.ones(5, 3)}).load_into(model)
    assert torch.equal(model.head.weight, torch.ones(5, 3))


def test_a_mixture_is_computed_in_place_where_the_type_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = torch.nn.Linear(3, 2)
    halves = [
        {"weight": torch.full((2, 3), v), "bias": torch.full((2,), v).double()} for v in (1.0, 3.0)
    ]
    mixture = Mixture(Ingredients([from_state_dict(half) for half in halves]))
    read, plain = [], Mixture.read
    monkeypatch.setattr(Mixture, "read", lambda self, name: read.append(name) or plain(self, name))
    mixture.load_into(model)
    assert read == ["bias"]
    assert torch.equal(model.weight, torch.full((2, 3), 2.0))
    assert torch.equal(model.bias, torch.full((2,), 2.0))


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


def test_pieces_of_a_computed_tensor_are_of_one_computation() -> None:
    checkpoint = from_state_dict({"": torch.arange(6, dtype=torch.uint8), "b": torch.zeros(2)})
    opened: list[str] = []
    reader = checkpoint.reader

    def counting(name: str) -> Callable[[int, int], Any]:
        opened.append(name)
        return reader(name)

    checkpoint.reader = counting  # type: ignore[method-assign]
    wanted = [("", 0, 2), ("", 4, 99), ("b", 0, 4), ("", 1, 2)]
    assert [piece.tolist() for piece in checkpoint.pieces(wanted)] == [[0, 1], [4, 5], [0] * 4, [1]]
    assert opened == ["", "b", ""]
