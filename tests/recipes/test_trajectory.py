from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

from stockpot import formats as checkpoint
from stockpot.errors import CheckpointError, RecipeError
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.runs import read_steps
from stockpot.integrations.running import RunningSoup
from stockpot.recipes.soup import Soup
from stockpot.recipes.trajectory import Trajectory, TrajectoryDetails
from stockpot.recipes.windows import Window
from stockpot.tasks.classification import ClassificationTask

W_GOOD = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])


def data(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x @ W_GOOD.T).argmax(1))


@pytest.fixture
def task() -> ClassificationTask:
    return ClassificationTask(
        build=lambda: torch.nn.Linear(2, 2, bias=False),
        splits={
            "val": Split(data(200, 1), role="held-out"),
            "test": Split(data(200, 2), role="test"),
        },
        version="trajectory-test",
    )


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    """A run that circles around the optimum at the end, so that only its average is good."""
    paths = []
    for step in range(8):
        turn = 0.0 if step < 2 else math.pi / 2 * step + 0.3
        noise = 4 * torch.tensor([[math.sin(turn), math.cos(turn)], [0.0, 0.0]])
        start = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) if step < 2 else W_GOOD + noise
        path = tmp_path / f"step-{step}.safetensors"
        save_file({"weight": start.contiguous()}, path)
        paths.append(str(path))
    return paths


def test_it_finds_the_window_that_cancels_the_noise(task, run, tmp_path: Path) -> None:
    soup = Trajectory().cook(run, task)
    window = soup.details.to_json()["window"]
    assert window["count"] > 1
    last = TaskEvaluator(task).score(checkpoint.open(run[-1]), "val").value
    assert soup.scores["val"].value > last + 0.05
    best = max(point["score"] for point in soup.details.to_json()["curve"])
    assert soup.scores["val"].value == pytest.approx(best, abs=0.006)
    assert list(soup.selected) == run[window["start"] :][: window["count"]]
    assert soup.details.to_json()["p_value"] < 0.05
    saved = tmp_path / "soup.safetensors"
    soup.save(saved)
    assert checkpoint.open(saved).read("weight").shape == (2, 2)


def test_every_window_of_every_line_is_scored_once(task, run) -> None:
    recipe = Trajectory(starts=(0, 3), strides=(1, 2), decays=(0.5, 0.9))
    curve = recipe.cook(run, task).details.curve
    windows = [window for window, _ in curve]
    assert len(set(windows)) == len(windows)
    assert Window("1-sqrt", 3, 2, 3) in windows
    for window in windows:
        assert math.fsum(window.coefficients(8)) == pytest.approx(1, abs=1e-12)
    # Of one checkpoint there is one weighting: two starts, two strides.
    assert len([window for window in windows if window.count == 1]) == 4


def test_the_sqrt_window_is_the_telescoped_schedule() -> None:
    """Σ cᵢθᵢ = θ₀ + Σ w(tⱼ)·(θⱼ − θⱼ₋₁) with w = 1 − √t."""
    n = 5
    theta = [0.0, 1.0, 4.0, 2.0, 7.0]
    c = Window("1-sqrt", 0, 1, n).coefficients(n)
    direct = sum(ci * t for ci, t in zip(c, theta, strict=True))
    decayed = theta[0] + sum(
        (1 - math.sqrt(j / n)) * (theta[j] - theta[j - 1]) for j in range(1, n)
    )
    assert direct == pytest.approx(decayed)


def test_the_mean_window_is_the_linear_schedule() -> None:
    n = 5
    theta = [0.0, 1.0, 4.0, 2.0, 7.0]
    decayed = theta[0] + sum((1 - j / n) * (theta[j] - theta[j - 1]) for j in range(1, n))
    assert sum(theta) / n == pytest.approx(decayed)


def test_ties_go_to_the_longest_window(task, tmp_path: Path) -> None:
    paths = []
    for step in range(3):
        path = tmp_path / f"{step}.safetensors"
        save_file({"weight": W_GOOD * (1 + step)}, path)
        paths.append(str(path))
    window = Trajectory(decays=()).cook(paths, task).details.to_json()["window"]
    assert (window["kind"], window["count"]) == ("mean", 3)


def test_impossible_windows_are_listed(task, run) -> None:
    recipe = Trajectory(starts=(0, 9), strides=(0,), decays=(1.0,), kinds=("median",))
    with pytest.raises(RecipeError) as caught:
        recipe.cook(run, task)
    for part in ("start 9", "stride 0", "decay 1.0", "kind 'median'"):
        assert part in str(caught.value)


def test_it_needs_a_task(run) -> None:
    with pytest.raises(RecipeError, match="needs a task"):
        Trajectory().cook(run)


def test_kinds_orders_and_steps_are_searched(task, run) -> None:
    recipe = Trajectory(
        starts=(2,),
        kinds=("mean", "cosine", "power", "1-sqrt"),
        powers=(1.0, 3.0),
        orders=("sequential", "reversed"),
        steps=(1, 2, 4, 5, 6, 8, 9, 10),
    )
    soup = recipe.cook(run, task)
    windows = [window for window, _ in soup.details.curve]
    assert len(set(windows)) == len(windows)
    labels = {window.label for window in windows}
    assert {"mean", "cosine", "cosine, reversed", "power 1", "power 3, reversed"} <= labels
    assert "mean, reversed" not in labels
    assert (
        TrajectoryDetails.from_json(json.loads(json.dumps(soup.details.to_json()))) == soup.details
    )
    with pytest.raises(RecipeError, match="each more than the last"):
        Trajectory(steps=(1, 2)).cook(run, task)


