"""Chromium, and what is measured in it: boxes of text, and findings of axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
OPEN = "for (const part of document.querySelectorAll('details.part')) part.open = true"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""The rule set of axe: WCAG 2.0 to 2.2 at levels A and AA, and axe's best practices."""

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium: apt-get install chromium"
)

# Texts of figures that leave their figure, overlap each other, or were shortened.
TEXTS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    texts.forEach((text, i) => {
      const b = boxes[i];
      if (b.left < frame.left - 1 || b.right > frame.right + 1 ||
          b.top < frame.top - 1 || b.bottom > frame.bottom + 1)
        found.push("clipped: " + text.textContent);
      for (let j = i + 1; j < texts.length; j++) {
        const c = boxes[j];
        if (b.left < c.right - 1 && c.left < b.right - 1 &&
            b.top < c.bottom - 2 && c.top < b.bottom - 2)
          found.push(text.textContent + " × " + texts[j].textContent);
      }
    });
  }
  return found;
}"""


@contextmanager
def running() -> Iterator[Any]:
    """A browser; the test is skipped where playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="a development package")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def serious_findings(page: Any) -> list[str]:
    """What axe calls serious or critical in the page, by `RULES`."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="a development package"
    )
    # The page's own policy forbids scripts from elsewhere; the checker is evaluated instead.
    page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text())
    found = page.evaluate(
        "async (tags) => (await axe.run(document, {runOnly: {type: 'tag', values: tags}}))"
        ".violations",
        RULES,
    )
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
