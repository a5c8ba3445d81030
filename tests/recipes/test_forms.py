"""Recipes that choose, over models that differ in form: added tokens, and types of numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

import stockpot
from stockpot.cli import main
from stockpot.mixing import Reconcile
from stockpot.tensors.spec import DType

WORDS = [f"w{i}" for i in range(8)]
ADDED = {"a": [], "b": ["<sku>"], "c": ["<sku>", "<url>"]}
NAME = "embeddings.word_embeddings.weight"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


class Net(torch.nn.Module):
    """Words, their mean, two classes."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embeddings = torch.nn.Module()
        self.embeddings.word_embeddings = torch.nn.Embedding(rows, 4)
        self.classifier = torch.nn.Linear(4, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        table: torch.nn.Embedding = self.embeddings.word_embeddings  # type: ignore[assignment]
        scores: torch.Tensor = self.classifier(table(words).mean(1))
        return scores


def data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 8, (60, 3), generator=generator)
    return TensorDataset(words, (words.sum(1) > 10).long())


def task(rows: int) -> stockpot.ClassificationTask:
    return stockpot.ClassificationTask(
        build=lambda: Net(rows),
        splits={
            "val": stockpot.Split(data(0), role="held-out"),
            "test": stockpot.Split(data(1), role="test"),
        },
    )


def start(rows: int) -> Net:
    """A model that has learnt a little; those with more rows begin alike."""
    torch.manual_seed(0)
    net = Net(10)
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    words, labels = data(2).tensors
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(words), labels).backward()
        optimiser.step()
    smaller = Net(rows)
    state = net.state_dict()
    smaller.load_state_dict({**state, NAME: state[NAME][:rows]})
    return smaller


def folders(tmp_path: Path, dtypes: dict[str, torch.dtype] | None = None) -> list[Path]:
    """A folder for each of ADDED: a model, its tokenizer and its configuration."""
    found = []
    for i, (name, added) in enumerate(ADDED.items()):
        words = [*WORDS, *added]
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(i)
        dtype = (dtypes or {}).get(name, torch.float32)
        state = {
            n: (v + 0.05 * torch.randn(v.shape, generator=generator)).to(dtype)
            for n, v in start(len(words)).state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"vocab_size": len(words)}))
        vocab = {word: number for number, word in enumerate(words)}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
        found.append(folder)
    return found


@pytest.mark.parametrize(("how", "rows"), [("common", 8), ("union", 10)])
def test_greedy_chooses_among_models_with_added_tokens(
    how: Literal["common", "union"], rows: int, tmp_path: Path
) -> None:
    paths = folders(tmp_path)
    soup = stockpot.greedy(paths, task=task(rows), reconcile=Reconcile(vocabulary=how))
    soup.save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
    found = load_file(tmp_path / "soup" / "model.safetensors")[NAME]
    assert found.shape == (rows, 4)
    weights = soup.mixture.coefficients.for_tensor(NAME)
    tables = [load_file(path / "model.safetensors")[NAME][:8].double() for path in paths]
    parts = [w * table for w, table in zip(weights, tables, strict=True)]
    mean = torch.stack(parts).sum(0).float()
    torch.testing.assert_close(found[:8], mean)
    assert json.loads((tmp_path / "soup" / "config.json").read_text())["vocab_size"] == rows


@pytest.mark.parametrize(("how", "rows"), [("common", 8), ("union", 10)])
def test_learned_mixes_models_with_added_tokens(
    how: Literal["common", "union"], rows: int, tmp_path: Path
) -> None:
    paths = folders(tmp_path)
    soup = stockpot.learned(paths, task=task(rows), reconcile=Reconcile(vocabulary=how), n_epochs=2)
    soup.save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
    assert load_file(tmp_path / "soup" / "model.safetensors")[NAME].shape == (rows, 4)


def test_programs_are_given_candidates_of_the_vocabulary_that_is_asked_for(
    tmp_path: Path,
) -> None:
    paths = folders(tmp_path)
    program = tmp_path / "score.py"
    program.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from safetensors.numpy import load_file\n"
        "folder = Path(sys.argv[1])\n"
        f"table = load_file(folder / 'model.safetensors')[{NAME!r}]\n"
        "size = json.loads((folder / 'config.json').read_text())['vocab_size']\n"
        "words = json.loads((folder / 'tokenizer.json').read_text())['model']['vocab']\n"
        "assert len(table) == size == len(words), (len(table), size, len(words))\n"
        "print(float(table.sum()))\n"
    )
    for how, rows in (("common", 8), ("union", 10)):
        out = tmp_path / how
        given = [
            "--eval",
            f"{sys.executable} {program} {{checkpoint}}",
            "--vocabulary",
            how,
            "-o",
            str(out),
        ]
        assert main(["greedy", *map(str, paths), *given]) == 0
        assert len(load_file(out / "model.safetensors")[NAME]) == rows


@pytest.mark.parametrize("recipe", ["greedy", "learned"])
def test_types_that_differ_are_mixed_exactly(recipe: str, tmp_path: Path) -> None:
    kinds = {"a": torch.bfloat16, "b": torch.float16, "c": torch.float32}
    paths = folders(tmp_path, kinds)
    options: dict[str, Any] = {"n_epochs": 2} if recipe == "learned" else {}
    form = Reconcile(vocabulary="common", dtype="f32")
    cook = getattr(stockpot, recipe)
    soup = cook(paths, task=task(8), reconcile=form, **options)
    soup.save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
    assert {spec.dtype for spec in stockpot.open(tmp_path / "soup").values()} == {DType.F32}
    with pytest.raises(stockpot.StockpotError, match="--dtype"):
        cook(paths, task=task(8), reconcile=Reconcile(vocabulary="common"), **options)
