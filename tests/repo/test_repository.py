"""Facts about the repository that would otherwise rot unseen."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import stockpot

ROOT = Path(__file__).parents[2]


def _tracked() -> list[Path]:
    """Files under version control; from an unpacked archive, those in the folders that matter."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
        return [file for file in files if file.is_file()]
    folders = ("src", "tests", "docs", "scripts", "benchmarks", "experiments", ".ci")
    return [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]


def test_no_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(rb"/(?:home|Users|root|work)/[\w.-]{2,}|/tmp/bash_jobs")
    here = Path(__file__)
    found = [
        f"{file.relative_to(ROOT)}: {match.group().decode()}"
        for file in _tracked()
        if file != here
        for match in pattern.finditer(file.read_bytes())
    ]
    assert not found


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/stockpot/__init__.py"
    literal = f'"{stockpot.__version__}"'
    holders = [file for file in (ROOT / "src").rglob("*.py") if literal in file.read_text()]
    assert holders == [ROOT / "src/stockpot/__init__.py"]


def test_nothing_large_is_tracked() -> None:
    large = {str(f.relative_to(ROOT)): f.stat().st_size for f in _tracked()}
    assert {name: size for name, size in large.items() if size > 1_000_000} == {}


def test_torch_is_pinned_where_things_are_installed_and_nowhere_else() -> None:
    assert "torch==2.13.0" in (ROOT / "Makefile").read_text()
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert not [line for line in dependencies if "==" in line.partition(";")[0]]


def test_the_folders_of_tests_are_those_of_the_code() -> None:
    """tests/ mirrors src/: a test in a folder of its own is one that nobody finds."""
    homes = {"": "src/stockpot", "benchmarks": "", "experiments": "", "laws": None, "repo": None}
    orphans = []
    for file in (ROOT / "tests").rglob("test_*.py"):
        folder = file.relative_to(ROOT / "tests").parent
        home = homes.get(folder.parts[0] if folder.parts else "", "src/stockpot")
        if home is not None and not (ROOT / home / folder).is_dir():
            orphans.append(str(file.relative_to(ROOT)))
    assert not orphans
