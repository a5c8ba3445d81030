"""Averaging k model folders: stockpot, mergekit, a plain loop, and the disk itself.

    python benchmarks/average.py --models 5 --size 1GB --mergekit VENV/bin/mergekit-yaml

makes k folders as transformers writes them (sharded, bfloat16, llama-like shapes, one base and
small moves from it), and runs the contenders on them as whole processes, alternated within each
repetition:

- stockpot: `stockpot average IN… -o OUT`, its caches empty, fingerprints included;
- mergekit: `mergekit-yaml` with its best flags, in an environment of its own, with `--mergekit`;
- loop: a dozen lines of safetensors and torch;
- floor: reads every input once and writes as many bytes as the output has, and nothing else. It is
  given twice: as far as the page cache, and with fsync, which of the others stockpot alone does.

For each: wall time of the process, seconds until its imports are done, the rest, GB/s of inputs and
output together, the peak of its anonymous memory (RssAnon of the process and its children, every
10 ms), whether it finishes with RLIMIT_DATA = 1 GiB, and how far its values are from the float64
mean rounded once. Cold runs follow warm ones: the inputs are dropped from the page cache first.

The data go to `--data` (a temporary folder by default) and are removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # run as a script, it has neither

from benchmarks.llama import make_models, write_json  # noqa: E402

CONTENDERS = ("floor", "stockpot", "mergekit", "loop")
_GiB = 1 << 30
MERGEKIT_FLAGS = (
    "--async-write", "--write-threads", "2", "--out-shard-size", "1B", "-j", "2",
    "--no-write-model-card", "--no-copy-tokenizer", "--quiet",
)  # fmt: skip


# ── the contenders that live here ─────────────────────────────────────────────────────────────────


def run_floor(output: Path, inputs: Sequence[Path]) -> dict[str, float]:
    """Read every input once and write the bytes of one, with two threads and no more."""
    files = [file for path in inputs for file in sorted(path.glob("*.safetensors"))]
    pieces = [(f, at) for f in files for at in range(0, f.stat().st_size, 4 << 20)]
    n_out = sum(file.stat().st_size for file in inputs[0].glob("*.safetensors"))
    outs = range(0, n_out, 4 << 20)
    fds = {file: os.open(file, os.O_RDONLY) for file in files}
    out = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.ftruncate(out, n_out)
    began = time.perf_counter()

    def work(part: int) -> None:
        buffer = bytearray(4 << 20)
        for file, at in pieces[part::2]:
            os.preadv(fds[file], [buffer], at)
        for at in outs[part::2]:
            os.pwrite(out, memoryview(buffer)[: min(len(buffer), n_out - at)], at)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cached = time.perf_counter() - began
    os.fsync(out)
    return {"seconds": cached, "seconds_with_fsync": time.perf_counter() - began}


def run_loop(output: Path, inputs: Sequence[Path]) -> dict[str, float]:
    """The loop that people write: float32 sums, one shard of the output in memory."""
    began = time.perf_counter()
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    imported = time.perf_counter()
    output.mkdir()
    for file in sorted(inputs[0].glob("*.safetensors")):
        opened = [safe_open(path / file.name, "pt") for path in inputs]
        mean = {}
        for name in opened[0].keys():  # noqa: SIM118 — it is no mapping
            total = opened[0].get_tensor(name).float()
            for other in opened[1:]:
                total += other.get_tensor(name)
            mean[name] = (total / len(opened)).to(torch.bfloat16)
        save_file(mean, output / file.name, {"format": "pt"})
    for file in inputs[0].glob("*.json"):
        shutil.copy(file, output)
    seconds = time.perf_counter() - imported
    return {"seconds": seconds, "import_seconds": imported - began}


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Run:
    """One process: what it took."""

    contender: str
    cold: bool
    wall: float
    seconds: float | None  # without imports
    seconds_with_fsync: float | None
    import_seconds: float | None
    peak_anonymous: int
    cpu: float  # user and system, all threads; little disturbed by what else runs


@dataclass
class Report:
    """Everything measured, and where."""

    models: int
    bytes_in: int
    bytes_out: int
    hardware: str
    versions: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    capped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


def command(
    name: str, output: Path, inputs: Sequence[Path], work: Path, mergekit: str
) -> list[str]:
    """The command line of a contender."""
    if name == "stockpot":
        start = "import sys; from stockpot.cli import main; sys.exit(main())"
        paths = [str(path) for path in inputs]
        return [sys.executable, "-c", start, "average", *paths, "-o", str(output), "--json"]
    if name == "mergekit":
        config = {
            "merge_method": "linear",
            "dtype": "bfloat16",
            "models": [{"model": str(p), "parameters": {"weight": 1.0}} for p in inputs],
        }
        write_json(work / "merge.yaml", config)  # JSON is YAML
        return [mergekit, str(work / "merge.yaml"), str(output), *MERGEKIT_FLAGS]
    return [sys.executable, __file__, "--run", name, str(output), *map(str, inputs)]


def measure(
    arguments: list[str], environment: Mapping[str, str], *, data_limit: int | None = None
) -> tuple[float, float, int, subprocess.CompletedProcess[str]]:
    """Run a process; seconds of wall and of CPU, peak anonymous bytes, and how it ended."""

    def limit() -> None:
        if data_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            arguments, stdout=out, stderr=err, env=dict(environment), preexec_fn=limit
        )
        peak = 0
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, sum(_anonymous(pid) for pid in _family(process.pid)))
            time.sleep(0.01)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        cpu = ended[2].ru_utime + ended[2].ru_stime
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return wall, cpu, peak, subprocess.CompletedProcess(arguments, process.returncode, *texts)


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError, ValueError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            yield from _family(int(child))


def _anonymous(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def import_seconds(name: str, mergekit: str) -> float | None:
    """Seconds until the imports of a contender are done, start of the interpreter included."""
    if name == "stockpot":
        modules = "stockpot.cli, stockpot.cli.average, stockpot.mixing, stockpot.recipes.simple"
        arguments = [sys.executable, "-c", f"import {modules}"]
    elif name == "mergekit":
        python = str(Path(mergekit).with_name("python"))
        arguments = [python, "-c", "import mergekit.scripts.run_yaml"]
    else:
        return None
    return min(measure(arguments, environment(Path(os.devnull)))[0] for _ in range(2))


def environment(cache: Path) -> dict[str, str]:
    """That of a contender: this checkout, a cache of its own, no network.

    Bytecode is kept, as that of an installed package is: mergekit has its own.
    """
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": str(ROOT / "src"),
        "STOCKPOT_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the files' pages; they must have been written out before."""
    for path in paths:
        for file in path.iterdir():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def warm_up(paths: Sequence[Path]) -> None:
    """Read all files once."""
    for path in paths:
        for file in path.iterdir():
            with file.open("rb", buffering=0) as opened:
                while opened.read(8 << 20):
                    pass


