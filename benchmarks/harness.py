"""A greedy soup of language models by lm-evaluation-harness: in this process, and as a program.

    python benchmarks/harness.py --base ../pretraining/seed-0/run/step-01200 --folder ../harness

fine-tunes a small GPT (that of `experiments.pretraining`) 12 times at several rates, and chooses a
greedy soup by minimal pairs of a task of the harness, twice: with `--task lm-eval:…`, and with
`--eval` and a script that calls the harness, as `docs/how-to/language-models.md` has it. Both are
whole commands in processes of their own, without a journal, of one thread. The script is spared the
harness' own ten thousand task files. Both must choose the same soup. Fine-tunes that are there are
kept. Needs the extra lm-eval.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

SCRIPT = """
import sys
import lm_eval
from lm_eval.tasks import TaskManager

found = lm_eval.simple_evaluate(
    model="hf", model_args={{"pretrained": sys.argv[1], "dtype": "float32"}}, tasks=["choosing"],
    device="cpu", batch_size=16, bootstrap_iters=0,
    task_manager=TaskManager(include_path={tasks!r}, include_defaults=False),
)
print(found["results"]["choosing"]["acc,none"])
"""


@dataclass(frozen=True)
class Timed:
    """One command: seconds, seconds of processor, and the JSON that it printed."""

    wall: float
    processor: float
    found: dict[str, Any]


def fine_tunes(base: Path, folder: Path, n: int, *, n_documents: int, n_epochs: int) -> list[Path]:
    """`n` fine-tunes of `base` on documents that it has not seen, at rates from small to large."""
    import numpy as np
    from experiments.small_language import Grammar

    import stockpot
    from stockpot.tasks import resolve

    language = Grammar()
    for name, size, seed in (("train", n_documents, 10), ("val", 40, 11)):
        rows = [json.dumps({"text": text}) for text in language.documents(size, seed=seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    keys = {
        "kind": "causal-lm", "model": str(base.resolve()), "max_length": 64, "drop_shared": True,
        "train": "train.jsonl", "splits": {"val": {"data": "val.jsonl", "role": "held-out"}},
    }  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(keys))
    task = resolve(str(folder / "task.yaml"))
    found = []
    for i, lr in enumerate(np.geomspace(2e-4, 5e-3, n).tolist()):
        out = folder / "runs" / f"run-{i:02d}"
        if not out.exists():
            config = stockpot.TrainConfig(lr=lr, epochs=n_epochs, batch_size=16,
                                          score_every=n_epochs)  # fmt: skip
            stockpot.fine_tune(task, base, config, out=out, seed=i, device="cpu")
        found.append(out)
    return found


def write_tasks(folder: Path, n_pairs: int) -> Path:
    """Two tasks of the harness: pairs that choose and pairs that report."""
    from experiments.pretraining import PAIRS
    from experiments.small_language import Grammar

    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    for name, seed in (("choosing", 20), ("reporting", 21)):
        rows = [json.dumps(row) for row in Grammar().pairs(n_pairs, seed=seed)]
        (tasks / f"{name}.jsonl").write_text("\n".join(rows))
        text = PAIRS.format(folder=tasks).replace("task: subjects", f"task: {name}")
        text = text.replace(f"validation: {tasks}/validation.jsonl", f"test: {tasks}/{name}.jsonl")
        text = text.replace(f"    test: {tasks}/test.jsonl\n", "")
        (tasks / f"{name}.yaml").write_text(text.replace("validation_split: validation\n", ""))
    (folder / "score.py").write_text(SCRIPT.format(tasks=str(tasks)))
    return tasks


def timed(arguments: Sequence[str], out: Path) -> Timed:
    """Run `stockpot greedy` and read what it took."""
    command = [sys.executable, "-m", "stockpot", "greedy", *arguments, "-o", str(out), "--json",
               "--no-journal", "--force"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(wall, used, json.loads(done.stdout))


def compare(
    runs: Sequence[Path], folder: Path, tasks: Path, sizes: Sequence[int]
) -> dict[str, Any]:
    """Both ways, in this process with batches of several sizes, and what they chose.

    Raises:
        SystemExit: the soups differ.
    """
    paths = list(map(str, runs))
    found: dict[str, Any] = {}
    script = f"{sys.executable} {folder / 'score.py'} {{checkpoint}}"
    inside = {
        size: timed(
            [*paths, "--device", "cpu", "--task",
             f"lm-eval:choosing/reporting?include={tasks}&drop_shared=yes&batch_size={size}"],
            folder / f"inside-{size}",
        )
        for size in sizes
    }  # fmt: skip
    program = timed([*paths, "--eval", script], folder / "program")
    for size, one in inside.items():
        if one.found["selected"] != program.found["selected"]:
            raise SystemExit(f"the soups differ: {one.found} {program.found}")
        scored, plain = one.found["examples_evaluated"], one.found["examples_plain"]
        found[f"in process, batches of {size}"] = {
            "wall": one.wall,
            "processor": one.processor,
            "held-out": one.found["scores"]["held-out"]["value"],
            "times faster, wall": program.wall / one.wall,
            "times faster, processor": program.processor / one.processor,
            "examples": f"{scored} of {plain}",
            "saved": 1 - scored / plain,
            "gain": one.found["gain"]["text"],
        }
    found["as a program"] = {
        "wall": program.wall,
        "processor": program.processor,
        "held-out": program.found["scores"]["held-out"]["value"],
        "selected": [Path(path).name for path in program.found["selected"]],
    }
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="model folder to fine-tune")
    parser.add_argument("--folder", type=Path, required=True, help="outside the repository")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=400, help="that choose, and that report")
    parser.add_argument("--documents", type=int, default=600, help="of fine-tuning")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[16, 4, 1],
        help="documents of a forward pass, and of a step of early rejection",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = write_tasks(folder, given.pairs)
    runs = fine_tunes(
        given.base, folder, given.runs, n_documents=given.documents, n_epochs=given.epochs
    )
    found = compare(runs, folder, tasks, given.batch_sizes)
    (folder / "harness.json").write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
