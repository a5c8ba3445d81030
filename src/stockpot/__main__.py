"""`python -m stockpot`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stockpot.cli import main

if __name__ == "__main__":
    # As with the script `stockpot`, modules that happen to lie in the current folder are not found.
    here = os.getcwd()  # noqa: PTH109  # the text that Python put there
    if sys.path and sys.path[0] in ("", here) and Path(__file__).parents[1] != Path(here):
        del sys.path[0]
    sys.exit(main())
