"""Run the same commands in two checkouts and say where their results differ.

For changes of the code that must not change what it does: every checkpoint has to come out with the
same bytes, every JSON with the same keys and values, and what the old code wrote (soups, records,
journals, sweeps) has to verify and go on under the new.

    python scripts/compare_checkouts.py ../before .
    python scripts/compare_checkouts.py ../before . --only average greedy continuity
    python scripts/compare_checkouts.py ../before . --norm batch

Inputs are small and made on the spot: the old checkout trains them, once for both. Both checkouts
then work in one and the same folder, one after the other, so that paths in records are equal. A
table with a row for each command goes to stdout, progress to stderr. Exit status: 0 when all is
equal, 1 when not, 2 for wrong usage.

Failures are missing keys, other values, other bytes and other exit codes. New keys and new files
are only noted. What may differ on its own stands in IGNORED, and deliberate corrections in ALLOWED.
Nothing of stockpot is imported here, so any two checkouts will do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from checkout_runs import (
    Case,
    Outcome,
    Ran,
    Side,
    all_cases,
    environment,
    run_side,
    say,
    train_inputs,
    write_start,
)


@dataclass(frozen=True)
class Allowed:
    """A difference that is meant; `case`, `where` and `path` are patterns: `steps.*.p_value`.

    Keys may go only with `keys`, such as the paths of ingredients that a better rule leaves out;
    those of CONTRACT may not even then.
    """

    case: str
    where: str
    path: str
    reason: str
    keys: bool = False


_NOISE = "within noise means that the 95 % interval holds 0, and no longer p > 0.05"
ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "average*",
        "*",
        "soup.notes",
        "averaged statistics of BatchNorm are pointed out where no data are there to remake them",
    ),
    Allowed("average-top", "*", "*chosen_on", "the split that ranked the ingredients did choose"),
    *(
        Allowed(case, "journal", "", "the best single run is scored on all splits, for the gain")
        for case in ("average-top", "greedy", "trajectory", "continuity-greedy")
    ),
    Allowed("journal", "stdout", "entries", "more of its entries are of baselines"),
    Allowed("*", "*within_noise", "*", _NOISE),
    Allowed("*", "*", "*within_noise", _NOISE),
    Allowed("*", "*", "*degrees", "angles are written to ten decimals"),
    Allowed("*", "*", "*distance", "sums over parameters in another order: the last digit"),
    Allowed("*", "*report.json", "*", "reports of format 2; those of format 1 are read"),
    Allowed("report", "*", "*", "pages have other figures, and their data with them", keys=True),
    Allowed("learned", "*", "*", "the part that decides does not pick the epoch", keys=True),
    Allowed("auto", "*", "*", "the simplest within noise of the best is taken", keys=True),
    Allowed("demo", "*", "*", "another regime of fine-tuning", keys=True),
    Allowed(
        "trajectory",
        "*",
        "*examples_evaluated",
        "counted by content, so that a resumed run says the same",
    ),
)

# Keys whose values are no result. The keys themselves have to be there.
IGNORED: Mapping[str, str] = {
    "seconds": "time",
    "created": "time",
    "wall time of this call": "time",
    "peak_bytes": "memory",
    "memory_bytes": "memory",
    "environment": "versions of other packages, and the machine",
    "stockpot": "version of the package",
}

# Keys that scripts rely on, by command; of several tuples, one has to be there.
CONTRACT: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "demo": (("scores", "soups", "report", "seconds"),),
    "inspect": (  # moves are those from --base
        ("checkpoints", "compatible", "problems", "moves"),
        ("checkpoints", "compatible", "problems"),
    ),
    "average": (("output", "ingredients", "bytes_read", "bytes_written", "seconds"),),
    "interpolate": (("curve", "chosen"), ("curves",)),
    "greedy": (("selected", "steps", "scores", "examples_evaluated", "examples_plain"),),
    "pruned": (("selected", "steps", "scores", "examples_evaluated", "examples_plain"),),
    "learned": (("coefficients", "beta", "losses", "scores", "peak_bytes"),),
    "auto": (("chosen", "table"),),
    "evaluate": (("scores", "pairs", "ensemble"),),
    "sweep": (("base", "runs"),),
    "trajectory": (("window", "scores", "curve"),),
    "sparse": (("phases", "sparsity", "scores"),),
    "verify": (("verified", "differences"),),
}
ERROR = ("type", "message", "problems")

CHECKPOINTS = (".safetensors", ".pt")
PAGES = (".html", ".md", ".svg", ".parquet")  # only whether they are made
SHOWN = 12  # differences of one command


# Comparing


@dataclass(frozen=True)
class Difference:
    """Where two results differ; `path` leads into the JSON, and is empty for a whole file."""

    kind: Literal["missing", "new", "differs"]
    path: str
    text: str


@dataclass
class Row:
    """What the comparison of one case found; it gathers while files and outputs are compared."""

    case: str
    seconds: tuple[float, float] = (0.0, 0.0)
    files: int = 0
    values: int = 0
    failures: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, where: str, difference: Difference) -> None:
        """Keep a difference as what it is: a failure, one that is meant, or a note."""
        at = f"{where}: {difference.path}" if difference.path else where
        text = f"{at}: {difference.text}"
        meant = reason_of(self.case, where, difference)
        if difference.kind == "new":
            self.notes.append(re.sub(r"\.\d+\b", ".*", text))  # of a list's entries once
        elif meant is not None:
            self.allowed.append(f"{text} ({meant})")
        else:
            self.failures.append(text)


def reason_of(case: str, where: str, difference: Difference) -> str | None:
    """Why ALLOWED lets this pass; None if it does not."""
    for one in ALLOWED:
        if difference.kind == "missing" and not one.keys:
            continue
        given = ((case, one.case), (where, one.where), (difference.path, one.path))
        if all(fnmatchcase(text, pattern) for text, pattern in given):
            return one.reason
    return None


def differences(old: Any, new: Any, path: str = "", *, keys_only: bool = False) -> list[Difference]:
    """How `new` differs from `old`, both of them what JSON holds.

    Below a key in IGNORED only keys are compared.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            at = f"{path}.{key}" if path else key
            if key not in new:
                found.append(Difference("missing", at, f"is missing; it was {short(old[key])}"))
            elif key not in old:
                found.append(Difference("new", at, "is new"))
            else:
                less = keys_only or key in IGNORED
                found += differences(old[key], new[key], at, keys_only=less)
        return found
    if isinstance(old, list) and isinstance(new, list):
        found = []
        if len(old) != len(new) and not keys_only:
            text = f"has {len(new)} entries; it had {len(old)}"
            found.append(Difference("differs", path, text))
        for i, (one, other) in enumerate(zip(old, new, strict=False)):
            found += differences(one, other, f"{path}.{i}" if path else str(i), keys_only=keys_only)
        return found
    if keys_only or same(old, new):
        return []
    return [Difference("differs", path, f"is {short(new)}; it was {short(old)}")]


