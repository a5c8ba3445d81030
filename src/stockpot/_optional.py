"""Packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

from stockpot.errors import OptionalDependencyError

EXTRA_OF = {
    "accelerate": "torch",
    "boto3": "remote",
    "botocore": "remote",
    "cloudpickle": "torch",
    "cma": "search",
    "datasets": "hf",
    "h5py": "formats",
    "huggingface_hub": "hf",
    "joblib": "torch",
    "kornia": "vision",
    "lightning": "lightning",
    "lm_eval": "lm-eval",
    "matplotlib": "report",
    "obstore": "remote",
    "optuna": "sweep",
    "pandas": "pandas",
    "pyarrow": "sweep",
    "ray": "ray",
    "scipy": "torch",
    "sklearn": "demo",
    "torch": "torch",
    "transformers": "hf",
}
"""Which extra of stockpot installs a package that the core does without."""


def require(module: str, *, extra: str | None = None) -> ModuleType:
    """Import `module`, or raise an error that names the pip line which installs it.

    Only the absence of the package itself is translated: an import error from inside an installed
    package is a defect there and stays as it is.

    >>> require("json", extra="hf").dumps([1])
    '[1]'

    Args:
        module: to import.
        extra: that brings it; None means the one in `EXTRA_OF`.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise OptionalDependencyError(package, extra or EXTRA_OF[package]) from error


def missing_package(error: ModuleNotFoundError) -> OptionalDependencyError | None:
    """What to install, where `error` is the absence of a package that an extra brings.

    >>> str(missing_package(ModuleNotFoundError(name="torch.nn")))
    "this needs the package 'torch', which is not installed: pip install 'stockpot[torch]'"
    >>> missing_package(ModuleNotFoundError(name="my_task")) is None
    True
    """
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    return None if extra is None else OptionalDependencyError(package, extra)
