"""Write docs/img/landscape.svg: the loss around a base and two runs of experiments.angles.

python scripts/landscape_figure.py ../angles 0
"""

from __future__ import annotations

import sys
from pathlib import Path

from stockpot import TaskEvaluator, diagnose
from stockpot.report.export import to_picture
from stockpot.tasks.handwriting import FULL

OUT = Path(__file__).parents[1] / "docs" / "img" / "landscape.svg"


def main() -> int:
    """Draw the plane through the base and the two best runs of the sweep of learning rates."""
    place, seed = Path(sys.argv[1]) / f"seed-{sys.argv[2]}", int(sys.argv[2])
    runs = [str(path) for path in sorted(place.glob("learning-rate-*.safetensors"))]
    base = str(place / "base.safetensors")
    with TaskEvaluator(FULL.task(seed=seed), cache=place / "journal", device="cpu") as evaluator:
        found = diagnose(runs, base=base, evaluator=evaluator)
    figure = next((one for one in found.figures() if one.name == "landscape"), None)
    if figure is None:
        sys.exit("the runs do not differ")
    OUT.write_text(to_picture(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
