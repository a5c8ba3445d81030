"""LoRA adapters of one encoder: soups of them beside what PEFT makes of the same files.

    python -m experiments.adapters train --data DATA --out ../adapters --seeds 0 1 2
    python -m experiments.adapters score --data DATA --out ../adapters --seeds 0 1 2

`train` fine-tunes, per sweep, eight adapters of MiniLM on SST-2: ranks 4, 8, 16 and 8 again, each
with two learning rates, all from one base whose head is made of label sentences (`modules_to_save`
holds the head of each). They are written as PEFT folders, `OUT/sweep-0/adapters/run-0`. `score`
chooses on held-out and reports on test and on product reviews. What is already there is kept.
Without an accelerator a sweep takes half an hour of one core. `--quick` means nothing.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.ingredients import save
from torch.nn import functional

import stockpot
from experiments import sst2_minilm

RANKS, RATES = (4, 8, 16, 8), (5e-4, 3e-3)
TARGETS = ("query", "key", "value", "dense")
N_STEPS, BATCH, WARMUP = 60, 32, 6


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
    config = peft.LoraConfig(
        r=run.rank, lora_alpha=2 * run.rank, target_modules=list(TARGETS), modules_to_save=["head"]
    )
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=("train",))
    parser.add_argument("--data", help="folder with text/")
    parser.add_argument("--out", type=Path, required=True, help="outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sweeps")
    parser.add_argument("--quick", action="store_true", help="try everything in a few steps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    n_steps = 2 if options.quick else N_STEPS
    data = sst2_minilm.data_folder(options.data)
    for seed in options.seeds:
        train(Sweep(seed, data, options.out.resolve(), n_steps))


if __name__ == "__main__":
    main()
