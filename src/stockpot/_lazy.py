"""Names of a package that are imported when they are first used.

`import stockpot` and the command line then start without torch. The list of names stands once: in
the package's own `if TYPE_CHECKING:` block, one `from module import Name as Name` a line, where
type checkers and readers look for it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`, whose source is `file`; sets its `__all__`.

    The returned functions follow PEP 562: an unknown name is an AttributeError.
    """
    homes = _declared(Path(file).read_text(encoding="utf-8"))
    namespace = vars(sys.modules[package])
    namespace["__all__"] = sorted(homes)

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes[name]
        value = namespace[name] = getattr(importlib.import_module(module), original)
        return value

    def dir_() -> list[str]:
        return sorted({*namespace, *homes})

    return getattr_, dir_


def _declared(source: str) -> dict[str, tuple[str, str]]:
    """Name → (module, name there), of the imports under `if TYPE_CHECKING:`."""
    guards = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for guard in guards
        for node in guard.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
