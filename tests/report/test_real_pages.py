"""The pages of every kind, as the commands write them, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import TASK

from stockpot import demo
from stockpot.cli import main
from stockpot.tasks.handwriting.lab import FULL

from .browser import DESKTOP, OPEN, PHONE, TEXTS, needs_chromium, running, serious_findings

pytestmark = needs_chromium

KINDS = (
    "demo", "greedy", "auto", "learned", "interpolate", "sweep", "sparse", "trajectory", "diagnose",
)  # fmt: skip
TINY = replace(
    FULL, n_held_out=100, n_test=100, n_fonts=30, n_base=200, n_runs=3, epochs=(1, 2),
    base=replace(FULL.base, epochs=2, score_every=2),
)  # fmt: skip
QUICK = ["--epochs", "1", "--workers", "1", "--device", "cpu"]


def command(*words: object) -> None:
    assert main([*map(str, words)]) == 0


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, made by its command from one small sweep."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "task.py").write_text(TASK)
    task = ["--task", f"{folder / 'task.py'}:task", "--cache", folder / "cache"]
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    base, runs = folder / "base.safetensors", folder / "runs"
    save_file(network.state_dict(), base)
    (folder / "space.yaml").write_text(
        "lr: {log_uniform: [1e-2, 5e-2]}\nepochs: 8\nbatch_size: 50\n"
    )
    space = ["--space", folder / "space.yaml"]
    command("sweep", *task, "--base", base, "-o", runs, "--runs", 4, "--workers", 1, *space)
    single, found = runs / "run-00.safetensors", {}
    for kind, words in {
        "greedy": [runs],
        "auto": [runs, "--base", base],
        "learned": [runs, "--by", "layer", "--epochs", 2],
        "trajectory": sorted(runs.glob("run-*.safetensors")),
        "interpolate": [base, single],
        "sparse": [single, "--sparsity", 0.9, "--phases", 2, "--candidates", 3, *QUICK],
    }.items():
        out = folder / f"{kind}.safetensors"
        command(kind, *words, *task, "-o", out)
        command("report", out, "-o", folder / f"{kind}.html")
        found[kind] = folder / f"{kind}.html"
    command("diagnose", runs, "--base", base, *task, "-o", folder / "diagnosis")
    command("report", runs, "-o", folder / "sweep.html")
    made = demo.run(folder / "demo", lab=TINY, n_workers=1)
    return {
        **found,
        "diagnose": folder / "diagnosis" / "report.html",
        "sweep": folder / "sweep.html",
        "demo": Path(made.report),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running() as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["390", "1280"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_overlaps_or_is_cut_and_axe_finds_nothing_serious(
    kind: str, size: Any, scheme: Any, pages: dict[str, Path], browser: Any
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(pages[kind].as_uri())
    page.evaluate(OPEN)
    assert page.evaluate(TEXTS) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    labels = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.textContent)")
    assert [label for label in labels if label.startswith("…") or label.endswith("…")] == []
    # What is wider than its frame scrolls inside of it; nothing else is wider.
    assert (
        page.evaluate(
            "[...document.querySelectorAll('pre, p, h1, h2, h3, li')].filter("
            "e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX == 'visible'"
            " && e.clientWidth > 0).map(e => e.textContent.slice(0, 80))"
        )
        == []
    )
    if scheme == "dark" or size is PHONE:
        assert serious_findings(page) == []
    context.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("sweep", "diagnose")])
def test_the_first_sentence_is_the_verdict(kind: str, pages: dict[str, Path], browser: Any) -> None:
    page = browser.new_page()
    page.goto(pages[kind].as_uri())
    first = page.locator(".verdict p").first.inner_text()
    assert first.startswith(("GAIN ", "NO GAIN", "WORSE", "UNTESTED"))
    page.close()
