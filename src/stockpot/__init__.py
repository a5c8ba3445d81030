"""Turn fine-tuned checkpoints into one better model.

Names are imported when they are first used, so `import stockpot` and the command line start without
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.diagnosis.result import Diagnosis as Diagnosis
    from stockpot.diagnosis.study import diagnose as diagnose
    from stockpot.errors import CheckpointError as CheckpointError
    from stockpot.errors import CheckpointFormatError as CheckpointFormatError
    from stockpot.errors import EvaluationError as EvaluationError
    from stockpot.errors import MaskMismatchError as MaskMismatchError
    from stockpot.errors import MismatchError as MismatchError
    from stockpot.errors import NonFiniteError as NonFiniteError
    from stockpot.errors import OptionalDependencyError as OptionalDependencyError
    from stockpot.errors import OutputExistsError as OutputExistsError
    from stockpot.errors import Problem as Problem
    from stockpot.errors import RecipeError as RecipeError
    from stockpot.errors import ReportError as ReportError
    from stockpot.errors import SplitRoleError as SplitRoleError
    from stockpot.errors import StockpotError as StockpotError
    from stockpot.errors import TaskError as TaskError
    from stockpot.errors import TensorNotFoundError as TensorNotFoundError
    from stockpot.errors import TrainingError as TrainingError
    from stockpot.errors import UnsafeCheckpointError as UnsafeCheckpointError
    from stockpot.errors import VerificationError as VerificationError
    from stockpot.errors import WorkerError as WorkerError
    from stockpot.evaluate.evaluator import Evaluator as Evaluator
    from stockpot.evaluate.task import Role as Role
    from stockpot.evaluate.task import Score as Score
    from stockpot.evaluate.task import Split as Split
    from stockpot.evaluate.task import Task as Task
    from stockpot.evaluate.task_evaluator import TaskEvaluator as TaskEvaluator
    from stockpot.formats.adapters.checkpoint import Adapter as Adapter
    from stockpot.formats.base import Checkpoint as Checkpoint
    from stockpot.formats.compressing import compress as compress
    from stockpot.formats.compressing import expand as expand
    from stockpot.formats.memory import from_state_dict as from_state_dict
    from stockpot.formats.opening import open as open
    from stockpot.formats.runs import expand_paths as expand_paths
    from stockpot.mixing.coefficients import Coefficients as Coefficients
    from stockpot.mixing.engine import Saved as Saved
    from stockpot.mixing.ingredients import Ingredients as Ingredients
    from stockpot.mixing.mask import Mask as Mask
    from stockpot.mixing.mixture import Mixture as Mixture
    from stockpot.mixing.rules.base import BufferPolicy as BufferPolicy
    from stockpot.recipes.auto import Auto as Auto
    from stockpot.recipes.functions import auto as auto
    from stockpot.recipes.functions import average as average
    from stockpot.recipes.functions import greedy as greedy
    from stockpot.recipes.functions import inspect as inspect
    from stockpot.recipes.functions import interpolate as interpolate
    from stockpot.recipes.functions import learned as learned
    from stockpot.recipes.functions import pruned as pruned
    from stockpot.recipes.functions import trajectory as trajectory
    from stockpot.recipes.greedy import Greedy as Greedy
    from stockpot.recipes.greedy import Pruned as Pruned
    from stockpot.recipes.learned.recipe import Learned as Learned
    from stockpot.recipes.model_stock import ModelStock as ModelStock
    from stockpot.recipes.record import verify as verify
    from stockpot.recipes.result import Step as Step
    from stockpot.recipes.simple import BestSingle as BestSingle
    from stockpot.recipes.simple import Uniform as Uniform
    from stockpot.recipes.slerp import Slerp as Slerp
    from stockpot.recipes.soce import SoCE as SoCE
    from stockpot.recipes.soup import Soup as Soup
    from stockpot.recipes.task_arithmetic import TaskArithmetic as TaskArithmetic
    from stockpot.recipes.trajectory import Trajectory as Trajectory
    from stockpot.recipes.wise_ft import WiseFT as WiseFT
    from stockpot.tasks.classification import ClassificationTask as ClassificationTask
    from stockpot.tensors.spec import TensorSpec as TensorSpec
    from stockpot.train.config import TrainConfig as TrainConfig
    from stockpot.train.loop import TrainResult as TrainResult
    from stockpot.train.loop import fine_tune as fine_tune
    from stockpot.train.sparse.soup import SparseSoup as SparseSoup

__version__ = "0.2.0"

__getattr__, __dir__ = lazy_exports(__name__, __file__)
