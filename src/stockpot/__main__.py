"""`python -m stockpot`."""

from __future__ import annotations

import sys

from stockpot.cli import main

if __name__ == "__main__":
    sys.exit(main())
