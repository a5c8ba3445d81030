"""Zoo-Tuning of several pretrained models on one task, to one plain model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stockpot._records import parse
from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.errors import RecipeError, ReportError
from stockpot.evaluate.splits import with_build
from stockpot.formats.memory import from_state_dict
from stockpot.formats.opening import open as open_checkpoint
from stockpot.recipes.result import RecordedDetails
from stockpot.recipes.simple import Uniform
from stockpot.tensors._torch import torch_dtype
from stockpot.train.loop import fine_tune
from stockpot.train.run import EpochRecord
from stockpot.train.run_folder import RunFolder
from stockpot.train.weights import Start, as_checkpoint, save_weights
from stockpot.train.zoo.layers import ZooLayer, folded, unfolded

if TYPE_CHECKING:
    from stockpot.evaluate.evaluator import Evaluator
    from stockpot.evaluate.task import Task
    from stockpot.formats.base import Checkpoint
    from stockpot.recipes.soup import Soup
    from stockpot.train.config import TrainConfig

NO_DECAY = ("*.transforms", "*.gate", "*.gate_bias", "*.hidden", "*.hidden_bias")
"""Parameters that decay would pull away from the identity, or from 1/m."""
_UNFOLDED, _FOLDED, _TRAINED = "unfolded.safetensors", "folded.safetensors", "training.json"


@dataclass(frozen=True, kw_only=True)
class ZooResult:
    """What Zoo-Tuning made.

    Attributes:
        soup: the folded model, scored; its record names the folded file.
        gates: layer → the share of each model, in the order given.
        fresh: names of what no model could give, such as a new head: drawn from the seed.
        epochs: loss and held-out scores, epoch by epoch.
        unfolded: path of the model before it was folded.
    """

    soup: Soup
    gates: Mapping[str, tuple[float, ...]]
    fresh: tuple[str, ...]
    epochs: tuple[EpochRecord, ...]
    unfolded: str

    def to_json(self) -> dict[str, JSON]:
        """The soup's keys, with `models`, `gates`, `fresh` and `epochs`."""
        return self.soup.to_json()


def tune(
    models: Sequence[Start],
    task: Task,
    config: TrainConfig,
    *,
    folder: StrPath,
    seed: int = 0,
    evaluator: Evaluator | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    force: bool = False,
) -> ZooResult:
    """See `ZooTuning.run`."""
    if len(models) < 2:
        raise RecipeError("Zoo-Tuning adapts two models or more; a single one is fine-tuned")
    given = [as_checkpoint(model) for model in models]
    trained = replace(config, no_decay=(*config.no_decay, *NO_DECAY))
    network, fresh = _network(given, task, seed)
    place = RunFolder(
        path=Path(folder), marker="zoo.json", kind="a Zoo-Tuning", alone=True,
        owned=(_UNFOLDED, _FOLDED, _TRAINED), force="force=True (--force)",
        other="folder=…, --work",
    )  # fmt: skip
    place.claim(
        {
            "models": [one.fingerprint for one in given],
            "seed": seed,
            "task": task.version,
            "training": _plain(trained),
        },
        force=force,
    )
    out = place.path / _UNFOLDED
    known = place.read(_TRAINED) if out.exists() else None
    if known is None:
        done = fine_tune(
            with_build(task, functools.partial(copy.deepcopy, network)), network, trained,
            out=out, seed=seed, device=device, progress=progress, force=True,
        )  # fmt: skip
        known = {"epochs": [_plain(one) for one in done.epochs]}
        place.write(_TRAINED, known)
    open_checkpoint(out).load_into(network)
    values = _folded(network, given[0])
    save_weights(place.path / _FOLDED, values, like=from_state_dict(values), force=True)
    gates = {
        name: tuple(float(share) for share in layer.gates)
        for name, layer in network.named_modules()
        if isinstance(layer, ZooLayer)
    }
    soup = Uniform().cook([place.path / _FOLDED], task, evaluator=evaluator)
    history = parse(tuple[EpochRecord, ...], known.get("epochs", []), error=ReportError)
    details: dict[str, JSON] = {
        "models": [one.path for one in given],
        "gates": {name: list(shares) for name, shares in gates.items()},
        "fresh": list(fresh),
        "epochs": known.get("epochs", []),
    }
    return ZooResult(
        soup=replace(
            soup,
            recipe="zoo",
            options=_plain(trained),
            details=RecordedDetails(data=details),
            gain=None,
            baselines=(),
        ),
        gates=gates,
        fresh=tuple(fresh),
        epochs=history,
        unfolded=str(out),
    )


def _network(
    given: Sequence[Checkpoint], task: Task, seed: int
) -> tuple[torch.nn.Module, list[str]]:
    """The unfolded network at its start; what is new in it is drawn from the seed."""
    states = [{name: one.read(name) for name in one} for one in given]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unfolded(task.build(), states, seed=seed)


def _folded(network: torch.nn.Module, first: Checkpoint) -> dict[str, torch.Tensor]:
    """The plain weights of a trained network, in the dtypes of the first model."""
    dtypes = {name: torch_dtype(spec.dtype) for name, spec in first.items()}
    return {
        name: value.to(dtypes[name]) if name in dtypes and value.is_floating_point() else value
        for name, value in folded(network).items()
    }


def _plain(value: Any) -> dict[str, JSON]:
    """A frozen record as JSON."""
    found: dict[str, JSON] = {
        name: list(item) if isinstance(item, tuple) else item
        for name, item in asdict(value).items()
    }
    return found