def same(old: Any, new: Any) -> bool:
    """Whether two leaves are equal; 1 and 1.0 are, 1 and true are not."""
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)


def short(value: Any) -> str:
    """A value, cut to what fits a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else f"{text[:67]}..."


def count_values(value: Any) -> int:
    """How many leaves JSON has."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return sum(map(count_values, inner))
    return 1


def lacking(told: Any, command: str, *, failed: bool = False) -> list[str]:
    """Keys that scripts rely on and that are not there."""
    if failed and "error" in told:
        return [f"error.{key}" for key in ERROR if key not in told["error"]]
    ways = CONTRACT.get(command, ((),))
    return min(([key for key in way if key not in told] for way in ways), key=len)


def compare_calls(row: Row, case: Case, old: Outcome, new: Outcome, number: int) -> None:
    """Exit codes, the JSON on stdout, and what scripts rely on."""
    where = "stdout" if len(case.calls) == 1 else f"stdout {number}"
    for side, one in (("old", old), ("new", new)):
        if one.code != case.code:
            said = f"{side} ended with {one.code}, expected {case.code}: {why(one)}"
            row.failures.append(f"{where}: {said}")
    if row.failures:
        return
    told = [as_json(outcome.stdout) for outcome in (old, new)]
    if not all(isinstance(one, dict) for one in told):
        row.failures.append(f"{where}: no JSON object: {' and '.join(map(short, told))}")
        return
    row.values += count_values(told[0])
    for difference in differences(*told):
        row.add(where, difference)
    gone = lacking(told[1], case.command, failed=case.code != 0)
    row.failures += [f"{where}: {key} is missing, and scripts rely on it" for key in gone]
    if old.stderr != new.stderr:
        row.notes.append(f"{where.replace('stdout', 'stderr')}: other messages")


def why(outcome: Outcome) -> str:
    """What a call that ended as it should not said of it."""
    told = as_json(outcome.stdout)
    if isinstance(told, dict) and "error" in told:
        return f"{told['error'].get('type')}: {told['error'].get('message')}"
    return "".join((outcome.stderr.strip() or outcome.stdout.strip()).splitlines()[-1:])


