"""A small CLIP that learns to read print from captions, and its way to handwriting and back.

    python -m experiments.clip_digits --out ../clip-digits --seeds 0 1 2 3 4

For each seed, in `OUT/seed-N`: a CLIP of 0.15 M weights is trained on digits rendered from fonts,
each with a caption ("a photo of the digit seven"); `make_zero_shot` turns it into a classifier that
has seen no handwriting; that is fine-tuned on 300 handwritten digits, end to end and as LP-FT; and
both lines back to it are scored (WiSE-FT). What is there already is not made again. Data and shifts
are those of `--task handwriting`: held-out chooses, the rest only reports.

    CLIP_DIGITS=OUT stockpot evaluate OUT/seed-0/zero-shot --task experiments/clip_digits.py:task

scores what lies there. Prints the table of docs/results/clip.md and writes it, the curves and their
figure beside the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from experiments.common import ALPHAS, SHIFT_AVERAGE
from experiments.tables import t_interval
from torch.nn import functional

import stockpot
from stockpot.evaluate import scores_to_json
from stockpot.tasks.clip import HEAD, CLIPTask, image_data, make_zero_shot
from stockpot.tasks.handwriting import SEEN_FACES, SHIFTS, handwriting, render

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = (
    "a photo of the digit {}", "a photo of the number {}", "a scan of a {}", "the digit {}",
    "a printed {}", "a drawing of the number {}",
)  # fmt: skip
COLUMNS = ("held-out", "test", SHIFT_AVERAGE, *SHIFTS)
HALF_WAY = 0.5
TUNE = stockpot.TrainConfig(
    lr=1e-3, weight_decay=0.01, epochs=20, batch_size=32, warmup_fraction=0.1, score_every=20
)
"""Rates were chosen on the held-out digits of seed 9, which is not reported: this one of 3e-4, 1e-3
and 3e-3, that of the probe of 0.01 and 0.1."""


@dataclass(frozen=True)
class Lab:
    """The size of the experiment.

    Attributes:
        n_print: rendered digits with captions.
        width: of both towers.
        n_layers: of the image tower; the text tower has one.
        steps: of contrastive training.
        sets: of ten digits, one of each, in a step; a caption is compared within its set.
        lr: highest learning rate of it.
        n_train: handwritten digits to fine-tune on.
        tune: how they are fine-tuned end to end.
        probe_epochs: of the head alone, before everything is trained as in `tune`.
        probe_lr: constant rate of those.
        alphas: points of the curves, 0.5 among them.
    """

    n_print: int = 8000
    width: int = 64
    n_layers: int = 3
    steps: int = 1000
    sets: int = 8
    lr: float = 2e-3
    n_train: int = 300
    n_held_out: int = 500
    n_test: int | None = None
    n_fonts: int = 1000
    tune: stockpot.TrainConfig = TUNE
    probe_epochs: int = 20
    probe_lr: float = 0.1
    alphas: tuple[float, ...] = ALPHAS


def rgb(images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.uint8]]:
    """Ink 0..16, (n, 8, 8), as colour images (8, 8, 3), uint8, white ink on black paper."""
    grey = np.rint(images * (255 / 16)).astype(np.uint8)
    return list(np.repeat(grey[..., None], 3, axis=-1))


def new_clip(lab: Lab, *, seed: int) -> Any:
    """A CLIP for images of 8 pixels in patches of 2, weights drawn from `seed`."""
    import transformers

    tower = {
        "hidden_size": lab.width,
        "intermediate_size": 2 * lab.width,
        "num_attention_heads": 4,
    }
    words = tokenizer()
    text = {
        **tower, "num_hidden_layers": 1, "vocab_size": len(words), "max_position_embeddings": 12,
        "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }  # fmt: skip
    vision = {**tower, "num_hidden_layers": lab.n_layers, "image_size": 8, "patch_size": 2}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=lab.width
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.CLIPModel(config)


def tokenizer() -> Any:
    """One token for each word of the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    words = dict.fromkeys([*special, *" ".join((*CAPTIONS, *CLASSES)).replace("{}", "").split()])
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]",
        eos_token="[EOS]", model_max_length=12,
    )  # fmt: skip


