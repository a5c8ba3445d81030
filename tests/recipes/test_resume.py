"""A killed run leaves a journal from which the next one goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
import warnings
from pathlib import Path

import torch

from stockpot.evaluate.journal import Journal
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.recipes import Greedy


class Logged(Journal):
    """Writes down what was scored, after it is in the journal; slow enough to be interrupted."""

    def __init__(self, path, log):
        super().__init__(path)
        self.log = log

    def append(self, key, indices, outputs, *, label=""):
        super().append(key, indices, outputs, label=label)
        with self.log.open("a") as log:
            # A kill can cut a write: what was cut stands on a line of its own, without its end.
            log.write("\n" + "".join(f"{key.digest} {i};\n" for i in indices.tolist()))
        time.sleep(0.01)


def cook(lab, folder, n_threads=1):
    torch.set_num_threads(n_threads)
    journal = Logged(folder / "journal.sqlite", folder / "log")
    evaluator = TaskEvaluator(lab.task, cache=journal, device="cpu")
    Greedy().cook(lab.paths, evaluator=evaluator).save(folder / "soup.safetensors", force=True)


def start(lab, folder):
    """The same in a child of its own, which ends without clearing up after the tests around it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: threads beside a fork
        child = os.fork()
    if child == 0:
        status = 1
        try:
            cook(lab, folder)
            status = 0
        except BaseException:  # told to whoever reads the log; the child must end here in any case
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def scored(folder):
    log = folder / "log"
    lines = log.read_text().split("\n") if log.exists() else []
    return [line for line in lines if line.endswith(";")]


def test_killed_at_ten_random_moments_nothing_is_scored_twice_and_the_soup_is_the_same(
    lab, tmp_path
):
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    plain.mkdir()
    killed.mkdir()
    cook(lab, plain, torch.get_num_threads())
    total, pick = len(scored(plain)), random.Random(0)
    for moment in sorted(pick.randrange(total) for _ in range(10)):
        child = start(lab, killed)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if len(scored(killed)) > moment:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.002)
    assert os.waitpid(start(lab, killed), 0)[1] == 0
    lines = scored(killed)
    assert len(lines) == len(set(lines))
    assert set(lines) <= set(scored(plain))
    soups = [folder / "soup.safetensors" for folder in (plain, killed)]
    assert soups[0].read_bytes() == soups[1].read_bytes()
    records = [json.loads(Path(f"{p}.stockpot.json").read_text())["soup"] for p in soups]
    assert records[0] == records[1]
