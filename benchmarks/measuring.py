"""What several benchmarks share: sizes as people write them, and the memory of a process."""

from __future__ import annotations

import re
from pathlib import Path

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(text: str) -> int:
    """The bytes that a size such as `1GB` or `6GiB` means."""
    found = re.fullmatch(r"([0-9.]+)\s*([KMG]?I?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"{text!r} is no size; write for example 1GB or 6GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def anonymous_bytes() -> int:
    """Anonymous memory of this process, as Linux counts it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]
