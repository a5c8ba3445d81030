"""What is inside checkpoints, and whether they will average: the call behind `stockpot inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stockpot._types import JSON, Progress, no_progress
from stockpot.analysis.adapters import AdapterSummary, adapter_geometry
from stockpot.analysis.geometry import Moves, measure_moves, outlier_text
from stockpot.analysis.initialisation import (
    SameInitialisation,
    quick_evidence,
    warn_of_exchanged_base,
)
from stockpot.errors import MismatchError, Problem
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.base import Checkpoint
from stockpot.formats.encodings import CompressedCheckpoint
from stockpot.formats.fingerprint import cached_fingerprint
from stockpot.formats.runs import Runs
from stockpot.mixing import Mixture, Reconcile, shared_mask
from stockpot.mixing.ingredients import Ingredients, Source, open_base, open_sources
from stockpot.mixing.mixture import check_buffers

FAR = 1.0
"""A move as long as the base's own norm: names and shapes fit, and an average may still fail."""


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """What one checkpoint holds.

    Attributes:
        tensors: how many.
        parameters: elements of all tensors, tied ones once.
        bytes: of all tensors, tied ones once.
        dtypes: how many tensors have each type.
        fingerprint: None unless it was asked for or was made before.
        sparsity: share of zeros in the tensors that are stored sparse, 0..1; None where none is,
            because it is not in the headers then.
        stored_bytes: of all tensors as they are stored, where some are stored sparse; else None.
        notes: how it was read.
    """

    path: str
    format: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    fingerprint: str | None
    sparsity: float | None
    stored_bytes: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Whether one checkpoint seems to share the initialisation of the first one given."""

    path: str
    same_initialisation: SameInitialisation


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect_checkpoints` found.

    Attributes:
        checkpoints: one summary for each, in the order given; the base is not among them.
        compatible: whether they can be averaged (with the base, if there is one); None for one
            alone.
        problems: every reason why not.
        message: the problems as a person reads them, with the remedy; empty without problems.
        moves: with a base, how far each has moved from it.
        adapters: what each is and does, where all of them are adapters.
        starts: without one, what the first values of some tensors say of each but the first;
            empty where they do not fit.
        exchanged: with a base, a warning where one of them lies where the base should; else empty.
    """

    checkpoints: tuple[CheckpointSummary, ...]
    compatible: bool | None
    problems: tuple[Problem, ...]
    message: str
    moves: Moves | None
    starts: tuple[Start, ...] = ()
    exchanged: str = ""
    adapters: tuple[AdapterSummary, ...] = ()

    @property
    def verdict(self) -> str:
        """Whether they will average, where they fit; empty for one alone and where they do not."""
        if not self.compatible:
            return ""
        fit = "They fit: same names, shapes and dtypes."
        return fit + (self._by_first_values() if self.moves is None else self._by_moves(self.moves))

    def _by_moves(self, moves: Moves) -> str:
        others = [
            one.path for one in moves.ingredients if one.same_initialisation.verdict == "different"
        ]
        far = [
            one.path
            for one in moves.ingredients
            if one.distance is not None and one.distance >= FAR and one.path not in others
        ]
        distances = [one.distance or 0.0 for one in moves.ingredients]
        apart = outlier_text([one.path for one in moves.ingredients], distances, "the base")
        if not others and apart:
            return (
                f" But the uniform average will probably collapse: {apart}.\n"
                "Leave them out, or let held-out data choose (stockpot greedy)."
            )
        if not others and far:
            return (
                f" But {len(far)} of {len(moves.ingredients)} moved as far from {moves.base} as it "
                "is from zero:\n"
                "averages over such distances often fail. Let held-out data choose (stockpot "
                "greedy), or\n"
                f"fine-tune with a smaller learning rate: {', '.join(far)}"
            )
        if not others:
            return "" if not self.exchanged else f"\n{self.exchanged}"
        return (
            f" But {len(others)} of {len(moves.ingredients)} most likely did not start from "
            f"{moves.base}, and an average\nwith the others would be worthless: {', '.join(others)}"
        )

    def _by_first_values(self) -> str:
        found = {one.path: one.same_initialisation for one in self.starts}
        others = [path for path, one in found.items() if one.verdict == "different"]
        if others:
            lowest = min(found[path].correlation or 0.0 for path in others)
            return (
                f" But {len(others)} of {len(found) + 1} most likely\n"
                f"did not start where the first did (correlation {lowest:.2f}; near 1 for "
                "children\n"
                "of one start). They share no basin, and an average with it would be worthless:\n"
                f"{', '.join(others)}"
            )
        if all(one.verdict == "shared" for one in found.values()):
            return (
                " By their first values they seem to share an\n"
                "initialisation; give a base (--base) to see how far each has moved from it."
            )
        return (
            " Whether they share an initialisation, without\nwhich an average is worthless, is not "
            "clear from their first values: give a base (--base)."
        )

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on: `moves` with a base, `starts` without."""
        found: dict[str, Any] = {
            "checkpoints": [asdict(one) for one in self.checkpoints],
            "compatible": self.compatible,
            "problems": [asdict(problem) for problem in self.problems],
        }
        if self.adapters:
            found["adapters"] = [asdict(one) for one in self.adapters]
        if self.moves is not None:
            found["exchanged"] = self.exchanged or None
            return {**found, "moves": asdict(self.moves)}
        return {**found, "starts": [asdict(start) for start in self.starts]}


def inspect_checkpoints(
    sources: Iterable[Source] | Runs,
    *,
    base: Source | None = None,
    key: str | None = None,
    fingerprints: bool = False,
    reconcile: Reconcile | None = None,
    progress: Progress = no_progress,
) -> Inspection:
    """What is in `sources`, whether they will average, and with `base` how far each has moved.

    Without `base` and `fingerprints` only headers are read, and of several checkpoints that fit the
    first values of some tensors and those that are never averaged. They fit if averaging them with
    the same options succeeds, unless a weight turns out to be no number. A good average takes more:
    a common initialisation, on which `moves`, or `starts`, has evidence.

    Args:
        sources: paths, checkpoints, state dicts or modules; a folder of runs stands for its runs.
        base: what they were fine-tuned from; its values and theirs are read once.
        key: the section of torch files.
        fingerprints: make those that are not known yet.
        reconcile: what to do about checkpoints that differ in form, as for `Ingredients`.

    Raises:
        CheckpointError: one cannot be read.

    >>> import numpy as np
    >>> run = {"w": np.eye(3, dtype=np.float32)}
    >>> found = inspect_checkpoints([run, {"w": 2 * run["w"]}], base=run)
    >>> found.compatible, [move.distance for move in found.moves.ingredients]
    (True, [0.0, 1.0])
    """
    start = None if base is None else open_base(base, key=key)
    opened = open_sources(sources, key=key, base=start)
    problems: tuple[Problem, ...] = ()
    message = ""
    adapters: list[Adapter] = []
    if opened:
        try:
            given = Ingredients(opened, base=start, reconcile=reconcile)
            opened, start = [*given], given.base
            adapters = [one for one in given if isinstance(one, Adapter)]
            aligned, _ = shared_mask(given)
            check_buffers(Mixture(aligned))
        except MismatchError as error:
            problems, message = tuple(error.problems), str(error)
    moves = None
    summaries: tuple[AdapterSummary, ...] = ()
    own = adapters[0].base if adapters and len(adapters) == len(opened) else None
    if start is not None or own is not None:
        broken: tuple[Problem, ...]
        if own is not None:
            geometry, summaries = adapter_geometry(adapters, own, progress=progress)
            moves, broken = geometry.moves(), geometry.problems
        else:
            assert start is not None
            moves, broken = measure_moves(opened, start, progress=progress)
        problems += broken
        message = "\n".join([message] * bool(message) + _lines(broken))
    starts: tuple[Start, ...] = ()
    if moves is None and not problems:
        starts = tuple(Start(c.path, quick_evidence(opened[0], c)) for c in opened[1:])
    exchanged = warn_of_exchanged_base(opened, start) if start is not None and not problems else []
    alone = len(opened) + (start is not None) < 2
    return Inspection(
        tuple(_summary(checkpoint, fingerprints) for checkpoint in opened),
        None if alone else not problems,
        problems,
        message,
        moves,
        starts,
        "".join(exchanged),
        summaries,
    )


def _lines(problems: Sequence[Problem]) -> list[str]:
    return [f"{p.ingredient}: {p.tensor} holds {p.found}, expected {p.expected}" for p in problems]


def _summary(checkpoint: Checkpoint, fingerprints: bool) -> CheckpointSummary:
    sparse = checkpoint if isinstance(checkpoint, CompressedCheckpoint) else None
    return CheckpointSummary(
        path=checkpoint.path,
        format=checkpoint.format,
        tensors=len(checkpoint),
        parameters=checkpoint.n_parameters,
        bytes=checkpoint.n_bytes,
        dtypes=dict(Counter(spec.dtype.value for spec in checkpoint.values()).most_common()),
        fingerprint=checkpoint.fingerprint if fingerprints else cached_fingerprint(checkpoint),
        sparsity=None if sparse is None else sparse.sparsity,
        stored_bytes=None if sparse is None else sparse.stored_bytes,
        notes=checkpoint.notes,
    )
