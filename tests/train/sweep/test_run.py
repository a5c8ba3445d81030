from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.train.tasks import TinyTask, start_weights

from stockpot.errors import OutputExistsError, TrainingError
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.runs import expand_paths
from stockpot.train.sweep.options import SweepOptions
from stockpot.train.sweep.records import read_runs
from stockpot.train.sweep.run import run_sweep
from stockpot.train.sweep.space import Choice, Constant, LogUniform, Space
from stockpot.train.task_maker import task_for_workers
from stockpot.workers import WorkerOptions

ROOT = Path(__file__).parents[2]
SPACE = Space(
    {
        "lr": LogUniform(1e-3, 1e-2),
        "epochs": Choice((2, 3)),
        "mixup": Choice((0.0, 0.4)),
        "ema_decays": Constant([0.9]),
    }
)


def sweep(out: Path, n_runs: int = 4, **options):
    given = {"workers", "cache", "on_run"} & set(options)
    around = {name: options.pop(name) for name in given}
    settings = {"space": SPACE, "n_runs": n_runs, "seed": 1, "device": "cpu", **options}
    return run_sweep(TinyTask(), start_weights(), SweepOptions(**settings), out=out, **around)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep(folder)
    return folder


def test_every_run_has_a_checkpoint_and_a_record(undisturbed: Path) -> None:
    runs = read_runs(undisturbed)
    assert [run.name for run in runs] == ["run-00", "run-01", "run-02", "run-03"]
    for run in runs:
        assert run.hyperparameters == SPACE.draw(run.index, seed=1)
        assert run.seed == 1000 + run.index
        assert len(run.epochs) == run.hyperparameters["epochs"]
        assert set(run.epochs[0]["scores"]) == {"val"}
        assert set(run.scores) == {"val", "test"}
        assert {"value", "low", "high", "n", "metric"} == set(run.scores["val"])
        assert run.scores["val"]["value"] == pytest.approx(run.epochs[-1]["scores"]["val"])
        assert set(run.averages["ema-0.9"]["scores"]) == {"val", "test"}
        assert set(run.data) == {"val", "test", "train"}
        assert run.seconds > 0
        assert {"torch", "python", "platform"} <= set(run.environment)
    assert len({run.fingerprint for run in runs}) == 4


def test_the_folder_stands_for_its_runs(undisturbed: Path) -> None:
    expected = [str(undisturbed / f"run-0{i}.safetensors") for i in range(4)]
    assert expand_paths([undisturbed]) == expected


def test_the_index_has_a_line_per_run(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / "runs.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["run-00", "run-01", "run-02", "run-03"]
    assert lines[0]["hyperparameters"]["lr"] == SPACE.draw(0, seed=1)["lr"]
    assert "val" in lines[0]["scores"]


def test_workers_make_the_same_checkpoints(undisturbed: Path, tmp_path: Path) -> None:
    seen = []
    sweep(
        tmp_path, workers=WorkerOptions(n_workers=2), on_run=lambda record: seen.append(record.name)
    )
    assert contents(tmp_path) == contents(undisturbed)
    assert sorted(seen) == ["run-00", "run-01", "run-02", "run-03"]


@pytest.mark.parametrize(("sendable", "made_by_worker"), [(True, 0), (False, 1)])
def test_workers_make_the_task_again_only_where_it_cannot_be_sent(
    sendable: bool, made_by_worker: int
) -> None:
    made = []

    def factory() -> TinyTask:
        task = TinyTask()
        if not sendable:
            object.__setattr__(task, "held", lambda: None)  # a frozen dataclass
        made.append(task)
        return task

    setup = task_for_workers(factory, factory(), n_workers=2)
    assert len(setup().train_set) == len(made[0].train_set)
    assert len(made) == 1 + made_by_worker
    task_for_workers(factory, made[0], n_workers=1)()
    assert len(made) == 1 + made_by_worker


def test_runs_are_added_to_a_finished_sweep(undisturbed: Path, tmp_path: Path) -> None:
    sweep(tmp_path, 2)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in contents(tmp_path)}
    result = sweep(tmp_path, 4)
    assert contents(tmp_path) == contents(undisturbed)
    assert all((tmp_path / name).stat().st_mtime_ns == t for name, t in times.items())
    assert [Path(path).name for path in result.paths][-1] == "run-03.safetensors"


