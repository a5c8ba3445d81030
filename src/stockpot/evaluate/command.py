"""Scores from any program that is given a checkpoint and prints a number."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stockpot._types import Progress, StrPath, no_progress
from stockpot.errors import EvaluationError
from stockpot.evaluate.compare import Predictions
from stockpot.evaluate.evaluator import Evaluator
from stockpot.evaluate.journal import Key
from stockpot.evaluate.metrics import WholeMetric
from stockpot.evaluate.sources import content_key
from stockpot.evaluate.task import Role, Score, Split, Task

if TYPE_CHECKING:
    import torch

    from stockpot.evaluate.swap import Weights


PLACEHOLDER = "{checkpoint}"
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?nan|[-+]?inf", re.IGNORECASE)


@dataclass(frozen=True)
class _Programs:
    """The task of an external evaluator: its splits are programs, and it has no model."""

    splits: Mapping[str, Split]
    metric: WholeMetric
    version: str
    batch_size: int = 1
    train_set: None = None
    calibration_set: None = None


class ExternalEvaluator(Evaluator):
    """Scores weights by running a program; recipes use it in place of an `Evaluator`.

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
        progress: called after each run.

    Raises:
        EvaluationError: a command has no `{checkpoint}`.
    """

    has_outputs = False

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
        # The programs hold the data; a split only has a role here.
        nothing = cast("Any", [None])
        splits = {
            name: Split(nothing, Role.HELD_OUT if name in choosing else Role.TEST, name)
            for name in self.commands
        }
        whole = WholeMetric(_only_value, metric, higher_is_better=higher_is_better)
        version = "\n".join(command_version(c) for c in self.commands.values())
        programs = _Programs(splits, whole, hashlib.sha256(version.encode()).hexdigest()[:32])
        super().__init__(
            cast("Task", programs), cache=cache, n_workers=n_workers, progress=progress
        )
        self.timeout_s = timeout_s
        self._failed: dict[Key, EvaluationError] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.log_folder = None if cache is None else Path(cache) / "logs"
        if not test:
            self.notes.append(
                "nothing independent was measured: there are only scores that chose; "
                "give another program (--eval-test CMD) to report"
            )

    def key(self, source: Weights, split: str) -> Key:
        """The journal key: content of the weights and of the command with its files."""
        return Key(
            model=content_key(source),
            split=f"external {split}",
            metric=self.metric.name,
            version=command_version(self.commands[split]),
        )

    def predictions(self, source: Weights, split: str) -> Predictions:
        """The program's score as the output of one example."""
        import torch

        said = self.numbers(source, split)
        outputs = np.array([[said["score"]]], np.float32)
        return _Answer(outputs, torch.zeros(1), None, said)

    def score_of(
        self,
        predictions: Predictions,
        split: str,
        *,
        name: str = "the model",
        interval: bool = True,
    ) -> Score:
        """What the program said, with its interval if it gave one."""
        if not isinstance(predictions, _Answer):
            raise EvaluationError("outputs cannot be combined: the program only prints scores")
        said = predictions.said
        return Score(
            value=said["score"],
            n=int(said.get("n", 0)),
            low=said.get("low"),
            high=said.get("high"),
            metric=self.metric.name,
            split=split,
            higher_is_better=self.metric.higher_is_better,
        )

    def recalibrates(self, source: Weights) -> bool:
        """Never: what the program does with BatchNorm is its own affair."""
        return False

    def targets(self, split: str) -> torch.Tensor:
        """One dummy, floating so that nothing takes it for a class."""
        import torch

        return torch.zeros(1)

    def numbers(self, source: Weights, split: str) -> dict[str, float]:
        """Everything numeric that the program printed about `source`; run once.

        Raises:
            EvaluationError: it failed, took too long, or printed no number.
        """
        key = self.key(source, split)
        failed = self._failed.pop(key, None)
        if failed is not None:
            raise failed
        known = self.journal.numbers(key)
        if known is None:
            known = dict(self._told(source, split, key))
            self._remember(source, key, known)
        return {name: float(value) for name, value in known.items()}

    @property
    def n_ahead(self) -> int:  # type: ignore[override]  # a constant of evaluators that divide
        """As many as there are workers; none for one."""
        return self.n_workers if self.n_workers > 1 else 0

    def score_ahead(self, sources: Sequence[Weights], split: str) -> None:
        """Run the program for all of `sources` that are not known, `n_workers` at a time.

        What fails is not told before it is asked for: it may never be.
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
                pool.submit(self._told, source, split, key): key for key, source in missing.items()
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

    def _keep(self, source: Weights, key: Key, done: Future[dict[str, float]]) -> None:
        try:
            self._remember(source, key, done.result())
        except EvaluationError as error:
            self._failed[key] = error

    def _told(self, source: Weights, split: str, key: Key) -> dict[str, float]:
        with _on_disk(source) as path:
            return self._run(path, split, key)

    def _remember(self, source: Weights, key: Key, told: Mapping[str, float | str]) -> None:
        self.counters.examples += 1
        label = str(getattr(source, "path", "a mixture"))
        self.journal.write_numbers(key, told, label=label)
        self.progress(self.counters.examples, None, "runs of the program")

    def _run(self, path: str, split: str, key: Key) -> dict[str, float]:
        words = [w.replace(PLACEHOLDER, path) for w in shlex.split(self.commands[split])]
        shown = shlex.join(words)
        try:
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                start_new_session=True,
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


@dataclass(frozen=True)
class _Answer(Predictions):
    said: Mapping[str, float]


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
            return _finite(found, command, hint)
    numbers = _NUMBER.findall(lines[-1]) if lines else []
    if not numbers:
        last = repr(lines[-1][:200]) if lines else "nothing"
        raise EvaluationError(
            f"{command} printed no number{hint}; its last line is {last}. Print the score last, or "
            'a JSON object with "score"'
        )
    return _finite({"score": float(numbers[-1])}, command, hint)


def command_version(command: str) -> str:
    """The command and a hash of every file that it names, so that an edited script runs again."""
    parts = [command]
    for word in shlex.split(command):
        path = Path(word)
        if PLACEHOLDER not in word and path.is_file():
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _only_value(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(outputs[0, 0])


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


def _finite(found: dict[str, float], command: str, hint: str) -> dict[str, float]:
    if not math.isfinite(found["score"]):
        raise EvaluationError(
            f"{command} printed the score {found['score']}{hint}; expected a number. Leave this "
            "ingredient out if its weights are at fault"
        )
    return {name: value for name, value in found.items() if math.isfinite(value)}


@contextmanager
def _on_disk(source: Weights) -> Iterator[str]:
    """A path that holds `source`: its own if it is one untouched checkpoint, else a temporary."""
    given: Iterable[Any] = getattr(source, "ingredients", ())
    content = content_key(source)
    for checkpoint in (*given, source):
        path = getattr(checkpoint, "path", None)
        is_same = content_key(checkpoint) == content
        if path is not None and is_same and Path(path).exists():
            yield str(Path(path).absolute())
            return
    save = getattr(source, "save", None)
    if save is None:
        raise EvaluationError("weights that are neither a file nor a mixture cannot be handed over")
    first = next((Path(c.path) for c in given if Path(c.path).exists()), None)
    with tempfile.TemporaryDirectory(prefix="stockpot-") as folder:
        if first is not None and first.is_dir():
            name = "candidate"
        else:
            torch_file = first is not None and first.suffix not in ("", ".safetensors")
            name = "candidate.pt" if torch_file else "candidate.safetensors"
        target = Path(folder) / name
        save(target)
        yield str(target)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # The group: a shell or launcher may have started the program that really runs.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-10:]) or "  (it printed nothing)"
