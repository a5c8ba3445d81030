from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from scipy import stats
from tests.tasks.transformers import tiny
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import stockpot
from stockpot.tasks import GeneralTask, general
from stockpot.testing import TASK_CHECKS, task_conformance


def regression() -> GeneralTask:
    x = torch.linspace(-1, 1, 30)[:, None]
    y = 2 * x + 0.5
    return GeneralTask(
        build=lambda: nn.Linear(1, 1),
        splits={
            "val": stockpot.Split(TensorDataset(x[0::3], y[0::3])),
            "test": stockpot.Split(TensorDataset(x[1::3], y[1::3]), role="test"),
        },
        metric=general.mean_squared_error(),
        loss=nn.functional.mse_loss,
        train_set=TensorDataset(x[2::3], y[2::3]),
        batch_size=5,
    )


class Pairs(Dataset):
    """A query, five candidates, and which of them is right."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(i)
        return torch.randn(5, 4, generator=generator), i % 5


def ranking() -> GeneralTask:
    return GeneralTask(
        build=lambda: nn.Linear(4, 1),
        splits={"val": stockpot.Split(Pairs(), role="held-out")},
        metric=general.reciprocal_rank(),
        predict=lambda model, batch: model(batch[0]).squeeze(-1),
    )


class Copying(Dataset):
    """Sentences of four tokens that are to be repeated."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor([5 + i, 6 + i, 7 + i, 3])
        return {"input_ids": ids, "attention_mask": torch.ones(4).long(), "labels": ids}


def generation(folder: Path) -> GeneralTask:
    config = transformers.AutoConfig.from_pretrained(folder)
    return GeneralTask(
        build=lambda: transformers.T5ForConditionalGeneration(config),
        splits={"val": stockpot.Split(Copying())},
        metric=general.exact_match(),
        predict=general.generated(4),
        batch_size=4,
    )


@pytest.mark.parametrize("check", TASK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [regression, ranking])
def test_regression_and_ranking_are_tasks(make, check) -> None:
    check(make)


def test_generation_is_a_task(tmp_path: Path) -> None:
    folder = tiny.t5_folder(tmp_path / "t5")
    task_conformance(lambda: generation(folder))


def test_a_soup_is_chosen_by_a_metric_that_is_better_when_lower(tmp_path: Path) -> None:
    task = regression()
    paths = []
    for i, (weight, bias) in enumerate([(1.0, 0.5), (3.0, 0.5), (-7.0, 0.0)]):
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, weight)
        nn.init.constant_(module.bias, bias)
        paths.append(stockpot.from_state_dict(module, path=f"run-{i}"))
    soup = stockpot.Greedy().cook(paths, task)
    assert set(soup.selected) == {"run-0", "run-1"}
    assert soup.scores["test"].value == pytest.approx(0, abs=1e-12)


def test_regression_is_trained_by_the_loop(tmp_path: Path) -> None:
    task = regression()
    start = task.build()
    for parameter in start.parameters():
        nn.init.zeros_(parameter)
    config = stockpot.TrainConfig(lr=0.1, epochs=80, batch_size=5)
    result = stockpot.fine_tune(task, start, config, out=tmp_path / "run.safetensors")
    before = stockpot.TaskEvaluator(task, cache=None).score(stockpot.from_state_dict(start), "test")
    after = stockpot.TaskEvaluator(task, cache=None).score(stockpot.open(result.path), "test")
    assert after.value < before.value / 10
    assert not after.higher_is_better


def test_mean_squared_error_averages_values_then_examples() -> None:
    outputs, targets = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2]])
    assert general.mean_squared_error().compute(outputs, targets) == (5 + 2) / 2
    single = general.mean_squared_error().compute(torch.tensor([[2.0]]), torch.tensor([5.0]))
    assert single == 9


def test_spearman_is_that_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, generator=generator)
    expected = stats.spearmanr(a.numpy(), b.numpy()).statistic
    assert general.spearman().compute(a[:, None], b) == pytest.approx(expected)


def test_a_tie_is_no_hit() -> None:
    assert general.reciprocal_rank().compute(torch.zeros(1, 4), torch.tensor([0])) == 0.25


def test_exact_match_looks_past_padding_only() -> None:
    outputs = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 0], [5, 0, 0, 0]]).float()
    targets = torch.tensor([[5, 6, 0], [5, 6, 0], [5, 6, 0]])
    assert general.exact_match().per_example(outputs, targets).tolist() == [1, 0, 0]


def test_generated_rows_have_one_width_and_are_those_of_the_model(tmp_path: Path) -> None:
    model = transformers.T5ForConditionalGeneration.from_pretrained(
        tiny.t5_folder(tmp_path / "t5")
    ).eval()
    task = generation(tmp_path / "t5")
    batch = next(iter(task.batches(task.splits["val"].dataset, batch_size=2)))
    found = task.predict(model, batch)
    assert found.shape == (2, 4)
    whole = model.generate(input_ids=batch["input_ids"], max_new_tokens=4, do_sample=False)
    assert torch.equal(found[:, : whole.shape[1] - 1], whole[:, 1:])


def test_training_without_a_loss_is_refused_at_once() -> None:
    data = TensorDataset(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(stockpot.TaskError, match="needs a loss"):
        GeneralTask(
            lambda: nn.Linear(1, 1),
            {"val": stockpot.Split(data)},
            general.mean_squared_error(),
            train_set=data,
        )
    with pytest.raises(stockpot.TaskError, match="at least one split"):
        GeneralTask(lambda: nn.Linear(1, 1), {}, general.spearman())
