"""Soups of transformers folders are transformers folders."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
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
    with_evaluator = stockpot.TaskEvaluator(task, cache=None).score(mixture, "val")
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "soup"))
    rows = sentences(7, 12)
    right = [
        found["label"] == name
        for found, (_, name) in zip(pipe([t for t, _ in rows]), rows, strict=True)
    ]
    assert with_evaluator.value == sum(right) / len(right)


def test_a_saved_soup_serves_in_a_pipeline_and_its_card_names_what_it_is_made_of(
    runs: list[Path], tmp_path: Path
) -> None:
    base = runs[0].parent / "base"
    task = load_task(runs[0].parent / "task.yaml")
    soup = stockpot.Uniform().cook(runs, task, base=base)
    soup.save(tmp_path / "my-soup")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "my-soup")
    for name, value in model.state_dict().items():
        assert torch.equal(value, soup.mixture.read(name))
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "my-soup"))
    assert pipe("the film was good")[0]["label"] in NAMES

    card = huggingface_hub.ModelCard.load(tmp_path / "my-soup" / "README.md")
    assert card.data.base_model is None
    assert "merge" in card.data.tags
    assert card.data.pipeline_tag == "text-classification"
    found = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert found == {split: score.value for split, score in soup.scores.items()}
    for ingredient in soup.mixture.ingredients:
        assert ingredient.fingerprint in card.text
    assert stockpot.verify(tmp_path / "my-soup") == []


def test_an_older_card_is_no_ingredient_of_a_new_one(runs: list[Path], tmp_path: Path) -> None:
    stockpot.Uniform().cook(runs).save(tmp_path / "first")
    stockpot.Uniform().cook([tmp_path / "first", runs[0]]).save(tmp_path / "second")
    text = (tmp_path / "second" / "README.md").read_text()
    assert "first" in text
    assert "run-01" not in text
