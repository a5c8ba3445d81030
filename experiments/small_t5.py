"""Soups of a small T5 on SST-2: docs/results/fine-tunes.md.

    python -m experiments.small_t5 --data DATA --out ../t5 --seeds 0 1 2

trains an encoder–decoder of half a million weights on sentences whose spans were cut out, as T5
was, and fine-tunes it per seed four times at moderate rates, text to text: its decoder has to say
`good` or `bad`. Nothing is added to the network, so that all runs share all of their start. The
sentences of the pre-training are those of SST-2's and other training sets; none stands in a split
that chooses or reports.

Held-out chooses; test and product reviews only report. The base is one for all seeds, each sweep is
a folder of OUT, and a killed call goes on in the run that it was in (of the base, from the start).
Writes `small_t5.json` and `small_t5.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import of_seeds, write_json, write_results

import stockpot
from experiments import ingredients, sst2_minilm, tables
from stockpot.recipes import ensemble
from stockpot.tasks import resolve
from stockpot.train import SweepOptions, run_sweep

LABEL_WORDS = {"negative": "bad", "positive": "good"}
N_SENTINELS = 20
NOISE, SPAN = 0.15, 3
"""Share of a sentence that is cut out, and the mean length of what is cut out in one place."""
MODELS = ("base", "mean of singles", "best single", "uniform", "greedy", "ensemble")
COLUMNS = ("held-out", "test", "reviews")


@dataclass(frozen=True)
class Sizes:
    """How large the network is, and how much it is trained."""

    vocabulary: int = 4000
    width: int = 64
    n_layers: int = 2
    steps: int = 2000
    batch: int = 64
    lr: float = 4e-3
    max_tokens: int = 40
    n_train: int = 60_000
    n_runs: int = 4


QUICK = Sizes(vocabulary=300, width=16, n_layers=1, steps=3, batch=8, n_train=40, n_runs=2)


def sentences(data: Path) -> list[str]:
    """What is pre-trained on: training sentences less all that choose or report on SST-2."""
    sst2 = sst2_minilm.read_sst2(data)
    later = [e for name, part in sst2.items() if name != "train" for e in part]
    kept = sst2_minilm.without(sst2["train"], later)
    texts = [e.text for e in kept]
    for name in ("cola", "rte", "mrpc"):
        for example in sst2_minilm.READERS[name](data)["train"]:
            texts += [part for part in (example.text, example.pair) if part]
    return [text for text in texts if len(text.split()) > 2]


def tokenizer(texts: Sequence[str], sizes: Sizes) -> Any:
    """Word pieces of these texts, with the marks of cut-out spans and T5's end of sentence."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    marks = [f"<extra_id_{i}>" for i in range(N_SENTINELS)]
    pieces = Tokenizer(models.WordPiece(unk_token="<unk>"))
    pieces.normalizer = normalizers.Lowercase()
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.train_from_iterator(
        [*texts, *LABEL_WORDS.values()],
        trainers.WordPieceTrainer(
            vocab_size=sizes.vocabulary, special_tokens=["<pad>", "</s>", "<unk>", *marks],
            show_progress=False,
        ),
    )  # fmt: skip
    pieces.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=marks,
    )  # fmt: skip


