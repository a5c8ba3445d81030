"""The whole method on real handwriting: make ingredients, choose among them, report on the rest.

A base is trained on printed digits and fine-tuned in a sweep on handwriting; soups are chosen on
the held-out digits; the test digits and seven shifts have no part in any choice. The page
`docs/handwriting.md` describes the data and how the example was set up.
"""

from __future__ import annotations

from stockpot.demo.run import DemoResult, run
from stockpot.demo.study import HEADLINE

__all__ = ["HEADLINE", "DemoResult", "run"]
