"""A running soup inside `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import TrainingError
from stockpot.integrations.running import RunningSoup, SoupFiles
from stockpot.io import atomic as _io

_transformers: Any = require("transformers", extra="hf")
_STATE = "stockpot.pt"


class SoupCallback(_transformers.TrainerCallback):  # type: ignore[misc]
    """Keeps averages and the best checkpoints while a `Trainer` trains, and writes them at its end.

    Candidates are taken at every evaluation, so `eval_strategy` must not be `"no"` with `top_k`.
    The averages are saved with the trainer's checkpoints, and a resumed training goes on with them.

    >>> from stockpot.integrations.transformers import SoupCallback
    >>> callback = SoupCallback("soups", ema_decays=(0.99,), top_k=3)
    >>> callback.files is None
    True

    Args:
        output: folder of the results; see `RunningSoup`.
        metric: the evaluation metric that ranks candidates, with or without `eval_`.
        options: those of `RunningSoup`.

    Attributes:
        soup: the `RunningSoup`.
        files: what was written, after training.
    """

    def __init__(self, output: StrPath, *, metric: str = "eval_loss", **options: Any) -> None:
        self.soup = RunningSoup(output, **options)
        self.metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        self.files: SoupFiles | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on with the averages of the checkpoint that training resumes from."""
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _STATE
        if state.global_step > 0 and saved.exists():
            import torch

            self.soup.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Take a snapshot when one is due."""
        self.soup.step(state.global_step, model)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Keep the model as a candidate while it is among the best."""
        metrics = kwargs.get("metrics") or {}
        if self.soup.top_k == 0:
            return
        if self.metric not in metrics:
            raise TrainingError(
                f"the evaluation has no {self.metric!r} to rank candidates by; it has "
                f"{', '.join(metrics)}: give metric=…"
            )
        if state.is_world_process_zero:
            self.soup.candidate(state.global_step, model, float(metrics[self.metric]))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the averages with the trainer's checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            import torch

            path = folder / _STATE
            with _io.staged_file(path, force=True) as staged, staged.path.open("wb") as file:
                torch.save(self.soup.state_dict(), file)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Write the results."""
        if state.is_world_process_zero:
            self.files = self.soup.finish(model)
