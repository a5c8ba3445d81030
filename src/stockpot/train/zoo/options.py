"""What decides a Zoo-Tuning; `tuning.py` does it, and imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from stockpot._options import option
from stockpot._types import Progress, StrPath, no_progress

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.evaluate.task import Task
    from stockpot.train.config import TrainConfig
    from stockpot.train.weights import Start
    from stockpot.train.zoo.tuning import ZooResult


@dataclass(frozen=True, kw_only=True)
class ZooTuning:
    """W = Σᵢ aᵢ·TᵢWᵢ for every layer, trained on the task and folded: for models of *no* one basin.

    Differently pretrained models of one architecture cannot be averaged. Here gates aᵢ and channel
    transforms Tᵢ are trained together with the weights, and what comes out costs one model.
    Training m models takes about m times the memory of a plain fine-tuning.

    Attributes:
        epochs: passes over the training set.
        lr: highest learning rate.
        step_size: examples per step; None for the task's.
        optimizer: `"adamw"` or `"sgd"`.
        weight_decay: of weights, and of neither gates nor transforms.
        warmup_fraction: of all steps.
        keep: the last weights, or those of the best epoch on held-out data.
        train_seed: of data order, new heads and gates.

    Reference: Shu et al. 2021, arXiv 2106.15434, "Zoo-Tuning lite".
    """

    heading: ClassVar[str] = "Training"

    epochs: int = option(10, minimum=1, help="Passes over the training set.")
    lr: float = option(1e-3, help="Highest learning rate.")
    step_size: int | None = option(
        None, minimum=1, metavar="N", help="Examples per step; default: the task's batch."
    )
    optimizer: Literal["adamw", "sgd"] = option("adamw", help="AdamW, or SGD with momentum.")
    weight_decay: float = option(0.0, help="Of weights, and of neither gates nor transforms.")
    warmup_fraction: float = option(0.1, help="Of all steps.")
    keep: Literal["last", "best"] = option(
        "last", help="The last weights, or those of the best epoch on held-out data."
    )
    train_seed: int = option(0, help="Of data order, a new head, and gates.")

    @property
    def config(self) -> TrainConfig:
        """How the run is trained."""
        from stockpot.train.config import TrainConfig

        return TrainConfig(
            epochs=self.epochs, lr=self.lr, batch_size=self.step_size, optimizer=self.optimizer,
            weight_decay=self.weight_decay, warmup_fraction=self.warmup_fraction, keep=self.keep,
        )  # fmt: skip

    def run(
        self,
        models: Sequence[Start],
        task: Task,
        *,
        folder: StrPath,
        config: TrainConfig | None = None,
        evaluator: Evaluator | None = None,
        device: str | None = None,
        progress: Progress = no_progress,
        force: bool = False,
    ) -> ZooResult:
        """Adapt `models` to `task` together, and fold them into one.

        A call that was killed goes on where it was, to the same bytes.

        Args:
            models: two or more, of the task's architecture; heads of other tasks are left out.
            task: with a `train_set`.
            folder: where the run is kept, the folded model among it.
            config: of the training, in place of these options.
            evaluator: scores; by default one that forgets, made from the task.
            device: that trains; None for the best one.
            progress: called in steps.
            force: start over where `folder` holds a run with other settings.

        Raises:
            RecipeError: fewer than two models.
            MismatchError: they share no layer with the task's network.
            OutputExistsError: `folder` holds a run with other settings, or something else.
            TrainingError: there is nothing to train on, or training diverges.
        """
        from stockpot.train.zoo.tuning import tune

        return tune(
            models,
            task,
            self.config if config is None else config,
            folder=folder,
            seed=self.train_seed,
            evaluator=evaluator,
            device=device,
            progress=progress,
            force=force,
        )