def one_run(
    name: str, inputs: Sequence[Path], work: Path, mergekit: str, *, cold: bool
) -> tuple[Run, Path]:
    """Run a contender once, its output and caches new."""
    output = work / f"out-{name}"
    _remove(output)
    shutil.rmtree(work / "cache", ignore_errors=True)
    if cold:
        drop_from_cache(inputs)
    arguments = command(name, output, inputs, work, mergekit)
    wall, cpu, peak, ended = measure(arguments, environment(work / "cache"))
    if ended.returncode != 0:
        raise SystemExit(f"{name} failed:\n{ended.stdout}\n{ended.stderr}")
    said = json.loads(ended.stdout) if name != "mergekit" else {}
    keys = ("seconds", "seconds_with_fsync", "import_seconds")
    return Run(name, cold, wall, *(said.get(key) for key in keys), peak, cpu), output


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


# ── values ────────────────────────────────────────────────────────────────────────────────────────


def value_errors(output: Path, inputs: Sequence[Path], *, n_values: int) -> dict[str, float]:
    """How the values of a result differ from the float64 mean rounded once, over a sample.

    Written without stockpot's arithmetic, to be an independent judge of it.
    """
    import stockpot

    opened = [stockpot.open(path) for path in inputs]
    found = stockpot.open(output)
    share = min(1.0, n_values / sum(spec.numel for spec in opened[0].values()))
    wrong, looked_at, worst = 0, 0, 0
    for name, spec in opened[0].items():
        n = max(min(spec.numel, 1000), int(spec.numel * share))
        start = (spec.numel - n) // 2
        blocks = [c.raw(name).view(np.uint16)[start : start + n] for c in opened]
        expected = _rounded_once(np.mean([_float64(block) for block in blocks], axis=0))
        got = found.raw(name).view(np.uint16)[start : start + n]
        steps = np.abs(_ordered(got) - _ordered(expected))
        wrong += int((steps != 0).sum())
        worst = max(worst, int(steps.max(initial=0)))
        looked_at += n
    return {"values": looked_at, "wrong_share": wrong / looked_at, "worst_ulps": worst}


