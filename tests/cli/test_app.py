from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import stockpot
from stockpot.cli.app import app
from stockpot.errors import MismatchError, Problem

SOURCE = str(Path(stockpot.__file__).parents[1])
HEAVY = ("torch", "numpy", "rich", "scipy", "matplotlib", "sklearn", "torchmetrics", "transformers")


def modules_after(*arguments: str) -> set[str]:
    """Names of the modules that a process has imported after one command."""
    code = (
        "import sys; from stockpot.cli import main; code = main(sys.argv[1:]);"
        "sys.stderr.write('\\n'.join(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


def test_help_imports_nothing_heavy() -> None:
    assert modules_after("--help").isdisjoint(HEAVY)


def test_the_version_is_that_of_the_package(run) -> None:
    result = run("--version")
    assert (result.code, result.out) == (0, f"stockpot {stockpot.__version__}\n")


def test_the_package_can_be_run_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stockpot", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
        check=True,
    )
    assert done.stdout == f"stockpot {stockpot.__version__}\n"


def test_shells_can_complete_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stockpot"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": SOURCE,
            "_STOCKPOT_COMPLETE": "bash_complete",
            "COMP_WORDS": "stockpot --ver",
            "COMP_CWORD": "1",
        },
        check=False,
    )
    assert done.stdout.split() == ["plain,--version"]


def test_wrong_usage_is_exit_2_and_says_so_on_stderr(run) -> None:
    result = run("no-such-command")
    assert (result.code, result.out) == (2, "")
    assert "no-such-command" in result.err


