"""A second program that loads the file it is given with safetensors alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from stockpot import Ingredients, Mixture
from stockpot.errors import EvaluationError
from stockpot.evaluate.command import CommandEvaluator, command_version, parse_output
from stockpot.recipes import Auto, Greedy, Uniform

PROGRAM = """
import json, sys
from pathlib import Path
from safetensors.numpy import load_file
with open({log!r}, "a") as log: log.write(sys.argv[1] + chr(10))
w = load_file(sys.argv[1])["w"]
print("loss so far")
print(json.dumps({{"score": float(-abs(w - 0.5).sum()), "n": 7, "norm": float((w * w).sum())}}))
"""


@pytest.fixture
def models(tmp_path):
    paths = []
    for i, value in enumerate([0.4, 0.7, 0.1, 3.0]):
        paths.append(str(tmp_path / f"m{i}.safetensors"))
        save_file({"w": np.full(3, value, np.float32)}, paths[-1])
    return paths


@pytest.fixture
def program(tmp_path):
    script = tmp_path / "score.py"
    script.write_text(PROGRAM.format(log=str(tmp_path / "runs.txt")))
    return f"{sys.executable} {script} {{checkpoint}}"


def one_liner(code):
    return f'{sys.executable} -c "{code}" {{checkpoint}}'


def test_greedy_is_driven_by_a_program(models, program, tmp_path):
    evaluator = CommandEvaluator(program, cache=tmp_path / "cache")
    soup = Greedy().cook(models, evaluator=evaluator)
    assert list(soup.selected) == [models[0], models[1]]
    assert soup.scores["held-out"].value == pytest.approx(-0.15, abs=1e-6)
    assert soup.scores["held-out"].n == 7
    assert any("nothing independent was measured" in note for note in soup.notes)


def test_a_rerun_starts_no_program(models, program, tmp_path):
    first = Greedy().cook(models, evaluator=CommandEvaluator(program, cache=tmp_path / "cache"))
    n_runs = len((tmp_path / "runs.txt").read_text().splitlines())
    again = CommandEvaluator(program, cache=tmp_path / "cache")
    assert Greedy().cook(models, evaluator=again).to_json() == first.to_json()
    assert again.counters.examples == 0
    assert len((tmp_path / "runs.txt").read_text().splitlines()) == n_runs


def test_lower_is_better(models, tmp_path):
    script = tmp_path / "loss.py"
    script.write_text(
        "import sys; from safetensors.numpy import load_file\n"
        "print(float(abs(load_file(sys.argv[1])['w'] - 0.5).sum()))"
    )
    command = f"{sys.executable} {script} {{checkpoint}}"
    evaluator = CommandEvaluator(command, higher_is_better=False)
    assert list(Greedy().cook(models, evaluator=evaluator).selected) == [models[0], models[1]]


def test_a_test_program_reports_and_does_not_choose(models, program):
    evaluator = CommandEvaluator(program, test={"test": one_liner("print(0.25)")})
    soup = Uniform().cook(models, evaluator=evaluator)
    assert soup.scores["test"].value == 0.25
    assert not evaluator.notes


def test_auto_works_without_outputs_by_example(models, program):
    soup = Auto().cook(models, evaluator=CommandEvaluator(program))
    assert soup.details.to_json()["chosen"] == "greedy"
    assert {row["p_value"] for row in soup.details.to_json()["table"]} == {None}


def test_the_program_is_given_what_would_be_saved(models, tmp_path):
    keep = tmp_path / "kept.safetensors"
    script = tmp_path / "copy.py"
    script.write_text(f"import shutil, sys; shutil.copy(sys.argv[1], {str(keep)!r}); print(1)")
    evaluator = CommandEvaluator(f"{sys.executable} {script} {{checkpoint}}")
    soup = Uniform().cook(models[:2], evaluator=evaluator)
    soup.save(tmp_path / "soup.safetensors")
    assert np.array_equal(load_file(keep)["w"], load_file(tmp_path / "soup.safetensors")["w"])


def test_a_failing_program_is_quoted_and_earlier_scores_are_kept(models, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("import sys\nif 'm2' in sys.argv[1]: sys.exit('no such layer')\nprint(0.5)")
    evaluator = CommandEvaluator(
        f"{sys.executable} {script} {{checkpoint}}", cache=tmp_path / "cache"
    )
    with pytest.raises(EvaluationError, match=r"(?s)exit code 1.*log.*no such layer"):
        Greedy().cook(models, evaluator=evaluator)
    assert len(evaluator.journal.entries()) == 3


def test_a_program_that_fails_for_everything_is_stopped_at_the_first(models, tmp_path):
    runs = tmp_path / "runs.txt"
    script = tmp_path / "fail.py"
    script.write_text(f"open({str(runs)!r}, 'a').write('x'); raise SystemExit(3)")
    evaluator = CommandEvaluator(f"{sys.executable} {script} {{checkpoint}}")
    with pytest.raises(EvaluationError, match="exit code 3"):
        Greedy().cook(models, evaluator=evaluator)
    assert runs.read_text() == "x"


def test_every_ingredient_that_a_program_cannot_score_is_named(models, tmp_path):
    script = tmp_path / "nan.py"
    script.write_text("import sys\nprint('nan' if sys.argv[1][-13] in '12' else 0.5)")
    evaluator = CommandEvaluator(f"{sys.executable} {script} {{checkpoint}}")
    with pytest.raises(EvaluationError) as caught:
        Greedy().cook(models, evaluator=evaluator)
    assert all(f"m{i}.safetensors printed the score nan" in str(caught.value) for i in (1, 2))


def test_several_workers_run_several_programs_at_a_time_and_find_what_one_finds(models, tmp_path):
    script = tmp_path / "score.py"
    script.write_text(
        "import os, sys, time; from safetensors.numpy import load_file\n"
        f"log = open({str(tmp_path / 'log')!r}, 'ab', 0)\n"
        "log.write(b'+'); time.sleep(0.2); log.write(b'-')\n"
        "print(-float(abs(load_file(sys.argv[1])['w'] - 0.5).sum()))"
    )
    command = f"{sys.executable} {script} {{checkpoint}}"
    one = Greedy().cook(models, evaluator=CommandEvaluator(command))
    assert "++" not in (tmp_path / "log").read_text()
    with CommandEvaluator(command, n_workers=2) as evaluator:
        two = Greedy().cook(models, evaluator=evaluator)
    assert "++" in (tmp_path / "log").read_text()
    assert "+++" not in (tmp_path / "log").read_text()
    assert two.to_json() == one.to_json()


@pytest.mark.parametrize(
    ("n_workers", "shares"), [(1, {"0,GPU-b,2"}), (2, {"0,2", "GPU-b"}), (3, {"0", "GPU-b", "2"})]
)
def test_programs_that_run_at_a_time_share_the_gpus(models, tmp_path, n_workers, shares):
    """No GPU is seen by two programs at a time, and each program sees one."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, time\nfrom pathlib import Path\n"
        "seen = os.environ['CUDA_VISIBLE_DEVICES']\n"
        f"held = Path({str(tmp_path)!r}) / ('held ' + seen)\n"
        "held.mkdir()\ntime.sleep(0.1)\nheld.rmdir()\n"  # fails where another holds it
        f"open({str(tmp_path / 'log')!r}, 'a').write(seen + '\\n')\n"
        "print(0.5)"
    )
    command = f"{sys.executable} {script} {{checkpoint}}"
    with CommandEvaluator(command, n_workers=n_workers, gpus=["0", "GPU-b", "2"]) as evaluator:
        Greedy(early_rejection=False).cook(models, evaluator=evaluator)
    seen = set((tmp_path / "log").read_text().split())
    assert seen <= shares
    assert n_workers == 3 or seen == shares


