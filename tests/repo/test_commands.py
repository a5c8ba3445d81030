"""Every command has help, stands in the documentation, and starts without torch."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from stockpot.cli.app import app
from stockpot.recipes import RECIPES, Recipe
from stockpot.recipes.commands import COMMANDS as RECIPE_COMMANDS

ROOT = Path(__file__).parents[2]


def _script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        "command_reference", ROOT / "scripts" / "command_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = _script()
COMMANDS: list[str] = REFERENCE.commands()


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "96")  # put back what the script sets for itself
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_and_gives_an_example(command: str) -> None:
    text = REFERENCE.help_of(command)
    assert re.search(rf"^ +stockpot {command} \S", text, re.MULTILINE), "no example in the help"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    text = REFERENCE.help_of(command)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"  -", line) and len(line.split("  ")) < 3:
            following = lines[number + 1] if number + 1 < len(lines) else ""
            assert following.startswith("     "), f"{line.strip()} says nothing"


def test_the_reference_is_what_the_commands_say() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == REFERENCE.reference(), "run: make docs"


def test_every_command_in_the_pages_exists() -> None:
    """A page that names a command which is not there sends its reader into an error."""
    known = {*COMMANDS, "--help", "--version"}
    named = re.compile(r"(?:^|[`$] ?|\s)stockpot ([a-z][a-z-]*|--[a-z]+)")
    unknown = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        # Design records weigh what might be built; the reference is made from the commands.
        if "design" in page.parts or page.name == "commands.md":
            continue
        text = page.read_text()
        code = re.findall(r"```.*?```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text)
        found = {match[1] for match in named.finditer("\n".join(code))}
        unknown += [f"{page.relative_to(ROOT)}: stockpot {name}" for name in found - known]
    assert not unknown


def _run(*code_or_words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, *code_or_words], capture_output=True, text=True, env=env, check=False
    )


@pytest.mark.parametrize("words", [[], *[[command] for command in COMMANDS]], ids=str)
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from stockpot.cli import main\n"
        f"code = main({[*words, '--help']!r})\n"
        "heavy = {'torch', 'torchmetrics', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, heavy"
    )
    done = _run("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_module_and_the_console_script_are_one_program() -> None:
    done = _run("-m", "stockpot", "--version")
    assert done.returncode == 0
    assert done.stdout == _run("-c", "import stockpot.cli as c; c.main(['--version'])").stdout
    assert 'stockpot = "stockpot.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_the_command_line_is_the_app() -> None:
    assert list(app.lazy) == COMMANDS
    assert {*RECIPE_COMMANDS} == {one.command for one in RECIPES if one.command is not None}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_line_in_the_list_is_the_first_of_the_help(command: str) -> None:
    line, make = app.lazy[command]
    assert (make().help or "").strip().splitlines()[0] == line


@pytest.mark.parametrize("recipe", [one for one in RECIPES if one.command], ids=lambda r: r.name)
def test_the_list_shows_what_a_recipe_declares(recipe: type[Recipe]) -> None:
    assert recipe.command is not None
    assert RECIPE_COMMANDS[recipe.command] == (recipe.__name__, recipe.summary)


def test_the_list_of_commands_cuts_no_sentence_at_the_usual_width() -> None:
    env = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(
        [sys.executable, "-m", "stockpot", "--help"], env=env, capture_output=True, text=True
    )
    commands = ran.stdout.split("Commands:")[1].strip().splitlines()
    assert len(commands) == len(app.lazy)
    assert [line for line in commands if not line.endswith(".")] == []
    assert [line for line in commands if line.endswith("..")] == []
