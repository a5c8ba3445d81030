"""The page in a real browser: names on hover and tap, sorting, nothing fetched, nothing clipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stockpot.report.from_results import NextStep
from stockpot.report.page import to_html

from .browser import DESKTOP, OPEN, PHONE, TEXTS, needs_chromium, running, serious_findings
from .example import example

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    step = NextStep("Compute the soup again", "stockpot verify soup.safetensors")
    path.write_text(to_html(example(), next_steps=(step,)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running() as opened:
        yield opened


@pytest.fixture(params=["desktop-light", "phone-dark"])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; the test fails when it logged an error or asked for anything."""
    size, scheme = request.param.split("-")
    context = browser.new_context(
        viewport=DESKTOP if size == "desktop" else PHONE,
        color_scheme=scheme,
        has_touch=size == "phone",
    )
    messages: list[str] = []
    requests: list[str] = []
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda made: requests.append(made.url))
    opened.goto(address)
    opened.evaluate(OPEN)
    yield opened
    context.close()
    assert messages == []
    assert requests == [address]


def test_the_page_is_as_wide_as_the_window_and_tables_scroll_inside(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for svg in page.locator("figure svg").all():
        box = svg.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]
        assert box["width"] >= 300


@pytest.mark.parametrize("page", ["phone-light", "desktop-light"], indirect=True)
def test_a_table_that_is_wider_than_its_frame_says_so(page: Any) -> None:
    page.wait_for_timeout(200)
    wider, hinted = page.evaluate(
        """() => [...document.querySelectorAll(".scroll")].reduce((found, frame) => {
            if (frame.closest("details:not([open])")) return found;
            found[0].push(frame.scrollWidth > frame.clientWidth + 1);
            found[1].push(!frame.previousElementSibling.hidden);
            return found;
        }, [[], []])"""
    )
    assert hinted == wider
    assert any(wider) == (page.viewport_size["width"] == 390)


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_the_verdict_and_the_chart_that_shows_it_stand_side_by_side(page: Any) -> None:
    verdict, chart = (
        page.locator(".verdict").bounding_box(),
        page.locator(".top svg").bounding_box(),
    )
    assert chart["x"] > verdict["x"] + verdict["width"]
    assert chart["x"] + chart["width"] > 0.7 * 1280
    assert chart["y"] < 300
    assert page.evaluate("document.querySelector('main').innerText").startswith("Handwriting")


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_a_command_is_copied_or_selected_with_one_click(page: Any) -> None:
    button = page.locator(".command button").first
    button.click()
    page.wait_for_timeout(100)
    assert button.inner_text() in ("Copied", "Selected")


@pytest.mark.parametrize(
    "page", ["desktop-light", "desktop-dark", "phone-light", "phone-dark"], indirect=True
)
def test_no_text_of_a_figure_is_clipped_or_overlaps_another(page: Any) -> None:
    problems = page.evaluate(TEXTS)
    assert problems == []


def test_pointing_at_a_mark_names_the_model(page: Any) -> None:
    point = page.locator('.pt[data-tip^="base\\a test"]')
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    tip = page.locator("#tip")
    assert tip.inner_text().startswith("base\n")
    shown = tip.bounding_box()
    assert shown["x"] >= 0
    assert shown["x"] + shown["width"] <= page.viewport_size["width"]
    assert shown["y"] >= 0
    page.keyboard.press("Escape")
    assert tip.inner_text() == ""


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_a_mark_can_be_reached_with_the_keyboard(page: Any) -> None:
    page.locator('.pt[data-tip^="greedy"]').focus()
    assert page.locator("#tip").inner_text().startswith("greedy\n")


def test_a_tap_near_a_mark_names_the_model(browser: Any, address: str) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True)
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    opened.goto(address)
    opened.evaluate(OPEN)
    point = opened.locator('.pt[data-tip^="base\\a test"]')
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    opened.touchscreen.tap(box["x"] - 8, box["y"] + box["height"] + 8)
    assert opened.locator("#tip").inner_text().startswith("base\n")
    context.close()


def _column(page: Any, table: str, number: int) -> list[str]:
    cells = page.locator(f"#{table} tbody tr > :nth-child({number})")
    return [cell.split("\n")[0].strip() for cell in cells.all_inner_texts()]


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_a_click_on_a_column_sorts_by_it(page: Any) -> None:
    head = page.locator("#models thead th").nth(2)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    falling = [float(text) for text in _column(page, "models", 3)]
    assert falling == sorted(falling, reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in _column(page, "models", 3)] == falling[::-1]
    page.locator("#models thead th").first.locator("button").click()
    names = _column(page, "models", 1)
    assert names == sorted(names)
    assert head.get_attribute("aria-sort") is None


@pytest.mark.parametrize("page", ["desktop-light"], indirect=True)
def test_missing_values_stay_at_the_end(page: Any) -> None:
    button = page.locator("#models thead th").nth(4).locator("button")
    for _ in range(2):
        button.click()
        shown = _column(page, "models", 5)
        assert shown[-6:] == ["–"] * 6
        assert "–" not in shown[:-6]


def test_accessibility_has_no_serious_findings(page: Any) -> None:
    for details in page.locator("details").all():
        details.evaluate("d => d.open = true")
    assert serious_findings(page) == []
