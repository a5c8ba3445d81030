"""What `average` and `interpolate` have in common: save one mixture, or say what it would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stockpot._types import format_bytes
from stockpot.cli._render import note, progress_bar, table

if TYPE_CHECKING:
    from stockpot.mixing.engine import MixPlan, Saved
    from stockpot.mixing.mixture import Mixture

__all__ = ["SaveOptions", "save"]


@dataclass(frozen=True)
class SaveOptions:
    """The options of a command that say how a mixture is saved."""

    threads: int
    max_memory: int | None
    config_from: str | None
    max_shard_bytes: int | None
    force: bool
    dry_run: bool


def save(mixture: Mixture, output: str, options: SaveOptions) -> tuple[dict[str, Any], str]:
    """Save `mixture`, or only plan it; the result as JSON keys and as text."""
    from stockpot._io import refuse_existing
    from stockpot.checkpoint.writer import writes_folder
    from stockpot.mixing.engine import plan_mixture, save_mixture

    plan = plan_mixture(
        mixture,
        output,
        threads=options.threads,
        max_memory=options.max_memory,
        config_from=options.config_from,
        max_shard_bytes=options.max_shard_bytes,
    )
    _notes(mixture, plan)
    if options.dry_run:
        return _planned(mixture, plan)
    # Said at once, and not after the first gigabytes have been read.
    refuse_existing(output, force=options.force, folder=writes_folder(output))
    with progress_bar() as progress:
        saved = save_mixture(mixture, plan, force=options.force, progress=progress)
    return _saved(mixture, saved)


def _notes(mixture: Mixture, plan: MixPlan) -> None:
    for text in mixture.ingredients.notes:
        note(text)
    for left in mixture.ingredients.left_out:
        note(f"left out: {left.path} ({len(left.problems)} problems; see stockpot inspect)")
    if plan.output.differing:
        donors = {source.rpartition("/")[0] for _, source in plan.output.copies}
        note(
            f"side files that differ between ingredients: {', '.join(plan.output.differing)}; "
            f"taken from {', '.join(sorted(donors)) or 'none of them'} (choose with --config-from)"
        )


def _ingredients(mixture: Mixture, fingerprints: tuple[str | None, ...]) -> list[dict[str, Any]]:
    shares = mixture.coefficients.vectors[""]
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
        "bytes_read": saved.bytes_read,
        "bytes_written": saved.bytes_written,
        "seconds": saved.seconds,
    }
    moved = saved.bytes_read + saved.bytes_written
    rows = [[one["path"], f"{one['coefficient']:.6g}"] for one in ingredients]
    text = (
        f"{saved.path}: {format_bytes(saved.bytes_written)} from {len(rows)} "
        f"ingredient{'s' if len(rows) != 1 else ''} in {saved.seconds:.2f} s "
        f"({format_bytes(int(moved / max(saved.seconds, 1e-9)))}/s)\n\n"
    )
    return data, text + table(["ingredient", "coefficient"], rows)


def _planned(mixture: Mixture, plan: MixPlan) -> tuple[dict[str, Any], str]:
    ingredients = _ingredients(mixture, (None,) * len(mixture.ingredients))
    files = [{"name": file.name, "bytes": file.size} for file in plan.output.files]
    side = sorted([name for name, _ in plan.output.copies + plan.output.rewritten])
    data = {
        "dry_run": True,
        "output": plan.output.path,
        "ingredients": ingredients,
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
        ["written", format_bytes(plan.bytes_to_write)],
        ["disk needed", format_bytes(plan.bytes_to_write)],
        ["memory", format_bytes(plan.memory)],
        ["threads", str(plan.threads)],
        ["ingredients", str(len(ingredients))],
        ["files", str(len(files))],
    ]
    text = table([f"{plan.output.path} (nothing written)", ""], rows)
    return data, text + (f"\nside files: {', '.join(side)}" if side else "")
