"""Where files of our own are kept, in which order names stand, and how paths are shortened."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable
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

    with contextlib.suppress(RuntimeError):
        found = Path(platformdirs.user_cache_dir("stockpot", appauthor=False))
        if found.is_absolute():
            return found
    # Nobody of this number has a home: a container, a batch system.
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"stockpot-cache-{user}"


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


_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def short_name(path: str) -> str:
    """The last part of a path, without the suffix of a checkpoint; other text as it is.

    >>> short_name("runs/run-03.safetensors"), short_name("runs/v1.5/"), short_name("greedy of 2")
    ('run-03', 'v1.5', 'greedy of 2')
    """
    return _last_parts(path, 1)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path by its last part without suffix, with as many folders as tell them apart.

    >>> short_names(["runs/run-1.pt", "base.pt", "greedy of 2"])
    {'runs/run-1.pt': 'run-1', 'base.pt': 'base', 'greedy of 2': 'greedy of 2'}
    >>> short_names(["x/a/model.pt", "x/b/model.pt", "x/c.pt"])
    {'x/a/model.pt': 'a/model', 'x/b/model.pt': 'b/model', 'x/c.pt': 'c'}
    """
    names = {path: short_name(path) for path in paths}
    longest = max((path.count("/") for path in names), default=0) + 1
    for n_parts in range(2, longest + 1):
        times = Counter(names.values())
        clashing = [path for path, name in names.items() if times[name] > 1]
        if not clashing:
            return names
        names |= {path: _last_parts(path, n_parts) for path in clashing}
    times = Counter(names.values())
    return {path: name if times[name] == 1 else path for path, name in names.items()}


def told_apart(names: Iterable[str]) -> list[str]:
    """Each name; one that came before gets a number, that of its position where that is free.

    >>> told_apart(["<memory>", "<memory>", "a.pt", "a.pt"])
    ['<memory>', '<memory 1>', 'a.pt', 'a.pt (3)']
    """
    given = list(names)
    taken = set(given)
    seen: set[str] = set()
    for i, name in enumerate(given):
        if name in seen:
            named = (_numbered(name, n) for n in itertools.count(i))
            given[i] = next(one for one in named if one not in taken)
            taken.add(given[i])
        seen.add(name)
    return given


def _numbered(name: str, n: int) -> str:
    return f"{name[:-1]} {n}>" if name.endswith(">") else f"{name} ({n})"


def _last_parts(path: str, n_parts: int) -> str:
    *folders, last = [part for part in path.split("/") if part] or [path]
    suffix = next((s for s in _SUFFIXES if last.endswith(s) and last != s), "")
    return "/".join([*folders[max(0, len(folders) + 1 - n_parts) :], last.removesuffix(suffix)])
