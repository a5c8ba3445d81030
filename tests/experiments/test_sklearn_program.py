"""The scikit-learn program: its weights survive a file, its troubles come at the fifth call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import sklearn_program as program


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return program.make(tmp_path_factory.mktemp("sklearn") / "runs")


def test_parts_share_no_image() -> None:
    images = [{image.tobytes() for image in program.digits(part)[0]} for part in program.PARTS]
    assert sum(map(len, images)) == len(set.union(*images))


def test_weights_come_back_from_a_file(runs: list[Path]) -> None:
    weights = load_file(runs[0])
    again = program.weights_of(program.network(weights))
    assert all(np.array_equal(again[name], weights[name]) for name in weights)
    assert program.score(runs[0], "held-out") > 0.85
    assert program.score(runs[0], "held-out") > program.score(runs[-1], "held-out")


def test_troubles_come_at_the_fifth_call(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(program.CALLS, str(tmp_path / "calls"))
    monkeypatch.setenv(program.TROUBLE, "crash")
    words = ["score", str(runs[0]), "test"]
    for _ in range(4):
        assert program.main(words) == 0
    assert float(capsys.readouterr().out.split()[-1]) > 0.85
    with pytest.raises(SystemExit, match="fell over"):
        program.main(words)
    assert program.main(words) == 0


def test_one_command_of_stockpot_drives_it(runs: list[Path], tmp_path: Path) -> None:
    found = program.attempt(runs[:2], tmp_path, tmp_path / "cache")
    assert (found["code"], found["message"]) == (0, None)
    assert found["selected"][0] in {"run-00.safetensors", "run-01.safetensors"}
    assert set(found["scores"]) == {"held-out", "test"}
    assert found["calls"] == 4
