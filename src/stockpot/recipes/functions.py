"""The recipes as functions, with the names of the commands.

    soup = stockpot.greedy(models, evaluate=accuracy, test=test_accuracy)
    net.load_state_dict(soup.state_dict())

Models are paths, folders of runs, state dicts, checkpoints or modules. What chooses is a `Task`, or
a function of a model in eval mode that returns a number; a task also gives intervals, paired
differences, early rejection and BatchNorm statistics. Everything else is an option of the recipe or
of `Recipe.cook`, by name; an unknown one is refused.
"""

from __future__ import annotations

import inspect as inspect_module
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from stockpot._types import Progress, kind_of, no_progress
from stockpot.analysis.inspection import Inspection, inspect_checkpoints
from stockpot.errors import RecipeError
from stockpot.evaluate.callable import CallableEvaluator
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.task import Task
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.runs import expand_paths
from stockpot.mixing.ingredients import Ingredients, Source
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.auto import Auto
from stockpot.recipes.base import Recipe
from stockpot.recipes.greedy import Greedy, Pruned
from stockpot.recipes.learned import Learned
from stockpot.recipes.simple import Uniform
from stockpot.recipes.soup import Soup
from stockpot.recipes.trajectory import Trajectory
from stockpot.recipes.wise_ft import WiseFT

if TYPE_CHECKING:
    from stockpot.evaluate.callable import ScoreFunction

Models: TypeAlias = "Source | Iterable[Source] | Ingredients"
"""One source, such as a folder of runs, or several."""
Scorer: TypeAlias = "Evaluator | ScoreFunction"
"""What scores: a function of a model, or an evaluator."""
GivenTask: TypeAlias = "Task | Callable[[], Task]"
"""A task, or a function without arguments that makes one."""

_OF_COOK = frozenset({"base", "choose_on", "on_mismatch", "reconcile", "dtype", "report"})
_OF_FUNCTIONS = frozenset({"build", "direction", "version", "cache", "progress"})


def average(
    models: Models, *, evaluate: Scorer | None = None, task: GivenTask | None = None, **options: Any
) -> Soup:
    """The uniform soup, a weighted one (`weights=`), or that of the `top=` best.

    >>> import numpy as np, stockpot
    >>> soup = stockpot.average([{"w": np.float32([0, 2])}, {"w": np.float32([2, 4])}])
    >>> soup.mixture.read("w").tolist()
    [1.0, 3.0]

    Args:
        models: what is averaged.
        evaluate: scores the result, and chooses for `top`.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `Uniform`, of `Recipe.cook` and of `CallableEvaluator`.
    """
    return _cook(Uniform, models, _scorer(evaluate, task), options)


def greedy(
    models: Models, *, evaluate: Scorer | None = None, task: GivenTask | None = None, **options: Any
) -> Soup:
    """The greedy soup: add what does not lower the held-out score.

    Args:
        models: the ingredients.
        evaluate: what chooses: `model -> float`, or an evaluator.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `Greedy`, of `Recipe.cook` and of `CallableEvaluator` (`test=`, `build=`,
            `direction=`).
    """
    return _cook(Greedy, models, _scorer(evaluate, task), options)


def pruned(
    models: Models, *, evaluate: Scorer | None = None, task: GivenTask | None = None, **options: Any
) -> Soup:
    """The pruned soup: take out what the held-out score does not miss.

    Args:
        models: the ingredients.
        evaluate: what chooses, as for `greedy`.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `Pruned`, of `Recipe.cook` and of `CallableEvaluator`.
    """
    return _cook(Pruned, models, _scorer(evaluate, task), options)


def learned(
    models: Models, *, evaluate: Scorer | None = None, task: GivenTask | None = None, **options: Any
) -> Soup:
    """The learned soup: fit the mixing coefficients on held-out data.

    With a task the fit takes gradients; with a function it searches.

    Args:
        models: the ingredients.
        evaluate: what fits and decides, as for `greedy`.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `Learned`, of `Recipe.cook` and of `CallableEvaluator`.
    """
    return _cook(Learned, models, _scorer(evaluate, task), options)


def interpolate(
    base: Source,
    tuned: Source,
    *,
    evaluate: Scorer | None = None,
    task: GivenTask | None = None,
    **options: Any,
) -> Soup:
    """Between a base and its fine-tuned child (WiSE-FT): at `alpha=`, or where scores are best.

    >>> import numpy as np, stockpot
    >>> ends = {"w": np.float32([0, 2])}, {"w": np.float32([2, 4])}
    >>> stockpot.interpolate(*ends, alpha=0.25).mixture.read("w").tolist()
    [0.5, 2.5]

    Args:
        base: what `tuned` was fine-tuned from.
        tuned: the fine-tuned model.
        evaluate: what chooses α where it is not given, as for `greedy`.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `WiseFT`, of `Recipe.cook` and of `CallableEvaluator`.
    """
    return _cook(WiseFT, [tuned], _scorer(evaluate, task), {**options, "base": base})


def trajectory(
    models: Models, *, evaluate: Scorer | None = None, task: GivenTask | None = None, **options: Any
) -> Soup:
    """The best average over checkpoints of one run, given in the order they were saved.

    Args:
        models: the checkpoints.
        evaluate: what chooses the window, as for `greedy`.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `Trajectory`, of `Recipe.cook` and of `CallableEvaluator`.
    """
    return _cook(Trajectory, models, _scorer(evaluate, task), options)


