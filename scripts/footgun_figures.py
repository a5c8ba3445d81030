"""Write the pictures of docs/footguns.md, docs/img/footgun-*.svg, from small runs on handwriting.

python scripts/footgun_figures.py --work ../footguns

Every picture shows test accuracy over three seeds: the mean, and a band from the lowest to the
highest. A seed decides the data, the base and the runs. Checkpoints and scores stay in the folder
of `--work`, so a call that was stopped goes on; the numbers are written beside the pictures, to
docs/img/footguns.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stockpot
from stockpot._figures import Axis, Line, LineChart
from stockpot.report.export import to_picture
from stockpot.tasks.handwriting import base_task, make_network
from stockpot.tasks.handwriting.lab import FULL, Lab

OUT = Path(__file__).parents[1] / "docs" / "img"
TUNE = stockpot.TrainConfig(
    lr=2e-3,
    weight_decay=0.01,
    epochs=10,
    batch_size=32,
    warmup_fraction=0.1,
    score_every=10,
)
ALPHAS = tuple(i / 10 for i in range(11))
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 5e-2)
BATCHNORM_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
N_RUNS = 5

Lines = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Picture:
    """Test accuracies: `lines` maps a name to one row per seed, one value for each of `x`."""

    name: str
    x_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[Sequence[float]]]
    logarithmic: bool = False


class Trainer:
    """What is trained and scored for one seed; it has state because it keeps what it has made."""

    def __init__(
        self,
        folder: Path,
        lab: Lab,
        *,
        seed: int,
        build: Callable[[], nn.Module] = make_network,
    ) -> None:
        self.folder, self.lab, self.seed, self.build = folder, lab, seed, build
        self.task = self._with_build(lab.task(seed=seed))

    def _with_build(self, task: stockpot.ClassificationTask) -> stockpot.ClassificationTask:
        return replace(task, build=self.build, version=f"footguns-{self.build.__name__}")

    def initial(self, seed: int) -> dict[str, torch.Tensor]:
        """Fresh weights drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().state_dict()

    def base(self, seed: int) -> str:
        """A network trained on print from the fresh weights of `seed`."""
        task = self._with_build(base_task(seed=self.seed, n_train=self.lab.n_base))
        return self._made(f"base-{seed}", task, self.initial(seed), self.lab.base, seed)

    def run(self, name: str, start: Any, seed: int, **changed: Any) -> str:
        """A fine-tuning run on handwriting."""
        config = replace(TUNE, **{"epochs": min(TUNE.epochs, self.lab.epochs[1]), **changed})
        return self._made(name, self.task, start, config, seed)

    def _made(self, name: str, task: Any, start: Any, config: Any, seed: int) -> str:
        out = self.folder / f"{name}.safetensors"
        if not out.exists():
            stockpot.fine_tune(task, start, config, out=out, seed=seed, device="cpu")
        return str(out)

    def accuracy(
        self,
        paths: Sequence[str],
        shares: Sequence[float],
        *,
        batchnorm: str = "recalibrate",
    ) -> float:
        """Test accuracy of the average of `paths` with these shares."""
        mixture = stockpot.Mixture(
            stockpot.Ingredients(paths), stockpot.Coefficients.per_model(shares)
        )
        evaluator = stockpot.TaskEvaluator(
            self.task, cache=self.folder / "journal", device="cpu", batchnorm=batchnorm
        )
        return evaluator.score(mixture, "test").value

    def line(self, one: str, other: str, **options: Any) -> list[float]:
        """Accuracies from `one` to `other`."""
        return [self.accuracy([one, other], [1 - a, a], **options) for a in ALPHAS]


def starts(trainer: Trainer) -> Lines:
    """Between two runs from one base, and between two runs from two bases."""
    base, another = trainer.base(0), trainer.base(1)
    one, two = trainer.run("start-a", base, 1), trainer.run("start-b", base, 2)
    far = trainer.run("start-c", another, 2)
    return {"one base": trainer.line(one, two), "two bases": trainer.line(one, far)}


def heads(trainer: Trainer) -> Lines:
    """Uniform soups of 1, 2, … runs whose random heads were drawn once, or by each run."""
    base = stockpot.open(trainer.base(0))

    def start(seed: int, head: tuple[str, ...]) -> dict[str, torch.Tensor]:
        fresh = trainer.initial(100 + seed)
        return {n: fresh[n] if n.startswith(head) else base.read(n) for n in base}

    def soups(kind: str, head: tuple[str, ...], seed: Callable[[int], int]) -> list[float]:
        paths = [trainer.run(f"head-{kind}-{i}", start(seed(i), head), i) for i in range(N_RUNS)]
        return [trainer.accuracy(paths[:k], [1 / k] * k) for k in range(1, N_RUNS + 1)]

    last, two = ("12.",), ("10.", "12.")
    return {
        "shared head": soups("shared", last, lambda _: 0),
        "own head": soups("own", last, lambda i: i),
        "own head of two layers": soups("own-two", two, lambda i: i),
    }


