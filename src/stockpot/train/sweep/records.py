"""What a sweep keeps of itself and of each run: plain JSON beside the checkpoints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from stockpot._records import parse, read_json
from stockpot._types import JSON, StrPath, kind_of
from stockpot.errors import ReportError, TrainingError
from stockpot.io import atomic as _io

_VERSION = 1


def run_name(index: int) -> str:
    """`"run-00"`, `"run-01"`, …: sorts by index up to a hundred, and naturally beyond."""
    return f"run-{index:02}"


def run_path(folder: StrPath, index: int, suffix: str) -> Path:
    """Where the checkpoint of run `index` goes."""
    return Path(folder) / f"{run_name(index)}{suffix}"


@dataclass(frozen=True)
class RunRecord:
    """One run, finished or failed.

    Attributes:
        index: position in the sweep.
        name: of the run.
        path: of the checkpoint, relative to the sweep's folder.
        status: `"done"` or `"failed"`.
        hyperparameters: what was drawn; the rest of the configuration is the default.
        seed: of data order, augmentation and dropout.
        epochs: epoch, loss, lr and held-out scores of each epoch.
        scores: by split, as in every command's `scores`; null without a task.
        averages: by kind (`"ema-0.999"`, `"swa"`): `{"path", "scores"}`.
        seconds: wall time of training.
        n_steps: optimiser steps.
        micro_batches: parts in which each batch was computed; more than 1 where memory ran out.
        threads: per worker; they are part of what the bytes depend on.
        data: fingerprints of the training set and of every split.
        base: path and fingerprint of the start.
        fingerprint: of the checkpoint.
        environment: versions, device and machine.
        error: type, message and traceback of a failed run.
        version: of this record's format.
    """

    index: int
    name: str
    path: str
    status: str
    hyperparameters: Mapping[str, Any]
    seed: int
    epochs: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, Any] | None = None
    averages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float | None = None
    n_steps: int | None = None
    micro_batches: int | None = None
    threads: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    base: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    version: int = _VERSION

    @property
    def done(self) -> bool:
        """Whether the run has a checkpoint."""
        return self.status == "done"

    def save(self, folder: StrPath) -> None:
        """Write `NAME.json` into the sweep's folder, atomically."""
        _io.write_json(Path(folder) / f"{self.name}.json", as_json(asdict(self)))

    @classmethod
    def load(cls, path: StrPath) -> RunRecord:
        """Read a record.

        Raises:
            ReportError: it is damaged, or of a newer stockpot.
        """
        try:
            data = read_json(path, error=ReportError)
            version = data.get("version", _VERSION) if isinstance(data, dict) else _VERSION
            if version == _VERSION:
                return parse(cls, data, error=ReportError)
        except (OSError, ReportError) as error:
            raise ReportError(
                f"{path} is no record of a run ({error}); remove it to make the run again"
            ) from error
        raise ReportError(
            f"{path} is a run's record of format {version!r:.40}, expected {_VERSION}; it was "
            "written by another version of stockpot"
        )


def as_json(value: Any) -> JSON:
    """`value` with tuples as lists and numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    raise TrainingError(f"{value!r} is {kind_of(value)}, which a record cannot hold")


def read_runs(folder: StrPath) -> list[RunRecord]:
    """The records of all runs in a sweep's folder, by index."""
    found = [RunRecord.load(path) for path in Path(folder).glob("run-*.json")]
    return sorted(found, key=lambda record: record.index)


def recorded_hyperparameters(paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By path, where a sweep or a demo left a record beside the checkpoint."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        record = Path(path).with_suffix(".json")
        if record.is_file():
            with contextlib.suppress(ReportError):  # another program's file beside a checkpoint
                run = RunRecord.load(record)
                found[path] = {**run.hyperparameters, "seed": run.seed}
    return found


def write_index(folder: StrPath) -> None:
    """Write `runs.jsonl`, one line per run, from the records of all runs."""
    lines = []
    for record in read_runs(folder):
        data = asdict(record)
        for name in ("epochs", "environment"):
            del data[name]
        lines.append(json.dumps(as_json(data), sort_keys=True, ensure_ascii=False) + "\n")
    _io.write_bytes(Path(folder) / "runs.jsonl", "".join(lines).encode())


def write_table(folder: StrPath) -> Path | None:
    """Write `runs.parquet`, one row per run, where pyarrow is installed; None where it is not.

    Columns are flat, for pandas, polars or DuckDB: `hyperparameters.lr`, `scores.test` with its
    `scores.test.low`, `.high` and `.n`, and so on. A hyper-parameter of several types over the runs
    is kept as JSON text.
    """
    if importlib.util.find_spec("pyarrow") is None:
        return None
    import pyarrow
    import pyarrow.parquet

    rows = [_flat(record) for record in read_runs(folder)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    arrays = {name: _column(pyarrow, values) for name, values in columns.items()}
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), written)
    path = Path(folder) / "runs.parquet"
    _io.write_bytes(path, written.getvalue())
    return path


def _flat(record: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("index", "name", "path", "status", "seed", "seconds", "n_steps", "threads")
    }
    row["fingerprint"], row["base"] = record.fingerprint, record.base.get("fingerprint")
    row["error"] = None if record.error is None else record.error["message"]
    row |= {f"hyperparameters.{name}": as_json(v) for name, v in record.hyperparameters.items()}
    for split, score in (record.scores or {}).items():
        row[f"scores.{split}"] = score["value"]
        row |= {f"scores.{split}.{part}": score[part] for part in ("low", "high", "n")}
    return row


def _column(pyarrow: Any, values: Sequence[Any]) -> Any:
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if v is None else json.dumps(v) for v in values])


def environment(device: str | None) -> dict[str, Any]:
    """Versions, machine and device: what can explain why a run differs."""
    import torch

    from stockpot.tensors._devices_torch import accelerator_here, device_name

    versions = {name: metadata.version(name) for name in ("torch", "numpy", "accelerate")}
    used = accelerator_here() if device is None else torch.device(device)
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": "cpu" if used is None else device_name(used),
    }
