"""Windows along a simulated pre-training run: docs/results/pretraining.md.

    python -m experiments.pretraining --out ../pretraining --seeds 0 1 2

trains, per seed, a small GPT on documents of a generated grammar at a constant rate, with 24
checkpoints, and once more with a rate that falls to 0 over the last quarter of the same tokens.
Then `trajectory` searches windows × orders × kinds of the checkpoints by their loss on held-out
documents: all of them, and within a budget; in this process, and by a program that reads a
checkpoint with NumPy alone; and, where the extra lm-eval is installed, by the accuracy on minimal
pairs of a task of lm-evaluation-harness. All is reported on documents and pairs that chose nothing,
beside the last checkpoint, the run whose rate fell, and plain means.

Each seed is a folder of OUT, and a killed call continues. `--quick` is a minute. Writes
`pretraining.json` and `pretraining.md`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import of_seeds, write_json, write_results
from experiments.small_language import Grammar, tokenizer
from torch.nn import functional

import stockpot
from experiments import tables
from stockpot.evaluate import CommandEvaluator, Evaluator
from stockpot.recipes import Trajectory, Uniform
from stockpot.tasks import resolve

CONTEXT = 64


@dataclass(frozen=True)
class Sizes:
    """How much is trained and scored; `TINY` of the tests is less."""

    n_checkpoints: int = 24
    every: int = 50
    decay_from: int = 18
    batch: int = 16
    width: int = 64
    n_layers: int = 2
    lr: float = 4e-3
    n_train: int = 15_000
    n_held_out: int = 300
    n_test: int = 1000
    n_pairs: int = 400
    budget: int = 40


QUICK = Sizes(
    n_checkpoints=5, every=4, decay_from=3, batch=4, width=16, n_layers=1, n_train=60,
    n_held_out=20, n_test=20, n_pairs=20, budget=6,
)  # fmt: skip


def new_model(sizes: Sizes, vocabulary: int, *, seed: int) -> Any:
    """A GPT-2 of a few layers, drawn anew."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=CONTEXT, n_embd=sizes.width, n_layer=sizes.n_layers,
        n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def packed(words: Any, documents: list[str]) -> torch.Tensor:
    """All documents one behind the other, as one row of tokens."""
    ids = [[*one, words.eos_token_id] for one in words(documents)["input_ids"]]
    return torch.tensor([token for one in ids for token in one])


def batches(tokens: torch.Tensor, sizes: Sizes, *, seed: int) -> Iterator[torch.Tensor]:
    """Rows of tokens from random places, for ever."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - CONTEXT, sizes.batch)
        yield torch.stack([tokens[s : s + CONTEXT] for s in starts.tolist()])


def step(model: Any, optimiser: torch.optim.Optimizer, rows: torch.Tensor) -> None:
    """One step on the mean loss of the next token."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def train(words: Any, tokens: torch.Tensor, sizes: Sizes, out: Path, *, seed: int) -> None:
    """Both runs of one seed: `out/run/step-…` at a constant rate, and `out/decayed`.

    They share everything to the step from which the rate of the second falls, batches included.
    """
    torch.set_num_threads(1)
    model = new_model(sizes, len(words), seed=seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=sizes.lr, weight_decay=0.0)
    start = sizes.decay_from * sizes.every
    end = sizes.n_checkpoints * sizes.every
    forked: tuple[Any, Any] | None = None
    for number, rows in zip(range(1, end + 1), batches(tokens, sizes, seed=seed), strict=False):
        warmed = min(1.0, number / 50)
        for group in optimiser.param_groups:
            group["lr"] = sizes.lr * warmed
        step(model, optimiser, rows)
        if number % sizes.every == 0:
            save(model, words, out / "run" / f"step-{number:05d}")
        if number == start:
            forked = _copied(model.state_dict()), _copied(optimiser.state_dict())
    if forked is None:
        raise ValueError("the rate falls after the end")
    model.load_state_dict(forked[0])
    optimiser.load_state_dict(forked[1])
    for number, rows in zip(range(1, end + 1), batches(tokens, sizes, seed=seed), strict=False):
        if number <= start:
            continue
        for group in optimiser.param_groups:
            group["lr"] = sizes.lr * (end - number + 1) / (end - start + 1)
        step(model, optimiser, rows)
    save(model, words, out / "decayed")


def _copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def save(model: Any, words: Any, folder: Path) -> None:
    """A model folder with its tokenizer, which is complete as soon as it is there."""
    part = folder.with_name(f".{folder.name}")
    model.save_pretrained(part)
    words.save_pretrained(part)
    part.rename(folder)