def _features(found: Any) -> torch.Tensor:
    """transformers 5 returns an output object, 4 the features themselves."""
    features: torch.Tensor = getattr(found, "pooler_output", found)
    return features


def train_clip(folder: Path, lab: Lab, *, seed: int) -> None:
    """Contrastive training on print, and the folder that `save_pretrained` makes of it.

    A step takes `sets` times ten digits, one of each, with one caption form per set. An image is
    told from the nine others of its set by caption and a caption by image, as in CLIP; sets keep
    two pictures of one digit, whose captions are both right, from counting as each other's error.
    """
    import transformers

    # transformers 4 has one name fewer: its plain class is the one that needs no torchvision.
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = kind(size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8})
    images, labels = render(SEEN_FACES, lab.n_print, seed=seed)
    pixels = processor(images=rgb(images), return_tensors="pt")["pixel_values"]
    by_digit = [torch.from_numpy(np.flatnonzero(labels == d)) for d in range(10)]
    words = tokenizer()
    prompts = [form.replace("{}", name) for form in CAPTIONS for name in CLASSES]
    tokens = words(prompts, padding=True, return_tensors="pt")
    model = new_clip(lab, seed=seed).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lab.lr, weight_decay=0.1)
    warm = max(1, lab.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * np.cos(np.pi * step / lab.steps)),
    )
    target = torch.arange(10).repeat(lab.sets)
    for _ in range(lab.steps):
        rows = torch.stack(
            [d[torch.randint(len(d), (lab.sets,), generator=generator)] for d in by_digit], dim=1
        )
        forms = torch.randint(len(CAPTIONS), (lab.sets,), generator=generator)
        said = model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        seen = model.get_image_features(pixels[rows.flatten()])
        text = functional.normalize(_features(said), dim=-1).reshape(len(CAPTIONS), 10, -1)
        image = functional.normalize(_features(seen), dim=-1).reshape(lab.sets, 10, -1)
        logits = model.logit_scale.exp() * image @ text[forms].transpose(1, 2)
        loss = functional.cross_entropy(logits.flatten(0, 1), target)
        loss = loss + functional.cross_entropy(logits.transpose(1, 2).flatten(0, 1), target)
        optimizer.zero_grad()
        (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_task(folder: Path, lab: Lab, *, seed: int) -> CLIPTask:
    """Handwriting and its shifts, for the classifier in `folder`."""
    whole = handwriting(
        seed=seed, n_train=lab.n_train, n_held_out=lab.n_held_out, n_test=lab.n_test,
        n_fonts=lab.n_fonts,
    )  # fmt: skip

    def data(dataset: Any) -> Any:
        images, labels = dataset.tensors
        return image_data(folder, rgb(images[:, 0].numpy() * 16), labels.tolist())

    return CLIPTask(
        folder,
        {
            name: stockpot.Split(data(split.dataset), role=split.role, images=split.images)
            for name, split in whole.splits.items()
        },
        batch_size=256,
        train_set=data(whole.train_set),
    )


def task() -> CLIPTask:
    """The task of seed 0 in the folder that `CLIP_DIGITS` names, for the command line."""
    return make_task(Path(os.environ["CLIP_DIGITS"]) / "seed-0" / "zero-shot", Lab(), seed=0)


@dataclass(frozen=True)
class SeedResult:
    """One seed: curves of both ways to fine-tune, and scores of what lies on neither.

    `curves` maps a way to α → column → accuracy; `chosen` to the α that held-out chose.
    """

    seed: int
    curves: Mapping[str, Mapping[float, Mapping[str, float]]]
    chosen: Mapping[str, float]
    probe: Mapping[str, float]
    scores: Mapping[str, Any]
    seconds: Mapping[str, float]


DIRECT, LP_FT = "fine-tuned", "LP-FT"


def run(folder: Path, lab: Lab, *, seed: int) -> SeedResult:
    """Everything of one seed; what lies in `folder` is not made again."""
    found = folder / "result.json"
    if found.exists():
        return _from_json(json.loads(found.read_text()))
    seconds: dict[str, float] = {}

    def timed(name: str, out: Path, make: Any) -> None:
        started = time.perf_counter()
        if not out.exists():
            make()
        seconds[name] = time.perf_counter() - started

    clip, base = folder / "clip", folder / "zero-shot"
    timed("training the CLIP", clip, lambda: train_clip(clip, lab, seed=seed))
    timed("head", base, lambda: make_zero_shot(clip, base, classes=CLASSES, templates=CAPTIONS))
    here = make_task(base, lab, seed=seed)
    probed = {"head": HEAD, "probe_epochs": lab.probe_epochs, "probe_lr": lab.probe_lr}
    ways = {
        DIRECT: lab.tune,
        LP_FT: replace(lab.tune, **probed),
        "probe": replace(lab.tune, **probed, epochs=0),
    }
    for name, config in ways.items():
        out = folder / name
        timed(name, out, lambda o=out, c=config: stockpot.fine_tune(
            here, base, c, out=o, seed=seed, device="cpu"))  # fmt: skip
    evaluator = stockpot.TaskEvaluator(here, cache=folder / "journal", device="cpu", seed=seed)
    started = time.perf_counter()
    lines = {
        name: stockpot.WiseFT(alphas=lab.alphas).cook(
            [folder / name], here, base=base, evaluator=evaluator
        )
        for name in (DIRECT, LP_FT)
    }
    seconds["curves"] = time.perf_counter() - started
    told = {name: soup.to_json() for name, soup in lines.items()}
    probe = scores_to_json(evaluator.scores(stockpot.open(folder / "probe")))
    result = SeedResult(
        seed,
        {n: {p["alpha"]: _values(p["scores"]) for p in t["curve"]} for n, t in told.items()},
        {n: t["chosen"]["alpha"] for n, t in told.items()},
        _values(probe),
        {"probe": probe, **{n: t["curve"] for n, t in told.items()}},
        seconds,
    )
    found.write_text(json.dumps(asdict(result), indent=1))
    return result


def _values(scores: Mapping[str, Any]) -> dict[str, float]:
    return {column: scores[column]["value"] for column in COLUMNS}


def _from_json(told: dict[str, Any]) -> SeedResult:
    curves = {
        name: {float(alpha): scores for alpha, scores in curve.items()}
        for name, curve in told.pop("curves").items()
    }
    return SeedResult(curves=curves, **told)


Value = Callable[[SeedResult, str], float]


def _at(way: str, alpha: float) -> Value:
    return lambda result, column: result.curves[way][alpha][column]


def _chosen(way: str) -> Value:
    return lambda result, column: result.curves[way][result.chosen[way]][column]


def _best(way: str) -> Value:
    return lambda result, column: max(point[column] for point in result.curves[way].values())


def _ends(way: str) -> Value:
    return lambda result, column: max(result.curves[way][end][column] for end in (0.0, 1.0))


def _probe(result: SeedResult, column: str) -> float:
    return result.probe[column]


ROWS: Mapping[str, Value] = {
    "zero-shot": _at(DIRECT, 0.0),
    "linear probe": _probe,
    **{
        f"{way}{name}": value
        for way in (DIRECT, LP_FT)
        for name, value in {
            "": _at(way, 1.0),
            ", α = 0.5": _at(way, HALF_WAY),
            ", chosen α": _chosen(way),
            ", best α of each column": _best(way),
        }.items()
    },
}
GAINS: Mapping[str, tuple[Value, Value]] = {
    "fine-tuned, over zero-shot": (_at(DIRECT, 1.0), _at(DIRECT, 0.0)),
    "α = 0.5, over fine-tuned": (_at(DIRECT, HALF_WAY), _at(DIRECT, 1.0)),
    "chosen α, over fine-tuned": (_chosen(DIRECT), _at(DIRECT, 1.0)),
    "α = 0.5, over the better end": (_at(DIRECT, HALF_WAY), _ends(DIRECT)),
    "best α, over the better end": (_best(DIRECT), _ends(DIRECT)),
    "LP-FT, over fine-tuned": (_at(LP_FT, 1.0), _at(DIRECT, 1.0)),
    "LP-FT chosen α, over fine-tuned chosen α": (_chosen(LP_FT), _chosen(DIRECT)),
}


def markdown(results: Sequence[SeedResult]) -> str:
    """Accuracy in percent, then differences in points, both over seeds with 95 % t-intervals."""
    head = f"| | {' | '.join(COLUMNS).replace('_', ' ')} |\n|---|{'--:|' * len(COLUMNS)}"

    def cells(values: Callable[[str], list[float]], form: Callable[..., str]) -> str:
        return " | ".join(
            form(100 * statistics.fmean(v := values(c)), *(100 * e for e in t_interval(v)))
            for c in COLUMNS
        )

    scores = [
        f"| {name} | {cells(lambda c, v=value: [v(r, c) for r in results], _score)} |"  # type: ignore[misc]
        for name, value in ROWS.items()
    ]
    gains = [
        f"| {name} | {cells(lambda c, p=pair: [p[0](r, c) - p[1](r, c) for r in results], _gain)} |"  # type: ignore[misc]
        for name, pair in GAINS.items()
    ]
    chosen = [
        f"{way}: {', '.join(f'{r.chosen[way]:g}' for r in results)}" for way in (DIRECT, LP_FT)
    ]
    return "\n".join(
        [head, *scores, "", head, *gains, "", f"Chosen α by seed: {'; '.join(chosen)}."]
    )


def _score(mean: float, low: float, high: float) -> str:
    return f"{mean:.1f} ± {(high - low) / 2:.1f}"


def _gain(mean: float, low: float, high: float) -> str:
    noise = " (n)" if low <= 0 <= high else ""
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{noise}"


def figure(results: Sequence[SeedResult], file: Path) -> None:
    """Mean over seeds along the line from the zero-shot model to the fine-tuned one."""
    import matplotlib.pyplot as plt

    alphas = list(results[0].curves[DIRECT])
    drawn, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for column in ("test", SHIFT_AVERAGE, "fonts"):
        found = [[r.curves[DIRECT][alpha][column] for r in results] for alpha in alphas]
        low, high = zip(*(t_interval(values) for values in found), strict=True)
        axes.plot(alphas, list(map(statistics.fmean, found)), label=column.replace("_", " "))
        axes.fill_between(alphas, low, high, alpha=0.2)
    axes.set(xlabel="α (0 is the zero-shot model, 1 the fine-tuned one)", ylabel="accuracy")
    axes.legend()
    title = "Accuracy on test, shifts and fonts along α, from zero-shot to fine-tuned"
    drawn.savefig(file, metadata={"Title": title})
    plt.close(drawn)


def main(arguments: Sequence[str] | None = None, *, lab: Lab | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args(arguments)
    results = []
    for seed in given.seeds:
        results.append(run(given.out / f"seed-{seed}", lab or Lab(), seed=seed))
        spent = ", ".join(f"{name} {s:.0f} s" for name, s in results[-1].seconds.items())
        print(f"seed {seed}: {spent}", file=sys.stderr, flush=True)
    if len(results) < 2:
        return "made; a table needs two seeds or more"
    text = markdown(results)
    figure(results, given.out / "clip-digits.svg")
    (given.out / "clip-digits.md").write_text(text + "\n")
    (given.out / "clip-digits.json").write_text(
        json.dumps([asdict(result) for result in results], indent=1)
    )
    return text


if __name__ == "__main__":
    print(main())
