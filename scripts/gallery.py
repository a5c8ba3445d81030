"""Write the pictures of docs/gallery.md from what commands recorded.

python scripts/gallery.py stockpot-demo learned.safetensors sparse.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from stockpot._figures import Table
from stockpot.report import open_report
from stockpot.report.export import to_picture
from stockpot.report.model import report_figures

OUT = Path(__file__).parents[1] / "docs" / "img" / "gallery"


def main() -> int:
    """Draw every figure of every record that was given; of two with one name, the first."""
    OUT.mkdir(parents=True, exist_ok=True)
    drawn: set[str] = set()
    for source in sys.argv[1:]:
        for figure in report_figures(open_report(source)):
            if not isinstance(figure, Table) and figure.name not in drawn:
                drawn.add(figure.name)
                (OUT / f"{figure.name}.svg").write_text(to_picture(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
