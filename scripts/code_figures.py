"""Figures of the code: size, circles of imports, wide functions, lengths, docstrings, public names.

    python scripts/code_figures.py            a line for each figure, and what is over its limit
    python scripts/code_figures.py --json     the same as one JSON object

The limits are those of tests/repo/test_code_figures.py. It reads the sources and imports nothing.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parents[1]
PACKAGE = "stockpot"
WIDE = 6
PUBLIC = (
    "stockpot",
    "stockpot.analysis",
    "stockpot.evaluate",
    "stockpot.formats",
    "stockpot.integrations",
    "stockpot.recipes",
    "stockpot.tasks",
    "stockpot.testing",
    "stockpot.train",
)

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Figures:
    """What was measured; `wide` are (parameters, place) of functions with more than six."""

    lines: int
    files: int
    longest_file: int
    circles: list[list[str]]
    wide: list[tuple[int, str]]
    median_function: int
    p95_function: int
    undocumented: list[str]
    public_names: int
    test_lines: int

    @property
    def tests_per_line(self) -> float:
        """Lines of tests for each line of source."""
        return self.test_lines / self.lines


def measure(root: Path = ROOT) -> Figures:
    """The figures of the checkout at `root`."""
    trees = {name: ast.parse(file.read_text()) for name, file in _modules(root).items()}
    functions = [(name, function) for name, tree in trees.items() for function in _functions(tree)]
    lengths = sorted(_length(function) for _, function in functions)
    wide = [
        (n, f"{name}:{function.name}")
        for name, function in functions
        if (n := _n_parameters(function)) > WIDE
    ]
    sizes = [_n_lines(file) for file in _modules(root).values()]
    return Figures(
        lines=sum(sizes),
        files=len(sizes),
        longest_file=max(sizes),
        circles=circles(_imports(root, trees)),
        wide=sorted(wide, reverse=True),
        median_function=int(statistics.median(lengths)),
        p95_function=lengths[int(0.95 * len(lengths))],
        undocumented=sorted(_undocumented(trees)),
        public_names=len(set().union(*(_exports(trees[n]) for n in PUBLIC if n in trees))),
        test_lines=sum(_n_lines(file) for file in (root / "tests").rglob("*.py")),
    )


def _modules(root: Path) -> dict[str, Path]:
    source = root / "src"
    return {
        ".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted((source / PACKAGE).rglob("*.py"))
    }


def _n_lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def _functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _n_parameters(function: Function) -> int:
    """Without `self` and `cls`."""
    positional = [*function.args.posonlyargs, *function.args.args]
    bound = bool(positional) and positional[0].arg in ("self", "cls")
    return len(positional) + len(function.args.kwonlyargs) - bound


def _undocumented(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    for name, tree in trees.items():
        if ast.get_docstring(tree) is None:
            yield name
        yield from (f"{name}:{path}" for path in _bare(tree, ""))


def _bare(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """Public classes, functions and methods without a docstring."""
    for node in parent.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
        if node.name.startswith("_") or overload:
            continue
        if ast.get_docstring(node) is None:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _bare(node, f"{prefix}{node.name}.")


def _exports(tree: ast.Module) -> set[str]:
    """What a package exports, by its full name: what the root shows again counts once."""
    return {
        f"{node.module}.{alias.name}"
        for guard in tree.body
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _imports(root: Path, trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Module → modules of the package that it imports anywhere: type-only and deferred ones count.

    A package that lists lazy exports does not import them, and importing from a package is
    importing the module that the name comes from, or the package where it has none.
    """
    files = _modules(root)
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        is_package = files[name].name == "__init__.py"
        package = name if is_package else name.rpartition(".")[0]
        targets: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = _base(node, package)
                targets |= {
                    f"{base}.{alias.name}" if f"{base}.{alias.name}" in trees else base
                    for alias in node.names
                }
        found[name] = {t for t in targets if t in trees and t not in (name, PACKAGE)}
    return found


def _base(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules each of which is reached from every other one.

    >>> circles({"a": {"b"}, "b": {"a", "c"}, "c": set()})
    [['a', 'b']]
    """
    reached = {name: _reachable(name, imports) for name in imports}
    groups = {
        tuple(sorted({name, *(o for o in reached[name] if name in reached[o])}))
        for name in imports
        if name in reached[name]
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def _reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports[name]
    return seen


def main() -> int:
    """Print the figures."""
    found = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps({**asdict(found), "tests_per_line": found.tests_per_line}, indent=2))
        return 0
    print(f"{found.lines} lines in {found.files} files, the longest of {found.longest_file}")
    print(f"{len(found.circles)} circles of imports", *map(str, found.circles), sep="\n  ")
    print(f"{len(found.wide)} functions with more than {WIDE} parameters")
    for n, place in found.wide:
        print(f"  {n}  {place}")
    print(f"functions: median {found.median_function} lines, p95 {found.p95_function}")
    print(f"{len(found.undocumented)} public things without a docstring", *found.undocumented)
    print(f"{found.public_names} names in the public namespaces")
    print(f"{found.tests_per_line:.2f} lines of tests for each line of source")
    return 0


if __name__ == "__main__":
    sys.exit(main())
