"""One BatchNorm policy for what a command scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stockpot
from stockpot.evaluate import TaskEvaluator
from stockpot.tasks import resolve

TASK = """
import torch
from torch.utils.data import TensorDataset

from stockpot import ClassificationTask, Split

generator = torch.Generator().manual_seed(0)
x = torch.randn(500, 6, generator=generator)
y = (x[:, 0] + x[:, 1] > 0).long()


def build():
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )


def part(first, last):
    return TensorDataset(x[first:last], y[first:last])


def augment(batch, generator):
    noise = torch.randn(batch[0].shape, generator=generator)
    return [batch[0] + 2 * noise, batch[1]]


task = ClassificationTask(
    build=build,
    splits={
        "val": Split(part(200, 350), role="held-out"),
        "test": Split(part(350, 500), role="test"),
    },
    batch_size=50,
    train_set=part(0, 200),
    augment=augment,
)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batchnorm")
    (folder / "task.py").write_text(TASK)
    spec = f"{folder / 'task.py'}:task"
    task = resolve(spec)
    torch.manual_seed(0)
    model = task.build()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, targets = task.train_set.tensors
    paths = []
    for i, rate in enumerate([1e-2, 2e-2, 4e-2]):
        model.load_state_dict(start)
        optimiser = torch.optim.AdamW(model.train().parameters(), lr=rate)
        for _ in range(30):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimiser.step()
        paths.append(str(folder / f"run-{i}.safetensors"))
        save_file(model.state_dict(), paths[-1])
    save_file(start, folder / "base.safetensors")
    return spec, str(folder / "base.safetensors"), paths


def scores_under(spec: str, policy: str, path: str) -> dict[str, float]:
    evaluator = TaskEvaluator(resolve(spec), batchnorm=policy)
    found = evaluator.scores(stockpot.open(path))
    return {split: score.value for split, score in found.items()}


def values(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {split: score["value"] for split, score in scores.items()}


@pytest.mark.parametrize("policy", ["averaged", "recalibrated", "clean"])
def test_models_are_evaluated_under_the_policy_and_beside_it_as_they_are(run, models, policy):
    spec, _, paths = models
    arguments = ["evaluate", *paths, "--task", spec, "--no-journal", "--batchnorm", policy]
    found = run(*arguments, "--json").json
    for path in paths:
        assert values(found["scores"][path]) == scores_under(spec, policy, path)
    if policy == "averaged":
        assert "own" not in found
        return
    for path in paths:
        assert values(found["own"][path]) == scores_under(spec, "averaged", path)
    assert "(own statistics)" in run(*arguments).out


def test_without_an_option_training_data_recalibrate_all_but_interpolations(run, models, tmp_path):
    spec, base, paths = models
    end = ["--task", spec, "--no-journal", "--json"]
    greedy = run("greedy", *paths, *end, "-o", tmp_path / "a.safetensors").json
    best = next(step for step in greedy["steps"])
    assert best["score"] == scores_under(spec, "recalibrated", best["candidate"])["val"]
    line = run("interpolate", base, paths[0], *end, "-o", tmp_path / "b.safetensors").json
    assert values(line["curve"][-1]["scores"]) == scores_under(spec, "averaged", paths[0])
    asked = ["--batchnorm", "recalibrated", "-o", tmp_path / "c.safetensors"]
    line = run("interpolate", base, paths[0], *end, *asked).json
    assert values(line["curve"][-1]["scores"]) == scores_under(spec, "recalibrated", paths[0])
    assert values(line["curve"][0]["scores"]) == scores_under(spec, "recalibrated", base)


@pytest.mark.parametrize("policy", ["averaged", "recalibrated", "clean"])
def test_a_soup_records_its_policy_and_verifies(run, models, tmp_path, policy):
    spec, _, paths = models
    out = tmp_path / "soup.safetensors"
    arguments = ["average", *paths, "--task", spec, "--no-journal", "-o", out]
    assert run(*arguments, "--batchnorm", policy).code == 0
    soup = stockpot.Soup.load(out)
    assert soup.batchnorm.policy == policy
    if policy == "averaged":
        assert soup.batchnorm.before == soup.batchnorm.after
    assert run("verify", out).code == 0
    as_saved = scores_under(spec, "averaged", str(out))
    assert as_saved["test"] == soup.scores["test"].value


def test_auto_shows_base_and_best_single_once_more_with_their_own_statistics(run, models, tmp_path):
    spec, base, paths = models
    arguments = ["auto", *paths, "--base", base, "--task", spec, "--no-journal", "--no-learned"]
    found = run(*arguments, "-o", tmp_path / "soup.safetensors", "--json").json
    rows = {row["recipe"]: row for row in found["table"]}
    own = rows["base (own statistics)"]["scores"]
    assert values(own) == scores_under(spec, "averaged", base)
    assert values(rows["base"]["scores"]) == scores_under(spec, "recalibrated", base)
    assert "best-single (own statistics)" in rows


def test_programs_do_with_batchnorm_what_they_like(run, models, tmp_path):
    script = tmp_path / "score.py"
    script.write_text("print(0.5)")
    _, _, paths = models
    command = f"{__import__('sys').executable} {script} {{checkpoint}}"
    result = run("evaluate", paths[0], "--eval", command, "--batchnorm", "clean", "--json")
    assert "own" not in result.json
    assert Path(paths[0]).exists()