def test_steps_stand_in_a_table(task, run, tmp_path: Path) -> None:
    tokens = (1e9, 2e9, 4e9, 5e9, 6e9, 8e9, 9e9, 10e9)
    table = tmp_path / "tokens.csv"
    rows = [f"{Path(path).stem},{n:.0f},x" for path, n in zip(run, tokens, strict=True)]
    # In any order, with a heading, an empty line, and a checkpoint that is not averaged.
    table.write_text("\n".join(["checkpoint,tokens,note", *reversed(rows), "", "later,2e10"]))
    given = {"starts": (2,), "kinds": ("1-sqrt",)}
    by_table = Trajectory(steps=read_steps(table), **given).cook(run, task)
    in_turn = Trajectory(steps=tokens, **given).cook(run, task)
    assert by_table.details.to_json() == in_turn.details.to_json()
    assert by_table.details.to_json()["saved_at"] == list(tokens)
    with pytest.raises(CheckpointError, match=r"no row for .*; it has a, b"):
        Trajectory(steps={"a": 1.0, "b": 2.0}).cook(run, task)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,1\nb,soon\n", "has the line 'b,soon'"),
        (b"a,1\nb\n", "has the line 'b'"),
        (b"a,1\nb,nan\n", "has the line 'b,nan'"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_is_none_shows_where(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    table = tmp_path / "steps.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_steps(table)


def test_the_landscape_has_every_window_once_on_one_scale(task, run) -> None:
    soup = Trajectory(starts=(0, 2, 5), strides=(1, 2), decays=(0.5,)).cook(run, task)
    maps = soup.figures()
    assert [chart.title.rpartition(": ")[2] for chart in maps] == ["mean", "ema 0.5", "1-sqrt"]
    cells = {
        (chart.title.rpartition(": ")[2], row, column): value
        for chart in maps
        for row, line in zip(chart.rows, chart.values, strict=True)
        for column, value in zip(chart.columns, line, strict=True)
        if value is not None
    }
    best = max(score for _, score in soup.details.curve)
    assert cells == {
        (w.label, f"from {w.start} by {w.stride}", f"to {w.members()[-1]}"): best - score
        for w, score in soup.details.curve
    }
    assert min(cells.values()) == 0
    assert {chart.least for chart in maps} == {max(cells.values())}


def test_averages_of_other_lengths_are_made_of_stored_ones(task, tmp_path: Path) -> None:
    """What a running soup stored makes the average that another one kept all along."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2, bias=False)
    options = {"uniform": False, "ema_decays": (), "store_every": 20}
    soup = RunningSoup(tmp_path / "two", sigma_rel=(0.05, 0.1), **options)
    other = RunningSoup(tmp_path / "one", sigma_rel=(0.15,), **options)
    for step in range(1, 101):
        with torch.no_grad():
            model.weight += 0.1 * torch.randn(2, 2)
        soup.step(step, model)
        other.step(step, model)
    soup.finish(model)
    other.finish(model)
    stored = sorted(map(str, (tmp_path / "two" / "power").iterdir()))
    assert len(stored) == 10
    wanted = checkpoint.open(tmp_path / "one" / "power" / "sigma-0.15-step-00000100.safetensors")
    made = Trajectory(sigma_rel=(0.15,)).cook(stored).mixture
    last = checkpoint.open(stored[4])
    apart = (made.read("weight") - wanted.read("weight")).norm()
    assert apart < 0.1 * (last.read("weight") - wanted.read("weight")).norm()
    searched = Trajectory(sigma_rel=(0.08, 0.15, 0.2)).cook(stored, task)
    assert [window.decay for window, _ in searched.details.curve] == [0.08, 0.15, 0.2]
    assert searched.chosen_on == "val"
    assert searched.figures()[0].name == "widths"
    with pytest.raises(RecipeError, match="less than"):
        Trajectory(sigma_rel=(0.4,)).cook(stored)


def test_names_that_say_no_width_are_refused(run) -> None:
    with pytest.raises(RecipeError, match="no stored power average"):
        Trajectory(sigma_rel=(0.1,)).cook(run)


def test_a_decay_of_ones_own_is_among_the_windows_and_recorded(lab, tmp_path):
    recipe = Trajectory(starts=(0,), kinds=("mean",), rates=(1, 0.5, 0), orders=("sequential",))
    soup = recipe.cook(lab.paths[:4], lab.task)
    given = [window for window, _ in soup.details.curve if window.kind == "given"]
    assert [window.count for window in given] == [2, 3, 4]
    assert {window.rates for window in given} == {(1, 0.5, 0)}
    assert "rates" not in soup.details.to_json()["curve"][0]
    out = tmp_path / "soup.safetensors"
    soup.save(out)
    assert Soup.load(out).details == soup.details
    for rates in ((0.5, 0), (1, 0.5), (1,)):
        with pytest.raises(RecipeError, match="from 1 to 0"):
            Trajectory(rates=rates).cook(lab.paths[:2], lab.task)
