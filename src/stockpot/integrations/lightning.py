"""A running soup inside Lightning's `Trainer`."""

from __future__ import annotations

from typing import Any

from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import TrainingError
from stockpot.integrations.running import RunningSoup, SoupFiles

_lightning: Any = require("lightning.pytorch", extra="lightning")


class SoupCallback(_lightning.Callback):  # type: ignore[misc]
    """Keeps averages and the best checkpoints while a `Trainer` fits, and writes them at its end.

    Candidates are taken at the end of every validation, ranked by the logged `monitor`. The
    averages are part of Lightning's checkpoints. Names of tensors are those of the module's
    `state_dict`, or below `prefix` when the network is one of its attributes (`"model."`), which is
    what a task's `build` must match.

    Args:
        output: folder of the results; see `RunningSoup`.
        monitor: the logged value that ranks candidates.
        prefix: the attribute that holds the network, when it is not the module itself.
        options: those of `RunningSoup`.

    Attributes:
        soup: the `RunningSoup`.
        files: what was written, after fitting.
    """

    def __init__(
        self, output: StrPath, *, monitor: str = "val_loss", prefix: str = "", **options: Any
    ) -> None:
        self.soup = RunningSoup(output, **options)
        self.monitor = monitor
        self.prefix = prefix.rstrip(".")
        self.files: SoupFiles | None = None
        self._last_step = -1

    def _network(self, module: Any) -> Any:
        return module.get_submodule(self.prefix) if self.prefix else module

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot when an optimiser step was made and one is due."""
        step = trainer.global_step
        if step != self._last_step:
            self._last_step = step
            self.soup.step(step, self._network(pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the model as a candidate while it is among the best."""
        if self.soup.top_k == 0 or trainer.sanity_checking:
            return
        found = trainer.callback_metrics.get(self.monitor)
        if found is None:
            known = ", ".join(trainer.callback_metrics)
            raise TrainingError(
                f"nothing was logged as {self.monitor!r} to rank candidates by; there is {known}: "
                "give monitor=…"
            )
        if trainer.is_global_zero:
            self.soup.candidate(trainer.global_step, self._network(pl_module), float(found))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the results."""
        if trainer.is_global_zero:
            self.files = self.soup.finish(self._network(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """The averages, for Lightning's checkpoint."""
        return self.soup.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the averages of a checkpoint."""
        self.soup.load_state_dict(state_dict)
