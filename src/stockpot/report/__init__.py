"""From records of what was measured to one page that shows it.

`render("stockpot-demo")` writes `stockpot-demo/report.html`.
"""

from stockpot.report.diagnosed import write_diagnosis
from stockpot.report.page import render
from stockpot.report.records import Report, load, save
from stockpot.report.souped import open_report

__all__ = ["Report", "load", "open_report", "render", "save", "write_diagnosis"]
