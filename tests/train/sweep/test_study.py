from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.sweep.test_run import sweep

from stockpot.train.sweep.records import RunRecord
from stockpot.train.sweep.space import Choice, Constant, LogUniform, Space, Uniform
from stockpot.train.sweep.study import Study

optuna = pytest.importorskip("optuna")

SPACE = Space({"lr": LogUniform(1e-4, 1e-1), "dropout": Uniform(0, 1), "size": Choice((1, 2, 3))})


def study(folder: Path, sampler: str, *, seed: int = 1) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    return Study(folder, SPACE, sampler=sampler, seed=seed, higher_is_better=True)


def finish(trials: Study, index: int, values: dict[str, Any]) -> None:
    record = RunRecord(
        index=index,
        name=f"run-{index:02}",
        path=f"run-{index:02}.safetensors",
        status="done",
        hyperparameters=values,
        seed=index,
    )
    trials.record(record, -((values["dropout"] - 0.3) ** 2) - abs(values["lr"] - 0.01))


def proposals(folder: Path, sampler: str, n: int, *, stops: tuple[int, ...] = (), seed: int = 1):
    """The first `n` proposals, each run finished before the next; anew at each of `stops`."""
    trials, drawn = study(folder, sampler, seed=seed), []
    for index in range(n):
        if index in stops:
            trials = study(folder, sampler, seed=seed)
        drawn.append(trials.propose(index))
        finish(trials, index, drawn[-1])
    return drawn


def trials_of(folder: Path) -> list[Any]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "optuna.log"))
    found = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend))
    return found.trials


# tpe learns from the sixth run on, gp from the eleventh.
@pytest.mark.parametrize(("sampler", "n"), [("tpe", 9), ("gp", 13), ("qmc", 5)])
def test_a_study_in_parts_proposes_what_one_in_one_go_does(
    sampler: str, n: int, tmp_path: Path
) -> None:
    whole = proposals(tmp_path / "whole", sampler, n)
    every = proposals(tmp_path / "every", sampler, n, stops=tuple(range(n)))
    some = proposals(tmp_path / "some", sampler, n, stops=(2, n - 1))
    assert every == whole
    assert some == whole
    assert len({values["lr"] for values in whole[:5]}) == 5


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_seed_and_the_index_both_count(sampler: str, tmp_path: Path) -> None:
    drawn = [proposals(tmp_path / str(seed), sampler, 4, seed=seed) for seed in (0, 1, 2)]
    assert len({values["lr"] for one in drawn for values in one}) == 12


@pytest.mark.parametrize("n_at_once", [1, 3])
def test_open_proposals_are_given_again_and_not_repeated(n_at_once: int, tmp_path: Path) -> None:
    first = [study(tmp_path, "tpe").propose(index) for index in range(n_at_once)]
    again = [study(tmp_path, "tpe").propose(index) for index in range(n_at_once + 2)]
    assert again[:n_at_once] == first
    assert len({values["lr"] for values in again}) == n_at_once + 2


def test_what_an_earlier_version_proposed_is_kept(tmp_path: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.log"))
    old = optuna.create_study(
        study_name="stockpot",
        storage=optuna.storages.JournalStorage(backend),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1),
    )
    given = {"lr": 0.01, "dropout": 0.5, "size": 2}
    for index in range(2):  # with the draws that a continued sweep repeated
        trial = old.ask()
        trial.set_user_attr("index", index)
        trial.set_user_attr("values", given)
        if index == 0:
            old.tell(trial, 0.5)
    trials = study(tmp_path, "tpe")
    assert [trials.propose(index) for index in range(2)] == [given, given]
    assert trials.propose(2)["lr"] != 0.01


def test_a_proposal_that_was_killed_halfway_leaves_no_trace(tmp_path: Path, monkeypatch) -> None:
    whole = proposals(tmp_path / "whole", "tpe", 8)
    folder = tmp_path / "killed"
    proposals(folder, "tpe", 6)

    def kill(self: Any, key: str, value: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "set_user_attr", kill)
        with pytest.raises(KeyboardInterrupt):
            study(folder, "tpe").propose(6)
    trials = study(folder, "tpe")
    for index in (6, 7):
        values = trials.propose(index)
        assert values == whole[index]
        finish(trials, index, values)
    assert [t.state.name for t in trials_of(folder)] == ["COMPLETE"] * 6 + ["FAIL"] + 2 * [
        "COMPLETE"
    ]


def test_a_sweep_in_parts_draws_what_one_in_one_go_does(tmp_path: Path) -> None:
    space = Space({"lr": LogUniform(1e-3, 1e-2), "epochs": Constant(1)})
    whole = sweep(tmp_path / "whole", 3, space=space, sampler="tpe")
    for n_runs in (1, 2, 3):
        parts = sweep(tmp_path / "parts", n_runs, space=space, sampler="tpe")
    assert [r.hyperparameters for r in parts.runs] == [r.hyperparameters for r in whole.runs]
    assert [r.fingerprint for r in parts.runs] == [r.fingerprint for r in whole.runs]
    assert len({r.hyperparameters["lr"] for r in whole.runs}) == 3


def test_a_study_learns_of_a_run_that_it_was_not_told(tmp_path: Path, monkeypatch) -> None:
    space = Space({"lr": LogUniform(1e-3, 1e-2), "epochs": Constant(1)})

    def kill(self: Study, record: RunRecord, value: float | None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Study, "record", kill)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, 1, space=space, sampler="tpe")
    assert [t.state.name for t in trials_of(tmp_path)] == ["RUNNING"]
    sweep(tmp_path, 2, space=space, sampler="tpe")
    assert [t.state.name for t in trials_of(tmp_path)] == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc"])
def test_a_study_whose_log_is_gone_goes_on(sampler: str, tmp_path: Path) -> None:
    drawn = proposals(tmp_path / "first", sampler, 3)
    trials = study(tmp_path / "second", sampler)
    for index, values in enumerate(drawn):
        finish(trials, index, values)
    assert trials.propose(3)["lr"] not in {values["lr"] for values in drawn}


def test_runs_of_before_are_shown_when_the_study_is_asked_for_later(tmp_path: Path) -> None:
    space = Space({"lr": LogUniform(1e-3, 1e-2), "epochs": Constant(1)})
    first = sweep(tmp_path, 1, space=space)
    sweep(tmp_path, 2, space=space, study=True)
    found = trials_of(tmp_path)
    assert [t.user_attrs["index"] for t in found] == [0, 1]
    assert found[0].value == first.runs[0].scores["val"]["value"]
