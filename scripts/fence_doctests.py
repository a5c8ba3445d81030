"""For the reference pages: doctests stand in docstrings as they are, and are shown as code.

A Griffe extension, named in mkdocs.yml. Markdown would take `>>>` for a quotation.
"""

from __future__ import annotations

from typing import Any

import griffe


def fence(text: str) -> str:
    """`text` with every doctest, up to the next blank line, in a fenced block."""
    lines: list[str] = []
    indent: str | None = None
    for line in text.splitlines():
        if indent is None and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}```pycon")
        elif indent is not None and line.strip() == "":
            lines.append(f"{indent}```")
            indent = None
        lines.append(line)
    if indent is not None:
        lines.append(f"{indent}```")
    return "\n".join(lines)


class FenceDoctests(griffe.Extension):
    """Called with every object that the reference shows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence the doctests of its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fence(obj.docstring.value)
