"""`stockpot demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit, progress_bar
from stockpot.cli._scoring import score_table

if TYPE_CHECKING:
    from stockpot.demo import DemoResult


_SHOWN = ("held-out", "test", "shift_average", "fonts")


def demo(
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="Folder of everything it makes.")
    ] = "stockpot-demo",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of data, base and sweep.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; default: one per core. Same result."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a demo that had other settings.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Run the whole method on real handwriting, in minutes.

    Trains a base on printed digits, fine-tunes a sweep on handwriting, makes soups chosen on
    held-out digits, and reports on test digits and seven shifts. Nothing is downloaded. A demo that
    was killed continues.

    \b
    stockpot demo
    stockpot demo --quick -o /tmp/demo
    """
    from stockpot.demo import run
    from stockpot.tasks.handwriting.lab import FULL, QUICK

    with progress_bar() as progress:
        result = run(
            output,
            lab=QUICK if quick else FULL,
            seed=seed,
            force=force,
            n_workers=workers,
            progress=progress,
        )
    emit(result.to_json(), _text(result), as_json=json)


def _text(result: DemoResult) -> str:
    from stockpot.demo import HEADLINE
    from stockpot.evaluate.compare import scores_to_json

    shown = {
        name: scores_to_json({split: result.scores[name].get(split) for split in _SHOWN})
        for name in HEADLINE
    }
    gains = [
        f"{name}: {gain.value:+.4f} on {split} against best-single "
        f"({' to '.join(f'{bound:+.4f}' for bound in gain.numbers[1:])}"
        f"{', within noise' if gain.within_noise else ''})"
        for name, by_split in result.gains.items()
        for split, gain in by_split.items()
    ]
    kept = ", ".join(result.kept)
    parts = [
        score_table(shown),
        "accuracy, ± half the width of 95 % intervals; chosen on held-out only",
        "\n".join(gains),
        f"best-single is {result.best}; greedy kept {kept}; wise-ft has alpha {result.alpha:g}; "
        f"auto takes {result.chosen}",
        f"{result.report}  ({result.seconds:.0f} s)",
    ]
    return "\n\n".join(part for part in parts if part)