def test_more_programs_than_gpus_are_refused():
    with pytest.raises(EvaluationError, match="3 programs at a time cannot share 2 GPUs"):
        CommandEvaluator("score {checkpoint}", n_workers=3, gpus=["0", "1"])


def test_what_fails_ahead_of_its_turn_is_told_when_it_is_asked_for(models, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("import sys\nif 'm2' in sys.argv[1]: sys.exit('no such layer')\nprint(0.5)")
    command = f"{sys.executable} {script} {{checkpoint}}"
    with CommandEvaluator(command, n_workers=2) as evaluator:
        singles = list(Ingredients(models))
        evaluator.score_ahead(singles, "held-out")
        assert evaluator.counters.examples == 3
        assert evaluator.score(singles[0], "held-out").value == 0.5
        with pytest.raises(EvaluationError, match="no such layer"):
            evaluator.score(singles[2], "held-out")


@pytest.fixture
def interruptible():
    """SIGINT raises, also where this was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_nothing_runs_on_when_it_is_interrupted(models):
    with CommandEvaluator("sh -c 'sleep 60; echo 1' {checkpoint}", n_workers=2) as evaluator:
        interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            evaluator.score_ahead(list(Ingredients(models)), "held-out")
        assert time.monotonic() - began < 20


def test_a_program_that_takes_too_long_is_stopped_with_its_children(models):
    sleeping = "sh -c 'sleep 60; echo 1' {checkpoint}"
    evaluator = CommandEvaluator(sleeping, timeout_s=0.3)
    began = time.monotonic()
    with pytest.raises(EvaluationError, match=r"longer than 0\.3 s"):
        evaluator.score(Ingredients(models)[0], "held-out")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('nan')", "printed the score nan"),
        ("print('done')", "printed no number"),
        ("pass", "last line is nothing"),
        ("print('{}')", "without"),
    ],
)
def test_no_usable_number_is_a_clear_error(models, code, message):
    with pytest.raises(EvaluationError, match=message):
        CommandEvaluator(one_liner(code)).score(Ingredients(models)[0], "held-out")


def test_a_missing_program_is_a_clear_error(models):
    with pytest.raises(EvaluationError, match="cannot be started"):
        CommandEvaluator("no-such-program {checkpoint}").score(Ingredients(models)[0], "held-out")


def test_a_command_without_a_place_for_the_checkpoint_is_refused():
    with pytest.raises(EvaluationError, match=r"write \{checkpoint\} there"):
        CommandEvaluator("python score.py")


def test_an_edited_script_runs_again(tmp_path):
    script = tmp_path / "s.py"
    script.write_text("print(1)")
    before = command_version(f"python {script} {{checkpoint}}")
    script.write_text("print(2)")
    assert command_version(f"python {script} {{checkpoint}}") != before


def test_pretty_printed_json_is_read_whole():
    assert parse_output('{\n "score": 1e-3\n}') == {"score": 0.001}


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth.tar", "a.npz", "a.bin", "bare.ckpt"])
def test_candidates_have_the_layout_of_the_inputs(name: str, tmp_path: Path) -> None:
    """So that a program that loads the inputs loads them: by suffix, and what is around."""
    paths = []
    for i in range(2):
        path = tmp_path / str(i) / name
        path.parent.mkdir()
        weights = {"w": torch.full((2,), float(i))}
        around = {"state_dict": weights, "hyper_parameters": {"width": 3}, "epoch": i}
        if name.endswith(".npz"):
            np.savez(path, w=weights["w"].numpy())
        else:
            torch.save(weights if name == "bare.ckpt" else around, path)
        paths.append(path)
    seen = tmp_path / "seen"
    program = tmp_path / "score.py"
    program.write_text(
        f"import shutil, sys\nshutil.copy(sys.argv[1], {str(seen)!r})\n"
        f"open({str(seen)!r} + '.txt', 'w').write(sys.argv[1])\nprint(1.0)\n"
    )
    evaluator = CommandEvaluator(
        f"{sys.executable} {program} {{checkpoint}}", cache=tmp_path / "cache"
    )
    assert evaluator.scores(Mixture(Ingredients(paths)))["held-out"].value == 1.0
    given = Path(seen.with_suffix(".txt").read_text()).name
    assert given == f"candidate{'.pt' if name == 'bare.ckpt' else name[1:]}"
    if name.endswith(".npz"):
        assert np.load(seen)["w"].tolist() == [0.5, 0.5]
        return
    found = torch.load(seen, weights_only=True)
    if name != "bare.ckpt":
        assert found["hyper_parameters"] == {"width": 3}
        found = found["state_dict"]
    assert found["w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("line", ["score 0.91 [info]", "accuracy 0.91, finance set", "0.91 nano"])
def test_no_number_is_read_inside_a_word(line: str) -> None:
    assert parse_output(line) == {"score": 0.91}


@pytest.mark.parametrize("line", ["loss nan", "loss=-inf", "0.3 Infinity", "(NaN)"])
def test_what_is_no_number_is_refused(line: str) -> None:
    with pytest.raises(EvaluationError, match="printed"):
        parse_output(line)
