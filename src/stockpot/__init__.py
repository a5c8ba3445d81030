"""Turn fine-tuned checkpoints into one better model.

Names are imported when they are first used, so `import stockpot` and the command line start without
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stockpot.checkpoint.base import Checkpoint
    from stockpot.checkpoint.spec import TensorSpec
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
        TensorNotFoundError,
        UnsafeCheckpointError,
        VerificationError,
    )
    from stockpot.models.task import Role, Score, Split, Task

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "stockpot.checkpoint.base",
    "TensorSpec": "stockpot.checkpoint.spec",
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
            "TensorNotFoundError",
            "UnsafeCheckpointError",
            "VerificationError",
        ),
        "stockpot.errors",
    ),
    **dict.fromkeys(("Role", "Score", "Split", "Task"), "stockpot.models.task"),
}

__all__ = [
    "Checkpoint",
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
    "Role",
    "Score",
    "Split",
    "SplitRoleError",
    "StockpotError",
    "Task",
    "TensorNotFoundError",
    "TensorSpec",
    "UnsafeCheckpointError",
    "VerificationError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stockpot' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # so that the second use costs nothing
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