def test_wrong_usage_is_one_json_object_where_json_was_asked_for(run) -> None:
    result = run("no-such-command", "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == "UsageError"
    assert "no-such-command" in result.json["error"]["message"]
    assert result.json["error"]["problems"] == []


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(app, "main", fails)


def test_a_refusal_is_exit_1_with_every_problem(run, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("b.pt", "head.weight", "F32 (10, 4)", "F32 (100, 4)")
    raising(MismatchError("they do not fit", [problem]), monkeypatch)
    assert run("average").err == "Error: they do not fit\n"
    result = run("average", "--json")
    assert result.code == 1
    assert result.json == {
        "error": {
            "type": "MismatchError",
            "message": "they do not fit",
            "problems": [
                {
                    "ingredient": "b.pt",
                    "tensor": "head.weight",
                    "found": "F32 (10, 4)",
                    "expected": "F32 (100, 4)",
                }
            ],
        }
    }


def test_an_operating_system_error_is_a_message_and_no_trace(run, monkeypatch) -> None:
    raising(PermissionError(13, "Permission denied", "/root/x"), monkeypatch)
    result = run("average")
    assert result.code == 1
    assert result.err == "Error: /root/x: Permission denied\n"


def test_an_interruption_is_exit_130_without_a_trace(run, monkeypatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    result = run("average")
    assert (result.code, result.out, result.err) == (130, "", "Error: stopped\n")
    assert run("average", "--json").json["error"]["type"] == "KeyboardInterrupt"


def test_a_defect_shows_its_trace_and_is_still_one_json_object(run, monkeypatch) -> None:
    raising(ZeroDivisionError("a bug"), monkeypatch)
    monkeypatch.setattr("stockpot.cli.app.place_of", lambda error: None)  # in stockpot's own code
    result = run("average", "--json")
    assert result.code == 1
    assert result.json["error"]["type"] == "ZeroDivisionError"
    assert "Traceback" in result.err


def test_ctrl_c_in_the_middle_of_a_command_leaves_nothing(tmp_path: Path) -> None:
    """As a person stops it: a signal while it writes, through the parser and the threads."""
    paths = [tmp_path / "runs" / f"{i}.safetensors" for i in range(2)]
    for i, path in enumerate(paths):
        state = {f"layers.{k}": np.full((1000, 1000), i, np.float32) for k in range(15)}
        stockpot.Mixture(stockpot.Ingredients([state])).save(path)
    out = tmp_path / "out" / "soup.safetensors"
    out.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "stockpot", "average", *map(str, paths), "-o", str(out)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not any(out.parent.iterdir()) and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    if process.returncode != 0:  # the signal can come after the end of the work
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "Error: stopped"
        assert "Traceback" not in errors
        assert list(out.parent.iterdir()) == []


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m stockpot --help | true",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("uniform", "stockpot average"),
        ("soup", "stockpot greedy"),
        ("wise-ft", "stockpot interpolate"),
        ("wise_ft", "stockpot interpolate"),
        ("ensemble", "stockpot evaluate RUNS --task TASK --ensemble"),
        ("ties", "arithmetic RUNS --base BASE --rule ties"),
        ("gredy", "stockpot greedy"),
        ("qwertz", "stockpot --help lists them all"),
    ],
)
def test_names_from_elsewhere_lead_to_the_right_command(run, typed: str, meant: str) -> None:
    result = run(typed, "a.pt")
    assert (result.code, result.out) == (2, "")
    assert f"There is no command {typed!r}: " in result.err
    assert meant in result.err


def test_help_is_a_command_too(run) -> None:
    assert run("help").out == run("--help").out
    assert run("help", "greedy").out == run("greedy", "--help").out


def test_debug_shows_where_a_refusal_comes_from(run, tmp_path: Path) -> None:
    words = ["inspect", tmp_path / "nothing.pt"]
    assert "Traceback" not in run(*words).err
    shown = run(*words, "--debug")
    assert shown.code == 1
    assert "Traceback" in shown.err
    assert shown.err.splitlines()[-1].startswith("Error: ")


def test_names_in_files_cannot_steer_a_terminal(run, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    name = "w\x1b]0;title\x07\x1b[31m\u202e\x9b"
    save_file({name: np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    save_file({name: np.zeros(3, np.float32)}, tmp_path / "b.safetensors")
    for words in ([], ["--json"]):
        result = run("inspect", tmp_path / "a.safetensors", tmp_path / "b.safetensors", *words)
        assert not set("\x1b\x07\x9b\u202e") & set(result.out + result.err)
    assert result.json["problems"][0]["tensor"] == name
    refused = run("average", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", "x\x1b")
    assert "\x1b" not in refused.err
    assert "\\x1b]0;title\\x07" in refused.err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    code = (
        "import contextlib, os, signal, sys, time\n"
        "from stockpot.cli import app, main\n"
        "from pathlib import Path\n"
        "signal.signal(getattr(signal, sys.argv[1]), signal.SIG_DFL)\n"  # nohup ignores it
        "def slow(*a, **k):\n"
        "    try:\n"
        "        os.kill(os.getpid(), getattr(signal, sys.argv[1])); time.sleep(20)\n"
        "    finally:\n"
        "        Path(sys.argv[2]).touch()\n"
        "from stockpot.cli.app import app as commands\n"
        "commands.main = slow\n"
        "sys.exit(main(['greedy', 'a']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(tmp_path / "cleaned")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
        check=False,
    )
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert (tmp_path / "cleaned").exists()
    assert done.stderr == "Error: stopped; `stockpot greedy …` given again continues\n"


def test_standard_streams_may_be_closed_or_of_another_locale(tmp_path: Path) -> None:
    command = f"{sys.executable} -m stockpot"
    env = {**os.environ, "PYTHONPATH": SOURCE}
    closed = subprocess.run(f"{command} --version >&- 2>&-", shell=True, env=env, check=False)
    assert closed.returncode == 0
    ascii_only = {**env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "stockpot", "inspect", str(tmp_path / "é.pt"), "--json"]
    done = subprocess.run(words, env=ascii_only, capture_output=True, check=False)
    assert done.returncode == 1
    assert (
        "é.pt"
        in json.loads(done.stdout)["error"]["message"].encode("utf-8", "surrogateescape").decode()
    )
