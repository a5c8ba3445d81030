"""LoRA adapters of one encoder: soups of them beside what PEFT makes of the same files.

    python -m experiments.adapters train --data DATA --out ../adapters --seeds 0 1 2
    python -m experiments.adapters score --data DATA --out ../adapters --seeds 0 1 2

`train` fine-tunes, per sweep, eight adapters of MiniLM on SST-2: ranks 4, 8, 16 and 8 again, each
with two learning rates, all from one base whose head, made of label sentences, stays as it is. They
are written as PEFT folders, `OUT/sweep-0/adapters/run-0`. `score`
chooses on held-out and reports on test and on product reviews. What is already there is kept.
Without an accelerator a sweep takes half an hour of one core. `--quick` means nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.common import SHIFT_AVERAGE, write_json, write_results
from experiments.ingredients import first_examples, save
from torch.nn import functional

import stockpot
from experiments import sst2_minilm, tables
from stockpot.evaluate import scores_to_json
from stockpot.mixing import Reconcile

RANKS, RATES = (4, 8, 16, 8), (5e-4, 3e-3)
TARGETS = ("query", "key", "value", "dense")
N_STEPS, BATCH, WARMUP = 100, 32, 10


@dataclass(frozen=True)
class Sweep:
    """Where the adapters of one sweep are, and what they are trained on."""

    seed: int
    data: Path
    out: Path
    n_steps: int = N_STEPS
    folder: Path | None = None

    @property
    def place(self) -> Path:
        return self.out / f"sweep-{self.seed}"

    @property
    def scores(self) -> Path:
        """What was found of it."""
        return self.place / "scores.json"

    @property
    def base(self) -> Path:
        """The weights that all adapters are of."""
        return self.place / "base.safetensors"

    def task(self) -> stockpot.ClassificationTask:
        return sst2_minilm.make_task("sst2", self.data, folder=self.folder)

    @property
    def runs(self) -> list[Run]:
        settings = [(rank, rate) for rank in RANKS for rate in RATES]
        return [Run(self, i, rank, rate) for i, (rank, rate) in enumerate(settings)]


@dataclass(frozen=True)
class Run:
    """One adapter: its rank, and the highest learning rate."""

    sweep: Sweep
    index: int
    rank: int
    rate: float

    @property
    def path(self) -> Path:
        """Its PEFT folder."""
        return self.sweep.place / "adapters" / f"run-{self.index}"

    @property
    def seed(self) -> int:
        return 100 * self.sweep.seed + self.index


def zero_shot(sweep: Sweep) -> sst2_minilm.MeanPooled:
    """The base of every adapter."""
    folder = sweep.folder or sst2_minilm.minilm_folder()
    return sst2_minilm.zero_shot(folder, sst2_minilm.SST2.label_sentences)


def train(sweep: Sweep) -> None:
    """Make what is missing of a sweep."""
    if not sweep.base.exists():
        save(sweep.base, zero_shot(sweep).state_dict())
    data = None
    for run in sweep.runs:
        if (run.path / "adapter_config.json").exists():
            continue
        data = data or sweep.task().train_set
        fit(run, data)
        print(f"sweep {sweep.seed}, run {run.index}", flush=True)


def fit(run: Run, data: Any) -> None:
    """Train one adapter with AdamW, warm-up and linear decay; write it whole or not at all."""
    import peft

    torch.manual_seed(run.seed)  # draws A; B starts at 0, so every adapter starts as the base
    config = peft.LoraConfig(r=run.rank, lora_alpha=2 * run.rank, target_modules=list(TARGETS))
    model = peft.get_peft_model(zero_shot(run.sweep), config)  # type: ignore[arg-type]
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=run.rate, weight_decay=0.01)
    n = run.sweep.n_steps
    warmup = min(WARMUP, n - 1)
    for step, batch in zip(range(n), batches(data, seed=run.seed), strict=False):
        share = (step + 1) / warmup if step < warmup else (n - step) / (n - warmup)
        optimiser.param_groups[0]["lr"] = run.rate * share
        labels = batch.pop("labels")
        loss = functional.cross_entropy(model(**batch), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    part = run.path.with_name(f".{run.path.name}")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    part.rename(run.path)


def batches(data: Any, *, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches without end, every pass in another order, of sentences of about one length.

    Batches are cut from pools of eight that are sorted by length: padding would take longer than
    the words.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH, len(data))
    lengths = data.encoded["attention_mask"].sum(1)
    while True:
        order = torch.randperm(len(data), generator=generator)
        for pool in order.split(8 * size):
            by_length = pool[lengths[pool].argsort(stable=True)]
            parts = [part for part in by_length.split(size) if len(part) == size]
            for i in torch.randperm(len(parts), generator=generator).tolist():
                yield dict(data.__getitems__(parts[i].tolist()))


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def merged(sweep: Sweep, path: Path) -> dict[str, torch.Tensor]:
    """The full weights of one adapter, by PEFT's own merge."""
    import peft

    model = peft.PeftModel.from_pretrained(zero_shot(sweep), path)
    return dict(model.merge_and_unload().state_dict())


