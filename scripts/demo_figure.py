"""Write docs/img/demo.svg, the README's figure, from the folder of a demo.

python scripts/demo_figure.py stockpot-demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from stockpot.report import load
from stockpot.report.export import to_picture
from stockpot.report.model import scatter

OUT = Path(__file__).parents[1] / "docs" / "img" / "demo.svg"


def main() -> int:
    """Draw the scatter of the demo in the folder that was given."""
    chart = scatter(load(sys.argv[1]))
    if chart is None:
        sys.exit("the demo has no shifts")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(to_picture(chart))
    return 0


if __name__ == "__main__":
    sys.exit(main())
