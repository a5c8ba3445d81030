"""Evaluators that only know numbers: no examples, so no early rejection and no paired intervals."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import EvaluationError
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator, open_journal
from stockpot.evaluate.journal import Key
from stockpot.evaluate.metrics import WholeMetric
from stockpot.evaluate.task import Metric, Role, Score, Split

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from stockpot.formats.base import Checkpoint


class _DataElsewhere:
    """Stands for data that only the program or function knows; a split needs one for its role."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> NoReturn:
        _no_data()


@dataclass(frozen=True)
class NumbersTask:
    """The splits, metric and version of an evaluator that only knows numbers.

    It has neither a model nor data: what needs them is refused.
    """

    splits: Mapping[str, Split]
    metric: Metric
    version: str
    batch_size: int = 1
    train_set: None = None
    calibration_set: None = None

    def build(self) -> nn.Module:
        """Refused: there is no model."""
        _no_data()

    def batches(
        self,
        dataset: Dataset[Any],
        indices: Iterable[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Iterable[Any]:
        """Refused: there are no examples."""
        _no_data()

    def predict(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Refused: there are no examples."""
        _no_data()

    def targets(self, batch: Any) -> torch.Tensor:
        """Refused: there are no examples."""
        _no_data()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Refused: there are no examples."""
        _no_data()


def _no_data() -> NoReturn:
    raise EvaluationError(
        "this needs a model and examples, and the scores come as numbers only: give a Task "
        "(task=…, --task)"
    )


class NumbersEvaluator(Evaluator):
    """Asks somebody for one number a checkpoint and split; final subclasses say whom.

    One answer counts as one example. What it may say beside `score` is `n`, `low` and `high`, and
    other numbers, which are kept.

    Args:
        versions: of what answers, by the splits that choose and then those that report.
        choosing: which of them choose.
        higher_is_better: direction of the number.
        metric: its name.
        cache: folder of the journal; None forgets.
        seed: unused by numbers; for those that ask.
        progress: called after each answer.
    """

    def __init__(
        self,
        versions: Mapping[str, str],
        *,
        choosing: Iterable[str],
        higher_is_better: bool = True,
        metric: str = "score",
        cache: StrPath | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self._versions = dict(versions)
        held_out = set(choosing)
        elsewhere: Any = _DataElsewhere()
        splits = {
            name: Split(elsewhere, Role.HELD_OUT if name in held_out else Role.TEST, name)
            for name in versions
        }
        whole = WholeMetric(_only_value, metric, higher_is_better=higher_is_better)
        task = NumbersTask(splits, whole, "\n".join(versions.values()))
        super().__init__(task, journal=open_journal(cache), progress=progress)

    @abstractmethod
    def _ask(self, source: Checkpoint, split: str) -> Mapping[str, float]:
        """The numbers of `source`, with `score` among them."""

    def key(self, source: Checkpoint, split: str) -> Key:
        """The journal key: content of the weights, and version of what answers."""
        return Key(
            model=source.key,
            split=f"external {split}",
            metric=self.metric.name,
            version=self.fingerprint(split),
        )

    def fingerprint(self, split: str) -> str:
        """The version of what answers: its data cannot be seen."""
        return self._versions[self._known(split)]

    def targets(self, split: str) -> torch.Tensor:
        """One dummy, floating so that nothing takes it for a class."""
        import torch

        return torch.zeros(1)

    def predictions(self, source: Checkpoint, split: str) -> Predictions:
        """The score as the output of one example."""
        numbers = self.numbers(source, split)
        outputs = np.array([[numbers["score"]]], np.float32)
        return _Answer(outputs, self.targets(split), None, numbers=numbers)

    def score_of(
        self,
        predictions: Predictions,
        split: str,
        *,
        name: str = "the model",
        interval: bool = True,
    ) -> Score:
        """The number, with its interval if one was given."""
        if not isinstance(predictions, _Answer):
            raise EvaluationError("outputs cannot be combined: there are only scores")
        numbers = predictions.numbers
        return Score(
            value=numbers["score"],
            n=int(numbers.get("n", 0)),
            low=numbers.get("low"),
            high=numbers.get("high"),
            metric=self.metric.name,
            split=split,
            higher_is_better=self.metric.higher_is_better,
        )

    def numbers(self, source: Checkpoint, split: str) -> dict[str, float]:
        """All numbers that were given for `source`; asked for once.

        Raises:
            EvaluationError: there was no answer, or none with a number.
        """
        key = self.key(source, split)
        known = self.journal.numbers(key)
        if known is None:
            known = dict(self._ask(source, split))
            self._remember(source, key, known)
        return {name: float(value) for name, value in known.items()}

    def _remember(self, source: Checkpoint, key: Key, numbers: Mapping[str, float | str]) -> None:
        self.counters.examples += 1
        self.journal.write_numbers(key, numbers, label=source.path)
        self.progress(self.counters.examples, None, "scores")

    def _known(self, split: str) -> str:
        self._split(split)
        return split


@dataclass(frozen=True)
class _Answer(Predictions):
    numbers: Mapping[str, float] = field(kw_only=True)


def finite(numbers: dict[str, float], who: str) -> dict[str, float]:
    """The finite ones of `numbers`, among which the score has to be.

    Raises:
        EvaluationError: it is not a finite number.
    """
    if not math.isfinite(numbers["score"]):
        raise EvaluationError(
            f"{who} the score {numbers['score']}; expected a number. Leave this ingredient "
            "out if its weights are at fault"
        )
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _only_value(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(outputs[0, 0])
