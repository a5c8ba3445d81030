"""Language models are scored by the likelihood of documents, packed into blocks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.tasks.transformers import tiny

import stockpot
from stockpot.errors import TaskError
from stockpot.evaluate.early_rejection import AcceptanceRule, decide
from stockpot.recipes import Greedy, Learned, Uniform
from stockpot.tasks.transformers import load_task
from stockpot.tasks.transformers.language import PackedData, block_losses


def documents(n: int, *, seed: int) -> list[str]:
    """What a film or a dog is, was or did; the adjective depends on the noun."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        words = []
        for _ in range(int(rng.integers(1, 4))):
            noun = str(rng.choice(["film", "dog"]))
            kinds = ["good", "great", "fine"] if noun == "dog" else ["bad", "awful", "dull"]
            words += ["the", noun, str(rng.choice(["is", "was"])), str(rng.choice(kinds)), "."]
        found.append(" ".join([*words, "number", str(rng.choice(tiny.WORDS[5:]))]))
    return found


def task_file(folder: Path, model: Path, **more: object) -> Path:
    for number, (name, n) in enumerate({"val": 60, "test": 60, "train": 60}.items()):
        seen = set(documents(60, seed=number - 1)) if number else set()
        rows = [{"text": text} for text in documents(n, seed=number) if text not in seen]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {
        "kind": "causal-lm",
        "model": str(model),
        "max_length": 16,
        "train": "train.jsonl",
        "splits": {
            "val": {"data": "val.jsonl", "role": "held-out"},
            "test": {"data": "test.jsonl", "role": "test"},
        },
        "drop_shared": True,
        **more,
    }
    path = folder / "task.yaml"
    path.write_text(json.dumps(keys))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three fine-tunes of one base, of which the last was trained at too high a rate."""
    folder = tmp_path_factory.mktemp("language")
    base = tiny.gpt_folder(folder / "base")
    task = load_task(task_file(folder, base))
    outs = [folder / f"run-{i}" for i in range(3)]
    for i, (out, lr) in enumerate(zip(outs, (2e-2, 2e-2, 0.5), strict=True)):
        config = stockpot.TrainConfig(lr=lr, epochs=3, batch_size=8)
        stockpot.fine_tune(task, base, config, out=out, seed=i)
    return outs


def test_the_loss_is_that_of_transformers_on_the_packed_documents(runs: list[Path]) -> None:
    task = load_task(runs[0].parent / "task.yaml")
    data = task.splits["val"].dataset
    assert isinstance(data, PackedData)
    words = transformers.AutoTokenizer.from_pretrained(runs[0])
    ids = [token for text in data.documents for token in (*words(text)["input_ids"], 0)]
    assert data.blocks.flatten().tolist() == ids[: len(ids) // 16 * 16]
    model = transformers.AutoModelForCausalLM.from_pretrained(runs[0]).eval()
    with torch.no_grad():
        expected = model(input_ids=data.blocks, labels=data.blocks).loss.item()
    evaluator = stockpot.TaskEvaluator(task)
    score = evaluator.score(stockpot.open(runs[0]), "val")
    assert score.value == pytest.approx(expected, abs=1e-5)
    assert (score.metric, score.higher_is_better, score.n) == ("loss", False, len(data))
    assert score.low < score.value < score.high
    base = evaluator.score(stockpot.open(runs[0].parent / "base"), "val").value
    assert base == pytest.approx(math.log(len(tiny.WORDS)), abs=0.3)
    assert score.value < base - 1


def test_perplexity_is_e_to_the_loss(runs: list[Path], tmp_path: Path) -> None:
    loss, perplexity = (
        stockpot.TaskEvaluator(
            load_task(task_file(tmp_path, runs[0].parent / "base", metric=metric))
        ).score(stockpot.open(runs[1]), "test").value
        for metric in ("loss", "perplexity")
    )  # fmt: skip
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-9)


def test_greedy_takes_a_soup_of_language_models_and_rejects_early(runs: list[Path]) -> None:
    task = load_task(runs[0].parent / "task.yaml")
    with stockpot.TaskEvaluator(task) as evaluator:
        soup = Greedy().cook(map(str, runs), evaluator=evaluator)
        singles = [evaluator.score(stockpot.open(run), "val").value for run in runs]
        assert str(runs[2]) not in soup.selected
        assert soup.scores["val"].value <= min(singles) < singles[2]
        step = next(step for step in soup.steps if step.candidate == str(runs[2]))
        assert (step.accepted, step.score) == (False, None)
        assert soup.examples_evaluated < soup.examples_plain
        rejected = decide(
            evaluator,
            Uniform().cook(map(str, runs)).mixture,
            "val",
            current=evaluator.predictions(stockpot.open(runs[0]), "val"),
            rule=AcceptanceRule("ge", 0.0, early=True),
        )
    assert not rejected.accepted
    assert rejected.value is None


def test_coefficients_are_learned_by_gradients_of_the_loss(runs: list[Path]) -> None:
    task = load_task(runs[0].parent / "task.yaml")
    soup = Learned(n_epochs=6).cook(map(str, runs), task)
    shares = soup.details.learned_coefficients
    assert shares[str(runs[2])] < 0.1
    uniform = Uniform().cook(map(str, runs), task)
    assert soup.scores["test"].value < uniform.scores["test"].value
    assert soup.details.losses[-1] < soup.details.losses[0]


def test_blocks_do_not_depend_on_who_tokenises_first_and_are_made_of_what_is_kept() -> None:
    data = PackedData(["a b c", "d", "e f"], lambda texts: [[ord(c) for c in t.split()]
                      for t in texts], end=0, length=3)  # fmt: skip
    assert data.blocks.tolist() == [[97, 98, 99], [0, 100, 0], [101, 102, 0]]
    assert data.subset([0, 2]).blocks.tolist() == [[97, 98, 99], [0, 101, 102]]
    assert data.subset([0, 1, 2]).fingerprint == data.fingerprint
    with pytest.raises(TaskError, match="fewer than one block of 9"):
        len(PackedData(["a b"], data.encode, end=None, length=9))


def test_what_has_no_meaning_for_documents_is_refused_with_its_line(tmp_path: Path) -> None:
    base = tiny.gpt_folder(tmp_path / "base")
    with pytest.raises(TaskError) as caught:
        load_task(task_file(tmp_path, base, label="label", metric="accuracy", text=["a", "b"]))
    for part in ("label is for classes", "expected loss or perplexity", "two columns"):
        assert part in str(caught.value)
    with pytest.raises(TaskError, match="the model takes 64 tokens"):
        load_task(task_file(tmp_path, base, max_length=65))
    with pytest.raises(TaskError, match="val and test share"):
        load_task(
            task_file(
                tmp_path, base, drop_shared=False,
                splits={"val": {"data": "val.jsonl", "role": "held-out"},
                        "test": {"data": "val.jsonl", "role": "test"}},
            )
        )  # fmt: skip


def test_the_first_token_of_a_block_is_not_counted() -> None:
    class Certain(torch.nn.Module):
        def forward(self, input_ids, **_):
            logits = torch.full((*input_ids.shape, 5), -1e4)
            logits[:, :-1].scatter_(2, input_ids[:, 1:, None], 0.0)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    losses = block_losses(Certain(), torch.tensor([[3, 1, 4], [2, 2, 0]]))
    assert losses.tolist() == [0, 0]