def combined(
    sweep: Sweep, runs: Sequence[Run], combination: str, **options: Any
) -> dict[str, torch.Tensor]:
    """The full weights of what PEFT's `add_weighted_adapter` makes of runs of equal weights."""
    import peft

    first, *others = runs
    model = peft.PeftModel.from_pretrained(zero_shot(sweep), first.path, adapter_name="run-0")
    for i, run in enumerate(others, 1):
        model.load_adapter(run.path, adapter_name=f"run-{i}")
    names = [f"run-{i}" for i in range(len(runs))]
    shares = [1 / len(runs)] * len(runs)
    model.add_weighted_adapter(names, shares, "all", combination_type=combination, **options)
    model.set_adapter("all")
    return dict(model.merge_and_unload(adapter_names=["all"]).state_dict())


EQUAL_RANK = 8
"""The runs that PEFT's `linear` can take together, and the rank that soups are cut to."""


def score(sweep: Sweep, *, n_scored: int | None, precision: str = "fp32") -> list[dict[str, Any]]:
    """Every model on every split; choices are made on held-out."""
    whole = sweep.task()
    task = whole if n_scored is None else first_examples(whole, n_scored)
    evaluator = stockpot.TaskEvaluator(
        task, cache=sweep.place / "cache", device="cpu", precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    paths = [run.path for run in sweep.runs]
    models = stockpot.Ingredients(paths, base=sweep.base)
    cut = stockpot.Ingredients(paths, base=sweep.base, reconcile=Reconcile(rank=EQUAL_RANK))
    recipes: dict[str, Any] = {
        BASELINE: stockpot.BestSingle(),
        "uniform": stockpot.Uniform(),
        "greedy": stockpot.Greedy(explain=False),
        "learned": stockpot.Learned(n_epochs=3),
    }
    rows: dict[str, Any] = {"base": stockpot.open(sweep.base)}
    kept = {}
    for name, recipe in recipes.items():
        soup = recipe.cook(models, evaluator=evaluator, report=False)
        rows[name], kept[name] = soup.scored_as, len(soup.selected)
        if name != BASELINE:
            of_rank = f"{name}, rank {EQUAL_RANK}"
            rows[of_rank] = stockpot.Mixture(cut, soup.mixture.coefficients)
    some = [run for run in sweep.runs if run.rank == EQUAL_RANK]
    shares = [float(run in some) / len(some) for run in sweep.runs]
    rows[f"uniform of rank {EQUAL_RANK}"] = stockpot.Mixture(
        models, stockpot.Coefficients.per_model(shares)
    )
    rows |= {name: stockpot.from_state_dict(made) for name, made in by_peft(sweep).items()}
    return [
        {"model": name, "kept": kept.get(name), "scores": scores_to_json(evaluator.scores(model))}
        for name, model in rows.items()
    ]


def by_peft(sweep: Sweep) -> dict[str, dict[str, torch.Tensor]]:
    """What each way of `add_weighted_adapter` makes of the sweep."""
    some = [run for run in sweep.runs if run.rank == EQUAL_RANK]
    economy = {"svd_full_matrices": False}
    return {
        "PEFT cat": combined(sweep, sweep.runs, "cat"),
        "PEFT svd": combined(sweep, sweep.runs, "svd", **economy),
        "PEFT svd, rank 8": combined(sweep, sweep.runs, "svd", svd_rank=EQUAL_RANK, **economy),
        f"PEFT linear of rank {EQUAL_RANK}": combined(sweep, some, "linear"),
    }


def errors(sweep: Sweep) -> dict[str, float]:
    """‖ΔW − mean ΔW‖ / ‖mean ΔW‖ over all weights, of what is to be a mean of equal weights."""
    start = {name: value.double() for name, value in zero_shot(sweep).state_dict().items()}
    moves = {run.index: _move(merged(sweep, run.path), start) for run in sweep.runs}
    some = [run.index for run in sweep.runs if run.rank == EQUAL_RANK]
    wanted = {
        of: {n: sum(moves[i][n] for i in of) / len(of) for n in start}
        for of in (tuple(moves), tuple(some))
    }
    paths = [run.path for run in sweep.runs]
    cut = Reconcile(rank=EQUAL_RANK)
    made: dict[str, Any] = {
        "uniform": stockpot.average(paths, base=sweep.base).state_dict(),
        f"uniform, rank {EQUAL_RANK}": stockpot.average(
            paths, base=sweep.base, reconcile=cut
        ).state_dict(),
        f"uniform of rank {EQUAL_RANK}": stockpot.average(
            [paths[i] for i in some], base=sweep.base
        ).state_dict(),
        **by_peft(sweep),
    }
    found = {}
    for name, weights in made.items():
        of = tuple(some) if f"of rank {EQUAL_RANK}" in name else tuple(moves)
        move, mean = _move(weights, start), wanted[of]
        rest = sum(float((move[n] - mean[n]).square().sum()) for n in start)
        found[name] = (rest / sum(float(one.square().sum()) for one in mean.values())) ** 0.5
    return found


def _move(
    weights: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {name: weights[name].double() - value for name, value in start.items()}


BASELINE = "best single"


def markdown(found: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Scores, and points above the best single adapter of the same sweep."""
    names = [row["model"] for row in found[0]]
    splits = [s for s in found[0][0]["scores"] if s != SHIFT_AVERAGE]

    def values(model: str, split: str) -> list[float]:
        return [
            row["scores"][split]["value"] for one in found for row in one if row["model"] == model
        ]

    scores, gains = [], []
    for name in names:
        kept = [row["kept"] for one in found for row in one if row["model"] == name]
        count = "" if None in kept else f"{statistics.fmean(kept):.1f}"
        cells = [tables.in_percent(tables.over_seeds(values(name, split))) for split in splits]
        scores.append([name, count, *cells])
        above = [
            [a - b for a, b in zip(values(name, s), values(BASELINE, s), strict=True)]
            for s in splits
        ]
        gains.append([name, *(tables.in_points(tables.over_seeds(pair)) for pair in above)])
    distances = []
    for name in names:
        known = [row["error"] for one in found for row in one if row["model"] == name
                 and row.get("error") is not None]  # fmt: skip
        if known:
            distances.append([name, f"{statistics.fmean(known):.2g}", f"{max(known):.2g}"])
    n = len(found)
    return "\n".join(
        [
            f"Accuracy in percent, mean over {n} sweeps ± half of its 95 % t-interval:", "",
            *tables.table(["model", "adapters in it", *splits], scores), "",
            f"Points above {BASELINE}, paired by sweep, with 95 % t-intervals:", "",
            *tables.table(["model", *splits], [row for row in gains if row[0] != BASELINE]), "",
            "Distance of ΔW from the mean of ΔW, relative to that mean:", "",
            *tables.table(["model", "mean over sweeps", "largest"], distances),
        ]
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("train", "score"))
    parser.add_argument("--data", help="folder with text/")
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sweeps")
    parser.add_argument("--examples", type=int, help="score no more of each split")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of scores")
    parser.add_argument("--quick", action="store_true", help="try everything in a few steps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    n_steps = 2 if options.quick else N_STEPS
    data, out = sst2_minilm.data_folder(options.data), options.out.resolve()
    sweeps = [Sweep(seed, data, out, n_steps) for seed in options.seeds]
    if options.step == "train":
        for sweep in sweeps:
            train(sweep)
        return ""
    for sweep in sweeps:
        if not sweep.scores.exists():
            told = score(sweep, n_scored=options.examples, precision=options.precision)
            write_json(sweep.scores, told)
        told = json.loads(sweep.scores.read_bytes())
        if not any("error" in row for row in told):
            known = errors(sweep)
            write_json(sweep.scores, [{**row, "error": known.get(row["model"])} for row in told])
    found = [json.loads(sweep.scores.read_bytes()) for sweep in sweeps]
    by_seed = dict(zip(map(str, options.seeds), found, strict=True))
    return write_results(out, "adapters", by_seed, markdown(found))


if __name__ == "__main__":
    print(main())
