from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stockpot.errors import EvaluationError
from stockpot.evaluate.journal import Journal, Key

KEY = Key("m", "s", "accuracy", "1")
WRITER = """
import sys, numpy as np
from stockpot.evaluate.journal import Journal, Key
journal = Journal(sys.argv[1])
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    journal.append(Key("m", "s", "accuracy", "1"), np.array([i]), np.full((1, 3), i, np.float32))
    print(i, flush=True)
"""


def start(path, first, last):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(last)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )


def test_outputs_come_back_sorted_with_the_latest_of_each_example(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(KEY, np.array([3, 1]), np.array([[3.0], [1.0]], np.float32))
    journal.append(KEY, np.array([1, 2]), np.array([[9.0], [2.0]], np.float32))
    indices, outputs = Journal(tmp_path / "j").outputs(KEY)
    assert indices.tolist() == [1, 2, 3]
    assert outputs.tolist() == [[9.0], [2.0], [3.0]]


@pytest.mark.parametrize("field", ["model", "split", "metric", "version", "batchnorm", "precision"])
def test_every_field_of_the_key_counts(field):
    journal = Journal(None)
    journal.append(KEY, np.array([0]), np.zeros((1, 1)))
    other = Key(**{**{f: getattr(KEY, f) for f in Key.__slots__}, field: "else"})
    assert journal.outputs(other) is None


def test_several_processes_write_at_once(tmp_path):
    writers = [start(tmp_path / "j", 20 * i, 20 * i + 20) for i in range(3)]
    assert [w.communicate()[1] for w in writers] == [None] * 3
    assert [w.returncode for w in writers] == [0] * 3
    assert Journal(tmp_path / "j").outputs(KEY)[0].tolist() == list(range(60))


def test_what_was_appended_before_kill_9_is_there(tmp_path):
    writer = start(tmp_path / "j", 0, 100_000)
    seen = [int(writer.stdout.readline()) for _ in range(30)]
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    indices, outputs = Journal(tmp_path / "j").outputs(KEY)
    assert set(seen) <= set(indices.tolist())
    assert np.array_equal(outputs[:, 0], indices)


def test_a_forked_child_uses_a_connection_of_its_own(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(KEY, np.array([0]), np.zeros((1, 1)))
    child = os.fork()
    if child == 0:
        journal.append(KEY, np.array([1]), np.zeros((1, 1)))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert journal.outputs(KEY)[0].tolist() == [0, 1]


def test_entries_and_clear(tmp_path):
    journal = Journal(tmp_path / "j")
    before = time.time()
    journal.append(KEY, np.array([0, 1]), np.zeros((2, 4), np.float32), label="run-00")
    journal.append(Key("n", "s", "accuracy", "1"), np.array([0]), np.zeros((1, 4), np.float32))
    first, second = journal.entries()
    assert (first.key, first.label, first.n) == (KEY, "run-00", 2)
    assert first.created >= before - 1
    assert second.key.model == "n"
    assert journal.clear(model="m") == 1
    assert [entry.key.model for entry in journal.entries()] == ["n"]
    assert journal.clear() == 1
    assert journal.outputs(KEY) is None


def test_numbers_of_external_programs_are_kept(tmp_path):
    Journal(tmp_path / "j").write_numbers(KEY, {"score": 0.5}, label="x")
    assert Journal(tmp_path / "j").numbers(KEY) == {"score": 0.5}
    assert Journal(tmp_path / "j").numbers(Key("o", "s", "accuracy", "1")) is None


def test_a_damaged_journal_says_what_to_do(tmp_path):
    (tmp_path / "j").write_bytes(b"not a database" * 100)
    with pytest.raises(EvaluationError, match="--no-journal"):
        Journal(tmp_path / "j").entries()


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 indices for 1"):
        Journal(None).append(KEY, np.array([0, 1]), np.zeros((1, 1)))