def three_runs(trainer: Trainer, lr: float) -> list[str]:
    """Runs at one learning rate that differ in their seeds."""
    return [trainer.run(f"rate-{lr:g}-{i}", trainer.base(0), i, lr=lr) for i in range(3)]


def mean_run(trainer: Trainer, paths: Sequence[str]) -> float:
    """Mean accuracy of single runs."""
    return statistics.fmean(trainer.accuracy([path], [1.0]) for path in paths)


def rates(trainer: Trainer) -> Lines:
    """Three runs and their uniform soup at each learning rate."""
    runs = [three_runs(trainer, lr) for lr in RATES]
    return {
        "mean of three runs": [mean_run(trainer, paths) for paths in runs],
        "their soup": [trainer.accuracy(paths, [1 / 3] * 3) for paths in runs],
    }


def batchnorm_network() -> nn.Module:
    """The network of the example with BatchNorm where it has GroupNorm."""
    network: Any = make_network()
    for i, layer in enumerate(network):
        if isinstance(layer, nn.GroupNorm):
            network[i] = nn.BatchNorm2d(layer.num_channels)
    return network


def batchnorm(trainer: Trainer) -> Lines:
    """The same with BatchNorm, whose statistics are averaged, or made again."""
    runs = [three_runs(trainer, lr) for lr in BATCHNORM_RATES]

    def soups(how: str) -> list[float]:
        return [trainer.accuracy(paths, [1 / 3] * 3, batchnorm=how) for paths in runs]

    return {
        "mean of three runs": [mean_run(trainer, paths) for paths in runs],
        "soup, recalibrated": soups("recalibrate"),
        "soup, averaged": soups("average"),
    }


@dataclass(frozen=True)
class Recipe:
    """How a picture is made."""

    lines: Callable[[Trainer], Lines]
    x_label: str
    x: Sequence[float]
    build: Callable[[], nn.Module] = make_network
    logarithmic: bool = False


BETWEEN = "share of the second run"
PICTURES: Mapping[str, Recipe] = {
    "starts": Recipe(starts, BETWEEN, ALPHAS),
    "heads": Recipe(heads, "runs in the uniform soup", tuple(range(1, N_RUNS + 1))),
    "rates": Recipe(rates, "learning rate", RATES, logarithmic=True),
    "batchnorm": Recipe(
        batchnorm, "learning rate", BATCHNORM_RATES, batchnorm_network, logarithmic=True
    ),
}


def cook(name: str, work: Path, seeds: Sequence[int], lab: Lab) -> Picture:
    """The numbers of one picture."""
    recipe = PICTURES[name]
    found = []
    for seed in seeds:
        folder = work / recipe.build.__name__ / f"seed-{seed}"
        found.append(recipe.lines(Trainer(folder, lab, seed=seed, build=recipe.build)))
    return Picture(
        name,
        recipe.x_label,
        recipe.x,
        {line: [one[line] for one in found] for line in found[0]},
        recipe.logarithmic,
    )


def draw(picture: Picture) -> str:
    """The picture as an SVG file of its own, for light and dark."""
    lines = []
    for name, rows in picture.lines.items():
        columns = list(zip(*rows, strict=True))
        lines.append(
            Line(
                name=name,
                x=tuple(map(float, picture.x)),
                y=tuple(map(statistics.fmean, columns)),
                low=tuple(map(min, columns)),
                high=tuple(map(max, columns)),
            )
        )
    chart = LineChart(
        name=f"footgun-{picture.name}",
        title=f"Test accuracy against {picture.x_label}: {' and '.join(picture.lines)}",
        x=Axis(name=picture.x_label, scale="log" if picture.logarithmic else "linear"),
        y=Axis(name="test accuracy (%)", percent=True),
        lines=tuple(lines),
    )
    return to_picture(chart)


def main(arguments: Sequence[str] | None = None, *, lab: Lab = FULL) -> None:
    """Make the pictures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=PICTURES, nargs="+", default=list(PICTURES))
    given = parser.parse_args(arguments)
    OUT.mkdir(exist_ok=True)
    numbers = OUT / "footguns.json"
    told = json.loads(numbers.read_text()) if numbers.exists() else {}
    for name in given.only:
        picture = cook(name, given.work, given.seeds, lab)
        (OUT / f"footgun-{name}.svg").write_text(draw(picture))
        told[name] = {**asdict(picture), "seeds": given.seeds}
    numbers.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