PROGRAM = """
import json, sys
import numpy as np
from pathlib import Path
from safetensors.numpy import load_file

folder, blocks = Path(sys.argv[1]), np.load(sys.argv[2])
w = {n.removeprefix("transformer."): v for n, v in load_file(folder / "model.safetensors").items()}
heads = json.loads((folder / "config.json").read_text())["n_head"]

def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[name + ".weight"] + w[name + ".bias"]

def linear(x, name):
    return x @ w[name + ".weight"] + w[name + ".bias"]

n, length = blocks.shape
x = w["wte.weight"][blocks] + w["wpe.weight"][:length]
hidden = np.triu(np.full((length, length), -np.inf, np.float32), 1)
for layer in range(sum(name.endswith("ln_1.weight") for name in w)):
    h = f"h.{layer}."
    q, k, v = np.split(linear(norm(x, h + "ln_1"), h + "attn.c_attn"), 3, -1)
    q, k, v = (a.reshape(n, length, heads, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]) + hidden
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    x = x + linear((shares @ v).transpose(0, 2, 1, 3).reshape(n, length, -1), h + "attn.c_proj")
    a = linear(norm(x, h + "ln_2"), h + "mlp.c_fc")
    a = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    x = x + linear(a, h + "mlp.c_proj")
logits = (norm(x, "ln_f") @ w["wte.weight"].T)[:, :-1]
logits = logits - logits.max(-1, keepdims=True)
true = np.take_along_axis(logits, blocks[:, 1:, None], -1)[..., 0]
print(float((np.log(np.exp(logits).sum(-1)) - true).mean(1).mean()))
"""
"""Scores a checkpoint on blocks of tokens; it knows neither stockpot nor torch."""

