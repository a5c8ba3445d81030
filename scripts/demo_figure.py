"""Write docs/img/demo.svg, the README's figure, from the folder of a demo.

python scripts/demo_figure.py stockpot-demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from stockpot.report import load
from stockpot.report.drawing import draw_scatter
from stockpot.report.info import get_scatter_info
from stockpot.report.svg import PAGE, standalone, to_svg

OUT = Path(__file__).parents[1] / "docs" / "img" / "demo.svg"


def main() -> int:
    """Draw the scatter of the demo in the folder that was given."""
    info = get_scatter_info(load(sys.argv[1]))
    label = "Test accuracy against the average over seven shifts, one mark for each model"
    svg = to_svg(draw_scatter(info, palette=PAGE), name="demo", label=label)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(standalone(svg))
    return 0


if __name__ == "__main__":
    sys.exit(main())
