"""Throw mutated records, reports, journals and YAML at the readers, and JSON through and back.

    python experiments/fuzz_records.py --cases 1000000 --results records.jsonl

- `record`: the record beside a soup of every recipe: read, verified, or made a page's data;
- `report`: `report.json` of both formats, and its card;
- `run`: the record of a run of a sweep, and the report of the sweep;
- `journal`: rows of the journal of scores, and the bytes of its file;
- `task`, `space`: `task.yaml` and the space of a sweep;
- `json`: what a soup says as JSON, with any values of the right types: it comes back as it went,
  and `--json` prints it, or a failure with it, as exactly one object.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import sqlite3
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from experiments.fuzzing import NUMBERS, TEXTS, Target, main, mutated, mutated_json

import stockpot
from stockpot import StockpotError
from stockpot.cli.output import emit, failure
from stockpot.evaluate.journal import Journal, Key
from stockpot.recipes import RECIPES
from stockpot.recipes.reading import read_summary
from stockpot.recipes.record import SoupRecord
from stockpot.report import open_report
from stockpot.report.model import Report
from stockpot.report.page import to_card, to_html
from stockpot.tasks.transformers import parse_task_file
from stockpot.train.sweep.named import resolve_space

MODELS = ("base", "run-0", "run-1", "run-2")


def write_models(folder: Path) -> list[Path]:
    """A base and three fine-tunes of it, of one small layer."""
    paths = []
    for i, name in enumerate(MODELS):
        values = np.random.default_rng(0).standard_normal(27).astype("<f4")
        values += np.random.default_rng(i).standard_normal(27).astype("<f4") * np.float32(0.1 * i)
        header = {
            "weight": {"dtype": "F32", "shape": [3, 8], "data_offsets": [0, 96]},
            "bias": {"dtype": "F32", "shape": [3], "data_offsets": [96, 108]},
        }
        text = json.dumps(header).encode()
        paths.append(folder / f"{name}.safetensors")
        paths[-1].write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())
    return paths


@functools.cache
def real_records() -> Mapping[str, Any]:
    """The record of a soup of every recipe, by its name, as saving writes it."""
    import torch
    from torch.utils.data import TensorDataset

    truth = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def data(seed: int) -> TensorDataset:
        x = torch.randn(60, 8, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, (x @ truth).argmax(1))

    task = stockpot.ClassificationTask(
        build=lambda: torch.nn.Linear(8, 3),
        splits={
            "val": stockpot.Split(data(1), role="held-out", categories=["a", "b", "c"] * 20),
            "test": stockpot.Split(data(2), role="test"),
            "blur": stockpot.Split(data(3), role="shift"),
        },
        version="1",
    )
    found = {}
    with tempfile.TemporaryDirectory() as place:
        base, *runs = write_models(Path(place))
        for recipe in RECIPES:
            models = runs[:2] if recipe.name == "slerp" else runs
            if recipe.name == "wise-ft":
                models = runs[:1]
            soup = recipe().cook(models, task, base=base)
            out = Path(place, f"{recipe.name}.safetensors")
            soup.save(out)
            record = json.loads(Path(f"{out}.stockpot.json").read_text())
            for one in (*record["ingredients"], record["base"]):
                if one is not None:  # where a reader of cases puts them
                    one["path"] = Path(one["path"]).name
            found[recipe.name] = record
    return found


def _record(records: Mapping[str, Any]) -> Target:
    seeds = [json.dumps(record) for record in records.values()]

    def read(data: bytes, folder: Path) -> str:
        if not (folder / "base.safetensors").exists():
            write_models(folder)[1].rename(folder / "soup.safetensors")
            write_models(folder)
        # Paths in a record are absolute: those of the models are where this case has them.
        data = data.replace(b'"path": "run', f'"path": "{folder}/run'.encode())
        (folder / "soup.safetensors.stockpot.json").write_bytes(
            data.replace(b'"path": "base', f'"path": "{folder}/base'.encode())
        )
        soup = folder / "soup.safetensors"
        reader = zlib.crc32(data) % 3  # each takes as long as making the case
        if reader == 0:
            stockpot.verify(soup)
        elif reader == 1:
            _shown(open_report(soup), data)
        else:
            SoupRecord.read(soup).to_json()
        return "valid"

    return Target(lambda rng: mutated_json(rng, rng.choice(seeds)), read)


def _report() -> Target:
    from stockpot.report.from_results import soup_report

    seeds = [json.dumps(soup_report(one).to_json()) for one in real_records().values()]
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "metric": "accuracy"}
    scores = {"val": score, "test": score, "blur": score, "shift_average": score}
    curve = [{"alpha": a, "scores": scores} for a in (0.0, 0.5, 1.0)]
    older = {
        "format": 1, "title": "t", "verdict": ["v"], "chosen_on": "val", "headline": ["a"],
        "reported_on": ["test", "blur"], "shifts": ["blur"], "curves": [{"points": curve}],
        "models": [{"name": n, "kind": "run", "scores": scores} for n in "ab"],
    }  # fmt: skip
    seeds.append(json.dumps(older))

    def read(data: bytes, folder: Path) -> str:
        (folder / "report.json").write_bytes(data)
        _shown(open_report(folder), data)
        return "valid"

    return Target(lambda rng: mutated_json(rng, rng.choice(seeds)), read)


def _shown(report: Report, data: bytes) -> None:
    """The card, and of one in a thousand, because charts take their time, the page."""
    to_card(report)
    if zlib.crc32(data) % 1000 == 0:
        to_html(report)


RUN = {
    "index": 0, "name": "run-00", "path": "run-00.safetensors", "status": "done", "seed": 1,
    "hyperparameters": {"lr": 0.1, "epochs": 2}, "seconds": 1.5, "n_steps": 4, "version": 1,
    "epochs": [{"epoch": 0, "loss": 1.0, "lr": 0.1, "held_out": 0.5}], "micro_batches": 1,
    "scores": {
        name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "metric": "accuracy"}
        for name in ("val", "test", "shift_average")
    },
    "averages": {"swa": {"path": "averages/a.safetensors", "scores": {}}}, "threads": 1,
    "data": {"val": "0f"}, "base": {"path": "b", "fingerprint": "0f"}, "fingerprint": "0f",
    "environment": {"torch": "2"}, "error": None,
}  # fmt: skip


def _read_run(data: bytes, folder: Path) -> str:
    from stockpot.train.sweep.records import RunRecord, write_index

    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "run-00.json").write_bytes(data)
    with contextlib.suppress(StockpotError):
        to_card(open_report(runs))
    RunRecord.load(runs / "run-00.json")
    write_index(runs)
    return "valid"


KEY = Key("model", "split", "accuracy", "1")


def _journal_case(rng: random.Random) -> bytes:
    """The columns of a row as JSON, or the bytes of a file."""
    if rng.random() < 0.1:
        return b"file" + mutated(rng, _journal_file())
    row: list[Any] = ["<f4", "[3]", "00" * 16, "00" * 24, '{"score": 0.5}', '{"model": "m"}', 1.0]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(row))
        row[at] = rng.choice((
            rng.choice(NUMBERS), rng.choice(TEXTS), "<i8", "|O", "O8", "<U4", "|V8", "<M8[ns]",
            "(2,)f4", "f4,f4", "[-1]", "[2147483647, 9]", "[0]", "[[]]", "[1.5]", '["3"]', "00" * 7,
            "7f" * 16, "[" * 5000, '{"score": NaN}', '{"score": []}', '{"model": "m", "x": 1}',
        ))  # fmt: skip
    return json.dumps(row).encode()


@functools.cache
def _journal_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.sqlite")
        with Journal(path) as journal:
            journal.append(KEY, np.arange(2), np.ones((2, 3), np.float32))
            journal.write_numbers(KEY, {"score": 0.5}, label="l")
            journal.keep("k", {"loss": 0.5})
        return path.read_bytes()


def _read_journal(data: bytes, folder: Path) -> str:
    if data[:4] == b"file":
        for old in folder.glob("journal.sqlite*"):
            old.unlink()
        (folder / "journal.sqlite").write_bytes(data[4:])
        journal = Journal(folder / "journal.sqlite")
    else:
        journal = Journal(None)
    with journal:
        if data[:4] != b"file":
            try:
                _put_row(journal, json.loads(data))
            except (TypeError, ValueError, KeyError, OverflowError, sqlite3.Error):
                return "no row"  # SQLite does not take it
        for look in (
            lambda: journal.outputs(KEY), lambda: journal.numbers(KEY), lambda: journal.kept("k"),
            lambda: [one.to_json() for one in journal.entries()],
            lambda: journal.clear(model="m"),
        ):  # fmt: skip
            with contextlib.suppress(StockpotError):
                look()
    return "read"


def _put_row(journal: Journal, row: list[Any]) -> None:
    dtype, width, positions, values, numbers, fields, created = row

    def raw(value: Any) -> Any:
        with contextlib.suppress(ValueError, TypeError):
            return bytes.fromhex(value)
        return value

    db = journal._open()
    db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (KEY.digest, fields, "l", created))
    db.execute(
        "INSERT INTO outputs (key, n, dtype, width, positions, data) VALUES (?,?,?,?,?,?)",
        (KEY.digest, 2, dtype, width, raw(positions), raw(values)),
    )
    db.execute("INSERT INTO numbers VALUES (?, ?)", (KEY.digest, numbers))
    db.execute("INSERT INTO steps VALUES (?, ?)", ("k", numbers))


TASK = """\
kind: text-classification
model: base
text: [premise, hypothesis]
label: answer
labels: [no, yes]
train: {data: train.csv, part: a}
splits:
  held-out: val.csv
  test: {data: more/test.jsonl}
  films: {data: saved, part: films, role: shift}
