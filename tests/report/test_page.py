"""The page: one file, every number that of the record, nothing fetched, nothing overwritten."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from pathlib import Path

import pytest

from stockpot.errors import OutputExistsError, ReportError
from stockpot.report import render, save
from stockpot.report.from_results import NextStep, next_steps
from stockpot.report.model import ScoreRecord
from stockpot.report.page import to_card, to_html

from .example import example


def test_a_folder_is_rendered_beside_its_record(tmp_path: Path) -> None:
    save(example(), tmp_path)
    page = render(tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text() == to_html(example(), next_steps=next_steps(tmp_path))
    with pytest.raises(OutputExistsError, match=r"report\.html exists"):
        render(tmp_path)
    assert render(tmp_path, force=True) == page
    assert render(tmp_path / "report.json", tmp_path / "other.html").name == "other.html"
    assert render(tmp_path, tmp_path / "card.md").read_text().count("# Handwriting") == 1
    assert render(tmp_path, tmp_path / "card.md", force=True).exists()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["card.md", "other.html", "report.html", "report.json"]


def test_a_report_without_a_folder_needs_a_path(tmp_path: Path) -> None:
    assert render(example(), tmp_path / "page.html").exists()
    with pytest.raises(ReportError, match="out="):
        render(example())
    with pytest.raises(ReportError, match=r"end it in \.html or \.md"):
        render(example(), tmp_path / "soup.safetensors")


def test_a_page_is_never_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name, target in (("a.html", "precious"), ("b.html", "nowhere")):
        (tmp_path / name).symlink_to(target)
        for force in (False, True):
            with pytest.raises(OutputExistsError, match="is a link"):
                render(example(), tmp_path / name, force=force)
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "text",
    ["", "weights", "# A model card", "<!doctype html><title>Mine</title>", '{"format": 1}'],
)
def test_force_replaces_no_file_of_another_origin(tmp_path: Path, text: str) -> None:
    for name in ("soup.html", "README.md"):
        (tmp_path / name).write_text(text)
        with pytest.raises(OutputExistsError, match="not even with force"):
            render(example(), tmp_path / name, force=True)
        assert (tmp_path / name).read_text() == text
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputExistsError, match="is no file"):
        render(example(), tmp_path / "folder.html", force=True)


def test_pages_and_cards_of_0_1_are_replaced_with_force(tmp_path: Path) -> None:
    page, card = tmp_path / "report.html", tmp_path / "card.md"
    page.write_text("<!doctype html>\n<title>Handwriting · stockpot</title>")
    card.write_text("# Handwriting\n\nScores in per cent with 95 % intervals. held-out chose;")
    for path in (page, card):
        assert render(example(), path, force=True) == path


def test_the_page_is_one_small_file_that_fetches_nothing() -> None:
    html = to_html(example())
    assert len(html.encode()) < 5_000_000
    addresses = set(re.findall(r"https?://[^\"'<> ]+", html))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=", html)


def test_the_policy_allows_the_styles_and_the_script_of_the_page_alone() -> None:
    html = to_html(example())
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert " style=" not in html
    assert not re.search(r"<[^>]+\son[a-z]+=", html)


def test_every_score_of_the_record_is_on_the_page() -> None:
    report = example()
    shown = set(re.findall(r'data-value="([^"]*)"', to_html(report)))
    for name in report.headline:
        for score in report.model(name).scores.values():
            assert isinstance(score, ScoreRecord)
            assert repr(score.value) in shown


def test_the_verdict_comes_first_and_details_are_folded() -> None:
    html = to_html(example(), next_steps=(NextStep("Go on", "stockpot verify x"),))
    places = [html.index(text) for text in (
        "The greedy soup of 4 of 12", "Next steps", "stockpot verify x", "Gain over",
        'id="scores"', "How it came about: 10 figures, 1 table", "All models (18)",
    )]  # fmt: skip
    assert places == sorted(places)
    assert "<details open" not in html


def test_numbers_of_the_verdict_have_a_minus_and_words_their_hyphens() -> None:
    report = dataclasses.replace(
        example(), verdict=("WORSE: -2.1 points (-3.1 to -1.0) over wise-ft-2 (--prefer score)",)
    )
    for page in (to_html(report), to_card(report)):
        assert "WORSE: −2.1 points" in page
        assert "−3.1 to −1.0" in page
        assert "wise-ft-2" in page.replace("\\", "")


def test_what_is_unknown_is_left_out() -> None:
    report = dataclasses.replace(
        example(),
        shifts=(),
        reported_on=("test",),
        figures=(),
        gains=(),
        chosen=None,
        verdict=(),
        notes=(),
        provenance={},
        commands=(),
        models=tuple(dataclasses.replace(m, path=None) for m in example().models[:2]),
        headline=("base",),
    )
    html = to_html(report)
    for text in ("<svg", "<figure", "Where this comes from", "What each soup consists of",
                 "Next steps"):  # fmt: skip
        assert text not in html
    empty = dataclasses.replace(report, models=(), headline=(), reported_on=())
    assert "<h1>Handwriting</h1>" in to_html(empty)
