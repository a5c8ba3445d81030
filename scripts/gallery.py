"""Write the pictures of docs/gallery.md from what commands recorded.

python scripts/gallery.py stockpot-demo learned.safetensors sparse.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_figure import standalone

from stockpot.report import open_report
from stockpot.report.page import page_figures

OUT = Path(__file__).parents[1] / "docs" / "img" / "gallery"


def main() -> int:
    """Draw every figure of every record that was given; of two with one name, the first."""
    OUT.mkdir(parents=True, exist_ok=True)
    drawn: set[str] = set()
    for source in sys.argv[1:]:
        for figure in page_figures(open_report(source)):
            if figure.id not in drawn:
                drawn.add(figure.id)
                (OUT / f"{figure.id}.svg").write_text(standalone(figure.svg))
    return 0


if __name__ == "__main__":
    sys.exit(main())
