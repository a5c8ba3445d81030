"""The commands of recipes: made of the options that a recipe declares, for any recipe."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

import stockpot.recipes
from stockpot._options import option
from stockpot.cli._command import command
from stockpot.cli.groups import (
    FittedScores,
    Inputs,
    InputsOfFit,
    Saving,
    Scores,
    SharedRunning,
    Show,
    TaskScores,
)
from stockpot.cli.output import figure_text, progress_bar
from stockpot.evaluate.compare import SHIFT_AVERAGE
from stockpot.io.paths import short_names
from stockpot.recipes.commands import COMMANDS

if TYPE_CHECKING:
    from stockpot._figures import Table
    from stockpot.mixing.engine import MixPlan
    from stockpot.recipes.base import Recipe
    from stockpot.recipes.soup import Soup


@dataclass(frozen=True, kw_only=True)
class FittedSaving(Saving):
    """How a soup is saved whose coefficients were fitted, and drawn."""

    figure: str | None = option(
        None, metavar="FILE", help="Heat map of what was learned: .svg, .png or .pdf."
    )

    def check(self) -> None:
        """Refuse outputs that exist now."""
        super().check()
        if self.figure is not None:
            from stockpot.report.export import check_picture

            check_picture(self.figure, force=self.force)

    def save(self, soup: Soup) -> tuple[dict[str, Any], str]:
        """Save `soup`, and the heat map of what was learned whether or not it was taken."""
        data, text = super().save(soup)
        if self.figure is None:
            return data, text
        from stockpot.io.paths import short_names
        from stockpot.recipes.learned.recipe import LearnedDetails
        from stockpot.recipes.result import coefficients_heatmap
        from stockpot.report import save_picture

        assert isinstance(soup.details, LearnedDetails)
        shares: Any = soup.details.learned_coefficients
        grouped = all(isinstance(one, dict) for one in shares.values())
        groups = shares if grouped else {"model": shares}
        names = short_names(path for group in groups.values() for path in group)
        chart = coefficients_heatmap("learned", groups, names)
        save_picture(chart, self.figure, force=self.force)
        return {**data, "figure": self.figure}, text


@dataclass(frozen=True, kw_only=True)
class SharedSaving(Saving):
    """How a soup is saved that several machines can make together."""

    nodes: int | None = option(
        None, minimum=1, metavar="N", help="Machines that make OUT together, on a shared disk."
    )
    node_rank: int | None = option(
        None, minimum=0, metavar="R", help="Which of them this is, from 0, such as $SLURM_PROCID."
    )
    ray: str | None = option(None, help="Where they are found, in place of ranks.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray is not None and self.node_rank is not None:
            raise click.BadParameter("a Ray cluster gives ranks itself", param_hint="--node-rank")
        if self.ray is None and (self.nodes is None) != (self.node_rank is None):
            raise click.BadParameter("give both --nodes and --node-rank", param_hint="--nodes")
        if self.nodes is not None and self.node_rank is not None and self.node_rank >= self.nodes:
            raise click.BadParameter(f"ranks are 0 to {self.nodes - 1}", param_hint="--node-rank")

    def check(self) -> None:
        """Refuse an output that exists; nodes find out for themselves, as others may be ahead."""
        if self.node_rank is None:
            super().check()

    def _write(self, soup: Soup, plan: MixPlan) -> tuple[dict[str, Any], str]:
        if self.node_rank is None or self.dry_run:
            return super()._write(soup, plan)
        node = (self.node_rank, self.nodes)
        with progress_bar() as progress:
            options = {"force": self.force, "progress": progress, "node": node, "plan": plan}
            saved = soup.save(self.output, **options)
        if saved.fingerprint:
            return self._said(soup, saved)
        fields = ("bytes_read", "bytes_written", "seconds")
        done = {name: getattr(saved, name) for name in fields}
        return {"output": saved.path, "complete": False, **done}, "; ".join(saved.notes)


_CHOOSES_NOTHING_WITH = {"arithmetic": "--scale"}
"""The option that gives all that a command would choose by scores."""

_ON_NODES = ("average", "arithmetic", "slerp")
"""Commands whose soup costs nothing but reading it once."""


@dataclass(frozen=True)
class _Share:
    """What one node of a Ray cluster makes of a soup that needs no scores."""

    inputs: Inputs
    recipe: Recipe
    saving: SharedSaving

    def make(self) -> tuple[dict[str, Any], str]:
        """Make the files of this node, and the output if they were the last."""
        soup = self.recipe.cook(self.inputs.open(self.saving.dtype), dtype=self.saving.dtype)
        data, text = self.saving.save(soup)
        return {**soup.to_json(), **data}, "\n\n".join([*soup_parts(soup), text])


def _made_on_ray(
    inputs: Inputs, recipe: Recipe, saving: SharedSaving, address: str
) -> tuple[dict[str, Any], str]:
    """Let every node of the cluster make its share; what the one said that had the last file.

    Raises:
        WorkerError: a share failed, or its node was lost twice; the same command goes on there.
    """
    from stockpot.workers import WorkerOptions, raise_failures, run_jobs
    from stockpot.workers.cluster import n_nodes

    nodes = n_nodes(address) if saving.nodes is None else saving.nodes
    shares = {
        f"node {rank} of {nodes}": _Share(
            inputs, recipe, replace(saving, ray=None, nodes=nodes, node_rank=rank)
        )
        for rank in range(nodes)
    }
    done = 0
    with progress_bar() as progress:

        def count(_: object) -> None:
            nonlocal done
            done += 1
            progress(done, nodes, "nodes")

        made = run_jobs(_Share.make, shares, workers=WorkerOptions(ray=address), on_result=count)
    raise_failures(made)
    whole = [one.value for one in made if one.value and one.value[0].get("complete", True)]
    # A node that was lost after the last file leaves the end of it to whoever asks again.
    return whole[0] if whole else next(iter(shares.values())).make()


def recipe_command(name: str) -> click.Command:
    """The command `name` of one of stockpot's recipes."""
    class_name, _ = COMMANDS[name]
    return command_of(getattr(stockpot.recipes, class_name), name)


