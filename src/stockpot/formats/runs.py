"""Which files of a folder are runs, and which are something else: links, parts, averages, soups."""

from __future__ import annotations

import contextlib
import csv
import filecmp
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stockpot._options import option
from stockpot._records import read_regular
from stockpot._types import StrPath
from stockpot.errors import CheckpointError
from stockpot.formats.remote import local_name
from stockpot.formats.table import every_format, record_path, suffix_of
from stockpot.io.paths import natural_key

_OF_TRAINING = re.compile(
    r"(optimizers?|optim_states|schedulers?|scaler|rng_state\w*|random_states\w*|training_args|"
    r"trainer_state|lr_scheduler)([._-].*)?"
)
"""Names of files that training keeps beside the weights, to go on from."""
_AVERAGE = re.compile(r"(^|[._-])(averaged?|avg|ave|swa)([._-]|\d|$)")
_CHOICE = re.compile(r"(^|[._-])(best|last|latest|final|current)([._-]|$)")
"""Names under which trainers repeat one of the other checkpoints."""
_BEST = re.compile(r"(^|[._-])best([._-]|$)")
_PART = re.compile(
    r"(?P<zero>zero_pp_rank_)\d+|(?P<layer>^layer_)\d+(?=-model_.*model_states)|"
    r"(?P<tensor>mp_rank_(\d+_)*|consolidated\.|tp_rank_?|(^|[._-])tp_?\d+[._-]pp_?)\d+|"
    r"(?P<rank>(^|[._-])rank[_-]?)\d+|(?P<shard>-)\d{5}(?=-of-\d{5})"
)
_PARTS = {
    "zero": "partitions of DeepSpeed ZeRO: put them together with the zero_to_fp32.py beside them",
    "layer": "layers of DeepSpeed's pipeline: save the state dict of the whole model",
    "tensor": "tensor-parallel parts: merge them with the converter of the model's library",
    "rank": "parts that ranks of one job wrote: save the full state dict (FSDP: FULL_STATE_DICT)",
    "shard": "shards: give the folder, with its index file",
}
_STEP = re.compile(r"(?:^|[^a-z])(?:global_?)?(?:step|iter|iteration|checkpoint|ckpt)s?[=_-]?(\d+)")
"""The step in the name of a checkpoint."""
_LOWER_IS_BETTER = re.compile(r"loss|perplexity|ppl|error|wer|cer|mae|mse|nll", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """Which of the runs that were found are taken.

    Attributes:
        last: the last so many, in natural order.
        best: the best so many, `by` a metric that a trainer left in names or beside the weights.
        by: the metric; less is better where its name says so (loss, error, perplexity, …).
    """

    last: int | None = option(
        None, minimum=1, metavar="N", help="Only the last N, in the order of their numbers."
    )
    best: int | None = option(
        None, minimum=1, metavar="N", help="Only the N best by --by, as the trainer noted it."
    )
    by: str | None = option(
        None,
        metavar="METRIC",
        help="Metric in names (val_loss=0.2), trainer_state.json, summary.csv or runs.jsonl.",
    )


@dataclass(frozen=True)
class Runs:
    """The checkpoints that arguments stand for.

    Attributes:
        groups: for each argument, what it stands for; several paths come from a folder whose
            entries may repeat each other.
        notes: what was left out or taken together, and why, a sentence each.
    """

    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> list[str]:
        """All of them, in order."""
        return [path for group in self.groups for path in group]


def find_runs(paths: Iterable[StrPath], choice: RunChoice | None = None) -> Runs:
    """What `paths` stand for: every folder of runs is replaced by its runs, in natural order.

    A folder that is itself a checkpoint stands for itself; given alone, and with `checkpoint-N`
    folders in it as trainers leave them, for those and itself. Any other stands for the entries
    named `run-*` in it or in its subfolder `runs`; without those, for every checkpoint directly in
    it, but for links to others of them, averages and soups of them, and what training keeps beside
    them.

    Raises:
        CheckpointError: a folder holds neither a checkpoint nor runs; parts of one model would be
            taken for models; no value of the metric is found.
    """
    names = [os.fspath(path) for path in paths]
    groups, notes = list[tuple[str, ...]](), list[str]()
    for name in names:
        if os.path.isdir(name):  # noqa: PTH112
            found, said = _in_folder(Path(name), alone=len(names) == 1)
            groups.append(tuple(found))
            notes += said
        else:
            groups.append((name,))
    _refuse_parts([path for group in groups for path in group])
    runs = Runs(tuple(groups), tuple(notes))
    return runs if choice is None else _chosen(runs, choice)


def expand_paths(paths: Iterable[StrPath]) -> list[str]:
    """The paths of the checkpoints that `paths` stand for; see `find_runs`."""
    return find_runs(paths).paths


def _in_folder(folder: Path, *, alone: bool) -> tuple[list[str], list[str]]:
    for parent in (folder / "runs", folder):
        if parent.is_dir():
            runs = [p for p in parent.iterdir() if p.name.startswith("run-") and _is_one(p)]
            if runs:
                return _sorted(runs), []
    if _is_one(folder):
        return _of_trainer(folder) if alone else ([local_name(folder)], [])
    inside = [p for p in folder.iterdir() if _is_one(p) and not _OF_TRAINING.fullmatch(p.name)]
    if not inside:
        raise CheckpointError(
            f"{folder} holds neither a checkpoint nor runs; expected model.safetensors, "
            "pytorch_model.bin, an index of shards, or run-* files or folders"
        )
    return _sifted(folder, inside)


def _of_trainer(folder: Path) -> tuple[list[str], list[str]]:
    """A model folder, and the checkpoints of the run that made it."""
    steps = [p for p in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", p.name) and _is_one(p)]
    if not steps:
        return [local_name(folder)], []
    note = (
        f"{folder} holds a model and {len(steps)} checkpoints of its run, and all are taken; give "
        "it together with other folders, or name its file, for the model alone"
    )
    return [*_sorted(steps), local_name(folder)], [note]


def _sifted(folder: Path, inside: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Without links to others, and without what was made of others."""
    notes = []
    kept = dict.fromkeys(sorted(inside, key=lambda p: natural_key(p.name)))
    where = {path.resolve(): path for path in kept if not path.is_symlink()}
    for path in [p for p in kept if p.is_symlink()]:
        other = where.setdefault(path.resolve(), path)
        if other is not path:
            notes.append(f"{path} is a link to {other.name}, which counts once")
            del kept[path]
    for path in [p for p in kept if _CHOICE.search(p.name)]:
        same = next((p for p in kept if not _CHOICE.search(p.name) and _same_file(path, p)), None)
        if same is not None:
            notes.append(f"{path} holds the same as {same.name}, which counts once")
            del kept[path]
    soups = [path for path in kept if _has_record(path)]
    averages = [p for p in kept if p not in soups and _AVERAGE.search(p.name.lower())]
    for found, what in (
        (soups, "a soup that stockpot made"),
        (averages, "an average, by its name"),
    ):
        if found and len(kept) - len(found) > 0:
            for path in found:
                del kept[path]
                notes.append(f"{path} is left out: {what}; name it to take it")
    return [local_name(path) for path in kept], notes


def _same_file(path: Path, other: Path) -> bool:
    """Whether two files are one, or byte for byte alike; those that differ do so early."""
    try:
        return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


def _has_record(path: Path) -> bool:
    try:
        return record_path(path).is_file()
    except CheckpointError:
        return False


def _refuse_parts(paths: Sequence[str]) -> None:
    """Refuse files of one folder that differ only in the number of a rank or shard."""
    groups: dict[tuple[str, str], list[str]] = {}
    kinds: dict[tuple[str, str], str] = {}
    for name in paths:
        path = Path(name)
        # Megatron puts the rank into the name of the folder.
        for part in (path, path.parent):
            found = _PART.search(part.name)
            if found is None or found.lastgroup is None:
                continue
            rest = path.name if part is path.parent else ""
            like = _PART.sub("*", part.name) + "/" + rest
            key = (os.fspath(part.parent), like)
            groups.setdefault(key, []).append(name)
            kinds[key] = next(k for k in _PARTS if found.group(k) is not None)
            break
    parts = [key for key, names in groups.items() if len(names) > 1]
    if parts:
        names = groups[parts[0]]
        raise CheckpointError(
            f"{', '.join(names[:3])}{', …' if names[3:] else ''} are not models but parts of one, "
            f"and are not averaged with each other; they are {_PARTS[kinds[parts[0]]]}"
        )


def steps_of(paths: Sequence[str]) -> tuple[float, ...] | None:
    """The steps of training at which checkpoints were saved; None unless all are known.

    A step stands in the name of a file or of its folder (`step-1000`, `iter_0001000`,
    `epoch=1-step=500`), or is the `global_step` of a `trainer_state.json` in a model folder.

    >>> steps_of(["run/step-100.pt", "run/epoch=1-step=250.ckpt", "run/checkpoint-400"])
    (100.0, 250.0, 400.0)
    """
    found = [_step_of(Path(path)) for path in paths]
    known = tuple(step for step in found if step is not None)
    return known if found and len(known) == len(found) else None


def read_steps(path: StrPath) -> dict[str, float]:
    """A table of steps or tokens: name of a checkpoint → when it was saved.

    A `.csv` (or `.tsv`) whose first two columns are the name and the number; a first line without a
    number is a heading, and further columns are of no account.

    Raises:
        CheckpointError: it cannot be read, or a line has no number; shows the line.
    """
    separator = "\t" if str(path).endswith(".tsv") else ","
    try:
        text = io.StringIO(read_regular(path).decode("utf-8-sig"), newline="")
        rows = [row for row in csv.reader(text, delimiter=separator) if any(row)]
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(f"the table of steps {path} cannot be read: {error}") from None
    found = {}
    for number, row in enumerate(rows):
        try:
            step = float(row[1])
        except (IndexError, ValueError):
            step = math.nan
        if math.isfinite(step):
            found[row[0].strip()] = step
        elif number > 0:
            raise CheckpointError(
                f"{path} has the line {separator.join(row)!r}; expected the name of a checkpoint "
                "and its step, such as step-100.pt,100"
            )
    return found


def steps_in_table(paths: Sequence[str], table: Mapping[str, float]) -> tuple[float, ...]:
    """The step of each path: the row of its name, with or without suffix, or of the whole path.

    >>> steps_in_table(["run/a.pt", "run/b"], {"a": 10, "b": 20, "c": 30})
    (10.0, 20.0)

    Raises:
        CheckpointError: there is no row for one.
    """
    found = []
    for path in paths:
        name = Path(path).name
        row = next((key for key in (path, name, Path(name).stem) if key in table), None)
        if row is None:
            rows = ", ".join(list(table)[:4]) or "nothing"
            more = ", …" if len(table) > 4 else ""
            raise CheckpointError(f"the table of steps has no row for {path}; it has {rows}{more}")
        found.append(float(table[row]))
    return tuple(found)


def _step_of(path: Path) -> float | None:
    for name in (path.name.lower(), path.parent.name.lower()):
        named = _STEP.findall(name)
        if named:
            return float(named[-1])
    state = _json_lines(path / "trainer_state.json", whole=True)
    step = state[0].get("global_step") if state else None
    return float(step) if isinstance(step, int | float) and math.isfinite(step) else None


def without_repeats(paths: Sequence[str], content: Sequence[object]) -> tuple[list[int], list[str]]:
    """Which of `paths`, by position, are not a copy of another; and a sentence for each copy.

    Of equal ones that stays which is not named best, last or the like.

    Args:
        paths: of one folder.
        content: what is equal where contents are.
    """
    order = sorted(range(len(paths)), key=lambda i: bool(_CHOICE.search(Path(paths[i]).name)))
    first: dict[object, int] = {}
    notes = []
    for i in order:
        other = first.setdefault(content[i], i)
        if other != i:
            notes.append(
                f"{paths[i]} holds the same as {Path(paths[other]).name}, which counts once"
            )
    return sorted(first.values()), notes


def _chosen(runs: Runs, choice: RunChoice) -> Runs:
    if choice.best is None and choice.last is None:
        return runs
    if choice.best is not None and choice.by is None:
        raise CheckpointError("the best by what? Say the metric: --by METRIC, such as val_loss")
    paths = runs.paths
    kept = set(paths)
    if choice.best is not None and choice.by is not None:
        values = {path: _noted(Path(path), choice.by) for path in paths}
        known = {path: value for path, value in values.items() if value is not None}
        if len(known) < min(choice.best, len(paths)):
            raise CheckpointError(
                f"{choice.by!r} is noted for {len(known)} of {len(paths)} checkpoints, in their "
                "names, a trainer_state.json, summary.csv or runs.jsonl; expected it for "
                f"{choice.best} at least"
            )
        sign = 1 if _LOWER_IS_BETTER.search(choice.by) else -1
        kept = set(sorted(known, key=lambda path: sign * known[path])[: choice.best])
    if choice.last is not None:
        timed = sorted(paths, key=lambda path: _when(Path(path).name))
        last = [path for path in timed if path in kept][-choice.last :]
        kept = set(last)
    groups = tuple(tuple(path for path in group if path in kept) for group in runs.groups)
    taken = [path for path in paths if path in kept]
    note = f"{len(taken)} of {len(paths)} checkpoints are taken: {', '.join(taken)}"
    return Runs(tuple(group for group in groups if group), (*runs.notes, note))


def _when(name: str) -> int:
    """Before the numbers what is called best, which is of any time; behind them what is the last.

    >>> sorted(["last.pt", "model_best.pt", "epoch2.pt"], key=_when)
    ['model_best.pt', 'epoch2.pt', 'last.pt']
    """
    if _BEST.search(name):
        return 0
    return 2 if _CHOICE.search(name) else 1


def _noted(path: Path, metric: str) -> float | None:
    """The value of `metric` that a trainer noted of the checkpoint at `path`."""
    wanted = re.escape(metric)
    named = re.search(rf"(^|[^A-Za-z_]|_){wanted}[=_:-]?(-?\d+(\.\d+)?(e-?\d+)?)", path.name)
    if named is not None:
        return float(named.group(2))
    state = _json_lines(path / "trainer_state.json", whole=True)
    history = state[0].get("log_history") if state else None
    entries = history if isinstance(history, list) else []
    entries = [e for e in entries if isinstance(e, dict)]
    entries += [
        line
        for line in _json_lines(path.parent / "runs.jsonl", whole=False)
        if Path(str(line.get("path", line.get("name", "")))).name in (path.name, path.stem)
    ]
    entries += _rows_of(path)
    values = [e[key] for e in entries for key in (metric, f"eval_{metric}") if key in e]
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return numbers[-1] if numbers else None


def _rows_of(path: Path) -> list[dict[str, object]]:
    """What the summary.csv of timm has of the epoch in the name of a checkpoint beside it."""
    named = re.search(r"checkpoint-(\d+)\.", path.name)
    if named is None:
        return []
    try:
        text = read_regular(path.parent / "summary.csv").decode()
        rows = [*csv.DictReader(text.splitlines())]
    except (OSError, ValueError, csv.Error):
        return []
    found: list[dict[str, object]] = []
    for row in (row for row in rows if row.get("epoch") == named[1]):
        with contextlib.suppress(ValueError, TypeError):
            found.append({name: float(value) for name, value in row.items()})
    return found


def _json_lines(path: Path, *, whole: bool) -> list[dict[str, object]]:
    """The JSON objects in a file, one for each line or one in all; none where it cannot be read."""
    try:
        text = read_regular(path).decode()
        found = [json.loads(t) for t in ([text] if whole else text.splitlines()) if t.strip()]
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)]


def _is_one(path: Path) -> bool:
    """Whether `path` looks like one checkpoint; one with a broken layout counts, and is opened."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any(one.is_folder and one.recognises(path, b"") for one in every_format())
    return suffix_of(path, readable=True) != ""


def _sorted(paths: Iterable[Path]) -> list[str]:
    return [local_name(path) for path in sorted(paths, key=lambda path: natural_key(path.name))]
