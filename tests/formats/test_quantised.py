"""Quantised weights: named when they are looked at, never averaged, whatever the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import stockpot
from stockpot.analysis.inspection import inspect_checkpoints
from stockpot.errors import MismatchError
from stockpot.mixing import Reconcile

GPTQ = {
    "l.qweight": torch.arange(8, dtype=torch.int32), "l.qzeros": torch.ones(1, dtype=torch.int32),
    "l.scales": torch.ones(4).half(), "norm.weight": torch.ones(4).half(),
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, torch.Tensor]]] = {
    "gptq": ("GPTQ", GPTQ),
    "bitsandbytes": (
        "bitsandbytes",
        {
            "l.weight": torch.arange(8, dtype=torch.uint8), "l.weight.absmax": torch.ones(2),
            "l.weight.quant_map": torch.ones(16), "norm.weight": torch.ones(4),
        },
    ),
    "llm.int8": (
        "bitsandbytes",
        {"l.weight": torch.arange(8, dtype=torch.int8), "l.SCB": torch.ones(2)},
    ),
    "hqq": ("HQQ", {"l.W_q": torch.arange(8, dtype=torch.uint8), "l.meta.scale": torch.ones(2)}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["error", "first", "maximum"])
def test_codes_are_named_and_refused(kind: str, policy: Any, tmp_path: Path) -> None:
    how, state = KINDS[kind]
    paths = []
    for i in range(2):
        code = next(iter(state))
        torch.save({**state, code: state[code] + i}, tmp_path / f"{i}.pt")
        paths.append(tmp_path / f"{i}.pt")
    (one,) = inspect_checkpoints(paths[:1]).checkpoints
    assert any(f"quantised ({how}" in note for note in one.notes)
    form = Reconcile(buffers=policy)
    found = inspect_checkpoints(paths, reconcile=form)
    assert not found.compatible
    assert "averaged and quantised again" in found.message
    assert "--buffers" not in found.message
    with pytest.raises(MismatchError, match="quantised again"):
        stockpot.average(paths, reconcile=form).save(tmp_path / "soup.pt")


@pytest.mark.parametrize("policy", ["first", "maximum"])
def test_other_integers_follow_the_policy(
    policy: Literal["first", "maximum"], tmp_path: Path
) -> None:
    paths = []
    for i in range(2):
        state = {"w": torch.ones(2), "ids": torch.arange(3) + i, "queue_ptr": torch.tensor([i])}
        torch.save(state, tmp_path / f"{i}.pt")
        paths.append(tmp_path / f"{i}.pt")
    assert stockpot.open(paths[0]).notes == ()
    soup = stockpot.average(paths, reconcile=Reconcile(buffers=policy)).state_dict()
    assert soup["ids"].tolist() == ([0, 1, 2] if policy == "first" else [1, 2, 3])
