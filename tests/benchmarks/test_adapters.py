"""The benchmark of adapters, on layers of a few weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import adapters


def test_every_part_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("HIDDEN", 40), ("VOCABULARY", 5), ("LINEAR", {"mlp.up_proj": (48, 40)})):
        monkeypatch.setattr(adapters, name, value)
    sizes = ["--layers", "2", "--adapters", "3", "--members", "2", "--repeat", "1"]
    adapters.main([*sizes, "--data", str(tmp_path / "data")])
    found = json.loads(capsys.readouterr().out)
    assert found["read"] > 0
    assert found["average"]["wall"] > found["average"]["seconds"] > 0
    assert found["rank"]["seconds"] > 0
    assert set(found["switch"]) == {"stockpot", "torch float64", "torch float32"}
    rows = adapters.modules(2)
    assert list(rows.values()) == [(48, 40)] * 2
