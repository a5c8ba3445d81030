"""Draw the README's figure from a demo: python scripts/readme_figure.py stockpot-demo"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

from stockpot.report.figures import DARK, LIGHT, scatter
from stockpot.report.records import load

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main(folder: str) -> None:
    report = load(folder)
    IMAGES.mkdir(exist_ok=True)
    for name, palette in (("light", LIGHT), ("dark", DARK)):
        # The salt and the missing date keep the bytes the same from run to run.
        with mpl.rc_context({"svg.hashsalt": "stockpot"}):
            scatter(report, palette=palette).savefig(
                IMAGES / f"handwriting-{name}.svg",
                bbox_inches="tight",
                metadata={"Date": None},
                transparent=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
