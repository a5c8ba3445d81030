"""The documentation at 1280 pixels: code stays in its column, and copies have no prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.browser import DESKTOP, needs_chromium, running

ROOT = Path(__file__).parents[2]
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages but for the reference, whose text is made from docstrings."""
    pytest.importorskip("mkdocs", reason="a development package")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = folder / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nplugins: []\nstrict: false\nuse_directory_urls: false\n"
        f"hooks: [{ROOT / 'scripts' / 'docs_links.py'}]\n"
        f"docs_dir: {ROOT / 'docs'}\nsite_dir: {folder / 'site'}\n"
    )
    build(load_config(str(config)))
    return folder / "site"


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Any]:
    with running() as browser:
        context = browser.new_context(viewport=DESKTOP)
        yield context.new_page()


# The padding of code at the end of a line may stand out by a few pixels, depending on the fonts.
OUTSIDE = """() => [...document.querySelectorAll("article pre > code, article p, article li")]
  .filter(e => e.scrollWidth > e.clientWidth + 4 && e.clientWidth > 0)
  .map(e => e.textContent.slice(0, 100))"""


def test_code_and_text_stay_in_their_column(site: Path, page: Any) -> None:
    found = {}
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        problems = [*page.evaluate(OUTSIDE), *(["the page"] if wide else [])]
        if problems:
            found[path.name] = problems
    assert found == {}


def test_the_copy_of_a_console_block_is_its_commands(site: Path, page: Any) -> None:
    page.goto((site / "wise-ft.html").as_uri())
    copied = page.evaluate(
        """() => {
          const code = [...document.querySelectorAll("code")].find(c => c.querySelector(".gp"));
          code.id = "sample";
          const button = document.createElement("button");
          button.dataset.clipboardTarget = "#sample";
          document.body.append(button);
          button.click();
          return button.dataset.clipboardText;
        }"""
    )
    assert copied.startswith("stockpot ")
    assert "$" not in copied
