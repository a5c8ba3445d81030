"""The pages hold: their Python runs, their links lead somewhere, the menu lists them all."""

from __future__ import annotations

import ast
import importlib.util
import re
import types
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tests.tasks.clip import tiny_clip

import stockpot
from stockpot.tasks.clip import make_zero_shot

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def _blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


# Pages whose code takes a library that not everybody has.
NEEDS = {"trainer": "transformers", "lightning": "lightning", "timm": "timm"}

USERS_TASK = """
import torch
from torch.utils.data import TensorDataset
import stockpot

def split(seed, role):
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))
    return stockpot.Split(TensorDataset(data, (data[:, 0] > 0).long()), role=role)

def build():
    return torch.nn.Linear(4, 2)

task = stockpot.ClassificationTask(
    build=build, splits={"val": split(0, "held-out"), "test": split(1, "test")}
)
"""


USERS_FUNCTIONS = """
import torch
from my_task import build, split

def accuracy_on(data):
    x, y = data.dataset.tensors
    return lambda model: (model(x).argmax(-1) == y).float().mean().item()

models, net = [build() for _ in range(8)], build()
accuracy, test_accuracy = accuracy_on(split(0, "held-out")), accuracy_on(split(1, "test"))
"""


def _users_files(folder: Path) -> None:
    """What pages take for granted: a task, functions, a folder of runs, a zero-shot classifier."""
    (folder / "my_task.py").write_text(USERS_TASK)
    (folder / "mine.py").write_text(USERS_FUNCTIONS)
    (folder / "runs").mkdir()
    random = torch.Generator().manual_seed(0)
    for i in range(3):
        weights = torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]])
        weights += 0.4 * torch.randn(2, 4, generator=random)
        save_file({"weight": weights, "bias": torch.zeros(2)}, folder / f"runs/run-{i}.safetensors")
    clip = tiny_clip.folder(folder / "clip")
    make_zero_shot(clip, folder / "zero-shot", classes=tiny_clip.CLASSES)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if _blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem], reason="not in the development install")
        warnings.simplefilter("ignore")  # their libraries' own
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _users_files(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    # One program per page: later blocks may use what earlier ones made. Blank lines before a block
    # keep its line numbers, so that a failure points into the page.
    text = page.read_text()
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        above = text[: block.start(1)].count("\n")
        exec(compile("\n" * above + block[1], str(page), "exec"), namespace)


def _listed(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in _listed(part)]  # type: ignore[union-attr]


def test_the_menu_lists_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text().replace("!ENV", "")  # mkdocs' own tag
    listed = _listed(yaml.safe_load(text)["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"https?://|#|mailto:", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def _texts(source: str) -> list[str]:
    """The strings of a module but its docstrings, those with values in them with `…` instead."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [] if id(node) in bare else [node.value]
    return found


def test_messages_that_people_look_up_are_messages_of_the_code() -> None:
    """A heading of the page on messages is part of a string in src that is no docstring."""
    sources = [path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))]
    printed = "\n".join(text for source in sources for text in _texts(source))
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 15
    assert [message for message in quoted if message not in printed] == []


def _sentences(page: Path) -> list[str]:
    """The sentences of a page, without code, tables' rules, headings and addresses of links."""
    text = re.sub(r"```.*?```|<!--.*?-->|<[^>\n]+>", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"(?<=\n\n)(?:    .*\n)+", "", text)  # code by indentation
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`\n]+`", "x", text)
    parts = re.split(r"\n\s*\n|\n(?=[|#]|\s*[-*] |\s*\d+\. )|(?<=\|)", text)
    found = []
    for part in parts:
        plain = " ".join(part.replace("|", " ").split())
        found += re.split(r"(?<=[.!?:;])\s+(?=[A-ZΑ-Ω*`\"(]|x)", plain)
    return found


WRITTEN = [p for p in PAGES if "api" not in p.parts and p.name not in ("commands.md", "formats.md")]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: str(p.relative_to(ROOT)))
def test_sentences_have_at_most_thirty_words(page: Path) -> None:
    long = [s for s in _sentences(page) if len(re.findall(r"[\w’'/.%-]*\w", s)) > 30]
    assert long == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_print_and_show_and_do_not_tell(page: Path) -> None:
    text = " ".join(_sentences(page)).lower()
    verbs = "tells?|told" if "design" in page.parts else "tells?|told|says"
    assert re.findall(rf"[^.]*\b(?:{verbs})\b[^.]*", text) == []


def _api_script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("api", ROOT / "scripts" / "api_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_made_from_the_public_namespaces() -> None:
    pages = _api_script().reference()
    stale = [name for name, text in pages.items() if (DOCS / "api" / name).read_text() != text]
    assert not stale, "run: make docs"


def test_the_reference_documents_every_public_name_once() -> None:
    text = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    documented = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    assert len(documented) == len(set(documented))
    for name in stockpot.__all__:
        assert f"[`stockpot.{name}`]" in text
    assert re.findall(r"^.*\| +\|$", text, re.MULTILINE) == [], "a name without a word on it"


def test_the_changelog_has_an_unreleased_section() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text


def test_doctests_are_shown_as_code() -> None:
    pytest.importorskip("griffe", reason="a development package")
    spec = importlib.util.spec_from_file_location("fence", ROOT / "scripts/fence_doctests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "Say.\n\n    >>> 1 + 1\n    2\n\nMore.\n\n>>> last"
    assert module.fence(text).splitlines() == [
        "Say.",
        "",
        "    ```pycon",
        "    >>> 1 + 1",
        "    2",
        "    ```",
        "",
        "More.",
        "",
        "```pycon",
        ">>> last",
        "```",
    ]
