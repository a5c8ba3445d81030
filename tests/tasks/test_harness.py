"""lm-evaluation-harness in this process: the numbers of its own command, example by example."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.transformers import tiny

import stockpot
from stockpot.cli import main
from stockpot.errors import TaskError
from stockpot.recipes import Greedy
from stockpot.tasks.harness import harness_task, parse_spec
from stockpot.tasks.lookup import resolve

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {folder}/{name}-validation.jsonl
    test: {folder}/{name}-test.jsonl
{splits}
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
EXACT = """
task: spoken
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/nouns-test.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 2
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def questions(n: int, *, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        noun = str(rng.choice(["film", "dog"]))
        good, bad = str(rng.choice(["good", "great", "fine"])), str(rng.choice(["bad", "dull"]))
        words = [*rng.choice(tiny.WORDS[5:], 3).tolist(), "the", noun, "is"]
        found.append(
            {"text": f"{i if seed else -i} {' '.join(words)}", "choices": [good, bad],
             "label": int(noun == "film")}
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models of one start, and tasks of their own in files beside them."""
    folder = tmp_path_factory.mktemp("harness")
    tasks = folder / "tasks"
    tasks.mkdir()
    both = "validation_split: validation\ntest_split: test"
    for number, (name, splits) in enumerate({"nouns": both, "others": "test_split: test"}.items()):
        for part, seed in (("validation", 2 * number), ("test", 2 * number + 1)):
            rows = [json.dumps(row) for row in questions(90, seed=seed)]
            (tasks / f"{name}-{part}.jsonl").write_text("\n".join(rows))
        (tasks / f"{name}.yaml").write_text(CHOICE.format(name=name, folder=tasks, splits=splits))
    (tasks / "spoken.yaml").write_text(EXACT.format(folder=tasks))
    base = tiny.gpt_folder(folder / "base")
    weights = stockpot.open(base)
    for i, scale in enumerate((0.3, 0.3, 0.3, 3.0)):
        generator = torch.Generator().manual_seed(i)
        moved = {
            name: value + scale * torch.randn(value.shape, generator=generator)
            if (value := weights.read(name)).is_floating_point()
            else value
            for name in weights
        }
        out = folder / f"run-{i}"
        out.mkdir()
        for file in base.iterdir():
            if file.suffix == ".json":
                (out / file.name).write_bytes(file.read_bytes())
        from safetensors.torch import save_file

        save_file(moved, out / "model.safetensors", metadata={"format": "pt"})
    return folder


def runs(folder: Path) -> list[str]:
    return [str(folder / f"run-{i}") for i in range(4)]


def own_numbers(model: str, folder: Path, task: str) -> dict[str, float]:
    """What the harness' own function finds, which its command calls."""
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=[task],
        device="cpu",
        batch_size=16,
        task_manager=lm_eval.tasks.TaskManager(
            include_path=str(folder / "tasks"), include_defaults=False
        ),
        bootstrap_iters=0,
    )
    return dict(found["results"][task])


def test_the_numbers_are_those_of_the_harness(folder: Path) -> None:
    for name, metric, key in (
        ("nouns", "acc", "acc,none"),
        ("nouns", "acc_norm", "acc_norm,none"),
        ("spoken", "exact_match", "exact_match,none"),
    ):
        spec = f"lm-eval:others/{name}?include={folder / 'tasks'}&metric={metric}"
        if name == "spoken":
            spec = f"lm-eval:spoken?include={folder / 'tasks'}"
        task = harness_task(spec, model=folder / "run-0")
        split = "test" if "test" in task.splits else "held-out"
        with stockpot.TaskEvaluator(task) as evaluator:
            for run in runs(folder)[: 2 if metric == "acc" else 1]:
                score = evaluator.score(stockpot.open(run), split)
                assert score.value == own_numbers(run, folder, name)[key]
                assert (score.metric, score.n) == (metric, 90)
                assert 0 <= score.low <= score.value <= score.high <= 1


def test_validation_chooses_and_test_reports(folder: Path) -> None:
    task = harness_task(f"lm-eval:nouns?include={folder / 'tasks'}", model=folder / "base")
    assert {name: str(split.role) for name, split in task.splits.items()} == {
        "held-out": "held-out",
        "test": "test",
    }
    texts = {
        name: [one.content["text"] for one in split.dataset.documents]
        for name, split in task.splits.items()
    }
    assert texts["held-out"] == [row["text"] for row in questions(90, seed=0)]
    assert texts["test"] == [row["text"] for row in questions(90, seed=1)]
    only = harness_task(f"lm-eval:others?include={folder / 'tasks'}", model=folder / "base")
    assert list(only.splits) == ["held-out"]


def test_several_tasks_are_categories_of_one_split(folder: Path) -> None:
    spec = f"lm-eval:nouns,others?include={folder / 'tasks'}&limit=20"
    task = harness_task(spec, model=folder / "base")
    assert task.splits["held-out"].categories == ("nouns",) * 20 + ("others",) * 20
    with stockpot.TaskEvaluator(task) as evaluator:
        whole = evaluator.predictions(stockpot.open(runs(folder)[0]), "held-out")
        parts = whole.by_category()
    assert np.mean([parts[name].per_example.mean() for name in parts]) == pytest.approx(
        whole.per_example.mean()
    )


def test_greedy_rejects_early_and_keeps_what_full_scores_keep(folder: Path) -> None:
    spec = f"lm-eval:nouns?include={folder / 'tasks'}&batch_size=10"
    task = harness_task(spec, model=folder / "base")
    with stockpot.TaskEvaluator(task) as evaluator:
        soup = Greedy().cook(runs(folder), evaluator=evaluator)
    with stockpot.TaskEvaluator(task) as evaluator:
        plain = Greedy(early_rejection=False).cook(runs(folder), evaluator=evaluator)
    assert soup.selected == plain.selected
    assert soup.scores == plain.scores
    assert soup.examples_evaluated < plain.examples_evaluated
    assert soup.gain.difference is not None
    assert soup.gain.difference.low is not None


def test_the_command_takes_the_tokenizer_of_the_first_checkpoint(folder, tmp_path, capsys) -> None:
    spec = f"lm-eval:nouns?include={folder / 'tasks'}&limit=20"
    out = tmp_path / "soup"
    command = ["greedy", *runs(folder)[:2], "--task", spec, "-o", str(out), "--json"]
    assert main([*command, "--no-journal", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["test"]["metric"] == "acc"
    assert (out / "tokenizer.json").exists()


def test_shared_documents_are_refused_or_left_out(folder: Path, tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in questions(30, seed=5)]
    for part, kept in (("validation", rows), ("test", rows[:10])):
        (tmp_path / f"same-{part}.jsonl").write_text("\n".join(kept))
    splits = "validation_split: validation\ntest_split: test"
    (tmp_path / "same.yaml").write_text(CHOICE.format(name="same", folder=tmp_path, splits=splits))
    with pytest.raises(TaskError, match="share 10 examples"):
        harness_task(f"lm-eval:same?include={tmp_path}", model=folder / "base")
    task = harness_task(f"lm-eval:same?include={tmp_path}&drop_shared=yes", model=folder / "base")
    assert [len(split.dataset) for split in task.splits.values()] == [20, 10]


def test_what_cannot_be_meant_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the ten thousand files of the harness, which take half a minute to read.
    own = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)
    include = f"include={folder / 'tasks'}"
    with pytest.raises(TaskError, match="not every task has; those of the tasks: acc,none"):
        harness_task(f"lm-eval:nouns?{include}&metric=f1", model=folder / "base")
    with pytest.raises(TaskError, match="no tasks nuns"):
        harness_task(f"lm-eval:nuns?{include}", model=folder / "base")
    with pytest.raises(TaskError, match=r"model=FOLDER"):
        resolve(f"lm-eval:nouns?{include}", models=[str(folder / "tasks" / "nouns.yaml")])
    corpus = EXACT.replace("exact_match\n    aggregation: mean", "bleu\n    aggregation: bleu")
    (folder / "tasks" / "corpus.yaml").write_text(
        corpus.replace("task: spoken", "task: corpus").format(folder=folder / "tasks")
    )
    with pytest.raises(TaskError, match="bleu is of a whole corpus"):
        harness_task(f"lm-eval:corpus?{include}", model=folder / "base")
    with pytest.raises(TaskError, match="'limit=0' is no option"):
        parse_spec("lm-eval:a?limit=0")
    with pytest.raises(TaskError, match="names no task"):
        parse_spec("lm-eval:?limit=1")


def test_a_changed_task_is_another_version(folder: Path) -> None:
    def version(spec: str) -> str:
        return harness_task(f"lm-eval:{spec}", model=folder / "base").version

    include = f"include={folder / 'tasks'}"
    assert version(f"nouns?{include}") == version(f"nouns?{include}")
    assert version(f"nouns?{include}") != version(f"others?{include}")
    assert version(f"nouns?{include}") != version(f"nouns?{include}&fewshot=1")
