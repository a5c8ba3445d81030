"""Turn fine-tuned checkpoints into one better model.

Names are imported when they are first used, so `import stockpot` and the command line start without
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stockpot.checkpoint.base import Checkpoint
    from stockpot.checkpoint.compressing import compress, expand
    from stockpot.checkpoint.ingredients import Ingredients
    from stockpot.checkpoint.memory import from_state_dict
    from stockpot.checkpoint.opening import expand_paths, open
    from stockpot.checkpoint.spec import TensorSpec
    from stockpot.diagnostics.result import Diagnosis
    from stockpot.diagnostics.study import diagnose
    from stockpot.errors import (
        CheckpointError,
        CheckpointFormatError,
        EvaluationError,
        MaskMismatchError,
        MismatchError,
        NonFiniteError,
        OptionalDependencyError,
        OutputExistsError,
        Problem,
        RecipeError,
        ReportError,
        SplitRoleError,
        StockpotError,
        TaskError,
        TensorNotFoundError,
        TrainingError,
        UnsafeCheckpointError,
        VerificationError,
        WorkerError,
    )
    from stockpot.evaluation.scoring import Evaluator
    from stockpot.mixing.buffers import BufferPolicy
    from stockpot.mixing.coefficients import Coefficients
    from stockpot.mixing.engine import Saved
    from stockpot.mixing.mixture import Mixture
    from stockpot.models.classification import ClassificationTask
    from stockpot.models.task import Role, Score, Split, Task
    from stockpot.recipes.auto import Auto
    from stockpot.recipes.base import Step
    from stockpot.recipes.greedy import Greedy
    from stockpot.recipes.learned import Learned
    from stockpot.recipes.pruned import Pruned
    from stockpot.recipes.soup import Soup
    from stockpot.recipes.sparse import SparseSoup
    from stockpot.recipes.uniform import BestSingle, Uniform
    from stockpot.recipes.wise_ft import WiseFT
    from stockpot.sparsity.mask import Mask
    from stockpot.training.config import TrainConfig
    from stockpot.training.loop import TrainResult, fine_tune

__version__ = "0.1.0"

_HOMES = {
    "Auto": "stockpot.recipes.auto",
    "Pruned": "stockpot.recipes.pruned",
    "BestSingle": "stockpot.recipes.uniform",
    "Uniform": "stockpot.recipes.uniform",
    "Greedy": "stockpot.recipes.greedy",
    "Learned": "stockpot.recipes.learned",
    "WiseFT": "stockpot.recipes.wise_ft",
    "SparseSoup": "stockpot.recipes.sparse",
    "Soup": "stockpot.recipes.soup",
    "Step": "stockpot.recipes.base",
    "Evaluator": "stockpot.evaluation.scoring",
    "BufferPolicy": "stockpot.mixing.buffers",
    "Checkpoint": "stockpot.checkpoint.base",
    "ClassificationTask": "stockpot.models.classification",
    "Coefficients": "stockpot.mixing.coefficients",
    "Ingredients": "stockpot.checkpoint.ingredients",
    "Mask": "stockpot.sparsity.mask",
    "Mixture": "stockpot.mixing.mixture",
    "Saved": "stockpot.mixing.engine",
    "TensorSpec": "stockpot.checkpoint.spec",
    "Diagnosis": "stockpot.diagnostics.result",
    "TrainConfig": "stockpot.training.config",
    "TrainResult": "stockpot.training.loop",
    "compress": "stockpot.checkpoint.compressing",
    "expand": "stockpot.checkpoint.compressing",
    "diagnose": "stockpot.diagnostics.study",
    "expand_paths": "stockpot.checkpoint.opening",
    "fine_tune": "stockpot.training.loop",
    "from_state_dict": "stockpot.checkpoint.memory",
    "open": "stockpot.checkpoint.opening",
    **dict.fromkeys(
        (
            "CheckpointError",
            "CheckpointFormatError",
            "EvaluationError",
            "MaskMismatchError",
            "MismatchError",
            "NonFiniteError",
            "OptionalDependencyError",
            "OutputExistsError",
            "Problem",
            "RecipeError",
            "ReportError",
            "SplitRoleError",
            "StockpotError",
            "TaskError",
            "TensorNotFoundError",
            "TrainingError",
            "UnsafeCheckpointError",
            "VerificationError",
            "WorkerError",
        ),
        "stockpot.errors",
    ),
    **dict.fromkeys(("Role", "Score", "Split", "Task"), "stockpot.models.task"),
}

__all__ = [
    "Auto",
    "BestSingle",
    "BufferPolicy",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFormatError",
    "ClassificationTask",
    "Coefficients",
    "Diagnosis",
    "EvaluationError",
    "Evaluator",
    "Greedy",
    "Ingredients",
    "Learned",
    "Mask",
    "MaskMismatchError",
    "MismatchError",
    "Mixture",
    "NonFiniteError",
    "OptionalDependencyError",
    "OutputExistsError",
    "Problem",
    "Pruned",
    "RecipeError",
    "ReportError",
    "Role",
    "Saved",
    "Score",
    "Soup",
    "SparseSoup",
    "Split",
    "SplitRoleError",
    "Step",
    "StockpotError",
    "Task",
    "TaskError",
    "TensorNotFoundError",
    "TensorSpec",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "Uniform",
    "UnsafeCheckpointError",
    "VerificationError",
    "WiseFT",
    "WorkerError",
    "compress",
    "diagnose",
    "expand",
    "expand_paths",
    "fine_tune",
    "from_state_dict",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stockpot' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # so that the second use costs nothing
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