def cut_out(
    ids: Sequence[int], marks: Sequence[int], rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """A sentence without some spans, and what stood there, a mark in the place of each.

    Reference: Raffel et al. 2019, arXiv 1910.10683, §3.1.4.
    """
    n_spans = max(1, round(len(ids) * NOISE / SPAN))
    starts = np.sort(rng.choice(len(ids), size=min(n_spans, len(ids), len(marks)), replace=False))
    left: list[int] = []
    cut: list[int] = []
    done = 0
    for mark, start in zip(marks, starts.tolist(), strict=False):
        if start < done:  # within the span before
            continue
        end = min(len(ids), start + 1 + int(rng.poisson(SPAN - 1)))
        left += [*ids[done:start], mark]
        cut += [mark, *ids[start:end]]
        done = end
    return left + list(ids[done:]), cut


def batches(
    words: Any, rows: Sequence[Sequence[int]], sizes: Sizes
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of cut sentences, drawn at random for ever."""
    rng = np.random.default_rng(0)
    marks = words.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(N_SENTINELS)])
    while True:
        chosen = [rows[i] for i in rng.integers(0, len(rows), sizes.batch).tolist()]
        pairs = [cut_out(row, marks, rng) for row in chosen]
        inputs = _padded([[*left, words.eos_token_id] for left, _ in pairs], words.pad_token_id)
        targets = _padded([[*cut, words.eos_token_id] for _, cut in pairs], -100)
        yield {
            "input_ids": inputs,
            "attention_mask": (inputs != words.pad_token_id).long(),
            "labels": targets,
        }


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def pretrain(data: Path, folder: Path, sizes: Sizes) -> None:
    """A model folder of the base, unless it is there."""
    if folder.exists():
        return
    from transformers import T5Config, T5ForConditionalGeneration

    texts = sentences(data)
    words = tokenizer(texts, sizes)
    rows = [
        words(text, add_special_tokens=False)["input_ids"][: sizes.max_tokens] for text in texts
    ]
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(words), d_model=sizes.width, d_kv=sizes.width // 4,
            d_ff=4 * sizes.width, num_layers=sizes.n_layers, num_heads=4, dropout_rate=0.0,
            pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
            decoder_start_token_id=words.pad_token_id,
        )
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=sizes.lr, weight_decay=0.0)
    losses = []
    numbered = zip(range(sizes.steps), batches(words, rows, sizes), strict=False)
    for number, batch in numbered:
        for group in optimiser.param_groups:
            left = (sizes.steps - number) / sizes.steps
            group["lr"] = sizes.lr * min((number + 1) / 100, left)
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    part = folder.with_name(f".{folder.name}")
    model.save_pretrained(part)
    words.save_pretrained(part)
    write_json(
        part / "pretraining.json",
        {"sentences": len(rows), "first": losses[0], "last": float(np.mean(losses[-100:]))},
    )
    part.rename(folder)


def task_of(data: Path, base: Path, out: Path, sizes: Sizes) -> stockpot.Task:
    """SST-2, text to text, over the files that `out` gets."""
    splits = sst2_minilm.disjoint(sst2_minilm.read_sst2(data), n_train=sizes.n_train)
    names = list(LABEL_WORDS)
    for name, part in splits.items():
        rows = [json.dumps({"text": e.text, "label": names[e.label]}) for e in part]
        (out / f"{name}.jsonl").write_text("\n".join(rows))
    roles = {"held-out": "held-out", "test": "test"}
    keys = {
        "kind": "text-classification", "model": str(base.resolve()), "form": "text-to-text",
        "label_words": LABEL_WORDS, "template": "{text}", "text": "text", "label": "label",
        "labels": names, "max_length": sizes.max_tokens, "train": "train.jsonl",
        "splits": {
            name: {"data": f"{name}.jsonl", "role": roles.get(name, "shift")}
            for name in splits if name != "train"
        },
    }  # fmt: skip
    path = out / "task.yaml"
    path.write_text(json.dumps(keys))
    return resolve(str(path))


def space(sizes: Sizes) -> dict[str, Any]:
    """Moderate rates for a network that is small and little trained; all phrases once."""
    quick = {"max_steps": 2} if sizes == QUICK else {}
    law = {**ingredients.moderate_text_space(), "lr": {"log_uniform": [2e-3, 6e-3]}}
    return {**law, "epochs": 1, "batch_size": 64, "precision": "fp32", **quick}


def study(seed: int, *, data: Path, out: Path, sizes: Sizes) -> None:
    """The sweep of one seed and the scores of its models, unless they are there."""
    place = out / f"seed-{seed}"
    if (place / "scores.json").exists():
        return
    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    base, cache = out / "base", place / "cache"
    task = task_of(data, base, place, sizes)
    options = SweepOptions(n_runs=sizes.n_runs, space=space(sizes), seed=seed, device="cpu")
    sweep = run_sweep(task, str(base), options, out=place / "runs", cache=cache)
    sweep.raise_failures()
    with stockpot.TaskEvaluator(task, cache=cache, device="cpu") as evaluator:
        models = stockpot.Ingredients(sweep.paths, base=base)
        each = [evaluator.scores(model) for model in models]
        best = stockpot.BestSingle().cook(models, evaluator=evaluator)
        greedy = stockpot.Greedy(explain=False).cook(models, evaluator=evaluator)
        uniform = stockpot.Uniform().cook(models, evaluator=evaluator)
        scores: dict[str, Mapping[str, Any]] = {
            "base": evaluator.scores(stockpot.open(base)),
            "best single": best.scores,
            "uniform": uniform.scores,
            "greedy": greedy.scores,
            "ensemble": ensemble(evaluator, models).scores,
        }
    found = {n: {s: by[s].value for s in COLUMNS} for n, by in scores.items()}
    found["mean of singles"] = {s: float(np.mean([by[s].value for by in each])) for s in COLUMNS}
    write_json(place / "scores.json", {"scores": found, "kept": len(greedy.selected)})


def gains(found: Mapping[str, Any], model: str, column: str) -> list[float]:
    """Accuracy of `model` less that of the best single run, one for each seed."""
    return [
        by["scores"][model][column] - by["scores"]["best single"][column] for by in found.values()
    ]


def markdown(found: Mapping[str, Any]) -> str:
    """Accuracies, and points above the best single run."""
    accuracies = [
        [model, *(tables.percent([by["scores"][model][c] for by in found.values()])
                  for c in COLUMNS)]
        for model in MODELS
    ]  # fmt: skip
    above = [
        [model, *(tables.in_points(tables.over_seeds(gains(found, model, c))) for c in COLUMNS)]
        for model in MODELS[3:]
    ]
    kept = ", ".join(str(by["kept"]) for by in found.values())
    return "\n".join(
        [
            f"Accuracy in percent, {len(found)} sweeps:", "",
            *tables.table(["model", *COLUMNS], accuracies), "",
            "Points above the best single run, paired by sweep; (n): the interval holds 0:", "",
            *tables.table(["model", *COLUMNS], above), "",
            f"Runs that greedy kept: {kept}.",
        ]
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with text/")
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="a network of nothing, in two steps")
    given = parser.parse_args(arguments)
    sizes, out = (QUICK if given.quick else Sizes()), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    pretrain(given.data, out / "base", sizes)

    work = functools.partial(study, data=given.data, out=out, sizes=sizes)
    found = of_seeds(work, given.seeds, out, file="scores.json", n_jobs=given.jobs)
    return write_results(out, "small_t5", found, markdown(found))


if __name__ == "__main__":
    print(main())
