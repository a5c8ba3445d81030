"""The saved state of a run that is not finished."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stockpot.errors import TrainingError
from stockpot.formats.base import Checkpoint
from stockpot.io import atomic as _io
from stockpot.train import _isolation
from stockpot.train.run import EpochRecord, Run, begin_phase


@dataclass(frozen=True)
class StateFile:
    """Where the state lies, and of which run it has to be."""

    path: Path
    identity: dict[str, Any]

    @classmethod
    def beside(cls, out: Path, run: Run, base: Checkpoint) -> StateFile:
        """The state file of the run that writes `out`."""
        identity = {
            "version": 1,
            "config": run.config.as_dict(),
            "seed": run.seed,
            "base": base.fingerprint,
            "n_examples": run.n_examples,
            "batch_size": run.batch_size,
            "processes": run.accelerator.num_processes,
            "pruning": None if run.pruner is None else run.pruner.identity,
        }
        return cls(out.with_name(f".{out.name}.state"), identity)

    def save(self, run: Run) -> None:
        """Write the state of `run`, replacing the older one in one move."""
        if not run.accelerator.is_main_process:
            return
        scaler = run.accelerator.scaler
        state = {
            "identity": self.identity,
            "done_steps": run.done_steps,
            "seconds": run.seconds,
            "micro_batches": run.micro_batches,
            "loss_sum": run.loss_sum,
            "model": run.raw_model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "mask": {} if run.pruner is None else run.pruner.state(),
            "averages": {kind: average.save_state() for kind, average in run.averages.items()},
            "history": [dataclasses.asdict(record) for record in run.history],
            "best": run.best,
            "best_epoch": run.best_epoch,
            "generator": run.generator.get_state(),
            "randomness": _isolation.get_randomness(),
        }
        with _io.staged_file(self.path, force=True) as staged, staged.path.open("wb") as file:
            torch.save(state, file)

    def restore(self, run: Run) -> int | None:
        """Bring `run` to the saved state; the step it is then at, or None when nothing was saved.

        Raises:
            TrainingError: the state is of a run with other settings; names the first few.
        """
        if not self.path.exists():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self._check(state["identity"])
        run.done_steps = state["done_steps"]
        begin_phase(run)
        run.raw_model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None:
            run.accelerator.scaler.load_state_dict(state["scaler"])
        if run.pruner is not None:
            run.pruner.restore(state["mask"])
        device = run.accelerator.device
        for kind, average in run.averages.items():
            average.load_state(state["averages"][kind], device)
        run.history = [EpochRecord(**record) for record in state["history"]]
        run.best, run.best_epoch = state["best"], state["best_epoch"]
        run.seconds, run.micro_batches = state["seconds"], state["micro_batches"]
        run.loss_sum = None if state["loss_sum"] is None else state["loss_sum"].to(device)
        run.generator.set_state(state["generator"])
        _isolation.set_randomness(state["randomness"])
        run.raw_model.train()
        return run.done_steps

    def _check(self, found: dict[str, Any]) -> None:
        def flat(identity: dict[str, Any]) -> dict[str, Any]:
            return {**identity, **identity["config"], "config": None}

        ours, theirs = flat(self.identity), flat(found)
        differ = [
            f"{key} was {theirs.get(key)!r} and is now {value!r}"
            for key, value in {**dict.fromkeys(theirs), **ours}.items()
            if theirs.get(key) != value
        ]
        if differ:
            raise TrainingError(
                f"{self.path} is the state of another run: {'; '.join(differ[:5])}. Go on with the "
                "same settings, choose another output, or start over with resume=False"
            )

    def remove(self) -> None:
        """Delete it: the run is done."""
        self.path.unlink(missing_ok=True)