def _float64(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _rounded_once(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """To the even one of two bfloat16 neighbours at a tie: the neighbours are compared exactly."""
    below = (np.abs(values).astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    below -= (_float64(below) > np.abs(values)).astype(np.uint16)
    above = below + np.uint16(1)
    low, high = np.abs(values) - _float64(below), _float64(above) - np.abs(values)
    up = (high < low) | ((high == low) & (below % 2 == 1))
    return np.where(up, above, below) | np.where(np.signbit(values), 0x8000, 0).astype(np.uint16)


def _ordered(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """Integers in the order of the numbers, so that differences count units in the last place."""
    wide = bits.astype(np.int64)
    return np.where(wide < 0x8000, wide, 0x8000 - wide)


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────


def benchmark(
    folder: Path,
    *,
    models: int,
    n_bytes: int,
    repeat: int,
    cold: int,
    mergekit: str | None,
    moved: float = 0.003,
    n_values: int = 20_000_000,
    contenders: Sequence[str] = CONTENDERS,
    inputs: Sequence[Path] | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Make the data (or take `inputs`), run everything alternately, remove what was made."""
    names = [name for name in contenders if name != "mergekit" or mergekit is not None]
    work = folder / "work"
    work.mkdir(parents=True)
    try:
        if inputs is None:
            say(f"writing {models} models of {n_bytes / 1e9:.3g} GB")
            inputs = make_models(folder / "models", models, n_bytes, moved=moved)
        models = len(inputs)
        sizes = [f.stat().st_size for path in inputs for f in path.glob("*.safetensors")]
        bytes_out = sum(sizes) // models
        report = Report(models, sum(sizes), bytes_out, hardware(), versions(mergekit))
        imports = {name: import_seconds(name, mergekit or "") for name in names}
        drop_from_cache(inputs)  # written out, so that nothing is left to write while measuring
        for number in range(repeat + cold):
            is_cold = number >= repeat
            for name in names:
                if not is_cold:
                    warm_up(inputs)
                run, output = one_run(name, inputs, work, mergekit or "", cold=is_cold)
                if run.import_seconds is None:
                    run.import_seconds = imports[name]
                report.runs.append(run)
                say(f"{name}: {run.wall:.2f} s{' cold' if is_cold else ''}")
                if number == 0 and name != "floor":
                    report.errors[name] = value_errors(output, inputs, n_values=n_values)
                _remove(output)
        for name in names:
            output = work / "capped"
            arguments = command(name, output, inputs, work, mergekit or "")
            _, _, _, ended = measure(arguments, environment(work / "cache2"), data_limit=_GiB)
            lines = (ended.stderr or ended.stdout).strip().splitlines() or [""]
            done = ended.returncode == 0
            report.capped[name] = "finishes" if done else f"fails: {lines[-1][:80]}"
            _remove(output)
        return report
    finally:
        shutil.rmtree(folder / "models", ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def hardware() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if "model name" in line).split(":", 1)[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GiB
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def versions(mergekit: str | None) -> dict[str, str]:
    """What was compared."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("numpy", "torch", "safetensors")}
    found["python"] = platform.python_version()
    if mergekit is not None:
        python = str(Path(mergekit).with_name("python"))
        code = "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        found["mergekit"], found["torch of mergekit"] = said.stdout.split()
    return found


def to_markdown(report: Report) -> str:
    """Tables for people: medians over the runs."""
    gigabytes = (report.bytes_in + report.bytes_out) / 1e9
    stated = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines = [
        f"{report.models} × {report.bytes_out / 1e9:.2f} GB bfloat16 folders "
        f"({report.hardware}; {stated})",
        "",
        "| | cache | whole process, s | CPU, s | imports, s | without imports, s | GB/s | "
        "× floor | peak anonymous, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cold in (False, True):
        runs = [run for run in report.runs if run.cold is cold]
        for name in dict.fromkeys(run.contender for run in runs):
            lines += _rows(name, [run for run in runs if run.contender == name], runs, gigabytes)
    lines += [
        "",
        "| | with RLIMIT_DATA = 1 GiB | values wrongly rounded | worst, ulps |",
        "|---|---|---|---|",
    ]
    for name, ending in report.capped.items():
        error = report.errors.get(name)
        rounding = "–" if error is None else f"{error['wrong_share']:.2e} of {error['values']:,}"
        worst = "–" if error is None else f"{error['worst_ulps']}"
        lines.append(f"| {name} | {ending} | {rounding} | {worst} |")
    whole = ratios(report, "mergekit", "stockpot")
    if whole:
        pairs = ", ".join(f"{ratio:.1f}" for ratio in whole)
        lines += ["", f"mergekit / stockpot, whole processes, warm, run by run: {pairs}"]
    return "\n".join(lines) + "\n"


def _rows(name: str, runs: list[Run], others: list[Run], gigabytes: float) -> list[str]:
    floors = [run for run in others if run.contender == "floor"]
    cold = "cold" if runs[0].cold else "warm"
    wall = statistics.median(run.wall for run in runs)
    peak = max(run.peak_anonymous for run in runs) / 1e6
    cpu = statistics.median(run.cpu for run in runs)
    imports = runs[0].import_seconds
    if name == "floor":
        cached = statistics.median(run.seconds or 0 for run in runs)
        synced = statistics.median(run.seconds_with_fsync or 0 for run in runs)
        return [
            f"| {label} | {cold} | – | {cpu:.1f} | – | {s:.2f} | {gigabytes / s:.1f} | {unit} | "
            f"{peak:.0f} |"
            for label, s, unit in (("floor", cached, "–"), ("floor, fsync", synced, "1"))
        ]
    alone = [_alone(run) for run in runs]
    seconds = statistics.median(alone)
    synced = statistics.median(
        own / (floor.seconds_with_fsync or 1) for own, floor in zip(alone, floors, strict=True)
    )
    cached = statistics.median(
        own / (floor.seconds or 1) for own, floor in zip(alone, floors, strict=True)
    )
    return [
        f"| {name} | {cold} | {wall:.2f} | {cpu:.1f} | {imports or 0:.2f} | {seconds:.2f} | "
        f"{gigabytes / seconds:.1f} | {synced:.2f} ({cached:.2f} without fsync) | {peak:.0f} |"
    ]


def _alone(run: Run) -> float:
    """Seconds without imports: as the process says, else what remains of its wall time."""
    return run.seconds if run.seconds is not None else run.wall - (run.import_seconds or 0)


def ratios(report: Report, slow: str, fast: str) -> list[float]:
    """Wall time of `slow` over that of `fast`, for each warm repetition."""
    walls = {
        name: [run.wall for run in report.runs if run.contender == name and not run.cold]
        for name in (slow, fast)
    }
    return [a / b for a, b in zip(walls[slow], walls[fast], strict=False)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options and run."""
    if arguments is None and sys.argv[1:2] == ["--run"]:
        name, output, *inputs = sys.argv[2:]
        run = {"floor": run_floor, "loop": run_loop}[name]
        print(json.dumps(run(Path(output), [Path(path) for path in inputs])))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--size", default="1GB", help="of each model")
    parser.add_argument("--repeat", type=int, default=5, help="warm repetitions")
    parser.add_argument("--cold", type=int, default=2, help="cold repetitions")
    parser.add_argument("--moved", type=float, default=0.003, help="moves, in σ of the weights")
    parser.add_argument("--mergekit", help="path of mergekit-yaml in its own environment")
    parser.add_argument("--data", type=Path, help="where to put the models meanwhile")
    parser.add_argument("--inputs", type=Path, nargs="+", help="bfloat16 folders to use instead")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    options = parser.parse_args(arguments)
    from benchmarks.measuring import parse_bytes

    folder = Path(tempfile.mkdtemp(dir=options.data, prefix="stockpot-bench-"))
    try:
        report = benchmark(
            folder,
            models=options.models,
            n_bytes=parse_bytes(options.size),
            repeat=options.repeat,
            cold=options.cold,
            mergekit=options.mergekit,
            moved=options.moved,
            inputs=options.inputs,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(report), indent=1))
    print(to_markdown(report))


if __name__ == "__main__":
    main()
