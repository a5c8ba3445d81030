"""What commands that end in a checkpoint have in common: save the soup, or say what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from stockpot._types import format_bytes
from stockpot.cli import _options as options
from stockpot.cli._render import note, progress_bar, table

if TYPE_CHECKING:
    from stockpot.mixing import Mixture
    from stockpot.mixing.engine import MixPlan, Saved
    from stockpot.recipes.soup import Soup


@dataclass(frozen=True)
class Saving:
    """The options of a command that say how its output is saved."""

    output: str
    force: bool
    dry_run: bool
    threads: int
    max_memory: int | None
    config_from: str | None
    max_shard_bytes: int | None


def saving(
    output: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 2,
    max_memory: str | None = None,
    config_from: str | None = None,
    max_shard_size: str | None = None,
) -> Saving:
    """The options as given on the command line."""
    if not output:
        raise typer.BadParameter("it is empty", param_hint="--output")
    return Saving(
        output,
        force,
        dry_run,
        threads,
        options.size(max_memory, "--max-memory"),
        config_from,
        options.size(max_shard_size, "--max-shard-size"),
    )


def check_output(how: Saving) -> None:
    """Refuse an output that exists now, and not after an hour of scoring."""
    from stockpot.formats.table import writes_folder
    from stockpot.io.atomic import refuse_existing

    if not how.dry_run:
        refuse_existing(how.output, force=how.force, folder=writes_folder(how.output))


def save(soup: Soup, how: Saving) -> tuple[dict[str, Any], str]:
    """Save `soup`, or only plan it; what happened as JSON keys and as text."""
    plan = soup.mixture.plan(
        how.output,
        threads=how.threads,
        max_memory=how.max_memory,
        config_from=how.config_from,
        max_shard_bytes=how.max_shard_bytes,
    )
    _notes(soup, plan)
    if how.dry_run:
        return _planned(soup.mixture, plan)
    with progress_bar() as progress:
        saved = soup.save(
            how.output,
            force=how.force,
            threads=how.threads,
            max_memory=how.max_memory,
            config_from=how.config_from,
            max_shard_bytes=how.max_shard_bytes,
            progress=progress,
        )
    for text in saved.notes:
        note(text)
    return _saved(soup.mixture, saved)


def _notes(soup: Soup, plan: MixPlan) -> None:
    for text in soup.notes:
        note(text)
    for left in soup.mixture.ingredients.left_out:
        n = len(left.problems)
        note(f"left out: {left.path} ({n} problem{'s' * (n != 1)}; see stockpot inspect)")
    if plan.output.differing:
        donors = {source.rpartition("/")[0] for _, source in plan.output.copies}
        note(
            f"side files that differ between ingredients: {', '.join(plan.output.differing)}; "
            f"taken from {', '.join(sorted(donors)) or 'none of them'} (choose with --config-from)"
        )


def _ingredients(mixture: Mixture, fingerprints: tuple[str | None, ...]) -> list[dict[str, Any]]:
    shares = mixture.coefficients.vectors.get("", (None,) * len(mixture.ingredients))
    return [
        {"path": given.path, "fingerprint": fingerprint, "coefficient": share}
        for given, fingerprint, share in zip(mixture.ingredients, fingerprints, shares, strict=True)
    ]


def _saved(mixture: Mixture, saved: Saved) -> tuple[dict[str, Any], str]:
    ingredients = _ingredients(mixture, saved.fingerprints)
    data = {
        "output": saved.path,
        "fingerprint": saved.fingerprint,
        "ingredients": ingredients,
        "left_out": [left.path for left in mixture.ingredients.left_out],
        "sparsity": None if mixture.mask is None else mixture.mask.sparsity,
        "bytes_read": saved.bytes_read,
        "bytes_written": saved.bytes_written,
        "seconds": saved.seconds,
    }
    moved = saved.bytes_read + saved.bytes_written
    used = [one for one in ingredients if one["coefficient"] != 0]
    text = (
        f"{saved.path}: {format_bytes(saved.bytes_written)} from {len(used)} "
        f"ingredient{'s' if len(used) != 1 else ''} in {saved.seconds:.2f} s "
        f"({format_bytes(int(moved / max(saved.seconds, 1e-9)))}/s)"
    )
    if not mixture.coefficients.vectors.get(""):
        return data, text
    rows = [[one["path"], f"{one['coefficient']:.6g}"] for one in ingredients]
    return data, f"{text}\n\n{table(['ingredient', 'coefficient'], rows)}"


def _planned(mixture: Mixture, plan: MixPlan) -> tuple[dict[str, Any], str]:
    files = [{"name": file.name, "bytes": file.size} for file in plan.output.files]
    side = sorted(name for name, _ in (*plan.output.copies, *plan.output.rewritten))
    data = {
        "dry_run": True,
        "output": plan.output.path,
        "ingredients": _ingredients(mixture, (None,) * len(mixture.ingredients)),
        "left_out": [left.path for left in mixture.ingredients.left_out],
        "bytes_read": plan.bytes_to_read,
        "bytes_written": plan.bytes_to_write,
        "seconds": None,
        "memory_bytes": plan.memory,
        "threads": plan.threads,
        "files": files,
        "side_files": side,
        "differing": list(plan.output.differing),
    }
    rows = [
        ["read", format_bytes(plan.bytes_to_read)],
        ["written, and disk needed", format_bytes(plan.bytes_to_write)],
        ["memory", format_bytes(plan.memory)],
        ["threads", str(plan.threads)],
        ["ingredients", str(len(mixture.ingredients))],
        ["files", str(len(files))],
    ]
    text = table([f"{plan.output.path} (nothing written)", ""], rows)
    return data, text + (f"\nside files: {', '.join(side)}" if side else "")
