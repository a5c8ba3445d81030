from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stockpot.errors import TrainingError
from stockpot.train.sweep.command import check_command, run_command
from stockpot.train.sweep.options import SweepOptions
from stockpot.train.sweep.run import run_sweep
from stockpot.train.sweep.space import Constant, LogUniform, Space

PROGRAM = """
import sys
lr, out = float(sys.argv[1]), sys.argv[2]
print("learning at", lr)
if lr > 5:
    sys.exit("too fast")
open(out, "w").write(str(lr))
"""


def test_a_command_makes_the_checkpoint_and_leaves_a_log(tmp_path: Path) -> None:
    out = tmp_path / "with space.pt"
    command = f"{sys.executable} -c '{PROGRAM}' {{lr}} {{out}}"
    run_command(command, {"lr": 0.5}, out, tmp_path / "log")
    assert out.read_text() == "0.5"
    assert (tmp_path / "log").read_text() == "learning at 0.5\n"


def test_a_failing_command_is_quoted(tmp_path: Path) -> None:
    command = f"{sys.executable} -c '{PROGRAM}' {{lr}} {{out}}"
    with pytest.raises(TrainingError, match=r"(?s)ended with code 1.*too fast"):
        run_command(command, {"lr": 9}, tmp_path / "out.pt", tmp_path / "log")


def test_a_command_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="left nothing at"):
        run_command("true {out}", {}, tmp_path / "out.pt", tmp_path / "log")


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no-such-program cannot be run"):
        run_command("no-such-program {out}", {}, tmp_path / "out.pt", tmp_path / "log")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --lr {lrr} {out}", "places for lrr; there are base, index, lr"),
        ("train --lr {lr}", r"no place for \{out\}"),
        ("train {", "cannot be filled in"),
    ],
)
def test_commands_are_checked_before_anything_runs(command: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_command(command, {"lr"})


def test_a_sweep_of_a_command_needs_no_task(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import sys, numpy, safetensors.numpy as st\n"
        "st.save_file({'w': numpy.array([float(sys.argv[1])])}, sys.argv[2])"
    )
    space = Space({"lr": LogUniform(1e-3, 1), "note": Constant("a b")})
    command = f"{sys.executable} {program} {{lr}} {{out}}"
    result = run_sweep(
        None, None, SweepOptions(space=space, n_runs=2, train=command), out=tmp_path / "runs"
    )
    assert [run.status for run in result.runs] == ["done", "done"]
    assert result.runs[0].scores is None
    assert result.runs[0].fingerprint is not None
    assert (tmp_path / "runs" / "logs" / "run-00.log").exists()
