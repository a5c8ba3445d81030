"""What the fuzzers share: mutations, one driver, and what counts as harm.

A case is some bytes, made from a seed. Reading them must give a value or a `StockpotError`, within
ten seconds and without the process growing by more than 64 MB; anything else fails the run. Cases
come in parts of 5,000 that depend on the seed and the number of the part alone. With `--results` a
run that is given again goes on behind the parts that are done. With `--guided`, where atheris is
installed (`pip install atheris`), the cases are the corpus that coverage leads on from.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stockpot import StockpotError

SECONDS_PER_CASE = 10
MAX_GROWTH_BYTES = 64_000_000
PART = 5_000

# Kinds of scalars that attack a reader of JSON.
NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 4, 8, 16, 63, 64, 100, -1, -8, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64,
    10**30, 1.0, 0.5, 1e400, -0.0, 5e-324, True, False, None, "1", [], {}, [1], float("nan"),
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", "\0", "ü", "\ud800", "x" * 300, "..", "../../etc/passwd", "/dev/zero", "hf:a/b", "a\nb",
    "\x1b[31m", "[red]", "\u202e", "<script>", "constructor", "__class__", "0.5", "nan", "1e999",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader and the cases that are thrown at it.

    Attributes:
        make: a case from a generator.
        read: reads a case, with a folder to write it to; what came out, in a word.
    """

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], str]


@dataclass
class Tally:
    """What came out of a number of cases."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    growth_bytes: int = 0
    largest_file: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Take in the tally of another part."""
        self.outcomes.update(other.outcomes)
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)
        self.largest_file = max(self.largest_file, other.largest_file)
        self.seconds += other.seconds


def mutated(rng: random.Random, seed: bytes, limit: int | None = None) -> bytes:
    """`seed` with a few mutations, within its first `limit` bytes."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        at = rng.randrange(min(len(data), limit or len(data)))
        action = rng.randrange(7)
        if action == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[at] = rng.randrange(256)
        elif action == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 5))
        elif action == 3:
            del data[at : at + rng.randrange(1, 9)]
        elif action == 4:
            piece = data[at : at + rng.randrange(1, 40)]
            data[at:at] = piece
        elif action == 5:
            del data[at:]
        else:
            value = rng.choice((0, 1, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1))
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (value % 256**width).to_bytes(width, "little")
    return bytes(data)


def any_json(rng: random.Random) -> Any:
    """A small hostile value."""
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.choice(TEXTS)


def mutated_json(rng: random.Random, seed: str) -> bytes:
    """`seed`, which is JSON, with a few places replaced, removed, renamed, doubled or nested."""
    value = json.loads(seed)
    places = list(_places(value))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        parent, key = rng.choice(places)
        action = rng.randrange(8)
        if key not in (parent if isinstance(parent, dict) else range(len(parent))):
            continue  # it went with an earlier mutation
        if action < 4:
            parent[key] = any_json(rng)
        elif action == 4:
            del parent[key]
        elif action == 5:
            other, name = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError, RecursionError, ValueError):
                parent[key] = json.loads(json.dumps(other[name]))
        elif action == 6 and isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = parent.pop(key)
        else:
            for _ in range(rng.choice((1, 3, 70, 2000))):
                parent[key] = [parent[key]] if rng.random() < 0.5 else {"a": parent[key]}
    try:
        data = json.dumps(value).encode()
    except RecursionError:
        data = b"[" * 100_000
    return mutated(rng, data) if rng.random() < 0.2 else data


def _places(value: Any) -> Any:
    """Every (container, key) in a JSON value, without recursion."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = one.keys() if isinstance(one, dict) else range(len(one)) if type(one) is list else ()
        for key in keys:
            yield one, key
            waiting.append(one[key])


