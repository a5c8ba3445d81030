"""Trials in Optuna's storage, so that its dashboard and its samplers work on a sweep."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stockpot._optional import require
from stockpot.errors import TrainingError
from stockpot.train.sweep.records import RunRecord
from stockpot.train.sweep.space import (
    Choice,
    Constant,
    Distribution,
    Integer,
    LogUniform,
    Mixture,
    Space,
    Uniform,
)

SAMPLERS = ("random", "tpe", "qmc", "gp")
"""`random` draws from the space's own law; the others are Optuna's and learn from finished runs."""

STORAGE = "optuna.log"
"""Name of the journal file that holds a sweep's study."""


class Study:
    """The Optuna study of a sweep, in a journal file of its folder.

    It has state, Optuna's. `optuna-dashboard RUNS/optuna.log` shows it. A sampler other than
    `"random"` proposes run `index` from the seed, the index and the runs finished so far, whether
    or not the sweep was continued in between. With several workers the runs finished so far depend
    on which worker was first; proposals are recorded, and a continued sweep keeps them.
    """

    def __init__(
        self, folder: Path, space: Space, *, sampler: str, seed: int, higher_is_better: bool
    ) -> None:
        optuna = require("optuna", extra="sweep")
        if sampler not in SAMPLERS:
            raise TrainingError(f"sampler is {sampler!r}, expected one of {', '.join(SAMPLERS)}")
        if sampler != "random" and space.grid is not None:
            raise TrainingError(f"a grid leaves the sampler {sampler!r} nothing to choose")
        self._optuna = optuna
        self._space = space
        self._seed = seed
        self.sampler = sampler
        backend = optuna.storages.journal.JournalFileBackend(str(folder / STORAGE))
        with _silent(optuna):
            self._study = optuna.create_study(
                study_name="stockpot",
                storage=optuna.storages.JournalStorage(backend),
                direction="maximize" if higher_is_better else "minimize",
                load_if_exists=True,
                sampler=self._make_sampler(0),
            )

    def _make_sampler(self, index: int) -> Any:
        """A sampler for run `index` alone.

        One that is kept from run to run holds a stream of random numbers (and, for `"gp"`, a fit to
        start from), which a continued sweep would begin again.
        """
        seed = int(np.random.SeedSequence([self._seed, index]).generate_state(1)[0])
        samplers = self._optuna.samplers
        with warnings.catch_warnings():  # one for each run that it, or an option, is experimental
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            if self.sampler == "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=True)
            if self.sampler == "qmc":
                return samplers.QMCSampler(seed=seed, warn_independent_sampling=False)
            if self.sampler == "gp":
                return samplers.GPSampler(seed=seed)
            return samplers.RandomSampler(seed)

    def propose(self, index: int) -> dict[str, Any]:
        """Hyper-parameters of run `index`: those proposed for it earlier, or new ones."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("index") == index and "values" in trial.user_attrs:
                return dict(trial.user_attrs["values"])
        self._drop_halves()
        self._study.sampler = self._make_sampler(index)
        trial = self._study.ask()
        values: dict[str, Any] = {}
        for name, distribution in self._space.entries.items():
            values.update(_suggest(trial, name, distribution))
        trial.set_user_attr("values", values)
        trial.set_user_attr("index", index)
        return values

    def _drop_halves(self) -> None:
        """Close the trials of a process killed while it proposed: samplers learn from open ones."""
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and "index" not in trial.user_attrs:
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def record(self, record: RunRecord, value: float | None) -> None:
        """Add a finished or failed run; once, however often it is called."""
        optuna = self._optuna
        trials = self._study.get_trials(deepcopy=False)
        mine = [t for t in trials if t.user_attrs.get("index") == record.index]
        if any(t.state.is_finished() for t in mine):
            return
        states = optuna.trial.TrialState
        state = states.COMPLETE if record.done and value is not None else states.FAIL
        if mine:
            number = mine[0].number
            self._study.tell(number, value if state == states.COMPLETE else None, state)
            return
        if self.sampler != "random":
            return  # proposed in a log that is gone; Optuna refuses a law of the value alone
        kinds = (bool, int, float, str)
        plain = {k: v for k, v in record.hyperparameters.items() if isinstance(v, kinds)}
        trial = optuna.trial.create_trial(
            state=state,
            value=value if state == states.COMPLETE else None,
            params=plain,
            distributions={
                name: optuna.distributions.CategoricalDistribution([given])
                if not isinstance(given, float)
                else optuna.distributions.FloatDistribution(given, given)
                for name, given in plain.items()
            },
            user_attrs={"index": record.index, "path": record.path},
            intermediate_values={
                int(epoch["epoch"]): next(iter(epoch["scores"].values()))
                for epoch in record.epochs
                if epoch["scores"]
            },
        )
        self._study.add_trial(trial)


@contextmanager
def _silent(optuna: Any) -> Iterator[None]:
    """Optuna announces a new study on stderr, and a library must not."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _suggest(trial: Any, name: str, law: Distribution) -> Mapping[str, Any]:
    """Ask the trial for what `law` describes; a mixture asks for its option first."""
    match law:
        case Constant():
            return {name: law.value}
        case Uniform():
            return {name: trial.suggest_float(name, law.low, law.high)}
        case LogUniform():
            return {name: trial.suggest_float(name, law.low, law.high, log=True)}
        case Integer():
            return {name: trial.suggest_int(name, law.low, law.high)}
        case Choice():
            return {name: trial.suggest_categorical(name, list(law.values))}
        case Mixture():
            return _suggest_mixture(trial, name, law)
    raise AssertionError(f"no way to ask for {law}")


def _suggest_mixture(trial: Any, name: str, law: Mixture) -> Mapping[str, Any]:
    which = trial.suggest_categorical(f"{name} option", list(range(len(law.options))))
    option = law.options[which][1]
    if isinstance(option, Distribution):
        return _suggest(trial, name, option)
    found: dict[str, Any] = {}
    for key, part in option.items():
        found.update(_suggest(trial, key, part))
    return found