def as_json(text: str) -> Any:
    """What JSON says; the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def compare_folders(row: Row, old: Path, new: Path) -> None:
    """Every file that a case wrote."""
    before, after = written(old), written(new)
    for name in sorted(before | after):
        if name not in after:
            row.add(name, Difference("missing", "", "is not written any more"))
        elif name not in before:
            row.add(name, Difference("new", "", "is a new file"))
        else:
            row.files += 1
            for difference in compare_files(old / name, new / name):
                row.add(name, difference)


def written(folder: Path) -> set[str]:
    """Names of results in a folder: neither journals nor what is hidden."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)) for path in paths}
    return {n for n in names if ".sqlite" not in n and not any(p[0] == "." for p in n.split("/"))}


def compare_files(old: Path, new: Path) -> list[Difference]:
    """How two files differ, by what they are."""
    before, after = old.read_bytes(), new.read_bytes()
    if old.suffix in PAGES and old.name != "README.md":
        return [] if after else [Difference("differs", "", "is empty")]
    if before == after:
        return []
    if old.suffix == ".json":
        return differences(json.loads(before), as_json(after.decode(errors="replace")))
    if old.suffix == ".jsonl":
        was, now = ([as_json(x) for x in data.decode().splitlines()] for data in (before, after))
        return differences(was, now)
    if old.suffix in CHECKPOINTS:
        return [Difference("differs", "", explain_checkpoint(old, new))]
    return [Difference("differs", "", f"other bytes ({len(after)}; they were {len(before)})")]


def explain_checkpoint(old: Path, new: Path) -> str:
    """Where two checkpoints of different bytes differ."""
    try:
        before, after = (parts_of(path) for path in (old, new))
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        return f"other bytes, which cannot be read: {error}"
    names = sorted(before.keys() | after.keys())
    other = [name for name in names if before.get(name) != after.get(name)]
    if not other:
        return "other bytes around equal tensors (header, order or padding)"
    shown = ", ".join(change(name, before.get(name), after.get(name)) for name in other[:3])
    more = ", …" if len(other) > 3 else ""
    return f"{len(other)} of {len(names)} parts differ: {shown}{more}"