def run(target: Target, n: int, seed: str) -> Tally:
    """The tally of `n` cases, in this process."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _too_slow)
    tally, began = Tally(), time.perf_counter()
    rng = random.Random(seed)
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        start_bytes = 0
        for index in range(n):
            if index == min(100, n // 2):  # what is imported on first use is not growth
                start_bytes = _peak_bytes()
            data = target.make(rng)
            tally.largest_file = max(tally.largest_file, len(data))
            at = time.process_time()
            # Of processor time, for others may use the machine; and a limit for what only waits.
            signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_CASE)
            signal.setitimer(signal.ITIMER_REAL, 30 * SECONDS_PER_CASE)
            try:
                tally.outcomes[target.read(data, Path(folder))] += 1
            except StockpotError as error:
                tally.outcomes[type(error).__name__] += 1
                _check_text(error, data, tally)
            except Exception:  # anything that is not in the family is what is looked for
                tally.outcomes["FAILED"] += 1
                tally.failures.append(f"{data[:2000]!r}\n{traceback.format_exc()[-2000:]}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            tally.slowest = max(tally.slowest, time.process_time() - at)
        tally.growth_bytes = max(0, _peak_bytes() - start_bytes)
    tally.seconds = time.perf_counter() - began
    return tally


def _check_text(error: StockpotError, data: bytes, tally: Tally) -> None:
    """A message is for people: it is not the input."""
    if len(str(error)) > 20_000:
        tally.failures.append(f"{data[:2000]!r}\na message of {len(str(error))} characters")


def _too_slow(signum: int, frame: object) -> None:
    raise TimeoutError(f"one case takes more than {SECONDS_PER_CASE} s")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(
    targets: Callable[[], Mapping[str, Target]], about: str, arguments: Sequence[str] | None = None
) -> int:
    """Run the cases and print the tally; 1 when something came out that must not."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="default: all of " + ", ".join(targets()))
    parser.add_argument("--cases", type=int, default=1_000_000, help="of each target")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="append every part here, and go on behind it")
    parser.add_argument("--guided", action="store_true", help="led by coverage, of one target")
    given = parser.parse_args(arguments)
    names = given.targets or list(targets())
    if given.guided:
        return _guided(targets()[names[0]], given.cases, given.seed)
    found: dict[tuple[str, int], Tally] = {}
    if given.results is not None and given.results.exists():
        for line in map(json.loads, given.results.read_text().splitlines()):
            name, part, tally = line["target"], line["part"], line["tally"]
            tally["outcomes"] = collections.Counter(tally["outcomes"])
            found[name, part] = Tally(**tally)
    parts = [
        (name, part) for part in range(-(-given.cases // PART)) for name in names
        if (name, part) not in found
    ]  # fmt: skip
    sizes = [min(PART, given.cases - PART * part) for _, part in parts]
    with ProcessPoolExecutor(given.workers) as pool:
        jobs = [
            pool.submit(_part, targets, name, size, f"{given.seed} {name} {part}")
            for (name, part), size in zip(parts, sizes, strict=True)
        ]
        for place, job in zip(parts, jobs, strict=True):
            found[place] = job.result()
            if given.results is not None:
                line = {"target": place[0], "part": place[1], "tally": vars(found[place])}
                with given.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return _report({k: v for k, v in found.items() if k[0] in names}, given.seed)


def _part(targets: Callable[[], Mapping[str, Target]], name: str, n: int, seed: str) -> Tally:
    return run(targets()[name], n, seed)


def _report(found: Mapping[tuple[str, int], Tally], seed: int) -> int:
    whole: dict[str, Tally] = {}
    for (name, _), tally in sorted(found.items()):
        whole.setdefault(name, Tally()).add(tally)
    for name, tally in whole.items():
        counts = ", ".join(f"{n:,} {what}" for what, n in sorted(tally.outcomes.items()))
        print(
            f"{name}: {tally.outcomes.total():,} cases, seed {seed}, {tally.seconds:.0f} s: "
            f"{counts}; slowest {tally.slowest:.2f} s, largest {tally.largest_file:,} bytes, a "
            f"process grew by {tally.growth_bytes / 1e6:.1f} MB; {len(tally.failures)} failures"
        )
        for failure in tally.failures[:5]:
            print(failure)
    wrong = (t for t in whole.values() if t.failures or t.growth_bytes > MAX_GROWTH_BYTES)
    return int(any(True for _ in wrong))


def _guided(target: Target, cases: int, seed: int) -> int:
    """Cases that coverage leads to; libFuzzer ends the process, with an error when one fails."""
    import atheris

    atheris.instrument_all()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (folder / "corpus").mkdir()
    (folder / "work").mkdir()
    rng = random.Random(seed)
    for i in range(300):
        (folder / "corpus" / str(i)).write_bytes(target.make(rng))

    def one(data: bytes) -> None:
        with contextlib.suppress(StockpotError):
            target.read(data, folder / "work")

    limits = [f"-timeout={SECONDS_PER_CASE}", "-rss_limit_mb=2048", "-max_len=20000"]
    atheris.Setup(
        [sys.argv[0], f"-runs={cases}", f"-seed={seed + 1}", *limits,
         f"-artifact_prefix={folder}/", os.fspath(folder / "corpus")],
        one,
    )  # fmt: skip
    atheris.Fuzz()
    return 0
