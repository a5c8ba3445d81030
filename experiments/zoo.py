"""Zoo-Tuning of networks that were pretrained on different data: docs/results/zoo.md.

    python -m experiments.zoo --out ../zoo --seeds 0 1 2 3 4 --jobs 2

pretrains, per seed, three networks of the handwriting lab's architecture, each from an
initialisation of its own: on printed digits, on capital letters A to J, and on lower-case letters
that look like none of them. Then it adapts them to handwriting in several ways, each at every
learning rate of `RATES`, of which held-out digits choose one:

- each of the three fine-tuned alone, and the best of them; the same with three times the epochs;
- their mean fine-tuned, and their mean as it is: what averaging models of no common start gives;
- Zoo-Tuning (`stockpot zoo`), folded into one network.

Heads of letters say nothing about digits: all networks get one and the same new head. Each seed is
a file in OUT, and a killed call continues. Writes `zoo.json` and `zoo.md`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from experiments.common import SHIFT_AVERAGE, of_seeds, write_json, write_results
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import TensorDataset

import stockpot
from experiments import tables
from stockpot import Role, Split, TrainConfig, fine_tune
from stockpot.tasks import ClassificationTask
from stockpot.tasks.handwriting import FULL, Lab, base_task, initial_weights, make_network
from stockpot.tasks.handwriting import QUICK as QUICK_LAB
from stockpot.train import ZooTuning

KINDS = ("digits", "capitals", "lower case")
CAPITALS, LOWER_CASE = "ABCDEFGHIJ", "aefhkmnrtw"
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral", "STIXGeneralItalic",
)  # fmt: skip
HEAD = ("12.weight", "12.bias")
RATES = (1e-3, 3e-3, 1e-2)
EPOCHS = 30
COLUMNS = ("held-out", "test", SHIFT_AVERAGE, "fonts")
SINGLES = tuple(f"{kind}, fine-tuned" for kind in KINDS)
BEST, LONGER = "best of the three", f"best of the three, {len(KINDS)}× the epochs"
ZOO, MEAN, PLAIN = "Zoo-Tuning", "their mean, fine-tuned", "their mean, as it is"


@dataclass(frozen=True)
class Sizes:
    """How much is trained; `TINY` of the tests is less."""

    lab: Lab = FULL
    n_pretrain: int = 6000
    pretrain_epochs: int = 8
    epochs: int = EPOCHS
    rates: tuple[float, ...] = RATES


QUICK = Sizes(lab=QUICK_LAB, n_pretrain=128, pretrain_epochs=1, epochs=2, rates=(1e-3, 1e-2))
"""Whether it runs; what it finds means nothing."""


def letters(characters: str, n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` printed characters, turned, stretched and thickened, as (n, 1, 8, 8) ink and classes."""
    rng = np.random.default_rng(seed)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    labels = np.arange(n) % len(characters)
    images = np.empty((n, 8, 8), np.float32)
    loaded = {face: ImageFont.truetype(str(fonts / f"{face}.ttf"), 64) for face in FACES}
    for i, label in enumerate(labels):
        canvas = Image.new("L", (128, 128))
        font = loaded[FACES[i // len(characters) % len(FACES)]]
        ImageDraw.Draw(canvas).text(
            (64, 64), characters[label], 255, font=font, anchor="mm",
            stroke_width=int(rng.integers(0, 4)), stroke_fill=255,
        )  # fmt: skip
        turned = canvas.rotate(float(rng.normal(0, 10)), resample=Image.Resampling.BILINEAR)
        box = turned.getbbox()
        assert box is not None
        size = (int(rng.integers(18, 27)), int(rng.integers(27, 33)))
        glyph = turned.crop(box).resize(size, resample=Image.Resampling.BILINEAR)
        whole = Image.new("L", (32, 32))
        whole.paste(glyph, ((32 - size[0]) // 2, (32 - size[1]) // 2))
        ink = np.asarray(whole) > 127
        images[i] = ink.reshape(8, 4, 8, 4).mean((1, 3))
    return torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64))


def pretraining(kind: str, n: int, *, seed: int) -> stockpot.Task:
    """What one of the networks reads before it sees handwriting."""
    if kind == "digits":
        return base_task(seed=seed, n_train=n, noise=0.0)
    characters = CAPITALS if kind == "capitals" else LOWER_CASE
    return ClassificationTask(
        build=make_network,
        splits={
            "held-out": Split(
                TensorDataset(*letters(characters, 500, seed=1000 * seed + 1)), role=Role.HELD_OUT
            )
        },
        train_set=TensorDataset(*letters(characters, n, seed=1000 * seed)),
        version="zoo-1",
    )


def study(seed: int, *, sizes: Sizes, out: Path) -> None:
    """Everything of one seed, unless it is there."""
    place = out / f"seed-{seed}"
    if (place / "scores.json").exists():
        return
    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(lr=2e-3, weight_decay=0.01, epochs=sizes.pretrain_epochs, batch_size=64,
                         warmup_fraction=0.1, shift_pixels=0.5, rotate_degrees=15.0,
                         score_every=sizes.pretrain_epochs)  # fmt: skip
    models, own = [], {}
    head = initial_weights(1000 + seed)
    for i, kind in enumerate(KINDS):
        path = place / f"{kind.replace(' ', '-')}.safetensors"
        task = pretraining(kind, sizes.n_pretrain, seed=seed)
        if not path.exists():
            fine_tune(task, initial_weights(10 * seed + i), config, out=path, seed=seed,
                      device="cpu")  # fmt: skip
        model = stockpot.open(path)
        own[kind] = stockpot.TaskEvaluator(task, device="cpu").score(model, "held-out").value
        weights = {name: model.read(name) for name in model}
        models.append({**weights, **{name: head[name] for name in HEAD}})
    write_json(
        place / "scores.json",
        {"pretrained": own, "scores": adapt(models, seed, sizes=sizes, place=place)},
    )


def adapt(
    models: Sequence[Mapping[str, torch.Tensor]], seed: int, *, sizes: Sizes, place: Path
) -> dict[str, Any]:
    """Method → scores by split, at the rate that is best on held-out digits."""
    task = sizes.lab.task(seed=seed)
    mean = {name: torch.stack([m[name] for m in models]).mean(0) for name in models[0]}
    starts = dict(zip(SINGLES, models, strict=True)) | {MEAN: mean}
    with stockpot.TaskEvaluator(task, cache=place / "journal", device="cpu") as evaluator:

        def scores(model: Any) -> dict[str, float]:
            return {split: score.value for split, score in evaluator.scores(model).items()}

        def best(tried: Sequence[dict[str, float]]) -> dict[str, float]:
            return max(tried, key=lambda one: one["held-out"])

        def tuned(name: str, factor: int = 1) -> dict[str, float]:
            tried = []
            for rate in sizes.rates:
                path = place / "tuned" / f"{name}-{factor}-{rate:g}.safetensors"
                path.parent.mkdir(exist_ok=True)
                if not path.exists():
                    fine_tune(task, starts[name], fine_tuning(rate, sizes.epochs * factor),
                              out=path, seed=seed, device="cpu")  # fmt: skip
                tried.append(scores(stockpot.open(path)))
            return best(tried)

        found = {name: tuned(name) for name in starts}
        found[BEST] = best([found[name] for name in SINGLES])
        found[LONGER] = best([tuned(name, len(KINDS)) for name in SINGLES])
        found[PLAIN] = scores(stockpot.from_state_dict(mean))
        found[ZOO] = best(
            [
                scores(
                    ZooTuning(train_seed=seed).run(
                        models, task, folder=place / f"zoo-{rate:g}", evaluator=evaluator,
                        config=fine_tuning(rate, sizes.epochs), device="cpu",
                    ).soup.mixture
                )
                for rate in sizes.rates
            ]
        )  # fmt: skip
    return found


def fine_tuning(rate: float, epochs: int) -> TrainConfig:
    """How every method trains: the same steps at the same rates."""
    return TrainConfig(lr=rate, weight_decay=0.01, epochs=epochs, batch_size=32,
                       warmup_fraction=0.1, score_every=epochs, shift_pixels=0.5,
                       rotate_degrees=10.0)  # fmt: skip


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of every method, and points above the best of the three."""
    order = (*SINGLES, BEST, LONGER, MEAN, PLAIN, ZOO)
    rows, gains = [], []
    for name in order:
        values = {c: [one["scores"][name][c] for one in found.values()] for c in COLUMNS}
        cells = [tables.in_percent(tables.over_seeds(values[c])) for c in COLUMNS]
        rows.append([name, *cells])
        if name != BEST:
            above = [
                [x - one["scores"][BEST][c] for x, one in zip(values[c], found.values(),
                                                              strict=True)]
                for c in COLUMNS
            ]  # fmt: skip
            gains.append([name, *(tables.in_points(tables.over_seeds(v)) for v in above)])
    pretrained = {
        kind: tables.in_percent(
            tables.over_seeds([one["pretrained"][kind] for one in found.values()])
        )
        for kind in KINDS
    }
    shown = [column.replace("_", " ") for column in COLUMNS]
    return "\n".join(
        [
            "On what each was pretrained for, accuracy in percent: "
            + ", ".join(f"{kind} {value}" for kind, value in pretrained.items())
            + ".",
            "",
            f"After adapting, mean over {len(found)} seeds ± half of its 95 % t-interval:",
            "",
            *tables.table(["model", *shown], rows),
            "",
            f"Points above the {BEST}, paired by seed, with 95 % t-intervals:",
            "",
            *tables.table(["model", *shown], gains),
        ]
    )


def main(arguments: Sequence[str] | None = None, *, sizes: Sizes | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="tiny: whether it runs")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    if sizes is None:
        sizes = QUICK if given.quick else Sizes()
    work = functools.partial(study, sizes=sizes, out=out)
    found = of_seeds(work, given.seeds, out, file="scores.json", n_jobs=given.jobs)
    return write_results(out, "zoo", found, markdown(found))


if __name__ == "__main__":
    from experiments import zoo

    print(zoo.main())