def command_of(recipe: type[Recipe], name: str) -> click.Command:
    """The command `name` that cooks by `recipe`; its options are the fields of the recipe."""
    fits = hasattr(recipe, "decide_on")
    scores = TaskScores if recipe.needs_outputs else FittedScores if fits else Scores
    groups = {
        "inputs": InputsOfFit if hasattr(recipe, "by") else Inputs,
        "scores": scores,
        "recipe": recipe,
        "running": SharedRunning,
        "saving": FittedSaving if fits else SharedSaving if name in _ON_NODES else Saving,
        "show": Show,
    }
    return command(name, cook, groups, help=_help(recipe))


def _help(recipe: type[Recipe]) -> str:
    parts = [recipe.summary, recipe.about]
    if recipe.examples:
        parts.append("\b\n" + "\n".join(recipe.examples))
    return "\n\n".join(part for part in parts if part)


def cook(
    inputs: Inputs,
    scores: Scores | TaskScores,
    recipe: Recipe,
    running: SharedRunning,
    saving: Saving,
    show: Show,
) -> None:
    """Cook a soup by `recipe`, save it and show what was decided."""
    if recipe.chooses and not scores.given:
        fixed = _CHOOSES_NOTHING_WITH.get(recipe.command or "")
        other = "" if fixed is None else f"; with {fixed} there is nothing to choose"
        raise click.BadParameter(f"give --task, or --eval{other}", param_hint="--task")
    if isinstance(scores, FittedScores) and scores.deciding is not None:
        recipe = replace(recipe, decide_on="deciding")  # type: ignore[type-var]
    saving.check()
    address = saving.ray if isinstance(saving, SharedSaving) and not saving.dry_run else None
    if isinstance(saving, SharedSaving) and address is not None and not scores.given:
        show.emit(*_made_on_ray(inputs, recipe, saving, address))
        return
    given = inputs.open(saving.dtype)
    if not saving.dry_run:
        saving.check_room(given.specs, saving.dtype)
    with running.evaluator_if_any(scores, inputs.checkpoints) as evaluator:
        soup = recipe.cook(
            given, evaluator=evaluator, choose_on=scores.choose_on, dtype=saving.dtype
        )
    data, text = saving.save(soup)
    show.emit({**soup.to_json(), **data}, "\n\n".join([*soup_parts(soup), text]))