PAIRS = """
task: subjects
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {folder}/validation.jsonl
    test: {folder}/test.jsonl
validation_split: validation
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

LAST, DECAYED, ALL, RECENT = (
    "last checkpoint",
    "rate fell to 0",
    "mean of all",
    "mean of the last 5",
)
FULL, BUDGET = "best window, full grid", "best window, budget"
BY_PROGRAM, BY_PAIRS = "best window, budget, by a program", "best window, budget, by pairs"
ROWS = (LAST, DECAYED, ALL, RECENT, FULL, BUDGET, BY_PROGRAM, BY_PAIRS)


def write_data(sizes: Sizes, out: Path) -> None:
    """Documents and pairs that choose and report, and what names them, unless they are there."""
    language = Grammar()
    pairs = out / "tasks"
    pairs.mkdir(parents=True, exist_ok=True)
    parts = {"val": (sizes.n_held_out, 1), "test": (sizes.n_test, 2)}
    for name, (n, seed) in parts.items():
        rows = [json.dumps({"text": text}) for text in language.documents(n, seed=seed)]
        (out / f"{name}.jsonl").write_text("\n".join(rows))
    for name, n, seed in (("validation", sizes.n_pairs, 3), ("test", 2 * sizes.n_pairs, 4)):
        rows = [json.dumps(row) for row in language.pairs(n, seed=seed)]
        (pairs / f"{name}.jsonl").write_text("\n".join(rows))
    (pairs / "subjects.yaml").write_text(PAIRS.format(folder=pairs))
    (out / "score.py").write_text(PROGRAM)


def task_of(out: Path, model: Path) -> stockpot.Task:
    """The loss of held-out and of test documents."""
    splits = {
        name: {"data": f"{name}.jsonl", "role": role}
        for name, role in (("val", "held-out"), ("test", "test"))
    }
    keys = {"kind": "causal-lm", "model": str(model), "max_length": CONTEXT, "batch_size": 32,
            "drop_shared": True, "splits": splits}  # fmt: skip
    path = out / f"task-{model.parent.parent.name}.yaml"
    path.write_text(json.dumps(keys))
    return resolve(str(path))


def study(seed: int, *, sizes: Sizes, out: Path) -> None:
    """Everything of one seed, unless it is there."""
    place = out / f"seed-{seed}"
    if (place / "scores.json").exists():
        return
    torch.set_num_threads(1)
    if not (place / "decayed").exists():
        language = Grammar()
        words = tokenizer(language)
        tokens = packed(words, language.documents(sizes.n_train, seed=0))
        train(words, tokens, sizes, place, seed=seed)
    write_json(place / "scores.json", search(place, sizes=sizes, out=out))


def recipes(sizes: Sizes) -> Trajectory:
    """Windows from every second checkpoint × kinds × orders."""
    return Trajectory(
        starts=tuple(range(0, sizes.n_checkpoints, 2)),
        kinds=("mean", "1-sqrt"),
        orders=("sequential", "reversed"),
    )


def search(place: Path, *, sizes: Sizes, out: Path) -> dict[str, Any]:
    """Every way of choosing: what it chose, what that scores, and how many averages it scored."""
    run = sorted(map(str, (place / "run").iterdir()))
    task, cache = task_of(out, Path(run[0])), place / "journal"
    full = recipes(sizes)
    small = Trajectory(
        starts=full.starts, kinds=full.kinds, orders=full.orders, budget=sizes.budget
    )
    chosen: dict[str, dict[str, Any]] = {}
    with stockpot.TaskEvaluator(task, cache=cache, device="cpu") as evaluator:
        models: dict[str, Any] = {
            LAST: stockpot.open(run[-1]),
            DECAYED: stockpot.open(place / "decayed"),
            ALL: Uniform().cook(run).mixture,
            RECENT: Uniform().cook(run[-5:]).mixture,
        }
        for name, recipe in ((FULL, full), (BUDGET, small)):
            models[name] = _found(recipe, run, evaluator, chosen, name)
        blocks = place / "blocks.npy"
        np.save(blocks, task.splits["val"].dataset.blocks.numpy())  # type: ignore[attr-defined]
        command = f"{sys.executable} {out / 'score.py'} {{checkpoint}} {blocks}"
        with CommandEvaluator(command, higher_is_better=False, cache=cache) as program:
            models[BY_PROGRAM] = _found(small, run, program, chosen, BY_PROGRAM)
        accuracy: dict[str, float] = {}
        if importlib.util.find_spec("lm_eval") is not None:
            spec = f"lm-eval:subjects?include={out / 'tasks'}&batch_size=64&drop_shared=yes"
            pairs = resolve(spec, models=[run[0]])
            with stockpot.TaskEvaluator(pairs, cache=cache, device="cpu") as harness:
                models[BY_PAIRS] = _found(small, run, harness, chosen, BY_PAIRS)
                accuracy = {n: harness.score(m, "test").value for n, m in models.items()}
        return {
            name: {
                "held-out": evaluator.score(model, "val").value,
                "test": evaluator.score(model, "test").value,
                "accuracy": accuracy.get(name),
                **chosen.get(name, {}),
            }
            for name, model in models.items()
        }


def _found(
    recipe: Trajectory,
    run: Sequence[str],
    evaluator: Evaluator,
    chosen: dict[str, dict[str, Any]],
    name: str,
) -> Any:
    soup = recipe.cook(run, evaluator=evaluator, report=False)
    details = soup.details
    window = details.window  # type: ignore[attr-defined]
    chosen[name] = {
        "window": f"{window.label}, {window.start} to {window.members()[-1]}",
        "scored": details.n_scored,  # type: ignore[attr-defined]
        "grid": details.n_grid,  # type: ignore[attr-defined]
    }
    return soup.mixture


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Losses of every way of choosing, their differences to the last checkpoint, and windows."""
    names = [name for name in ROWS if all(name in one for one in found.values())]

    def values(name: str, key: str) -> list[float] | None:
        got = [one[name].get(key) for one in found.values()]
        return None if None in got else got

    rows, gains, windows = [], [], []
    for name in names:
        accuracy, spent = values(name, "accuracy"), values(name, "scored")
        grid = values(name, "grid")
        rows.append(
            [
                name,
                *(
                    _nats(tables.over_seeds(values(name, key) or []))
                    for key in ("held-out", "test")
                ),
                "–" if accuracy is None else tables.in_percent(tables.over_seeds(accuracy)),
                "–" if spent is None or grid is None else f"{spent[0]:.0f} of {grid[0]:.0f}",
            ]
        )
        if name != LAST:
            cells = []
            for key, sign in (("test", 1.0), ("accuracy", 100.0)):
                own, last = values(name, key), values(LAST, key)
                apart = [sign * (a - b) for a, b in zip(own or [], last or [], strict=True)]
                cells.append(_difference(tables.over_seeds(apart), digits=4 if sign == 1 else 2)
                             if apart else "–")  # fmt: skip
            gains.append([name, *cells])
        if spent is not None:
            chosen = [str(one[name]["window"]) for one in found.values()]
            windows.append(f"| {name} | {'; '.join(chosen)} |")
    return "\n".join(
        [
            f"Nats per token, mean over {len(found)} seeds ± half of its 95 % t-interval; accuracy "
            "on test pairs in percent; different averages that were scored, of all:",
            "",
            *tables.table(["model", "held-out", "test", "accuracy", "scored"], rows),
            "",
            "Above the last checkpoint, paired by seed, with 95 % t-intervals: nats per token of "
            "test (less is better), and points of accuracy:",
            "",
            *tables.table(["model", "test", "accuracy"], gains),
            "",
            "Windows that were chosen, by seed:",
            "",
            "| search | windows |",
            "|---|---|",
            *windows,
        ]
    )


def _nats(cell: tables.Cell) -> str:
    return f"{cell.mean:.4f}" + ("" if math.isnan(cell.half) else f" ± {cell.half:.4f}")


def _difference(cell: tables.Cell, *, digits: int) -> str:
    if math.isnan(cell.half):
        return f"{cell.mean:+.{digits}f}"
    noise = " (n)" if cell.low <= 0 <= cell.high else ""
    return f"{cell.mean:+.{digits}f} [{cell.low:+.{digits}f}, {cell.high:+.{digits}f}]{noise}"


def main(arguments: Sequence[str] | None = None, *, sizes: Sizes | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="tiny: whether it runs")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    used = sizes or (QUICK if given.quick else Sizes())
    write_data(used, out)
    work = functools.partial(study, sizes=used, out=out)
    found = of_seeds(work, given.seeds, out, file="scores.json", n_jobs=given.jobs)
    return write_results(out, "pretraining", found, markdown(found))


if __name__ == "__main__":
    from experiments import pretraining

    print(pretraining.main())
