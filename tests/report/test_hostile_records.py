"""Records with hostile text in every field: the page shows it, and does nothing that it says.

Each record is rendered and opened in a browser in which scripts may run: with the policy of the
page, and with that line taken out, so that escaping is enough alone.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from experiments.fuzz_records import RUN, real_records

from stockpot.errors import StockpotError
from stockpot.recipes import RECIPES
from stockpot.report import open_report, render, save, write_data
from stockpot.report.from_results import soup_report
from stockpot.report.page import to_card, to_html

from .example import example
from .test_format1 import old
from .test_from_results import RECORDS, scores
from .test_page_in_browser import browser, pytestmark

__all__ = ["browser", "pytestmark"]

MARK = "document.documentElement.setAttribute('data-pwned', 1)"
HOSTILE = (
    f'"><img src=x onerror="{MARK}"><script>{MARK}</script></style></title></textarea>'
    f'<svg onload="{MARK}"><a href="javascript:{MARK}">x</a><base href=http://evil.example>'
    "<form action=http://evil.example><input type=submit autofocus></form>"
    "<meta http-equiv=refresh content='0;url=http://evil.example'>"
    f'<iframe srcdoc="<script>parent.{MARK}</script>"></iframe><link rel=stylesheet href=//evil>'
    "']]>--><!--' onmouseover=alert(1) x='{{7*7}}{% raw %}${7}`\\u003cscript\u202e\u2066$x_1^2$"
)
# Of these a record may only hold certain words, or the file is refused.
FIXED = {"kind", "role", "scale", "across", "direction", "roles", "format", "metric", "policy"}
FIXED_NAMES = re.compile(r"[a-z0-9-]+")


def poison(value: Any, key: str = "") -> Any:
    """`value` with hostile text after every text and, in maps of names, after every key."""
    if key in FIXED and not isinstance(value, dict):
        return value
    if isinstance(value, dict):
        is_figure = "kind" in value and "title" in value
        found = {}
        for name, inner in value.items():
            if is_figure and name == "name":
                found[name] = inner
            else:
                free = key in MAPS
                found[name + HOSTILE if free else name] = poison(inner, name)
        return found
    if isinstance(value, list):
        return [poison(item) for item in value]
    if isinstance(value, str):
        return value if key == "roles" else value + HOSTILE
    return value


MAPS = {"scores", "coefficients", "provenance", "hyperparameters", "roles", "steps", "mixing",
        "candidates", "singles", "baselines", "environment"}  # fmt: skip


def poisoned_soup(recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = poison(copy.deepcopy(RECORDS[recipe]))
    soup = found["soup"]
    known = recipe != "mine"
    soup["recipe"]["name"] = recipe if known else recipe + HOSTILE
    soup["roles"] = {
        split + HOSTILE: role for split, role in RECORDS[recipe]["soup"]["roles"].items()
    }
    found["mixing"] = RECORDS[recipe]["mixing"]
    if recipe == "auto":
        soup["chosen"] = RECORDS[recipe]["soup"]["chosen"]  # names a recipe, or is refused
    return found


def write(tmp_path: Path, which: str) -> Path:
    """A hostile record of one kind; returns what `open_report` opens."""
    if which == "format 2":
        (tmp_path / "report.json").write_text(json.dumps(poison(example().to_json())))
        return tmp_path
    if which == "format 1":
        (tmp_path / "report.json").write_text(json.dumps(poison(old())))
        return tmp_path
    if which == "sweep":
        run = {"name": "run-00", "path": "run-00.pt", "scores": scores(0.9),
               "hyperparameters": {"lr": "x"}, "environment": {"torch": "2"}}  # fmt: skip
        (tmp_path / "run-00.json").write_text(json.dumps(poison(run)))
        return tmp_path
    (tmp_path / "soup.safetensors.stockpot.json").write_text(json.dumps(poisoned_soup(which)))
    return tmp_path / "soup.safetensors"


def strings(value: Any) -> set[str]:
    """Every text in a JSON value, keys among them."""
    if isinstance(value, dict):
        return set(value) | {text for inner in value.values() for text in strings(inner)}
    if isinstance(value, list):
        return {text for inner in value for text in strings(inner)}
    return {value} if isinstance(value, str) else set()


def with_text(value: Any, old: Any, new: str) -> Any:
    """`value` with every text (or number) that is `old` as `new`, keys among them."""
    if isinstance(value, dict):
        return {
            (new if key == old else key): with_text(inner, old, new) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [with_text(inner, old, new) for inner in value]
    return new if value == old and type(value) is type(old) else value


def numbers(value: Any) -> set[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return {number for inner in inside for number in numbers(inner)}
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def poisoned_where_it_is_read(record: dict[str, Any], opens: Any) -> tuple[dict[str, Any], int]:
    """A record with hostile text in place of everything that is still read then, and how much.

    Every distinct text, field names among them, and every number is tried; what a reader refuses
    stays as it was. So no field is forgotten, and none that will come.
    """
    n = 0
    for text in [*sorted(strings(record)), *sorted(numbers(record))]:
        new = f"{text}{HOSTILE}" if isinstance(text, str) else HOSTILE
        tried = with_text(record, text, new)
        try:
            opens(tried)
        except StockpotError:
            continue
        record, n = tried, n + 1
    return record, n


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES] + ["a run", "a report"])
def test_no_field_of_a_real_record_does_anything(recipe: str, opened: Any, tmp_path: Path) -> None:
    def opens(record: Any) -> Any:
        name = {"a run": "run-00.json", "a report": "report.json"}.get(recipe)
        place = tmp_path / (name or "soup.safetensors.stockpot.json")
        place.write_text(json.dumps(record), encoding="utf-8")
        return open_report(tmp_path if name else tmp_path / "soup.safetensors")

    if recipe == "a run":
        record: Any = RUN
    elif recipe == "a report":
        record = soup_report(real_records()["greedy"]).to_json()
    else:
        record = real_records()[recipe]
    hostile, n = poisoned_where_it_is_read(copy.deepcopy(record), opens)
    assert n > 5
    html = to_html(opens(hostile))
    assert "onerror" in html  # as text
    assert_inert(html, opened, tmp_path)


KINDS = ["format 2", "format 1", "sweep", *RECORDS]


@pytest.fixture(params=KINDS)
def report(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    found = open_report(write(tmp_path, request.param))
    assert HOSTILE in json.dumps(found.to_json(), ensure_ascii=False).replace('\\"', '"').replace(
        "\\\\", "\\"
    )
    return found


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "escaping alone"])
def test_the_browser_shows_the_text_and_does_nothing_it_says(
    report: Any, policy: bool, opened: Any, tmp_path: Path
) -> None:
    html = to_html(report)
    assert html.count("Content-Security-Policy") == 1
    if not policy:
        html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    assert_inert(html, opened, tmp_path)


def assert_inert(html: str, opened: Any, tmp_path: Path) -> None:
    """Nothing in the page runs, asks or leads anywhere, whatever happens to its elements."""
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    requests: list[str] = []
    dialogs: list[str] = []
    messages: list[str] = []
    opened.on("request", lambda made: requests.append(made.url))
    opened.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    opened.on("console", lambda message: messages.append(message.text))
    opened.goto(path.as_uri())
    opened.evaluate(
        """() => {
          for (const part of document.querySelectorAll("details")) part.open = true;
          for (const one of document.querySelectorAll("*"))
            for (const name of ["mouseover", "pointermove", "focus", "load", "error"])
              one.dispatchEvent(new Event(name));
          for (const button of document.querySelectorAll("button")) button.click();
        }"""
    )
    opened.wait_for_timeout(200)
    assert opened.evaluate("document.documentElement.dataset.pwned") is None
    assert (requests, dialogs, messages) == ([path.as_uri()], [], [])
    assert opened.url == path.as_uri()
    inside = opened.evaluate(
        """() => ({
          foreign: [...document.querySelectorAll("img, form, input, iframe, base, link, object, " +
            "embed, textarea, foreignObject, script:not(body > script:last-of-type)")].length,
          handlers: [...document.querySelectorAll("*")].flatMap(e => [...e.attributes])
            .filter(a => /^on/i.test(a.name) || /^\\s*javascript:/i.test(a.value)).length,
          ids: [...document.querySelectorAll("[id]")].map(e => e.id)
        })"""
    )
    assert (inside["foreign"], inside["handlers"]) == (0, 0)
    assert all(re.fullmatch(r"[\w.-]+", name) for name in inside["ids"])
    assert len(inside["ids"]) == len(set(inside["ids"]))


def test_a_card_holds_no_markup_but_its_own(report: Any) -> None:
    card = to_card(report).replace("<!-- a card by stockpot report -->", "")
    code = "\n".join(line for line in card.splitlines() if not line.startswith("    "))
    assert "<" not in code
    assert not re.search(r"(?<!\\)\]\(", code)
    assert "://" not in code
    assert not re.search(r"(?<!\\)`", code)


def test_files_have_names_of_ours(report: Any, tmp_path: Path) -> None:
    written = write_data(report, tmp_path / "data")
    names = {path.name for path in written}
    assert all(re.fullmatch(r"(scores|models|coefficients|files|gains|scatter|scores-chart|"
                            r"figure-\d+)\.(csv|json)", name) for name in names)  # fmt: skip
    assert {path.name for path in (tmp_path / "data").iterdir()} == names


def test_what_is_not_even_text_is_refused(tmp_path: Path) -> None:
    save(example(), tmp_path)
    record = tmp_path / "report.json"
    text = record.read_text().replace('"Handwriting"', '"\\ud800"')
    record.write_text(text)
    with pytest.raises(Exception, match="is no text"):
        render(tmp_path)
