"""The command line: each command turns options into one library call and renders its result.

Nothing here computes. Data go to stdout, progress and messages to stderr; exit codes are 0 (done),
1 (refused or failed, with the reason and the remedy) and 2 (wrong usage).
"""

from __future__ import annotations

from stockpot.cli.app import main

__all__ = ["main"]
