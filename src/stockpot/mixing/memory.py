"""How much memory this process holds."""

from __future__ import annotations

from pathlib import Path


def anonymous_bytes() -> int:
    """Anonymous memory of this process in bytes: what it allocated, without mapped files.

    0 where the system does not say (it is read from Linux's /proc).
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
