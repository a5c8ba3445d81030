"""Every error that stockpot raises on purpose.

    StockpotError
    ├── CheckpointError               a file or folder of weights; .problems
    │   ├── CheckpointFormatError     (ValueError) damaged, truncated, or not a checkpoint
    │   ├── UnsafeCheckpointError     reading it would mean running code from it
    │   └── TensorNotFoundError       (KeyError) .name .path
    ├── MismatchError                 (ValueError) .problems: the ingredients cannot be averaged
    │   └── MaskMismatchError         their sparsity masks differ
    ├── RecipeError                   (ValueError) a recipe was asked for something it cannot do
    ├── SplitRoleError                a recipe was asked to choose on data meant for reporting
    ├── TaskError                     (ValueError) a task contradicts itself; .problems
    ├── EvaluationError               a score could not be computed
    ├── ReportError                   (ValueError) a record to report on is missing or damaged
    ├── TrainingError                 (ValueError) a run cannot be made, or went astray
    ├── WorkerError                   a job, or the process that ran it, failed; .jobs
    ├── NonFiniteError                NaN, infinity, or overflow in weights; .path .tensor
    ├── OutputExistsError             (FileExistsError) an output would be overwritten; .path
    ├── VerificationError             a soup does not match its record; .differences
    └── OptionalDependencyError       (ImportError) .package .extra

Each message says what was found, what was expected and what to do. Errors that can have several
causes collect all of them before they are raised, and carry them as attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class StockpotError(Exception):
    """Base of every error that stockpot raises on purpose."""


class CheckpointError(StockpotError):
    """A checkpoint could not be read or written.

    `problems` lists every reason where several checkpoints were opened together.
    """

    problems: tuple[str, ...] = ()


class CheckpointFormatError(CheckpointError, ValueError):
    """The bytes are not a valid checkpoint of the format that they claim to be."""


class UnsafeCheckpointError(CheckpointError):
    """What was asked for can only be had by running code that the checkpoint brings along."""


class TensorNotFoundError(CheckpointError, KeyError):
    """No tensor of this name is in the checkpoint."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(f"{path} holds no tensor named {name!r}")
        self.name = name
        self.path = path

    # KeyError would show the repr of the message.
    __str__ = Exception.__str__


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why one ingredient cannot be averaged with the others.

    `tensor` is None when the whole ingredient is at fault.
    """

    ingredient: str
    tensor: str | None
    found: str
    expected: str


class MismatchError(StockpotError, ValueError):
    """Some ingredients cannot be averaged with the others; `problems` lists every reason."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class MaskMismatchError(MismatchError):
    """The ingredients are sparse with different masks, so their average would not be sparse."""


class RecipeError(StockpotError, ValueError):
    """A recipe was given something that it cannot work with."""


class SplitRoleError(StockpotError):
    """A recipe was asked to choose on a split whose role is to report."""


class TaskError(StockpotError, ValueError):
    """A task cannot be used: missing data, labels out of range, splits that share examples.

    `problems` lists every reason.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class EvaluationError(StockpotError):
    """A score could not be computed, or is not a number."""


class ReportError(StockpotError, ValueError):
    """A record is missing, damaged, contradicts itself, or comes from a newer stockpot."""


class TrainingError(StockpotError, ValueError):
    """A fine-tuning run was asked for something it cannot do, or left the finite numbers."""


class WorkerError(StockpotError):
    """Jobs that could not be finished; `jobs` names them."""

    def __init__(self, message: str, jobs: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.jobs = tuple(jobs)


class NonFiniteError(StockpotError):
    """NaN or infinity in an ingredient, or a mean that the output dtype cannot hold."""

    def __init__(self, message: str, *, path: str | None = None, tensor: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.tensor = tensor


class OutputExistsError(StockpotError, FileExistsError):
    """The output exists and `force` was not given."""

    def __init__(self, path: str, message: str | None = None) -> None:
        super().__init__(
            message
            if message is not None
            else f"{path} exists: choose another output, or overwrite it with force=True (--force)"
        )
        self.path = path

    # OSError would show the errno form.
    __str__ = Exception.__str__


class VerificationError(StockpotError):
    """A soup does not match its record; `differences` lists where."""

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.differences = tuple(differences)


class OptionalDependencyError(StockpotError, ImportError):
    """A package that only this feature needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed: "
            f"pip install 'stockpot[{extra}]'"
        )
        self.package = package
        self.extra = extra
