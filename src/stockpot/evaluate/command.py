"""Scores from any program that is given a checkpoint and prints a number."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import CheckpointError, EvaluationError
from stockpot.evaluate.journal import Key
from stockpot.evaluate.numbers import NumbersEvaluator, finite
from stockpot.formats.table import suffix_of
from stockpot.io.scratch import scratch_folder
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.mixture import Mixture

if TYPE_CHECKING:
    from stockpot.formats.base import Checkpoint


PLACEHOLDER = "{checkpoint}"
_NUMBER = re.compile(
    r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    r"|[-+]?(?<![a-z])(?:nan|inf(?:inity)?)(?![a-z])",  # as words of their own
    re.IGNORECASE,
)


class CommandEvaluator(NumbersEvaluator):
    """Scores checkpoints by running a program.

    The program is given a temporary checkpoint, in the format of the ingredients, where the command
    says `{checkpoint}`, and prints a number last, or a JSON object with `score` (and, if it likes,
    `n`, `low`, `high`, and other numbers, which are kept). One run counts as one example. Without a
    test command nothing independent is measured, and `notes` says so.

    A program cannot be divided, so several workers run it for several candidates at once: recipes
    say through `score_ahead` what they may ask for next.

    Args:
        command: words as for a shell, which is not used: `"python score.py {checkpoint}"`.
        test: names → commands that report; they never choose.
        deciding: a second command that chooses, on data that the first does not see, as the split
            `deciding`: for `Learned(decide_on="deciding")`.
        higher_is_better: direction of the number.
        timeout_s: seconds that a run may take; None for no limit.
        cache: folder of the journal and of the programs' logs; None forgets.
        metric: name of the number.
        n_workers: how many programs run at a time; no result depends on it.
        gpus: of this machine, by number or UUID, which the programs that run at a time share
            evenly: each sees its own as `CUDA_VISIBLE_DEVICES`.
        progress: called after each run.

    Raises:
        EvaluationError: a command has no `{checkpoint}`, or there are fewer GPUs than workers.
    """

    def __init__(
        self,
        command: str,
        *,
        test: Mapping[str, str] | None = None,
        deciding: str | None = None,
        higher_is_better: bool = True,
        timeout_s: float | None = None,
        cache: StrPath | None = None,
        metric: str = "score",
        n_workers: int = 1,
        gpus: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> None:
        choosing = {"held-out": command} | ({} if deciding is None else {"deciding": deciding})
        self.commands = {**choosing, **(test or {})}
        bad = [c for c in self.commands.values() if PLACEHOLDER not in c]
        if bad:
            raise EvaluationError(
                f"the command {bad[0]!r} does not say where the checkpoint goes; write "
                f"{PLACEHOLDER} there, for example: python score.py {PLACEHOLDER}"
            )
        super().__init__(
            {name: command_version(c) for name, c in self.commands.items()},
            choosing=choosing,
            higher_is_better=higher_is_better,
            metric=metric,
            cache=cache,
            progress=progress,
        )
        if 0 < len(gpus) < n_workers:
            raise EvaluationError(
                f"{n_workers} programs at a time cannot share {len(gpus)} GPUs "
                f"({', '.join(gpus)}); run fewer at a time, or give more"
            )
        self.n_workers = n_workers
        # One share for each program that runs at a time; who starts one takes a share that is free.
        self._free_gpus = queue.SimpleQueue[str]() if gpus else None
        if self._free_gpus is not None:
            for place in range(n_workers):
                self._free_gpus.put(",".join(gpus[place::n_workers]))
        self.timeout_s = timeout_s
        self._failed: dict[Key, EvaluationError] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.log_folder = None if cache is None else Path(cache) / "logs"
        if not test:
            self.notes.append(
                "nothing independent was measured: there are only scores that chose; "
                "give another program (--eval-test CMD) to report"
            )

    def numbers(self, source: Checkpoint, split: str) -> dict[str, float]:
        """Everything numeric that the program printed about `source`; run once.

        Raises:
            EvaluationError: it failed, took too long, or printed no number.
        """
        failed = self._failed.pop(self.key(source, split), None)
        if failed is not None:
            raise failed
        return super().numbers(source, split)

    @property
    def n_ahead(self) -> int:  # type: ignore[override]  # a constant of evaluators that divide
        """As many as there are workers; none for one."""
        return self.n_workers if self.n_workers > 1 else 0

    def score_ahead(self, sources: Sequence[Checkpoint], split: str) -> None:
        """Run the program for all of `sources` that are not known, `n_workers` at a time.

        Failures are raised when the score is requested; the candidate may never be needed.
        """
        missing = {
            key: source
            for source in sources
            if (key := self.key(source, split)) not in self._failed
            and self.journal.numbers(key) is None
        }
        if len(missing) < 2:
            return
        with ThreadPoolExecutor(self.n_workers) as pool:
            running = {
                pool.submit(self._ask, source, split): key for key, source in missing.items()
            }
            try:
                # Threads only wait for programs; the journal has one writer, this thread.
                for done in as_completed(running):
                    self._keep(missing[running[done]], running[done], done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._processes):
                    _kill(process)
                raise

    def _keep(self, source: Checkpoint, key: Key, done: Future[dict[str, float]]) -> None:
        try:
            self._remember(source, key, done.result())
        except EvaluationError as error:
            self._failed[key] = error

    def _ask(self, source: Checkpoint, split: str) -> dict[str, float]:
        with _on_disk(source) as path, self._environment() as variables:
            return self._run(path, split, self.key(source, split), variables)

    @contextmanager
    def _environment(self) -> Iterator[dict[str, str] | None]:
        """The variables of one program, with GPUs of its own while it runs; None for ours."""
        if self._free_gpus is None:
            yield None
            return
        own = self._free_gpus.get()
        try:
            yield {**os.environ, "CUDA_VISIBLE_DEVICES": own}
        finally:
            self._free_gpus.put(own)

    def _run(
        self, path: str, split: str, key: Key, variables: Mapping[str, str] | None
    ) -> dict[str, float]:
        words = [w.replace(PLACEHOLDER, path) for w in shlex.split(self.commands[split])]
        shown = shlex.join(words)
        try:
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                start_new_session=True, env=variables,
            )  # fmt: skip
        except OSError as error:
            raise EvaluationError(
                f"{shown} cannot be started: {error}; expected a program on PATH (for shell syntax "
                "write sh -c '…')"
            ) from error
        late = False
        self._processes.add(process)
        try:
            out, err = process.communicate(timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            late = True
            _kill(process)
            out, err = process.communicate()
        except BaseException:
            _kill(process)
            process.wait()
            raise
        finally:
            self._processes.discard(process)
        log = self._log(key, shown, out, err)
        if late:
            raise EvaluationError(
                f"{shown} took longer than {self.timeout_s:g} s and was stopped{log}; allow more "
                "time (--eval-timeout), or score on fewer examples"
            )
        if process.returncode != 0:
            raise EvaluationError(
                f"{shown} failed with exit code {process.returncode}{log}:\n{_tail(err or out)}"
            )
        return parse_output(out.decode(errors="replace"), command=shown, hint=log)

    def _log(self, key: Key, shown: str, out: bytes, err: bytes) -> str:
        if self.log_folder is None:
            return ""
        self.log_folder.mkdir(parents=True, exist_ok=True)
        path = self.log_folder / f"{key.digest[:16]}.log"
        path.write_bytes(b"$ " + shown.encode() + b"\n" + out + b"\n--- stderr ---\n" + err)
        return f" (log: {path})"


def parse_output(text: str, *, command: str = "the program", hint: str = "") -> dict[str, float]:
    """The numbers in a program's output: its JSON object with `score`, or the last number.

    >>> parse_output('epoch 3\\n{"score": 0.91, "n": 200, "model": "x"}')
    {'score': 0.91, 'n': 200.0}
    >>> parse_output("accuracy: 0.875\\n")
    {'score': 0.875}

    Raises:
        EvaluationError: there is no number, or it is not finite.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    for candidate in (text, *lines[-1:]):
        found = _json_object(candidate)
        if found is not None:
            if "score" not in found:
                raise EvaluationError(
                    f'{command} printed JSON without "score"{hint}; it has {", ".join(found)}'
                )
            return finite(found, f"{command} printed")
    numbers = _NUMBER.findall(lines[-1]) if lines else []
    if not numbers:
        last = repr(lines[-1][:200]) if lines else "nothing"
        raise EvaluationError(
            f"{command} printed no number{hint}; its last line is {last}. Print the score last, or "
            'a JSON object with "score"'
        )
    return finite({"score": float(numbers[-1])}, f"{command} printed")


