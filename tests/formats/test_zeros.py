"""What counts as pruned, and what only looks so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.formats.pruning import pruned, sparse_model

import stockpot.formats as cp
from stockpot.formats.compressing import compress
from stockpot.formats.zeros import count_zeros, sampled_sparsity
from stockpot.mixing import Ingredients
from stockpot.tensors.rounding import nonzero

Tensors = dict[str, torch.Tensor]


def zeros_of(*states: Tensors):
    return Ingredients(states).zeros


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zeros_of_both_signs_are_seen_in_every_type(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1e-5, -2.0, float("nan"), float("inf")], dtype=dtype)
    spec = cp.from_state_dict({"w": values})["w"]
    raw = cp.from_state_dict({"w": values}).raw("w")
    assert nonzero(raw, spec.dtype).tolist() == [False, False, True, True, True, True]


def test_dense_checkpoints_are_not_sparse() -> None:
    assert zeros_of({"w": pruned(90, 90, sparsity=0.0)}) is None


@pytest.mark.parametrize(
    "extra",
    [
        {"head.weight": torch.zeros(50, 300)},  # a fresh layer
        {"embedding.weight": torch.cat([torch.zeros(9, 100), torch.randn(91, 100)])},  # padding
        {"bias": torch.zeros(9000)},  # one dimension
        {"table": torch.zeros(50, 300, dtype=torch.int64)},
    ],
    ids=["zero head", "padding", "bias", "integers"],
)
def test_zeros_that_nobody_pruned_do_not_count(extra: Tensors) -> None:
    assert zeros_of({"w": pruned(100, 100, sparsity=0.01), **extra}) is None


def test_models_pruned_by_a_fifth_in_places_or_whole_rows_count() -> None:
    rows = pruned(100, 300, sparsity=0.0)
    rows[30:50] = 0
    for weight in (pruned(100, 300, sparsity=0.2), rows):
        found = zeros_of({"w": weight, "b": torch.ones(100)})
        assert found is not None
        assert found.counts == ({"w": 6000},)


def test_a_look_at_a_large_tensor_finds_its_sparsity_about() -> None:
    given = cp.from_state_dict({"w": pruned(1000, 1000, sparsity=0.7)})
    assert sampled_sparsity(given, ["w"]) == pytest.approx(0.7, abs=0.05)


def test_a_look_reads_little_of_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    given = cp.from_state_dict({"w": pruned(1000, 1000, sparsity=0.0)})
    looked = nonzero

    def counted(raw, dtype):
        nonlocal seen
        seen += raw.size
        return looked(raw, dtype)

    monkeypatch.setattr("stockpot.formats.zeros.nonzero", counted)
    assert count_zeros([given], ["w"]) is None
    assert seen == 4 * 512 * 4


def test_counts_and_common_zeros_are_those_of_numpy() -> None:
    one, two = pruned(1300, 901, sparsity=0.5), pruned(1300, 901, sparsity=0.6, seed=1)
    found = zeros_of({"w": one}, {"w": two}, {"w": one * 2})
    assert found is not None
    assert found.counts == tuple({"w": int((w == 0).sum())} for w in (one, two, one))
    assert found.common == {"w": int(((one == 0) & (two == 0)).sum())}
    assert found.patterns[0] == found.patterns[2] != found.patterns[1]
    assert found.sparse == (0, 1, 2)


def test_what_is_stored_sparse_counts_without_a_look(tmp_path: Path) -> None:
    torch.save(sparse_model(), tmp_path / "m.pt")
    compress(tmp_path / "m.pt", tmp_path / "c.safetensors")
    assert sampled_sparsity(cp.open(tmp_path / "c.safetensors"), []) == pytest.approx(0.9, abs=0.01)
