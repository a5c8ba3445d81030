"""What a sparse soup is made with, and what is measured of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from stockpot._options import option
from stockpot._types import JSON
from stockpot.errors import RecipeError, TrainingError
from stockpot.train.config import TrainConfig
from stockpot.train.schedule import retrain_lengths
from stockpot.train.sparse.cost import ClassQuality, SparseCost
from stockpot.train.sparse.selectors import SemiStructured, parse_selector, phase_sparsities

if TYPE_CHECKING:
    from stockpot.recipes.soup import Soup

Vary = Literal["seed", "weight-decay", "retrain-length", "lr"]
Merge = Literal["uniform", "greedy"]
Schedule = Literal["ft", "lrw", "slr", "clr", "llr", "allr"]
During = Literal["gmp", "dpf", "bimp"]


@dataclass(frozen=True, kw_only=True)
class SparseOptions:
    """Make a dense model sparse, in phases of prune, retrain m copies, average.

    All copies of a phase start from the same pruned weights, so their average is as sparse as they
    are. With one candidate this is iterative magnitude pruning (IMP), with one phase it is one-shot
    pruning. The data that retrain are the task's training set; held-out data choose only where
    `merge` is `"greedy"`.

    With `during` the checkpoint is a start that is trained first, in a budget of `original_epochs`:
    `"gmp"` and `"dpf"` prune while they train and leave the last `epochs` epochs to the candidates,
    which go on with the same schedule under the mask that was found; `"bimp"` trains densely and
    leaves `epochs` epochs to each phase.

    Attributes:
        sparsity: of the result, over all prunable weights.
        n_phases: prune-retrain-average cycles; each prunes the same share of what remains.
        n_candidates: copies that are retrained in each phase.
        vary: what they differ in.
        merge: how they are averaged.
        selector: what is pruned; see `parse_selector`.
        include: patterns of further prunable parameters; see `prunable_names`.
        exclude: patterns of parameters that stay dense.
        schedule: learning rates of retraining; see `retrain_config`.
        epochs: of each retraining.
        lr_max: largest learning rate of the run that made the checkpoint; None for its record's.
        original_epochs: length of that run (with `during`: of the run to come).
        weight_decay: of retraining; None for the record's.
        batch_size: of retraining; None for the record's.
        original: the whole configuration of that run, in place of its record.
        during: how to prune in the course of training, before or between soups; None for not.
        baselines: also make and score what a soup has to be compared with.
        seed: of the retrainings, and of random masks.

    Reference: Zimmer, Spiegel & Pokutta 2023, arXiv 2306.16788, Algorithm 1.
    """

    sparsity: float = option(help="Share of prunable weights that become zero: 0.9.")
    n_phases: int = option(
        3, flags=("--phases",), minimum=1, help="Prune-retrain-average cycles; 1 is one-shot."
    )
    n_candidates: int = option(
        3, flags=("--candidates",), minimum=1, help="Copies retrained in each; 1 is IMP."
    )
    vary: Vary = option("seed", help="What the copies differ in.")
    merge: Merge = option("uniform", help="How they are averaged.")
    selector: str = option(
        "magnitude",
        metavar="NAME",
        help="magnitude, uniform, random, structured, or N:M such as 2:4.",
    )
    include: tuple[str, ...] = option((), metavar="PATTERN", help="Further parameters to prune.")
    exclude: tuple[str, ...] = option((), metavar="PATTERN", help="Parameters to leave dense.")
    schedule: Schedule = option("llr", help="Learning rates of retraining.")
    epochs: int = option(5, minimum=1, help="Of each retraining.")
    lr_max: float | None = option(None, help="Of the run that made CKPT; default: its record's.")
    original_epochs: int | None = option(
        None, minimum=1, help="Of that run; default: its record's."
    )
    weight_decay: float | None = option(None, help="Default: the record's.")
    batch_size: int | None = option(
        None, flags=("--train-batch-size",), minimum=1, help="Default: the record's."
    )
    original: TrainConfig | None = None
    during: During | None = option(
        None, help="CKPT is a start: train it for --original-epochs in all, pruning on the way."
    )
    baselines: bool = option(False, help="Also make what the soup is compared with: IMP and more.")
    seed: int = option(0, help="Of retraining and of random masks.")

    name = "sparse"

    def __post_init__(self) -> None:
        phase_sparsities(self.sparsity, self.n_phases)
        choices: dict[str, tuple[Any, ...]] = {
            "vary": get_args(Vary), "merge": get_args(Merge), "schedule": get_args(Schedule),
            "during": (None, *get_args(During)),
        }  # fmt: skip
        problems = [
            f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        problems += [
            f"{name} is {getattr(self, name)}, expected at least 1"
            for name in ("n_candidates", "epochs")
            if getattr(self, name) < 1
        ]
        if self.during in ("gmp", "dpf") and self.n_phases != 1:
            problems.append(
                f"{self.during} has one phase, whose mask it finds while it trains, and n_phases "
                f"is {self.n_phases}"
            )
        selector = parse_selector(self.selector)
        if isinstance(selector, SemiStructured) and abs(selector.sparsity - self.sparsity) > 1e-9:
            problems.append(
                f"selector {self.selector} makes a sparsity of {selector.sparsity:g}, and sparsity "
                f"is {self.sparsity:g}"
            )
        if self.vary == "retrain-length" and not problems:
            try:
                retrain_lengths(self.epochs, self.n_candidates)
            except TrainingError as error:
                problems.append(str(error))
        if problems:
            raise RecipeError(
                "this sparse soup cannot be made:\n" + "\n".join(f"  {p}" for p in problems)
            )

    def options(self) -> dict[str, JSON]:
        """Everything that the checkpoints depend on, as the folder's marker keeps it."""
        return {k: v for k, v in self.to_json().items() if k != "baselines"}

    def to_json(self) -> dict[str, JSON]:
        """Name and options, as records keep them."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["include"], values["exclude"] = list(self.include), list(self.exclude)
        values["original"] = None if self.original is None else self.original.as_dict()
        return {"name": self.name, **values}


@dataclass(frozen=True, kw_only=True)
class SparseCandidate:
    """One retrained copy: how it was trained, and how far it moved from the pruned start."""

    path: str
    seed: int
    lr: float
    epochs: int
    weight_decay: float
    distance: float
    scores: Mapping[str, JSON]


@dataclass(frozen=True, kw_only=True)
class SparsePhase:
    """One cycle of prune, retrain, average.

    Attributes:
        phase: from 1.
        sparsity: zeros that the soup has, over the prunable weights.
        zeros: their number.
        weights: the prunable weights.
        mask: fingerprint of the mask.
        target: sparsity that was asked for.
        emptied: prunable tensors of which no weight is left, so that nothing passes their layers.
        rate: share of the remaining weights that this phase pruned.
        change: ‖W − Wᵖ‖/‖W‖ over the prunable weights.
        candidates: the retrained copies.
        angles: `{a, b, degrees}` between the moves of each pair of them (indices from 0).
        soup: `{path, selected, coefficients}` of their average.
        scores: of the average, by split.
    """

    phase: int
    sparsity: float
    zeros: int
    weights: int
    mask: str
    target: float
    rate: float
    change: float
    candidates: tuple[SparseCandidate, ...]
    angles: tuple[JSON, ...]
    soup: Mapping[str, JSON]
    scores: Mapping[str, JSON]
    emptied: tuple[str, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """As `phase.json` and the soup's record keep it."""
        return dataclasses.asdict(self) | {
            "candidates": [dataclasses.asdict(one) for one in self.candidates],
            "angles": list(self.angles),
            "emptied": list(self.emptied),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SparsePhase:
        """What `to_json` gave."""
        candidates = tuple(SparseCandidate(**one) for one in data["candidates"])
        lists = {key: tuple(data.get(key, ())) for key in ("angles", "emptied")}
        return cls(**{**data, **lists, "candidates": candidates})


@dataclass(frozen=True, kw_only=True)
class SparseBaseline:
    """A model that a soup is compared with.

    `epochs` are those of all retraining that it took, `models` the forward passes of a prediction.
    """

    scores: Mapping[str, JSON]
    sparsity: float
    epochs: int
    models: int
    quality: Mapping[str, ClassQuality] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SparseResult:
    """A sparse soup, and what was measured on the way.

    Attributes:
        soup: recipe, mixture and scores of the last average; `save` writes it with its record.
        phases: one for each cycle.
        sparsity_of_all: zeros over all weights that float, shared ones once.
        nonzero_parameters: weights that are not zero.
        parameters: weights that float, shared ones once.
        prunable: names of the prunable tensors.
        epochs: `each` retraining, `in_a_row`, and `in_all`.
        cost: parameters and theoretical operations of one prediction.
        quality: calibration and worst class by split; empty for tasks that are no classification.
        baselines: by name; empty where they were not asked for.
    """

    soup: Soup
    phases: tuple[SparsePhase, ...]
    sparsity_of_all: float
    nonzero_parameters: int
    parameters: int
    prunable: tuple[str, ...]
    epochs: Mapping[str, int]
    cost: SparseCost
    quality: Mapping[str, ClassQuality]
    baselines: Mapping[str, SparseBaseline]

    @property
    def sparsity(self) -> float:
        """Zeros of the soup over its prunable weights."""
        return self.phases[-1].sparsity

    def to_json(self) -> dict[str, JSON]:
        """Everything that was decided and measured, the soup's own keys included."""
        return self.soup.to_json()

    def details(self) -> dict[str, JSON]:
        """What a sparse soup adds to the keys of every soup."""
        found: dict[str, JSON] = {
            "phases": [phase.to_json() for phase in self.phases],
            "sparsity": self.sparsity,
            "sparsity_of_all": self.sparsity_of_all,
            "nonzero_parameters": self.nonzero_parameters,
            "parameters": self.parameters,
            "prunable": list(self.prunable),
            "epochs": dict(self.epochs),
            "cost": self.cost.to_json(),
            "quality": {split: dataclasses.asdict(one) for split, one in self.quality.items()},
        }
        if self.baselines:
            found["baselines"] = {n: dataclasses.asdict(one) for n, one in self.baselines.items()}
        return found
