"""Commands that follow from what recipes declare, also from recipes of other people."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockpot.cli.recipes import command_of
from stockpot.recipes import RECIPES, Greedy, Learned, Recipe, SoCE

TOY = '''
from dataclasses import dataclass

from stockpot._figures import Column, Row, Table
from stockpot._options import option
from stockpot.recipes import Details, Recipe, Solution


@dataclass(frozen=True, kw_only=True)
class ToyDetails(Details):
    share: float

    def to_json(self):
        return {"share": self.share}

    @classmethod
    def from_json(cls, data):
        return cls(share=data["share"])

    def tables(self, names):
        row = Row(name="first", cells=(self.share,), chosen=True)
        return (Table(name="shares", title="Shares", columns=(Column(name="share"),), rows=(row,)),)


@dataclass(frozen=True, kw_only=True)
class Toy(Recipe):
    """Much of the first, little of the others."""

    name = "toy"
    title = "Toy soup"
    summary = "Much of the first checkpoint, little of the others."
    details_type = ToyDetails

    share: float = option(0.75, help="Of the first.")

    @property
    def chooses(self):
        return False

    def solve(self, context):
        others = (1 - self.share) / (len(context.ingredients) - 1)
        shares = [self.share, *[others] * (len(context.ingredients) - 1)]
        return Solution(
            mixture=context.mixture(shares), selected=context.paths,
            details=ToyDetails(share=self.share),
        )


other = 3
'''


def flags(recipe: type[Recipe]) -> set[str]:
    return {flag for one in command_of(recipe, "x").params for flag in one.opts}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_makes_a_command(recipe: type[Recipe]) -> None:
    assert {"--output", "--task", "--json", "--force"} <= flags(recipe)


def test_a_recipe_that_a_program_cannot_serve_requires_a_task() -> None:
    assert "--eval" not in flags(SoCE)
    assert "--eval" in flags(Greedy)


def test_only_a_recipe_that_fits_takes_a_second_program_to_decide() -> None:
    assert "--eval-deciding" in flags(Learned)
    assert "--eval-deciding" not in flags(Greedy)


def test_a_recipe_from_outside_has_a_command_a_record_and_a_page(run, kitchen, tmp_path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    out = tmp_path / "soup.safetensors"
    arguments = ["cook", f"{tmp_path / 'toy.py'}:Toy", *kitchen.runs[:3], "-o", out]
    arguments += ["--task", kitchen.task, "--cache", tmp_path / "cache"]
    result = run(*arguments, "--share", "0.5", "--json")
    assert result.code == 0, result.err
    assert result.json["share"] == 0.5
    assert {"val", "test", "shifted"} <= set(result.json["scores"])
    assert result.json["coefficients"][kitchen.runs[0]] == 0.5
    assert run("verify", out, "--json").json["verified"] is True
    assert run("report", out, "-o", tmp_path / "page.html").code == 0
    assert "toy" in (tmp_path / "page.html").read_text().lower()
    text = run(*arguments, "--force").out
    assert "* first  0.7500" in text


def test_a_recipe_that_does_not_choose_needs_no_task(run, kitchen, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    out = tmp_path / "soup.safetensors"
    arguments = ["cook", f"{tmp_path / 'toy.py'}:Toy", *kitchen.runs[:2], "-o", out]
    assert run(*arguments, "--json").json["scores"] == {}


@pytest.mark.parametrize(
    ("place", "code", "hint"),
    [
        ("toy.py:other", 2, "has no recipe other: expected a class derived from"),
        ("toy.py:Missing", 2, "has no recipe Missing"),
        ("no.py:Toy", 1, "does not exist"),
        ("no_such_module:Toy", 2, "cannot be imported"),
        ("toy", 2, "No such command 'toy'"),
    ],
)
def test_what_is_no_recipe_is_refused(run, tmp_path, monkeypatch, place, code, hint) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    result = run("cook", place, "a", "-o", "b")
    assert result.code == code
    assert hint in " ".join(result.err.split())


def test_a_command_lists_how_to_name_a_recipe_of_ones_own(run) -> None:
    result = run("cook", "--help")
    assert result.code == 0
    assert "stockpot cook my_recipe.py:Mine runs/" in result.out