def auto(
    models: Models, *, evaluate: Scorer | None = None, task: GivenTask | None = None, **options: Any
) -> Soup:
    """Try every recipe that applies and keep the simplest of the best.

    Args:
        models: the ingredients.
        evaluate: what chooses, as for `greedy`.
        task: data and metric, or a function that makes the task, in place of `evaluate`.
        options: of `Auto`, of `Recipe.cook` (`base=`) and of `CallableEvaluator`.
    """
    return _cook(Auto, models, _scorer(evaluate, task), options)


def inspect(
    models: Models,
    *,
    base: Source | None = None,
    key: str | None = None,
    fingerprints: bool = False,
    reconcile: Reconcile | None = None,
    progress: Progress = no_progress,
) -> Inspection:
    """Whether checkpoints can be averaged, and whether they share their initialisation.

    Args:
        models: the checkpoints.
        base: what they were fine-tuned from; its values and theirs are read once.
        key: the section of torch files.
        fingerprints: make those that are not known yet.
        reconcile: what to do about checkpoints that differ in form, as for `Ingredients`.
        progress: called with bytes.

    Raises:
        CheckpointError: one cannot be read.
    """
    return inspect_checkpoints(
        _several(models), base=base, key=key, fingerprints=fingerprints, reconcile=reconcile,
        progress=progress,
    )  # fmt: skip


def _cook(
    recipe: type[Recipe], models: Models, scorer: Task | Scorer | None, options: Mapping[str, Any]
) -> Soup:
    own = {item.name for item in fields(recipe)}  # type: ignore[arg-type]  # every recipe is one
    known = own | _OF_COOK | _OF_FUNCTIONS | {"test"}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise RecipeError(
            f"{recipe.name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    sources = models if isinstance(models, Ingredients) else list(_several(models))
    how = {name: value for name, value in options.items() if name in _OF_COOK}
    scoring = {name: value for name, value in options.items() if name in _OF_FUNCTIONS | {"test"}}
    made = recipe(**{name: value for name, value in options.items() if name in own})
    base = options.get("base")
    given = [*sources, *([] if base is None else [base])]
    with _evaluator(scorer, given, scoring) as evaluator:
        return made.cook(sources, evaluator=evaluator, **how)


def _several(models: Models) -> Iterable[Source]:
    """The models, where one alone may have been given."""
    alone = isinstance(models, str | os.PathLike | Mapping | Checkpoint) or _is_module(models)
    return [cast("Source", models)] if alone else cast("Iterable[Source]", models)


def _is_module(model: object) -> bool:
    torch = sys.modules.get("torch")  # where nobody imported it, nothing is a module
    return torch is not None and isinstance(model, torch.nn.Module)


@contextmanager
def _evaluator(
    given: Task | Scorer | None, sources: list[Source], options: Mapping[str, Any]
) -> Iterator[Evaluator | None]:
    """What scores: an evaluator as it is, one of a task, or one of a function of a model."""
    is_function = not (given is None or isinstance(given, Evaluator | Task))
    if options and not is_function:
        names = ", ".join(f"{name}=…" for name in options)
        raise RecipeError(
            f"{names} goes with a function (evaluate=fn), which {type(given).__name__} is not"
        )
    if given is None or isinstance(given, Evaluator):
        yield given
    elif isinstance(given, Task):
        with TaskEvaluator(given) as evaluator:
            yield evaluator
    else:
        build = options.get("build") or _first_module(sources)
        with CallableEvaluator(given, **{**options, "build": build}) as evaluator:
            yield evaluator


def _scorer(evaluate: Scorer | None, task: GivenTask | None) -> Task | Scorer | None:
    """What scores: the task, made where a function was given, as `--task` does; else `evaluate`."""
    if task is None:
        return evaluate
    if isinstance(task, Task | Evaluator):
        return task
    made: object = task() if _takes_nothing(task) else None
    if isinstance(made, Task):
        return made
    found = kind_of(task) if made is None else f"a function that returns {kind_of(made)}"
    raise RecipeError(
        f"task= is {found}; expected a task such as stockpot.ClassificationTask(…), or a function "
        "without arguments that makes one; what scores a model is evaluate=…"
    )


def _takes_nothing(given: object) -> bool:
    """Whether `given` is a function that can be called without arguments."""
    if not callable(given) or _is_module(given):
        return False
    try:
        inspect_module.signature(given).bind()
    except (TypeError, ValueError):  # it needs arguments, or its signature is not known
        return False
    return True


def _first_module(sources: list[Source]) -> Any:
    """A module of the architecture, from what is averaged."""
    found = next((one for one in sources if _is_module(one)), None)
    if found is None:
        # What is given may be at fault itself, and no model to call would mend that.
        if not sources:
            raise RecipeError("there are no ingredients; give at least one checkpoint")
        for path in expand_paths(one for one in sources if isinstance(one, str | os.PathLike)):
            open_checkpoint(path)
        raise RecipeError(
            "the function needs a model to call: give build=… (a module of the architecture, or a "
            "function that makes one), or modules among the models"
        )
    return found
