"""Write the tables of docs/results from the data beside them, so that the two cannot differ.

    python scripts/results_tables.py
    python scripts/results_tables.py add NAME FILE --command "python -m …" --hardware "…"

A page holds `<!-- table NAME -->` and `<!-- end -->`; what stands between them is made of
`docs/results/data/NAME.json`, which `add` makes of what an experiment wrote: its numbers, the
command, the hardware and the seeds. `NAME` begins with that of the experiment that makes the table,
such as `sparse-resnet`. The table of claims is made of all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "results"
PART = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> Mapping[str, Callable[[Any], str]]:
    """First word of a name → what makes the tables of its data."""
    sys.path[:0] = [str(ROOT)]
    from experiments import (
        adapters,
        angles,
        base_size,
        categories,
        choosing,
        claims,
        clip_soups,
        every_recipe,
        policies,
        pretraining,
        processors,
        questions,
        results,
        robustness,
        small_t5,
        sparse,
        sparse_lengths,
        wise_ft,
        zoo,
    )

    return {
        "adapters": lambda found: adapters.markdown(list(found.values())),
        "angles": angles.markdown,
        "base_size": base_size.markdown,
        "categories": categories.markdown,
        "choosing": choosing.markdown,
        "claims": claims.markdown,
        "clip_soups": clip_soups.markdown,
        "every": every_recipe.markdown,
        "policies": policies.markdown,
        "pretraining": pretraining.markdown,
        "processors": processors.markdown,
        "questions": questions.markdown,
        "robustness": robustness.markdown,
        "small_t5": small_t5.markdown,
        "soups": results.markdown,
        "sparse": sparse.markdown,
        "sparse_lengths": sparse_lengths.markdown,
        "wise_ft": wise_ft.markdown,
        "zoo": zoo.markdown,
    }


def rounded(value: Any) -> Any:
    """JSON with numbers of six digits behind the point, and files by their names.

    What tables show needs no more, and where files lay on one machine is nobody's business.
    """
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if isinstance(value, dict):
        return {rounded(name): rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def filled(text: str, data: Path, make: Mapping[str, Callable[[Any], str]]) -> str:
    """A page with every table made anew."""

    def table(match: re.Match[str]) -> str:
        if match[2] == "claims":  # of all data
            return f"{match[1]}{make['claims'](data)}\n{match[3]}"
        told = json.loads((data / f"{match[2]}.json").read_text())
        commands = "".join(f"$ {line}\n" for line in told["commands"])
        about = f"```console\n{commands}```\n\n{told['hardware']}\n\n"
        return f"{match[1]}{about}{make[match[2].split('-')[0]](told['found'])}\n{match[3]}"

    return PART.sub(table, text)


def main(arguments: list[str] | None = None) -> int:
    """Fill all pages, or add data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", nargs="?", choices=("fill", "add"), default="fill")
    parser.add_argument("name", nargs="?", help="of the data")
    parser.add_argument("file", nargs="?", type=Path, help="that an experiment wrote")
    parser.add_argument("--command", action="append", default=[], help="that made it")
    parser.add_argument("--hardware", default="", help="and when: a sentence below the command")
    given = parser.parse_args(arguments)
    data = PAGES / "data"
    if given.action == "add":
        data.mkdir(exist_ok=True)
        found = rounded(json.loads(given.file.read_text()))
        told = {"commands": given.command, "hardware": given.hardware, "found": found}
        (data / f"{given.name}.json").write_text(json.dumps(told, ensure_ascii=False) + "\n")
    make = tables()
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        if (new := filled(text, data, make)) != text:
            page.write_text(new)
            print(page.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
