"""Soups of transformers folders are transformers folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tests.tasks.transformers import tiny
from tests.tasks.transformers.test_build import NAMES, sentences, task_file

import stockpot
from stockpot.tasks.transformers import load_task


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders fine-tuned from one, by the task file of that one."""
    folder = tmp_path_factory.mktemp("runs")
    labels = dict(enumerate(NAMES))
    base = tiny.bert_folder(
        folder / "base", id2label=labels, label2id={name: i for i, name in labels.items()}
    )
    task = load_task(task_file(folder, base))
    outs = [folder / f"run-{seed:02}" for seed in (0, 1)]
    for seed, out in enumerate(outs):
        config = stockpot.TrainConfig(lr=3e-3, epochs=3, batch_size=4)
        stockpot.fine_tune(task, base, config, out=out, seed=seed)
    return outs


def test_a_fine_tuned_folder_loads_where_its_base_does(runs: list[Path]) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(runs[0])
    expected = stockpot.open(runs[0])
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.read(name))


def test_a_soup_of_folders_serves_in_a_pipeline(runs: list[Path], tmp_path: Path) -> None:
    ingredients = stockpot.Ingredients(runs)
    mixture = stockpot.Mixture(ingredients, stockpot.Coefficients.uniform(2))
    mixture.save(tmp_path / "soup")
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "soup"), top_k=None)
    for name, value in pipe.model.state_dict().items():
        mean = (ingredients[0].read(name).double() + ingredients[1].read(name).double()) / 2
        torch.testing.assert_close(value, mean.float(), atol=0, rtol=1e-6)
    assert {score["label"] for score in pipe("the film was good")[0]} == set(NAMES)


def test_the_soup_scores_as_its_folder_predicts(runs: list[Path], tmp_path: Path) -> None:
    task = load_task(runs[0].parent / "task.yaml")
    mixture = stockpot.Mixture(stockpot.Ingredients(runs), stockpot.Coefficients.uniform(2))
    mixture.save(tmp_path / "soup")
    with_evaluator = stockpot.Evaluator(task, cache=None).score(mixture, "val")
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "soup"))
    rows = sentences(7, 12)
    right = [
        found["label"] == name
        for found, (_, name) in zip(pipe([t for t, _ in rows]), rows, strict=True)
    ]
    assert with_evaluator.value == sum(right) / len(right)