def command_version(command: str) -> str:
    """The command and a hash of every file that it names, so that an edited script runs again."""
    parts = [command]
    for word in shlex.split(command):
        path = Path(word)
        if PLACEHOLDER not in word and path.is_file():
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _json_object(text: str) -> dict[str, float] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return {
        str(k): float(v)
        for k, v in found.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


@contextmanager
def _on_disk(source: Checkpoint) -> Iterator[str]:
    """A path that holds `source`: its own if it is one untouched checkpoint, else a temporary."""
    given = list(source.ingredients) if isinstance(source, Mixture) else []
    content = source.key
    for checkpoint in (*given, source):
        if checkpoint.key == content and Path(checkpoint.path).exists():
            yield str(Path(checkpoint.path).absolute())
            return
    mixture = source if isinstance(source, Mixture) else Mixture(Ingredients([source]))
    first = next((Path(c.path) for c in given if Path(c.path).exists()), None)
    with scratch_folder() as folder:
        target = _like(mixture, first, folder)
        mixture.save(target)
        yield str(target)


def _like(mixture: Mixture, first: Path | None, folder: Path) -> Path:
    """Where in `folder` a mixture is written: named, and so laid out, as `first` is."""
    if first is not None and first.is_dir():
        return folder / "candidate"
    suffix = "" if first is None else suffix_of(first, readable=True).lower()
    target = folder / f"candidate{suffix or '.safetensors'}"
    try:
        mixture.plan(target)
    except CheckpointError:  # that format cannot hold it: a .ckpt needs what Lightning has in it
        return target.with_name("candidate.pt" if suffix == ".ckpt" else "candidate.safetensors")
    return target


def _kill(process: subprocess.Popen[bytes]) -> None:
    # With all that it started: a shell or launcher may have started the program that really runs.
    if not hasattr(os, "killpg"):  # Windows
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-10:]) or "  (it printed nothing)"
