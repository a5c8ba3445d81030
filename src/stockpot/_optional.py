"""Packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

from stockpot.errors import OptionalDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise an error that names the pip line which installs it.

    Only the absence of the package itself is translated: an import error from inside an installed
    package is a defect there and stays as it is.

    >>> require("json", extra="hf").dumps([1])
    '[1]'
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise OptionalDependencyError(package, extra) from error
