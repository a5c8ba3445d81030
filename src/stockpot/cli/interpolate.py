"""`stockpot interpolate`: WiSE-FT of one or several fine-tuned checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import click

from stockpot._options import option
from stockpot.cli.groups import Saving, Scores, SharedRunning, Show
from stockpot.cli.output import note
from stockpot.cli.recipes import soup_parts
from stockpot.formats.table import writes_folder
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.wise_ft import WiseFT

if TYPE_CHECKING:
    from stockpot.evaluate.task import Task
    from stockpot.recipes.soup import Soup


@dataclass(frozen=True, kw_only=True)
class Ends(Reconcile):
    """The ends of the lines, and what is made of them all."""

    heading: ClassVar[str] = "Checkpoints"

    base: str = option(positional=True, metavar="BASE", help="What TUNED was fine-tuned from.")
    tuned: tuple[str, ...] = option(
        positional=True,
        metavar="TUNED...",
        help="Fine-tuned checkpoints or soups; each gets its own output.",
    )
    key: str | None = option(
        None, help="Section of a torch file that holds the weights, such as ema or state_dict."
    )
    on_mismatch: Literal["error", "leave-out", "common"] = option(
        "error", help="What to do with ingredients that do not fit."
    )
    report: str | None = option(None, metavar="DIR", help="Write a record for stockpot report.")


@dataclass(frozen=True, kw_only=True)
class Mixed(Saving):
    """Where the mixtures are written."""

    output: str = option(
        flags=("-o", "--output"),
        metavar="OUT",
        help="A .safetensors or .pt file, else a model folder; for several TUNED the folder of "
        "their outputs, named like them.",
    )

    def each(self, paths: Sequence[str]) -> dict[str, Mixed]:
        """One for each of `paths`, whose outputs are named like them."""
        if len(paths) == 1:
            return {paths[0]: self}
        if not writes_folder(self.output):
            raise click.BadParameter(
                f"{len(paths)} TUNED need a folder for their outputs, and {self.output} names a "
                "file",
                param_hint="--output",
            )
        # A Lightning file without anything but weights is read, and a plain one written.
        names = {path: Path(path).name.replace(".ckpt", ".pt") for path in paths}
        if len(set(names.values())) < len(paths):
            raise click.BadParameter(
                "several TUNED have the same name, and their outputs would too: interpolate them "
                "apart",
                param_hint="TUNED",
            )
        return {
            path: replace(self, output=str(Path(self.output) / name))
            for path, name in names.items()
        }


def interpolate(
    ends: Ends,
    scores: Scores,
    recipe: WiseFT,
    running: SharedRunning,
    saving: Mixed,
    show: Show,
) -> None:
    """Mix a base with its fine-tuned child (WiSE-FT).

    Writes (1 - alpha) BASE + alpha TUNED: with --alpha one point; with --task the whole curve is
    scored, and the point that is best on held-out data is written. Beside it stand what each
    column would have chosen, alpha 0.5, and the ensemble of the two models' outputs.

    \b
    stockpot interpolate base.safetensors tuned.safetensors --alpha 0.5 -o mix.safetensors
    stockpot interpolate base.safetensors tuned.safetensors --task handwriting -o mix.safetensors
    stockpot interpolate base.safetensors runs/ --task handwriting -o mixed/ --report mixed/report
    stockpot interpolate llama/ llama-tuned/ --alpha 0.7 -o mixed/
    """
    if recipe.alpha is None and not scores.given:
        raise click.BadParameter("give --alpha, or a --task to choose it by", param_hint="--alpha")
    if not scores.given:
        recipe = replace(recipe, alphas=None)
    draws = scores.given and (recipe.alpha is None or recipe.alphas is not None)
    if ends.report is not None and not draws:
        raise click.BadParameter(
            "a report shows a curve: give --task, and --alphas if alpha is given",
            param_hint="--report",
        )
    from stockpot.formats.runs import expand_paths
    from stockpot.mixing.ingredients import open_sources

    paths = expand_paths(ends.tuned)
    outputs = saving.each(paths)
    for one in outputs.values():
        one.check()
    if ends.report is not None:
        _check_report(ends.report, force=saving.force)
    start, *models = open_sources([ends.base, *paths], key=ends.key)
    for one in outputs.values():
        if not one.dry_run:
            one.check_room(start, one.dtype)
    with running.evaluator_if_any(scores, [ends.base, *paths]) as evaluator:
        soups = recipe.cook_each(
            models, base=start, evaluator=evaluator, choose_on=scores.choose_on,
            on_mismatch=ends.on_mismatch, reconcile=ends.form(saving.dtype),
        )  # fmt: skip
    shown = {path: _shown(soup, outputs[path]) for path, soup in zip(paths, soups, strict=True)}
    if ends.report is not None and evaluator is not None:
        curves = {path: data for path, (data, _) in shown.items()}
        _write_report(ends.report, curves, ends.base, evaluator.task)
    if len(shown) == 1:
        show.emit(*next(iter(shown.values())))
        return
    text = "\n\n".join(f"{path}\n\n{one}" for path, (_, one) in shown.items())
    show.emit({"curves": {path: data for path, (data, _) in shown.items()}}, text)


def _check_report(folder: str, *, force: bool) -> None:
    from stockpot.io.atomic import refuse_existing
    from stockpot.report.model import RECORD_NAME

    refuse_existing(Path(folder) / RECORD_NAME, force=force, folder=False)


def _write_report(
    folder: str, told: Mapping[str, Mapping[str, Any]], base: str, task: Task
) -> None:
    from stockpot.evaluate.task import Role
    from stockpot.report import save as save_record
    from stockpot.report.from_curves import curves_report

    roles = {name: Role(split.role).value for name, split in task.splits.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_record(curves_report(told, base=base, roles=roles), folder)
    note(f"stockpot report {folder} makes a page of the curves")


def _shown(soup: Soup, saving: Saving) -> tuple[dict[str, Any], str]:
    """Save one mixture; its JSON and its text."""
    found = soup.to_json()
    data: dict[str, Any] = {"curve": None, **found}
    data["chosen"] = found.get(
        "chosen", {"alpha": found["alpha"], "scores": found["scores"] or None}
    )
    parts = soup_parts(soup)
    saved, text = saving.save(soup)
    return {**data, **saved}, "\n\n".join([*parts, text])
