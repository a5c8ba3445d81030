"""Write docs/api/ from the public namespaces; with --check, only compare.

A page for each namespace, with the names that its package lists. A name is documented once: on the
page of its own namespace, or on the front page.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"
AREAS = {
    "recipes": "Recipes",
    "evaluate": "Scoring",
    "analysis": "Analysis",
    "formats": "Checkpoints and formats",
    "train": "Training, sweeps and sparse soups",
    "tasks": "Tasks",
    "integrations": "Other people's training loops",
    "testing": "Conformance suites",
}
FIRST = (
    "greedy", "average", "auto", "interpolate", "learned", "inspect", "diagnose", "open", "verify",
    "ClassificationTask", "Split", "Soup",
)  # fmt: skip
"""The dozen names that most people need, on the front page."""
NOTE = "<!-- Made by scripts/api_reference.py from the public namespaces: change those instead. -->"


def exports(package: str) -> dict[str, str]:
    """Name → the full name where it is defined, of what `stockpot.PACKAGE` lists ("": the root)."""
    file = ROOT / "src" / "stockpot" / package / "__init__.py"
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for guard in ast.parse(file.read_text()).body
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def summary(full_name: str) -> str:
    """The first sentence of the docstring of `full_name`, read from its source."""
    module, _, name = full_name.rpartition(".")
    path = ROOT / "src" / Path(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            return text.replace("|", "\\|")
    return ""


def links(areas: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """A row for each name of `stockpot` itself, with a link to where it is documented."""
    elsewhere = {full: area for area, listed in areas.items() for full in listed.values()}
    return {
        name: f"| [`stockpot.{name}`]({elsewhere.get(full, 'names')}.md#{full}) | {summary(full)} |"
        for name, full in exports("").items()
    }


def front(areas: Mapping[str, Mapping[str, str]]) -> str:
    """The front page: a dozen names, and where the others are."""
    rows = links(areas)
    pages = [f"- [{title}]({area}.md): `stockpot.{area}`" for area, title in AREAS.items()]
    return "\n".join(
        [
            "# Python reference", "", NOTE, "",
            "Most programs need a dozen names:", "",
            "| name | is |", "|---|---|", *(rows[name] for name in FIRST), "",
            f"`import stockpot` has [{len(rows)} names](names.md) in all. The areas:", "",
            *pages, "",
            "Names are imported when they are first used, so `import stockpot` costs nothing. What",
            "these pages list is the public interface; modules below the packages may change.", "",
        ]
    )  # fmt: skip


def names_page(areas: Mapping[str, Mapping[str, str]]) -> str:
    """Every name of `stockpot` itself in a table, and those that no area documents."""
    rows, names = links(areas), exports("")
    ordered = sorted(names, key=lambda n: (n.endswith("Error"), n[0].isupper(), n.lower()))
    elsewhere = {full for listed in areas.values() for full in listed.values()}
    own = [f"::: {full}" for full in sorted(set(names.values())) if full not in elsewhere]
    return "\n".join(
        [
            "# All names of stockpot", "", NOTE, "", "| name | is |", "|---|---|",
            *(rows[name] for name in ordered), "", *own, "",
        ]
    )  # fmt: skip


def area_page(area: str, names: Mapping[str, str]) -> str:
    """The page of one namespace."""
    head = [f"# {AREAS[area]}", "", NOTE, "", f"`import stockpot.{area}`", ""]
    return "\n".join([*head, *(f"::: {full}" for full in sorted(set(names.values()))), ""])


def reference() -> dict[str, str]:
    """File name → text of every page."""
    areas = {area: exports(area) for area in AREAS}
    return {
        "index.md": front(areas),
        "names.md": names_page(areas),
        **{f"{area}.md": area_page(area, names) for area, names in areas.items()},
    }


def main() -> int:
    """Write the pages, or say whether they are up to date."""
    pages = reference()
    if "--check" not in sys.argv[1:]:
        PAGES.mkdir(exist_ok=True)
        for name, text in pages.items():
            (PAGES / name).write_text(text)
        return 0
    stale = [
        n
        for n, text in pages.items()
        if not (PAGES / n).exists() or (PAGES / n).read_text() != text
    ]
    if stale:
        sys.stderr.write(f"docs/api/ is out of date ({', '.join(stale)}); run: make docs\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
