"""Compiles `tensors/sums.c` when the package is built or installed.

Without a C compiler the package is complete and makes the same bits, only more slowly.

`STOCKPOT_SUMS` decides: `auto`, the default, compiles where that is possible; `required` fails
where it is not; `none` makes the pure wheel, which serves every machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/stockpot/tensors/sums.c")
LIBRARY = SOURCE.with_name("libsums.dll" if sys.platform == "win32" else "libsums.so")
# No -march: the file holds a version for each generation of processors. No fused multiply-add,
# which would change bits. That nobody asks for floating-point traps changes none, and without it
# compilers make no vectors of conditions.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-trapping-math", "-shared")
if sys.platform != "win32":
    FLAGS = (*FLAGS, "-fPIC", "-lm")


class Compile(BuildHookInterface):  # type: ignore[misc]
    """Puts the library beside its source."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel carry the result."""
        wanted = os.environ.get("STOCKPOT_SUMS", "auto")
        if wanted not in ("auto", "required", "none"):
            raise ValueError(f"STOCKPOT_SUMS is {wanted!r}; expected auto, required or none")
        if self.target_name != "wheel" or wanted == "none":
            return
        if not compile_sums(Path(self.root) / SOURCE, Path(self.root) / LIBRARY):
            if wanted == "required":
                raise RuntimeError("STOCKPOT_SUMS=required, and the sums cannot be compiled")
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"


def compile_sums(source: Path, library: Path) -> bool:
    """Compile `source` to `library`; whether that went well."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    made = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        subprocess.run([*compiler, "-o", made, source, *FLAGS], check=True)
        made.replace(library)  # a library in use must not change under its users
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"stockpot: sums are not compiled ({error}); NumPy makes them\n")
        made.unlink(missing_ok=True)
        library.unlink(missing_ok=True)  # of an older source
        return False
    return True


def _platform() -> str:
    from packaging.tags import mac_platforms, platform_tags

    if sys.platform != "darwin":  # not manylinux, which older ones name first: auditwheel decides
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    oldest = os.environ.get("MACOSX_DEPLOYMENT_TARGET")
    if oldest:  # the oldest system that it is compiled for, and not this one
        major, minor = (*map(int, oldest.split(".")), 0)[:2]
        return next(mac_platforms((major, minor)))
    return next(platform_tags())
