"""Make the data behind a claim again, and set the result beside what is published.

    python -m experiments.reproduce greedy --data ../shared/data --out ../again
    python -m experiments.reproduce --list

runs the commands that are published with the data of the claim (docs/results/data), in order, with
their folders below `--out`, and prints the claim's rows of docs/results/claims.md from the new
numbers. What is done already is kept: a killed call goes on. Handwriting needs no `--data`; the
others read the folder that the commands call DATA. `--print` shows the commands and runs none;
`--quick` tries them in a few steps on the first seed, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import claims

ROOT = Path(__file__).parents[1]
_FILES = {"every_recipe": "every.json", "sparse": "resnet.json"}
"""What an experiment calls its results, where that is not its own name."""
_INGREDIENTS = {"RUNS": "runs", "../ingredients": "runs", "../handwriting": "handwriting"}
"""Folders in published commands that several claims share."""


def commands(data: str) -> list[list[str]]:
    """The published commands behind one data set, as words after `python -m`."""
    told = json.loads((claims.DATA / f"{data}.json").read_text())
    return [shlex.split(line)[2:] for line in told["commands"]]


def placed(words: Sequence[str], data: str | None, out: Path, own: Path) -> list[str]:
    """A command with DATA in place, and folders below `out`; what is no ingredient below `own`.

    Raises:
        ValueError: it reads DATA and none was given.
    """
    if "DATA" in words and data is None:
        raise ValueError(f"python -m {' '.join(words)} reads real data: give --data FOLDER")

    def place(word: str) -> str:
        if word == "DATA":
            return data or ""
        if word in _INGREDIENTS:
            return str(out / _INGREDIENTS[word])
        if word.startswith(("OUT", "../")):
            return str(own / word.removeprefix("../"))
        return word

    return [place(word) for word in words]


def quickly(words: Sequence[str]) -> list[str]:
    """A command in a few steps, on the first of its seeds."""
    words = [*words, "--quick"]
    if "--seeds" not in words:
        return words
    first = words.index("--seeds") + 2
    rest = itertools.dropwhile(str.isdecimal, words[first:])
    return [*words[:first], *rest]


def results_of(words: Sequence[str]) -> Path:
    """The file of results that a placed command writes."""
    name = words[0].rpartition(".")[2]
    return Path(words[list(words).index("--out") + 1]) / _FILES.get(name, f"{name}.json")


def made_again(name: str, data: str | None, out: Path, *, quick: bool = False) -> Path:
    """Run the published commands behind one data set; the file with the new numbers.

    Raises:
        ValueError: they read data that were not given.
        subprocess.CalledProcessError: a command failed.
    """
    lines = [placed(words, data, out, out / name) for words in commands(name)]
    for words in lines:
        _run(quickly(words) if quick else words)
    again = out / "data" / f"{name}.json"
    again.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(results_of(lines[-1]).read_text())
    again.write_text(json.dumps({"found": found}))
    return again


def reproduce(
    claim: claims.Claim, data: str | None, out: Path, *, quick: bool = False
) -> list[list[str]]:
    """Run what the findings of a claim need; their rows from the new numbers.

    Raises:
        ValueError: the claim was not tested, or needs data that were not given.
        subprocess.CalledProcessError: a command failed.
    """
    if not claim.findings:
        raise ValueError(f"{claim.name} was not tested. {claim.untested}")
    for name in dict.fromkeys(finding.data for finding in claim.findings):
        made_again(name, data, out, quick=quick)
    return claims.rows(claim, out / "data", partial=quick)


def _run(words: Sequence[str]) -> None:
    print(f"$ python -m {shlex.join(words)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=_environment(), check=True)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> str:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("claim", nargs="?", help="name in the first column of claims.md")
    parser.add_argument("--data", help="the folder that commands call DATA")
    parser.add_argument("--out", type=Path, default=Path("../again"), help="outside the repository")
    parser.add_argument("--list", action="store_true", help="the names, with their claims")
    parser.add_argument("--quick", action="store_true", help="try everything in a few steps")
    parser.add_argument("--print", action="store_true", help="the commands alone")
    given = parser.parse_args(arguments)
    if given.list or given.claim is None:
        return "\n".join(f"{one.name:20} {one.text}" for one in claims.CLAIMS)
    try:
        claim = claims.named(given.claim)
        if given.print:
            names = dict.fromkeys(finding.data for finding in claim.findings)
            lines = [shlex.join(words) for name in names for words in commands(name)]
            return "\n".join(f"python -m {line}" for line in lines)
        data = None if given.data is None else str(Path(given.data).resolve())
        new = reproduce(claim, data, given.out.resolve(), quick=given.quick)
    except ValueError as error:
        parser.error(str(error))
    head = ["", "claim", "their number", "ours", "verdict"]
    lines = [*claims.tables.table(head, claims.rows(claim)), "", "Made again:", ""]
    return "\n".join([*lines, *claims.tables.table(head, new)])


if __name__ == "__main__":
    print(main())
