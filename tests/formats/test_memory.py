"""State dicts and modules in memory as checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stockpot
from stockpot.errors import CheckpointFormatError
from stockpot.formats.memory import from_state_dict, hold
from stockpot.testing import READER_CHECKS, sample_tensors


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_the_reader_conforms(check: Any) -> None:
    check(lambda: from_state_dict(sample_tensors()), sample_tensors())


@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_a_held_checkpoint_conforms_as_its_original_does(check: Any) -> None:
    check(lambda: hold(from_state_dict(sample_tensors())), sample_tensors())


class Counting(stockpot.Checkpoint):
    """Counts how often each tensor is read."""

    def __init__(self, inner: stockpot.Checkpoint) -> None:
        super().__init__("counted", dict(inner), tied=inner.tied)
        self.inner, self.reads = inner, dict.fromkeys(inner, 0)

    def raw(self, name: str) -> Any:
        self.reads[name] += 1
        return self.inner.raw(name)


def test_holding_reads_each_tensor_once_and_tied_ones_once_together() -> None:
    counting = Counting(from_state_dict(Tied()))
    held = hold(counting)
    for _ in range(3):
        assert held.fingerprint == from_state_dict(dict(_tensors(held))).fingerprint
    assert counting.reads.pop("embed.weight") + counting.reads.pop("head.weight") == 1
    assert set(counting.reads.values()) == {1}


def _tensors(checkpoint: stockpot.Checkpoint) -> Any:
    return ((name, checkpoint.read(name)) for name in checkpoint)


def test_what_is_held_is_held_once() -> None:
    held = hold(from_state_dict({"w": np.zeros(3, np.float32)}))
    assert hold(held) is held


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)


def test_a_module_gives_its_parameters_and_buffers_and_their_ties() -> None:
    model = Tied()
    checkpoint = from_state_dict(model)
    assert set(checkpoint) == set(model.state_dict())
    assert checkpoint.tied == (("embed.weight", "head.weight"),)
    assert torch.equal(checkpoint.read("norm.running_var"), model.norm.running_var)


def test_views_of_one_storage_are_tied_only_when_they_are_the_same_view() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    square = torch.arange(4.0).reshape(2, 2)
    state = {"x": x, "same": x[:], "flat": x.reshape(-1), "row": x[0]}
    state |= {"square": square, "turned": square.T, "empty": torch.empty(0), "none": torch.empty(0)}
    assert from_state_dict(state).tied == (("same", "x"),)
    assert from_state_dict(state).read("turned").tolist() == [[0, 2], [1, 3]]


def test_lazy_conjugates_and_negatives_are_resolved() -> None:
    z = torch.tensor([1 + 2j], dtype=torch.complex64)
    checkpoint = from_state_dict({"z": z, "conj": z.conj(), "imag": z.conj().imag})
    assert checkpoint.read("conj").tolist() == [1 - 2j]
    assert checkpoint.read("imag").tolist() == [-2]
    assert checkpoint.tied == ()


def test_changing_the_source_changes_what_is_read() -> None:
    state = {"w": torch.zeros(2)}
    checkpoint = from_state_dict(state)
    state["w"].fill_(3)
    assert checkpoint.read("w").tolist() == [3, 3]


def test_numpy_arrays_of_any_order_and_endianness_are_read() -> None:
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    checkpoint = from_state_dict({"big": big, "turned": np.arange(6.0).reshape(2, 3).T})
    assert checkpoint.read("big").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.read("turned").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_gradients_and_prefixes_do_not_matter_and_others_are_named() -> None:
    state = {"module.w": nn.Parameter(torch.ones(2)), "_extra_state": {"a": 1}}
    checkpoint = from_state_dict(state, path="mine")
    assert checkpoint.read("w").tolist() == [1, 1]
    assert not checkpoint.read("w").requires_grad
    assert "_extra_state" in " ".join(checkpoint.notes)
    assert checkpoint.path == "mine"


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.empty(2, device="meta"), "is meta"),
        (torch.eye(2).to_sparse(), "is torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (np.array(["a"]), "dtype str"),
    ],
    ids=["meta", "sparse", "complex128", "text"],
)
@pytest.mark.filterwarnings(
    "ignore:.*quantiz.*:DeprecationWarning", "ignore:.*quantiz.*:UserWarning"
)
def test_a_tensor_without_plain_values_is_refused_by_name(tensor: Any, match: str) -> None:
    with pytest.raises(CheckpointFormatError, match=f"'w'.*{match}"):
        from_state_dict({"w": tensor})


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_a_quantised_tensor_is_refused_by_name() -> None:
    tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointFormatError, match="'w' is quantised"):
        from_state_dict({"w": tensor})


def test_nothing_is_refused() -> None:
    with pytest.raises(CheckpointFormatError, match="no tensors"):
        from_state_dict({"epoch": 3})
