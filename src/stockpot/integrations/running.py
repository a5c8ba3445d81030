"""Averages and candidates that are kept while somebody else's loop trains."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot._types import StrPath
from stockpot.errors import TrainingError
from stockpot.formats.memory import from_state_dict
from stockpot.io import atomic
from stockpot.recipes.greedy import Greedy
from stockpot.recipes.simple import Uniform
from stockpot.recipes.windows import gamma_of
from stockpot.train.ema import ExponentialMean, PowerMean, RunningMean, snapshot
from stockpot.train.weights import save_weights

if TYPE_CHECKING:
    from torch import nn

    from stockpot.evaluate.task import Task


@dataclass(frozen=True, slots=True)
class SoupFiles:
    """What a running soup left: paths, None or empty where it was not asked for.

    `candidates` maps the best checkpoints to the score they were kept for, best first.
    """

    uniform: str | None = None
    ema: Mapping[float, str] = field(default_factory=dict)
    candidates: Mapping[str, float] = field(default_factory=dict)
    greedy: str | None = None


@dataclass
class RunningSoup:
    """Averages of a model that some other loop trains; call `step`, `candidate` and `finish`.

    It has state: the averages, in float64, and which candidates are the best so far.

    The uniform average takes every snapshot it is shown alike, so begin it once training has
    settled. Greedy needs data to choose on: a task with a held-out split.

    Of a model with an adapter of PEFT, candidates are kept as PEFT folders, and `uniform` is their
    mean, written as one adapter: a running average of factors would be none of models.

    Args:
        output: folder of the results: `uniform.safetensors`, `ema-0.999.safetensors`,
            `candidates/step-….safetensors`, `greedy.safetensors`.
        uniform: keep the equal mean of the snapshots.
        ema_decays: keep a debiased exponential average for each.
        sigma_rel: keep a power average of each relative width, such as `(0.05, 0.1)`, and write it
            to `power/sigma-…-step-….safetensors` at every `store_every` steps: averages of any
            other width follow from two (`stockpot trajectory OUTPUT/power/* --sigma-rel 0.15`).
        store_every: steps from one file of a power average to the next.
        every_steps: snapshots are taken at multiples of this.
        start_step: and from this step on.
        top_k: keep this many candidates, the best by the score that `candidate` is given.
        higher_is_better: direction of that score.
        task: at the end, a greedy soup of the candidates is chosen on its held-out split.
        base: what an adapter is trained on, where its configuration names no folder.
        force: overwrite what an earlier run left in `output`.

    Raises:
        TrainingError: numbers out of range, or a task without candidates to choose from.
    """

    output: StrPath
    uniform: bool = field(default=True, kw_only=True)
    ema_decays: tuple[float, ...] = field(default=(0.999,), kw_only=True)
    sigma_rel: tuple[float, ...] = field(default=(), kw_only=True)
    store_every: int = field(default=1000, kw_only=True)
    every_steps: int = field(default=1, kw_only=True)
    start_step: int = field(default=0, kw_only=True)
    top_k: int = field(default=0, kw_only=True)
    higher_is_better: bool = field(default=False, kw_only=True)
    task: Task | None = field(default=None, kw_only=True)
    base: StrPath | None = field(default=None, kw_only=True)
    force: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.store_every < 1:
            raise TrainingError(f"store_every is {self.store_every}; expected at least 1")
        if self.every_steps < 1 or self.start_step < 0 or self.top_k < 0:
            raise TrainingError(
                f"every_steps is {self.every_steps}, start_step {self.start_step} and top_k "
                f"{self.top_k}; expected at least 1, 0 and 0"
            )
        if self.task is not None and self.top_k < 2:
            raise TrainingError(
                f"a greedy soup needs candidates: top_k is {self.top_k}, give at least 2"
            )
        self._folder = Path(self.output)
        self._decays = {f"ema-{decay}": decay for decay in self.ema_decays}
        self._averages: dict[str, RunningMean | ExponentialMean | PowerMean] = {
            kind: ExponentialMean(decay) for kind, decay in self._decays.items()
        }
        for sigma in self.sigma_rel:
            try:
                self._averages[f"sigma-{sigma:g}"] = PowerMean(gamma_of(sigma))
            except ValueError as error:
                raise TrainingError(str(error)) from None
        if self.uniform:
            self._averages["uniform"] = RunningMean()
        self._candidates: dict[str, float] = {}

    def step(self, step: int, model: nn.Module) -> None:
        """Take a snapshot if it is due; `step` counts optimiser steps done."""
        if is_adapted(model):
            self._refuse_averages()
        elif step >= self.start_step and step % self.every_steps == 0:
            values = snapshot(model)
            for average in self._averages.values():
                average.update(values)
            if step % self.store_every < self.every_steps:
                self._store(model)

    def _store(self, model: nn.Module) -> None:
        """Write the power averages as they are now; the step counts from the first snapshot."""
        for kind, average in self._averages.items():
            if isinstance(average, PowerMean) and average.count:
                name = f"{kind}-step-{average.count * self.every_steps:08}.safetensors"
                path = self._folder / "power" / name
                like = from_state_dict(snapshot(model))
                save_weights(path, average.state_dict(), like=like, force=True)

    def candidate(self, step: int, model: nn.Module, score: float) -> None:
        """Keep the model as a candidate while its score is among the `top_k` best."""
        if self.top_k == 0 or score != score:
            return
        adapted = is_adapted(model)
        name = f"step-{step:08}" if adapted else f"step-{step:08}.safetensors"
        path = self._folder / "candidates" / name
        kept = self._ranked({**self._candidates, str(path): score})
        if str(path) not in kept:
            return
        if adapted:
            with atomic.staged_folder(path, force=True) as staged:
                model.save_pretrained(str(staged.path))  # type: ignore[operator]
        else:
            save_weights(path, snapshot(model), like=from_state_dict(snapshot(model)), force=True)
        for dropped in set(self._candidates) - set(kept):
            _remove(Path(dropped))
        self._candidates = kept

    def _refuse_averages(self) -> None:
        """Refuse averages along the run that an adapter has none of.

        Raises:
            TrainingError: what to ask for instead.
        """
        if self.ema_decays or self.sigma_rel or self.top_k == 0:
            raise TrainingError(
                "the model is an adapter of PEFT, and a running average of its factors is none of "
                "what they do: give ema_decays=() and top_k=N, and the N best are kept and averaged"
            )

    def _ranked(self, scores: Mapping[str, float]) -> dict[str, float]:
        sign = -1 if self.higher_is_better else 1
        ordered = sorted(scores.items(), key=lambda item: (sign * item[1], item[0]))
        return dict(ordered[: self.top_k])

    def finish(self, model: nn.Module) -> SoupFiles:
        """Write the averages and, with a task, the greedy soup of the candidates.

        BatchNorm statistics of the averages are averaged too; `stockpot evaluate` and the greedy
        soup recalibrate them.

        Raises:
            OutputExistsError: a file of an earlier run is there and `force` is False.
        """
        if is_adapted(model):
            return self._finish_adapters()
        like = from_state_dict(snapshot(model))
        paths: dict[str, str] = {}
        for kind, average in self._averages.items():
            if average.count and not isinstance(average, PowerMean):
                path = self._folder / f"{kind}.safetensors"
                save_weights(path, average.state_dict(), like=like, force=self.force)
                paths[kind] = str(path)
        self._store(model)
        greedy = None
        if self.task is not None and self._candidates:
            greedy = str(self._folder / "greedy.safetensors")
            soup = Greedy().cook(list(self._candidates), self.task)
            soup.save(greedy, force=self.force)
        ema = {self._decays[kind]: path for kind, path in paths.items() if kind in self._decays}
        return SoupFiles(paths.get("uniform"), ema, dict(self._candidates), greedy)

    def _finish_adapters(self) -> SoupFiles:
        """The mean of the candidates and the greedy soup of them, as adapters."""
        made: dict[str, str] = {}
        wanted = {"uniform": self.uniform, "greedy": self.task is not None}
        for name, recipe in (("uniform", Uniform()), ("greedy", Greedy())):
            if wanted[name] and self._candidates:
                made[name] = str(self._folder / name)
                task = self.task if name == "greedy" else None
                soup = recipe.cook(list(self._candidates), task, base=self.base)
                soup.save(made[name], force=self.force)
        return SoupFiles(made.get("uniform"), {}, dict(self._candidates), made.get("greedy"))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: tensors, numbers and strings only."""
        return {
            "averages": {kind: average.save_state() for kind, average in self._averages.items()},
            "candidates": dict(self._candidates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for kind, average in self._averages.items():
            if kind in state["averages"]:
                average.load_state(state["averages"][kind])
        self._candidates = dict(state["candidates"])


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is one that PEFT has put an adapter into."""
    return hasattr(model, "peft_config") and hasattr(model, "save_pretrained")


def _remove(candidate: Path) -> None:
    """Remove a candidate that is among the best no more."""
    if candidate.is_dir():
        shutil.rmtree(candidate)
    else:
        candidate.unlink(missing_ok=True)
