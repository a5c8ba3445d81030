"""Compiles `tensors/sums.c` when the package is built or installed.

Without a C compiler the package is complete and makes the same bits, only more slowly.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/stockpot/tensors/sums.c")
LIBRARY = SOURCE.with_name("libsums.so")
# No -march: the file holds a version for each generation of processors. No fused multiply-add,
# which would change bits.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared")


class Compile(BuildHookInterface):  # type: ignore[misc]
    """Puts the library beside its source."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel carry the result."""
        if self.target_name != "wheel":
            return
        if not compile_sums(Path(self.root) / SOURCE, Path(self.root) / LIBRARY):
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"


def compile_sums(source: Path, library: Path) -> bool:
    """Compile `source` to `library`; whether that went well."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    made = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        subprocess.run([*compiler, *FLAGS, "-o", made, source, "-lm"], check=True)
        made.replace(library)  # a library in use must not change under its users
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"stockpot: sums are not compiled ({error}); NumPy makes them\n")
        made.unlink(missing_ok=True)
        library.unlink(missing_ok=True)  # of an older source
        return False
    return True


def _platform() -> str:
    from packaging.tags import platform_tags

    return next(platform_tags())
