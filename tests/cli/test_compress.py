"""`stockpot compress` and `stockpot expand`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.formats.pruning import pruned, sparse_model

from stockpot.cli import main


def test_there_and_back_with_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, small, back = (str(tmp_path / f"{n}.safetensors") for n in ("dense", "small", "back"))
    save_file({**sparse_model(), "p": pruned(9, 9)}, dense, metadata={"format": "pt"})
    assert main(["compress", dense, "-o", small, "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["output"] == small
    assert told["bytes"] == Path(small).stat().st_size
    assert told["left_dense"] == ["p"]
    assert "left dense" in err
    assert main(["expand", small, "-o", back, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == Path(back).stat().st_size
    assert Path(back).read_bytes() == Path(dense).read_bytes()


def test_people_are_told_the_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, small = str(tmp_path / "dense.safetensors"), str(tmp_path / "small.safetensors")
    save_file(sparse_model(), dense)
    main(["compress", dense, "-o", small])
    main(["expand", small, "-o", str(tmp_path / "back")])
    main(["inspect", small])
    out = capsys.readouterr().out
    assert "2 of 6 tensors are stored sparse, 90.00 % of their values are zero" in out
    assert "2 of 6 tensors were stored sparse" in out
    assert "safetensors+bitmask" in out


def test_inspect_says_the_sparsity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, small = str(tmp_path / "dense.safetensors"), str(tmp_path / "small.safetensors")
    save_file(sparse_model(), dense)
    main(["compress", dense, "-o", small])
    capsys.readouterr()
    assert main(["inspect", dense, small, "--json"]) == 0
    plain, sparse = json.loads(capsys.readouterr().out)["checkpoints"]
    assert plain["sparsity"] is None
    assert sparse["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert sparse["stored_bytes"] < sparse["bytes"] == plain["bytes"]


def test_failures_are_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": pruned(9, 9, sparsity=0)}, tmp_path / "d.safetensors")
    out = str(tmp_path / "o.safetensors")
    assert main(["compress", str(tmp_path / "d.safetensors"), "-o", out]) == 1
    assert main(["expand", str(tmp_path / "d.safetensors"), "-o", out]) == 1
    assert "expected a pruned checkpoint" in capsys.readouterr().err
