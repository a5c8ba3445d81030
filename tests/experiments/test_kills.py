"""The short form of `experiments/kills.py`: each kind of target, a few kills of each signal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from experiments.kills import CASES, Chain, Plain, scored, state_of, summary

from stockpot.evaluate.journal import Journal, Key

ROOT = Path(__file__).parents[2]


def test_killed_commands_leave_no_part_and_no_litter_and_end_with_the_same_bits(
    tmp_path: Path,
) -> None:
    results = tmp_path / "results.jsonl"
    words = ["average", "average-folder", "greedy", "greedy-eval", "diagnose"]
    run = subprocess.run(
        [sys.executable, "experiments/kills.py", *words, "--kills", "4", "--results", str(results)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    chains = [Chain(**json.loads(line)) for line in results.read_text().splitlines()]
    assert {one.case for one in chains} == set(words)
    assert all(one.problems == [] for one in chains)
    # Examples never, of programs those that were running: one for each kill.
    assert all(one.repeated <= len(one.kills) * (one.case == "greedy-eval") for one in chains)


def test_what_is_at_the_target_is_told_apart() -> None:
    case = CASES["average"]
    old, done = {case.target: "1"}, {case.target: "2", "other": "3"}
    assert state_of(case, old, {case.target: "1"}, done) == "old"
    assert state_of(case, {}, {"other": "3"}, done) == "absent"
    assert state_of(case, old, {case.target: "2"}, done) == "complete"
    assert state_of(case, old, {case.target: "4"}, done) == "a part"
    sweep = CASES["sweep"]
    whole = {"out/runs/run-00.safetensors": "1", "out/runs/runs.jsonl": "2"}
    assert state_of(sweep, {}, {"out/runs/run-00.safetensors": "1"}, whole) == "growing"
    assert state_of(sweep, {}, {"out/runs/run-00.safetensors": "3"}, whole) == "a part"


def test_what_was_scored_twice_is_counted_twice(tmp_path: Path) -> None:
    key = Key("model", "split", "accuracy", "1")
    with Journal(tmp_path / "cache" / "journal.sqlite") as journal:
        for indices in ([0, 1], [1, 2]):
            journal.append(key, np.array(indices), np.zeros((2, 3), np.float32))
    (tmp_path / "count").write_text("run\nrun\n")
    found = scored(tmp_path)
    assert [found[key.digest, i] for i in range(3)] == [1, 2, 1]
    assert found["count"] == 2
    assert (found - Plain(0, {}, scored(tmp_path)).scored).total() == 0


def test_the_table_counts_kills_by_what_they_left() -> None:
    chains = [
        Chain("average", 0, [("SIGKILL", 0.1, "old"), ("SIGTERM", 0.2, "complete")]),
        Chain("average", 1, [("SIGHUP", 0.1, "absent")], repeated=2, problems=["x"]),
    ]
    assert summary(chains).splitlines()[-1] == "| average | 3 | 1 | 1 | 0 | 1 | 2 | 1 |"
