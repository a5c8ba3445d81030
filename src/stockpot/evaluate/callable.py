"""Scores from a Python function of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias

from stockpot._types import Progress, StrPath, kind_of, no_progress
from stockpot.errors import EvaluationError
from stockpot.evaluate.numbers import NumbersEvaluator, finite
from stockpot.evaluate.source_hash import source_hash

if TYPE_CHECKING:
    from typing import Literal

    from torch import nn

    from stockpot.formats.base import Checkpoint

ScoreFunction: TypeAlias = "Callable[[nn.Module], float | Mapping[str, float]]"
"""Takes a model in eval mode and returns its score, or numbers with `score` among (or first of)
them."""


class CallableEvaluator(NumbersEvaluator):
    """Scores checkpoints by a function of yours that takes the model and returns a number.

    The function gets a model in eval mode with the candidate's weights loaded, without gradients;
    what it does to the model is undone before the next. It has state: that one model. A single
    number has no examples behind it, so there is neither early rejection nor a paired interval, and
    `notes` says what a `Task` would add. What the function reads while it runs cannot be seen: give
    a `version` together with a `cache` where the data may change.

    >>> import torch, stockpot
    >>> net = torch.nn.Linear(1, 1)
    >>> evaluator = CallableEvaluator(lambda model: float(model.bias), build=net)
    >>> checkpoint = stockpot.from_state_dict({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    >>> evaluator.score(checkpoint, "held-out").value
    1.0

    Args:
        evaluate: `model -> float`, or a mapping of numbers: its `score`, else its first, chooses.
        test: the same on data that reports and never chooses; one function, or several by name.
        build: makes a model of the architecture, or is one, which is copied.
        direction: `"max"` or `"min"`.
        version: changes when what the functions compute does; by default a hash of their source.
        cache: folder of the journal; None forgets.
        progress: called after each score.

    Raises:
        EvaluationError: `direction` is neither max nor min, or a function cannot be called with a
            model alone.
    """

    def __init__(
        self,
        evaluate: ScoreFunction,
        *,
        build: Callable[[], nn.Module] | nn.Module,
        test: ScoreFunction | Mapping[str, ScoreFunction] | None = None,
        direction: Literal["max", "min"] = "max",
        version: str = "",
        cache: StrPath | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if direction not in ("max", "min"):
            raise EvaluationError(f"direction is {direction!r}, expected max or min")
        reporting = {} if test is None else test if isinstance(test, Mapping) else {"test": test}
        self.functions: dict[str, ScoreFunction] = {"held-out": evaluate, **reporting}
        _require_one_argument(self.functions)
        super().__init__(
            {name: version or source_hash(fn) for name, fn in self.functions.items()},
            choosing=["held-out"],
            higher_is_better=direction == "max",
            cache=cache,
            progress=progress,
        )
        self._build = build
        self._model: nn.Module | None = None
        self.notes.append(
            "scores are single numbers: a Task would add intervals, paired differences, and "
            "candidates that are rejected before all examples are seen"
        )
        if not reporting:
            self.notes.append(
                "nothing independent was measured: there are only scores that chose; give another "
                "function (test=…) to report"
            )

    def _ask(self, source: Checkpoint, split: str) -> Mapping[str, float]:
        import torch

        if self._model is None:
            given = self._build
            self._model = deepcopy(given) if isinstance(given, torch.nn.Module) else given()
        source.load_into(self._model)
        function = self.functions[split]
        with torch.no_grad():
            answer = function(self._model.eval())
        return finite(_numbers(answer, split), f"for {source.path} the {split} function returned")


def _require_one_argument(functions: Mapping[str, ScoreFunction]) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise EvaluationError(
                f"the {name} function is {kind_of(function)}; expected a function of a model that "
                "returns a number"
            )
        try:
            taken = inspect.signature(function)
        except (TypeError, ValueError):  # of what is written in C, nothing is known
            continue
        try:
            taken.bind(None)
        except TypeError as error:
            shown = getattr(function, "__name__", type(function).__name__)
            raise EvaluationError(
                f"the {name} function, {shown}{taken}, cannot be called with a model alone "
                f"({error}); expected a function of a model that returns a number"
            ) from error


def _numbers(answer: object, split: str) -> dict[str, float]:
    """An answer as numbers by name, `score` among them."""
    given: Mapping[Any, Any] = answer if isinstance(answer, Mapping) else {"score": answer}
    try:
        numbers = {str(name): float(value) for name, value in given.items()}
    except (TypeError, ValueError):
        numbers = {}
    if not numbers:
        raise EvaluationError(
            f"the {split} function returned {answer!r}; expected a number, or numbers by name"
        )
    return numbers if "score" in numbers else {"score": next(iter(numbers.values())), **numbers}
