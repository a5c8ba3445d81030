from __future__ import annotations

import json
from pathlib import Path

import pytest

from stockpot.errors import ReportError, TrainingError
from stockpot.train.sweep.records import (
    RunRecord,
    as_json,
    environment,
    read_runs,
    write_index,
    write_table,
)


def record(index: int, **fields) -> RunRecord:
    given = {
        "index": index, "name": f"run-{index:02}", "path": f"run-{index:02}.safetensors",
        "status": "done", "hyperparameters": {"lr": 0.1, "decays": (0.9, 0.99)}, "seed": 3,
        "epochs": ({"epoch": 0, "loss": 1.5, "lr": 0.1, "scores": {"val": 0.5}},), **fields,
    }  # fmt: skip
    return RunRecord(**given)


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record(2).save(tmp_path)
    found = RunRecord.load(tmp_path / "run-02.json")
    assert found.epochs == record(2).epochs
    assert found.hyperparameters == {"lr": 0.1, "decays": [0.9, 0.99]}
    assert found.done


def test_records_are_read_by_index(tmp_path: Path) -> None:
    for index in (10, 2, 100):
        record(index).save(tmp_path)
    assert [found.index for found in read_runs(tmp_path)] == [2, 10, 100]


def test_the_index_has_one_line_per_run_and_is_short(tmp_path: Path) -> None:
    record(0).save(tmp_path)
    record(1, status="failed", error={"type": "E", "message": "m", "traceback": "t"}).save(tmp_path)
    write_index(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done", "failed"]
    assert "epochs" not in lines[0]


def test_the_table_has_a_row_per_run_and_flat_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    scores = {"val": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "metric": "accuracy"}}
    record(0, scores=scores, seconds=2.5).save(tmp_path)
    given = {"lr": 1, "mixup": 0.5, "schedule": "cosine", "clip": None}
    record(1, hyperparameters=given, base={"path": "b", "fingerprint": "f" * 32}).save(tmp_path)
    error = {"type": "E", "message": "m", "traceback": "t"}
    record(2, status="failed", hyperparameters={"schedule": 3}, error=error).save(tmp_path)
    path = write_table(tmp_path)
    assert path == tmp_path / "runs.parquet"
    rows = parquet.read_table(path).to_pylist()
    assert [row["name"] for row in rows] == ["run-00", "run-01", "run-02"]
    assert [row["hyperparameters.lr"] for row in rows] == [0.1, 1.0, None]
    assert rows[0]["hyperparameters.decays"] == [0.9, 0.99]
    assert [row["hyperparameters.schedule"] for row in rows] == [None, '"cosine"', "3"]
    assert rows[0]["scores.val"] == 0.5
    assert [row["scores.val.n"] for row in rows] == [9, None, None]
    assert rows[1]["base"] == "f" * 32
    assert rows[2]["error"] == "m"


def test_without_pyarrow_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(0).save(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert write_table(tmp_path) is None
    assert not (tmp_path / "runs.parquet").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no record of a run"),
        ("[]", "is no record of a run"),
        ('{"version": 7}', "format 7, expected 1"),
        ('{"version": 1, "epochs": []}', "is no record of a run"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run-00.json"
    file.write_text(text)
    with pytest.raises(ReportError, match=message) as caught:
        read_runs(tmp_path)
    assert str(file) in str(caught.value)


def test_numbers_that_are_not_finite_become_null() -> None:
    values = {"a": float("nan"), "b": [float("inf"), 1.5], "c": True}
    assert as_json(values) == {"a": None, "b": [None, 1.5], "c": True}
    with pytest.raises(TrainingError, match="which a record cannot hold"):
        as_json({"a": object()})


def test_the_environment_names_versions_and_machine() -> None:
    import torch

    found = environment("cpu")
    assert torch.__version__.startswith(found["torch"])  # without the build, such as +cu121
    assert found["device"] == "cpu"
    assert json.dumps(found)
