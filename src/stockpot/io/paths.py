"""Where files of our own are kept, and in which order names stand."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cache_dir() -> Path:
    """Where journals and fingerprints are kept unless another place is asked for; may not exist.

    `$STOCKPOT_CACHE`, else the user's cache folder as the system has it (`$XDG_CACHE_HOME/stockpot`
    or `~/.cache/stockpot` on Linux), else, where nobody has a home, one in the temporary folder.
    """
    if own := os.environ.get("STOCKPOT_CACHE"):
        return Path(own)
    import tempfile

    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("stockpot", appauthor=False))
    except RuntimeError:  # nobody of this number has a home: a container, a batch system
        return Path(tempfile.gettempdir()) / f"stockpot-cache-{os.getuid()}"


def natural_key(name: str) -> list[tuple[int, str, str]]:
    """A key that sorts the numbers in names by their size: `layer.2` before `layer.10`.

    Equal numbers with other zeros in front stay apart, so that `lr0.01` and `lr0.001` do not mix.
    natsort is not used because the bytes of outputs hang on this order.

    >>> sorted(["lr0.01-10", "lr0.01-2", "lr0.001-3"], key=natural_key)
    ['lr0.001-3', 'lr0.01-2', 'lr0.01-10']
    """
    return [
        _number(part) if part[0] in "0123456789" else (-1, "", part)
        for part in re.split(r"([0-9]+)", name)
        if part
    ]


def _number(digits: str) -> tuple[int, str, str]:
    # By the number of digits and then by the digits: no limit to how long a number may be.
    plain = digits.lstrip("0")
    return len(plain), plain, digits
