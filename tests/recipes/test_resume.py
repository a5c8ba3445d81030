"""A killed run leaves a journal from which the next one goes on."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import torch

from stockpot.evaluation import Evaluator, Journal
from stockpot.recipes import Greedy


class Logged(Journal):
    """Writes down what was scored, after it is in the journal; slow enough to be interrupted."""

    def __init__(self, path, log):
        super().__init__(path)
        self.log = log

    def append(self, key, indices, outputs, *, label=""):
        super().append(key, indices, outputs, label=label)
        with self.log.open("a") as log:
            log.write("".join(f"{key.digest} {i}\n" for i in indices.tolist()))
        time.sleep(0.01)


def cook(lab, folder, n_threads=1):
    torch.set_num_threads(n_threads)
    journal = Logged(folder / "journal.sqlite", folder / "log")
    evaluator = Evaluator(lab.task, cache=journal, device="cpu")
    Greedy().cook(lab.paths, evaluator=evaluator).save(folder / "soup.safetensors", force=True)


def scored(folder):
    log = folder / "log"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def test_killed_at_ten_random_moments_nothing_is_scored_twice_and_the_soup_is_the_same(
    lab, tmp_path
):
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    plain.mkdir()
    killed.mkdir()
    cook(lab, plain, torch.get_num_threads())
    total, pick = len(scored(plain)), random.Random(0)
    context = multiprocessing.get_context("fork")
    for moment in sorted(pick.randrange(total) for _ in range(10)):
        process = context.Process(target=cook, args=(lab, killed))
        process.start()
        while process.is_alive() and len(scored(killed)) <= moment:
            time.sleep(0.002)
        process.kill()
        process.join()
    last = context.Process(target=cook, args=(lab, killed))
    last.start()
    last.join()
    assert last.exitcode == 0
    lines = scored(killed)
    assert len(lines) == len(set(lines))
    assert set(lines) == set(scored(plain))
    soups = [folder / "soup.safetensors" for folder in (plain, killed)]
    assert soups[0].read_bytes() == soups[1].read_bytes()
    records = [json.loads(Path(f"{p}.stockpot.json").read_text())["soup"] for p in soups]
    assert records[0] == records[1]