template: "it is {mask}"
label_words: {no: bad, yes: good}
form: label-words
max_length: 40
drop_shared: true
"""
ZERO_SHOT = """\
kind: zero-shot-image-classification
model: base
image: picture
label: 7
splits:
  held-out: {data: images, classes: [cat, dog]}
  test: {data: images, part: test, classes: {cat: [puss, kitten], dog: [dog]}}
  sketches: {data: saved, role: shift, classes: classes.txt}
batch_size: 8
padding: batch
"""
SPACE = """\
lr: {log_uniform: [1e-4, 1e-2]}
epochs: {choice: [2, 3, 5]}
batch_size: {int: [8, 64]}
mixup: {mixture: [{weight: 1, value: 0}, {weight: 2, uniform: [0, 0.9]}, {weight: 1, set: {a: 1}}]}
grid: {seed: [1, 2], dropout: [0, 0.1]}
"""
YAML = (
    "&a ", "*a", "<<: *a", "!!python/object/apply:os.system [id]", "!!binary ab", "!!timestamp 1",
    "!!set {a}", "!!float x", "!!int 0x", "!x y", "? ", "- ", "\t", "%TAG ! x:", "---\n", "...\n",
    "1e999", ".nan", ".inf", "-1", "0", "2001-99-99", "2001-01-01", "'", '"\\ud800"', "\0", "\x85",
    "[" * 40, "{" * 5000, "~", "null", "true", "999999999999999999999", "1_0", "0o8", "1:60:61",
    "x: ", "{}", "[]", "| \n", "\u202e", "=", "#", ", ", "]", "}", ": ",
)  # fmt: skip


def _yaml(*seeds: str) -> Callable[[random.Random], bytes]:
    """The maker of cases from documents."""

    def make(rng: random.Random) -> bytes:
        words = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            at = rng.randrange(len(words) + 1)
            end = at + rng.choice((0, 0, 1, 3, 8, 20))
            words = words[:at] + rng.choice(YAML) + words[end:]
        data = words.encode(errors="replace")
        return mutated(rng, data) if rng.random() < 0.2 else data

    return make


def _read_task(data: bytes, folder: Path) -> str:
    (folder / "classes.txt").write_bytes(data)
    (folder / "task.yaml").write_bytes(data)
    parse_task_file(folder / "task.yaml")
    return "valid"


def _read_space(data: bytes, folder: Path) -> str:
    (folder / "space.yaml").write_bytes(data)
    space = resolve_space(folder / "space.yaml")
    space.draw(0, seed=0)
    json.dumps(space.as_data())
    return "valid"


def _same_types(rng: random.Random, value: Any) -> Any:
    """`value` with other numbers and texts in it."""
    if isinstance(value, dict):
        return {k: _same_types(rng, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_same_types(rng, one) for one in value]
    if rng.random() < 0.8 or isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        text = rng.choice(TEXTS)
        return value if text == "\ud800" else text
    if isinstance(value, int):
        return rng.choice((0, 1, 7, 2**53 + 1, 2**70))
    return rng.choice((0.1, -0.0, 5e-324, 1.7976931348623157e308, 0.30000000000000004, 1e16, -3.5))


def _read_json(data: bytes, folder: Path) -> str:
    try:
        summary = read_summary(json.loads(data))
    except StockpotError as error:
        found = error
        said = _printed(lambda: failure(found, as_json=True))
        assert set(said) == {"error"}
        raise
    told = summary.to_json()
    text = json.dumps(told)
    again = read_summary(json.loads(text))
    assert again.to_json() == told, "it came back as another"
    assert _printed(lambda: emit(told, "", as_json=True)) == json.loads(text)
    return "came back"


def _printed(write: Any) -> Any:
    """What is printed, as the one JSON object that it has to be."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        write()
    return json.loads(out.getvalue())


@functools.cache
def targets() -> Mapping[str, Target]:
    """The kinds of cases, by name."""
    records = real_records()
    soups = [record["soup"] for record in records.values()]
    run = json.dumps(RUN)
    return {
        "record": _record(records),
        "report": _report(),
        "run": Target(lambda rng: mutated_json(rng, run), _read_run),
        "journal": Target(_journal_case, _read_journal),
        "task": Target(_yaml(TASK, ZERO_SHOT), _read_task),
        "space": Target(_yaml(SPACE), _read_space),
        "json": Target(
            lambda rng: json.dumps(_same_types(rng, rng.choice(soups))).encode(), _read_json
        ),
    }


if __name__ == "__main__":
    sys.exit(main(targets, __doc__ or ""))