def soup_parts(soup: Soup) -> list[str]:
    """What a person sees of a soup, in paragraphs."""
    names = short_names(one.path for one in soup.mixture.ingredients)
    first = [] if soup.gain is None else [soup.headline]
    tables = [figure_text(_main_columns(table, soup)) for table in soup.tables(names)]
    lines = [*_effort(soup), *soup.details.sentences(soup)]
    return [*first, *tables, *(["\n".join(lines)] if lines else [])]


_MOST_SPLITS = 4


def _main_columns(found: Table, soup: Soup) -> Table:
    """A table without the single shifts, where it has many splits: their average stands for them.

    `--json` and the report have every column.
    """
    every = {*soup.scores, SHIFT_AVERAGE}
    if sum(column.name in every for column in found.columns) <= _MOST_SPLITS:
        return found
    left_out = set(soup.splits("shift"))
    kept = [i for i, column in enumerate(found.columns) if column.name not in left_out]
    return replace(
        found,
        columns=tuple(found.columns[i] for i in kept),
        rows=tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in found.rows),
    )


def _effort(soup: Soup) -> list[str]:
    """What choosing took, and by how much the score that chose is too good."""
    lines = []
    if soup.examples_plain:
        share = f"{100 * soup.examples_evaluated / soup.examples_plain:.0f} %"
        apart = soup.examples_calibration
        also = f"; {apart:,} more for BatchNorm statistics" if apart else ""
        lines.append(
            f"examples scored while choosing: {soup.examples_evaluated:,}, {share} of the "
            f"{soup.examples_plain:,} of a plain loop{also}"
        )
    found = soup.details.selection_optimism
    if found is not None:
        lines.append(
            f"selection optimism: choosing flatters the held-out score by about "
            f"{found.value:+z.4f} (95 % of resamples {found.low:+z.4f} to {found.high:+z.4f}; "
            f"{found.n_candidates} candidates)"
        )
    return lines


class CookGroup(click.Group):
    """`stockpot cook FILE.py:CLASS …`: the command of a recipe that is none of stockpot's."""

    def __init__(self) -> None:
        super().__init__(
            "cook",
            help="""Make a soup by a recipe of your own.

            The recipe is a class in a Python file, or in a module that can be imported; its file
            runs. Its options follow from its fields.

            \b
            stockpot cook my_recipe.py:Mine --help
            stockpot cook my_recipe.py:Mine runs/ --task my_task.py:task -o soup.safetensors
            """,
            subcommand_metavar="FILE.py:CLASS [OPTIONS]...",
            no_args_is_help=True,
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of the recipe that `cmd_name` names."""
        place, colon, class_name = cmd_name.rpartition(":")
        if not colon or not place or not class_name:
            return None
        return command_of(_recipe_class(place, class_name), cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """None: they are named by their place."""
        return []


def _recipe_class(place: str, name: str) -> type[Recipe]:
    from stockpot.recipes.base import Recipe
    from stockpot.tasks.lookup import load_file

    try:
        module = load_file(place) if place.endswith(".py") else importlib.import_module(place)
    except ImportError as error:
        raise click.UsageError(f"{place} cannot be imported: {error}") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise click.UsageError(
            f"{place} has no recipe {name}: expected a class derived from stockpot.recipes.Recipe"
        )
    return found
