"""Windows that are chosen within a budget, by functions, tasks and programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stockpot.errors import EvaluationError, RecipeError
from stockpot.evaluate.command import CommandEvaluator
from stockpot.recipes import Trajectory
from stockpot.recipes.soup import Soup
from stockpot.recipes.trajectory import TrajectoryDetails
from stockpot.recipes.window_search import coarse_to_fine
from stockpot.recipes.windows import Window

PROGRAM = """
import struct, sys, time
w = struct.unpack("<2f", open(sys.argv[1], "rb").read()[-8:])
time.sleep({seconds})
with open({log!r}, "a") as log: log.write(repr(w) + chr(10))
print(-sum(abs(x - 1.0) for x in w))
"""
"""Reads its two numbers without a library, which would take longer to import than to test."""


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    """Eight checkpoints that come near 1 and go around it; only averages reach it."""
    paths = []
    for i in range(8):
        step = 100 * (i + 1)
        path = tmp_path / "run" / f"step-{step:05d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        turn = np.array([np.sin(2.1 * i), np.cos(2.1 * i)])
        save_file({"w": (1 - np.exp(-i / 2) + 0.3 * turn).astype(np.float32)}, path)
        paths.append(str(path))
    return paths


def program(tmp_path: Path, seconds: float = 0.0) -> str:
    script = tmp_path / "score.py"
    script.write_text(PROGRAM.format(log=str(tmp_path / "log"), seconds=seconds))
    return f"{sys.executable} -I -S {script} {{checkpoint}}"


def scored(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def means(n: int) -> np.ndarray:
    """The mean of checkpoints a … b for all a ≤ b."""
    return np.array(
        [[(a <= i <= b) / (b - a + 1) for i in range(n)] for a in range(n) for b in range(a, n)]
    )


def test_a_smooth_landscape_needs_a_tenth_of_the_grid() -> None:
    """On bowls with their bottom anywhere, the best of 300 windows is found or nearly."""
    vectors = means(24)
    centres, lengths = vectors @ np.arange(24), (vectors > 0).sum(axis=1)
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(20):
        centre, length = rng.uniform(0, 23), rng.uniform(1, 24)
        quality = -((centres - centre) ** 2) - 0.25 * (lengths - length) ** 2
        found = coarse_to_fine(vectors, lambda asked, q=quality: q[asked].tolist(), budget=30)
        assert len(found) == 30
        ranks.append(int((quality > max(found.values())).sum()))
    assert sorted(ranks)[10] <= 2, ranks
    assert max(ranks) <= 15, ranks


def test_every_budget_is_spent_and_never_more() -> None:
    vectors = means(7)
    for budget in range(1, len(vectors) + 3):
        asked: list[int] = []

        def qualities(positions: list[int], asked: list[int] = asked) -> list[float]:
            asked += positions
            return [float(-p) for p in positions]

        found = coarse_to_fine(vectors, qualities, budget=budget, first=5)
        assert len(asked) == len(set(asked)) == len(found) == min(budget, len(vectors))
        assert 5 in found


def test_a_program_chooses_the_window_and_each_average_is_scored_once(run, tmp_path) -> None:
    command = program(tmp_path)
    recipe = Trajectory(starts=(0, 4), decays=(0.5,))
    with CommandEvaluator(command, cache=tmp_path / "one") as evaluator:
        soup = recipe.cook(run, evaluator=evaluator)
    n = soup.details.n_scored
    assert n == soup.details.n_grid
    # The last checkpoint is no window here, and what the soup is held against.
    assert len(scored(tmp_path)) == len(set(scored(tmp_path))) == n + 1
    values = dict(soup.details.curve)
    assert values[soup.details.window] == max(values.values())
    assert soup.scores["held-out"].value == pytest.approx(max(values.values()), abs=1e-6)
    assert [row.name for row in soup.baselines] == ["last"]
    assert soup.baselines[0].path == run[-1]
    out = tmp_path / "best.safetensors"
    soup.save(out)
    again = -float(abs(load_file(out)["w"] - 1.0).sum())
    assert again == pytest.approx(soup.scores["held-out"].value, abs=1e-6)
    with CommandEvaluator(command, cache=tmp_path / "two", n_workers=3) as evaluator:
        side_by_side = recipe.cook(run, evaluator=evaluator)
    assert side_by_side.to_json() == soup.to_json()


def test_a_budget_of_programs_is_kept_and_recorded(run, tmp_path) -> None:
    command = program(tmp_path)
    recipe = Trajectory(kinds=("mean", "1-sqrt"), orders=("sequential", "reversed"), budget=20)
    with CommandEvaluator(command, cache=tmp_path / "cache", n_workers=2) as evaluator:
        soup = recipe.cook(run, evaluator=evaluator)
    assert len(scored(tmp_path)) == 20
    details = soup.details
    assert details.n_scored in (19, 20)  # with or without the last checkpoint among the windows
    assert details.n_grid > 80
    assert len(dict(details.curve)) >= details.n_scored
    assert f"{details.n_scored} of the {details.n_grid} averages" in " ".join(
        details.sentences(soup)
    )
    out = tmp_path / "best.safetensors"
    soup.save(out)
    assert Soup.load(out).details == details
    with CommandEvaluator(command, cache=tmp_path / "cache") as evaluator:
        again = recipe.cook(run, evaluator=evaluator)
    assert again.to_json() == soup.to_json()
    assert len(scored(tmp_path)) == 20
    full = Trajectory(kinds=("mean", "1-sqrt"), orders=("sequential", "reversed"))
    with CommandEvaluator(command, cache=tmp_path / "cache", n_workers=2) as evaluator:
        everything = full.cook(run, evaluator=evaluator)
    lost = everything.scores["held-out"].value - soup.scores["held-out"].value
    spread = max(v for _, v in everything.details.curve) - min(
        v for _, v in everything.details.curve
    )
    assert 0 <= lost < 0.1 * spread


def test_a_killed_search_goes_on_where_it_was_and_leaves_no_candidate(run, tmp_path) -> None:
    command = [
        sys.executable, "-m", "stockpot", "trajectory", *run, "--eval", program(tmp_path, 0.1),
        "--budget", "12", "--workers", "2", "--cache", str(tmp_path / "cache"),
        "-o", str(tmp_path / "best.safetensors"), "--json",
    ]  # fmt: skip
    folder = tmp_path / "scratch"
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "log").exists() or len(scored(tmp_path)) < 5:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "best.safetensors").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert '"n_scored"' in done.stdout
    assert (tmp_path / "best.safetensors").exists()
    # Of two programs that ran when it was killed, the results were lost.
    assert len(set(scored(tmp_path))) == 12
    assert len(scored(tmp_path)) <= 14
    assert not list(folder.rglob("candidate*"))


def test_a_program_that_fails_for_everything_is_stopped_at_the_first(run, tmp_path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(f"open({str(tmp_path / 'log')!r}, 'a').write('x\\n'); raise SystemExit(3)")
    with (
        CommandEvaluator(f"{sys.executable} {script} {{checkpoint}}", n_workers=2) as evaluator,
        pytest.raises(EvaluationError, match="exit code 3"),
    ):
        Trajectory().cook(run, evaluator=evaluator)
    assert scored(tmp_path) == ["x"]


def test_a_budget_of_a_task_has_the_last_checkpoint_to_beat(lab) -> None:
    soup = Trajectory(budget=6).cook(lab.paths, lab.task)
    assert soup.details.n_scored < soup.details.n_grid
    assert [row.name for row in soup.baselines] == ["last"]
    assert soup.gain.model == lab.paths[-1]
    assert soup.examples_evaluated < soup.examples_plain
    whole = Trajectory().cook(lab.paths, lab.task)
    assert whole.details.n_scored == whole.details.n_grid
    assert {row.path for row in whole.baselines} >= {lab.paths[-1]}
    with pytest.raises(RecipeError, match="expected 2 or more"):
        Trajectory(budget=1).cook(lab.paths, lab.task)


def test_steps_are_read_from_names_and_uneven_ones_weigh(run, tmp_path, lab) -> None:
    def cooked(names: list[str], **options: object) -> TrajectoryDetails:
        paths = []
        for name, source in zip(names, run, strict=False):
            path = tmp_path / name
            path.write_bytes(Path(source).read_bytes())
            paths.append(str(path))
        with CommandEvaluator(program(tmp_path), cache=tmp_path / "cache") as evaluator:
            soup = Trajectory(starts=(0,), kinds=("mean",), **options).cook(
                paths, evaluator=evaluator
            )
        assert isinstance(soup.details, TrajectoryDetails)
        return soup.details

    even = cooked(["step-100.safetensors", "step-200.safetensors", "step-300.safetensors"])
    plain = cooked(["a.safetensors", "b.safetensors", "c.safetensors"])
    assert even.saved_at == (100, 200, 300)
    assert plain.saved_at is None
    assert even.curve == plain.curve
    uneven = cooked(["step-100.safetensors", "step-200.safetensors", "step-400.safetensors"])
    assert dict(uneven.curve)[Window("mean", 0, 1, 3)] == pytest.approx(
        dict(cooked(["x.pt.safetensors", "y.safetensors", "z.safetensors"],
                    steps=(100, 200, 400)).curve)[Window("mean", 0, 1, 3)]
    )  # fmt: skip
    assert Window("mean", 0, 1, 3).coefficients(3, (100, 200, 400)) == (0.25, 0.25, 0.5)
    assert uneven.figures({})[0].columns == ("to 100", "to 200", "to 400")
    assert cooked(["step-300.safetensors", "step-200.safetensors"]).saved_at is None


def test_a_run_that_was_begun_elsewhere_has_an_even_mean() -> None:
    """What came before the first checkpoint took as long as what came after it."""
    assert Window("mean", 0, 1, 2).coefficients(2, (9000, 10000)) == (0.5, 0.5)
    assert Window("mean", 0, 1, 2).coefficients(2, (0, 10)) == (0.5, 0.5)
