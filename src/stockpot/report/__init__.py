"""From records of what was measured to one page that shows it.

`render("stockpot-demo")` writes `stockpot-demo/report.html`.
"""

from stockpot.report.export import save_picture, write_data
from stockpot.report.from_diagnosis import write_diagnosis
from stockpot.report.from_results import load, open_report
from stockpot.report.model import Report, save
from stockpot.report.page import render

__all__ = [
    "Report",
    "load",
    "open_report",
    "render",
    "save",
    "save_picture",
    "write_data",
    "write_diagnosis",
]
