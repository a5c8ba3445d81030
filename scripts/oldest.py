"""Print the lowest versions that pyproject.toml allows, as requirements for pip.

    python scripts/oldest.py > oldest.txt
    python scripts/oldest.py torch==2.13.0      # with another version of one

Every requirement with a lower bound of the core and of the extra `test`, which has all others that
code uses, is pinned to that bound; what they need in turn is for pip to choose.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)")
_OURS = re.compile(r"stockpot\[([^]]*)\]")


def requirements(project: Mapping[str, object], extra: str) -> Iterator[str]:
    """Requirements of an extra, those of the extras in it included."""
    extras: Mapping[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    for requirement in extras[extra]:
        if ours := _OURS.match(requirement):
            for other in ours[1].split(","):
                yield from requirements(project, other)
        else:
            yield requirement


def lowest() -> dict[str, str]:
    """Lowest version of each package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (
        _BOUND.match(one) for one in (*project["dependencies"], *requirements(project, "test"))
    )
    return {match[1]: match[2] for match in found if match is not None}


def main() -> None:
    """Print them, with what the arguments say in place of some."""
    pins = lowest() | dict(given.split("==") for given in sys.argv[1:])
    print("\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))


if __name__ == "__main__":
    main()