def parts_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Tensors of a safetensors file, or members of a torch file: what they are, and their bytes."""
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            return {name: ("member", archive.read(name)) for name in archive.namelist()}
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, told in json.loads(data[8:start]).items():
        if name == "__metadata__":
            found[name] = ("metadata", json.dumps(told).encode())
        else:
            first, last = told["data_offsets"]
            kind = f"{told['dtype']} {told['shape']}"
            found[name] = (kind, data[start + first : start + last])
    return found


def change(name: str, old: tuple[str, bytes] | None, new: tuple[str, bytes] | None) -> str:
    """How one tensor differs."""
    if old is None or new is None:
        return f"{name} is {'new' if old is None else 'missing'}"
    if old[0] != new[0]:
        return f"{name} is {new[0]}, it was {old[0]}"
    if old[0].startswith("F32") and len(old[1]) == len(new[1]):
        before, after = (np.frombuffer(one[1], "<f4").astype(np.float64) for one in (old, new))
        return f"{name} by up to {np.abs(after - before).max():.3g}"
    return name


def compare_case(case: Case, old: Ran, new: Ran, places: tuple[Path, Path]) -> Row:
    """The row of a case; of one that ended as it should not, only that."""
    row = Row(case.name, (old.seconds, new.seconds))
    for number, pair in enumerate(zip(old.outcomes, new.outcomes, strict=False), 1):
        compare_calls(row, case, *pair, number)
    if any(outcome.code != case.code for ran in (old, new) for outcome in ran.outcomes):
        return row
    for folder in sorted({case.name, case.folder}):
        compare_folders(row, *(place / "out" / folder for place in places))
    if old.scored is None or new.scored is None:
        row.notes.append("the journal cannot be counted: its tables are others")
    elif new.scored > old.scored:
        text = f"{new.scored} examples were scored that it did not know; old {old.scored}"
        row.add("journal", Difference("differs", "", text))
    elif new.scored < old.scored:
        row.notes.append(f"scored {new.scored} examples, old {old.scored}")
    return row


# The whole


def select(cases: Sequence[Case], only: Sequence[str] | None) -> list[Case]:
    """The cases that are named, by their names or by what these begin with, such as `average`."""

    def meant(case: Case, name: str) -> bool:
        return case.name == name or case.name.startswith(f"{name}-")

    unknown = [name for name in only or () if not any(meant(case, name) for case in cases)]
    if unknown:
        known = ", ".join(case.name for case in cases)
        raise ValueError(f"there is no {', '.join(unknown)}; there are {known}")
    return [case for case in cases if not only or any(meant(case, name) for name in only)]


def with_needs(chosen: Sequence[Case], cases: Sequence[Case]) -> list[Case]:
    """These fresh cases and those whose outputs they read."""
    wanted = {case.name for case in chosen}
    for case in reversed(cases):
        if case.name in wanted:
            wanted.update(case.needs)
    return [case for case in cases if case.name in wanted and not case.continues]


def run_all(old: Side, new: Side, chosen: Sequence[Case], work: Path, *, norm: str) -> list[Row]:
    """Run and compare the chosen cases, and the cases that they need."""
    cases = all_cases()
    place, start = work / "run", work / "start"
    write_start(place, norm=norm)
    if any(case.trained for case in with_needs(chosen, cases)):
        say("old  trains the inputs")
        train_inputs(old, place)
    place.rename(start)
    fresh = with_needs([case for case in chosen if not case.continues], cases)
    later = [case for case in chosen if case.continues]
    before = run_side(old, with_needs(chosen, cases), start, place)
    after = run_side(new, fresh, start, place)
    places = (work / old.name, work / new.name)
    rows = [compare_case(c, before[c.name], after[c.name], places) for c in fresh]
    if later:
        again = [run_side(side, later, places[0], place) for side in (old, new)]
        places = (work / f"{old.name}-continued", work / f"{new.name}-continued")
        rows += [compare_case(c, again[0][c.name], again[1][c.name], places) for c in later]
    return rows


def show(rows: Sequence[Row]) -> str:
    """The table, and what is behind its numbers."""
    head = ["case", "old s", "new s", "files", "values", "failures", "allowed", "notes"]
    cells = [head]
    for row in rows:
        counts = (row.files, row.values, len(row.failures), len(row.allowed), len(row.notes))
        times = (f"{seconds:.1f}" for seconds in row.seconds)
        cells.append([row.case, *times, *(str(n) if n else "-" for n in counts)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    ]
    for kind in ("failures", "allowed"):
        listed = [(row.case, getattr(row, kind)) for row in rows if getattr(row, kind)]
        lines += ["", f"{kind}:"] if listed else []
        for case, texts in listed:
            lines += [f"  {case}  {text}" for text in texts[:SHOWN]]
            lines += [f"  {case}  … and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    failed = [row.case for row in rows if row.failures]
    verdict = f"{len(failed)} of {len(rows)} cases differ: {', '.join(failed)}"
    notes = noted(rows)
    return "\n".join(
        [*lines, *notes, "", verdict if failed else f"all {len(rows)} cases are equal"]
    )


def noted(rows: Iterable[Row]) -> list[str]:
    """The notes, each once with the cases that it is about."""
    cases: dict[str, dict[str, None]] = {}
    for row in rows:
        for note in row.notes:
            cases.setdefault(note, {})[row.case] = None
    lines = [f"  {note} ({', '.join(names)})" for note, names in cases.items()]
    return ["", "notes:", *lines] if lines else []


def check_side(side: Side) -> None:
    """Refuse a folder whose code would not be the code that runs."""
    source = side.checkout / "src"
    if not (source / "stockpot" / "__init__.py").is_file():
        raise ValueError(f"{side.checkout} is no checkout: it has no src/stockpot")
    command = [sys.executable, "-c", "import stockpot; print(stockpot.__file__)"]
    ours = environment(side, side.checkout)
    done = subprocess.run(command, env=ours, capture_output=True, text=True, check=False)
    if not done.stdout.startswith(str(source)):
        raise ValueError(f"not the code of {source} runs: {done.stdout.strip() or done.stderr}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and say what was found."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=f"Names: {', '.join(case.name for case in all_cases())}.",
    )
    parser.add_argument("old", type=Path, help="the checkout that is right")
    parser.add_argument("new", type=Path, help="the checkout that is checked")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases, commands or beginnings")
    parser.add_argument(
        "--norm",
        choices=("batch", "group"),
        default="group",
        help="batch: with running statistics, whose rules changed after 0.1",
    )
    parser.add_argument("--work", type=Path, help="a new folder in which to leave everything")
    given = parser.parse_args(arguments)
    old, new = Side("old", given.old.resolve()), Side("new", given.new.resolve())
    try:
        chosen = select(all_cases(), given.only)
        for side in (old, new):
            check_side(side)
        if given.work is not None:
            given.work.mkdir(parents=True)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    with contextlib.ExitStack() as stack:
        if given.work is None:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-"))
        rows = run_all(old, new, chosen, (given.work or Path(temporary)).resolve(), norm=given.norm)
    print(show(rows))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    say(f"{used.ru_utime + used.ru_stime:.0f} s of CPU")
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