def test_a_sweep_killed_three_times_makes_the_same_checkpoints(
    undisturbed: Path, tmp_path: Path
) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(ROOT / "src")!r}, {str(ROOT)!r}]
from pathlib import Path
from tests.train.sweep.test_run import sweep
sweep(Path({str(tmp_path)!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for needed in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if len(contents(tmp_path)) > needed or list(tmp_path.glob(f".run-0{needed}*.state")):
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    sweep(tmp_path)
    assert contents(tmp_path) == contents(undisturbed)
    assert not list(tmp_path.glob(".run-*"))


def test_a_run_killed_between_checkpoint_and_record_is_not_trained_again(
    undisturbed: Path, tmp_path: Path, monkeypatch
) -> None:
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "scores", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, 1)
    assert (tmp_path / "run-00.safetensors").exists()
    result = sweep(tmp_path, 1)
    assert result.runs[0].epochs == read_runs(undisturbed)[0].epochs
    assert (tmp_path / "run-00.safetensors").read_bytes() == (
        undisturbed / "run-00.safetensors"
    ).read_bytes()


def test_a_failed_run_is_kept_and_stops_nobody(tmp_path: Path) -> None:
    space = Space({"epochs": Constant(1)}, grid={"frozen": [[], ["no-such-*"], []]})
    result = sweep(tmp_path, 3, space=space)
    assert [run.status for run in result.runs] == ["done", "failed", "done"]
    error = read_runs(tmp_path)[1].error
    assert error["type"] == "TrainingError"
    assert "no-such-*" in error["message"]
    assert "begin_phase" in error["traceback"]
    assert len(result.paths) == 2
    made = []
    sweep(tmp_path, 3, space=space, on_run=made.append)
    assert made == []
    sweep(tmp_path, 3, space=space, retry_failed=True, on_run=made.append)
    assert [run.name for run in made] == ["run-01"]


def test_other_settings_in_the_same_folder_are_refused(undisturbed: Path) -> None:
    with pytest.raises(OutputExistsError, match="other settings:\n  seed: 1, now 2"):
        sweep(undisturbed, seed=2)
    with pytest.raises(TrainingError, match="another base"):
        run_sweep(TinyTask(), start_weights(5), SweepOptions(space=SPACE, seed=1), out=undisturbed)


def test_a_space_that_no_run_can_use_fails_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="did you mean 'lr'"):
        sweep(tmp_path / "runs", space=Space({"lrr": Constant(1)}))
    with pytest.raises(TrainingError, match="needs a base"):
        run_sweep(TinyTask(), None, SweepOptions(space=SPACE), out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), "a corrected sweep would be held against it"


def test_settings_can_change_until_there_is_a_run(tmp_path: Path, monkeypatch) -> None:
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    space = Space({"epochs": Constant(1)})
    with monkeypatch.context() as patch:
        patch.setattr("stockpot.train.sweep.run.run_jobs", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, 1, space=space)
    sweep(tmp_path, 1, space=space, seed=2)
    assert json.loads((tmp_path / "sweep.json").read_text())["seed"] == 2
    with pytest.raises(OutputExistsError, match="other settings"):
        sweep(tmp_path, 1, space=space, seed=3)


def test_a_half_trained_run_holds_the_folder(tmp_path: Path) -> None:
    sweep(tmp_path, 1, space=Space({"epochs": Constant(1)}))
    for path in tmp_path.glob("run-*"):
        path.unlink()
    (tmp_path / ".run-00.safetensors.state").touch()
    with pytest.raises(OutputExistsError, match="other settings"):
        sweep(tmp_path, 1, space=Space({"epochs": Constant(2)}))


def test_recipes_find_the_scores_in_the_journal(tmp_path: Path) -> None:
    from stockpot import formats as checkpoint

    cache = tmp_path / "cache"
    result = sweep(tmp_path / "runs", 1, cache=cache)
    # A sweep records each run with the statistics that it was saved with.
    evaluator = TaskEvaluator(TinyTask(), cache=cache, device="cpu", batchnorm="averaged")
    score = evaluator.score(checkpoint.open(result.paths[0]), "val")
    assert score.value == result.runs[0].scores["val"]["value"]
    assert evaluator.counters.examples == 0
    evaluator.journal.close()


def test_a_function_of_the_user_can_train(tmp_path: Path) -> None:
    def train(values) -> None:
        weights = load_file(values["base"])
        weights["head.bias"] += values["lr"]
        save_file(weights, values["out"])

    space = Space({"lr": LogUniform(1, 10)})
    result = sweep(tmp_path, 2, space=space, train=train)
    tuned = load_file(result.paths[1])["head.bias"]
    expected = start_weights()["head.bias"] + result.runs[1].hyperparameters["lr"]
    assert tuned.tolist() == pytest.approx(expected.tolist())
    assert set(result.runs[1].scores) == {"val", "test"}


def test_proposals_of_optuna_are_recorded_and_kept(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    space = Space({"lr": LogUniform(1e-3, 1e-2), "epochs": Constant(1)})
    first = sweep(tmp_path, 3, space=space, sampler="tpe")
    again = sweep(tmp_path, 4, space=space, sampler="tpe")
    assert [r.hyperparameters for r in again.runs[:3]] == [r.hyperparameters for r in first.runs]
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 4
    assert study.trials[0].value == first.runs[0].scores["val"]["value"]


def test_random_runs_can_be_shown_as_trials(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    result = sweep(tmp_path, 2, study=True)
    sweep(tmp_path, 2, study=True)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    assert [t.params["lr"] for t in study.trials] == [
        run.hyperparameters["lr"] for run in result.runs
    ]
    assert len(study.trials[0].intermediate_values) == result.runs[0].hyperparameters["epochs"]
