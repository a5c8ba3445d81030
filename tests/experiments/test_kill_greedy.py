from __future__ import annotations

from pathlib import Path

import numpy as np
from experiments.kill_greedy import Found, make_kitchen, scored, trial

from stockpot.evaluate.journal import Journal, Key


def test_a_killed_command_scores_nothing_twice_and_ends_with_the_same_soup(tmp_path: Path) -> None:
    command = make_kitchen(tmp_path / "kitchen", pause=0.005)
    found = trial(command, tmp_path, moments=1)
    assert found.good
    assert found.kills <= 1
    assert found.scored >= 8 * 600


def test_what_was_scored_twice_is_counted_twice(tmp_path: Path) -> None:
    key = Key("model", "split", "accuracy", "1")
    with Journal(tmp_path / "cache" / "journal.sqlite") as journal:
        for indices in ([0, 1], [1, 2]):
            journal.append(key, np.array(indices), np.zeros((2, 3), np.float32))
    assert [scored(tmp_path)[key.digest, i] for i in range(3)] == [1, 2, 1]
    assert not scored(tmp_path / "nothing")


def test_anything_twice_or_missing_is_not_good() -> None:
    good = Found(1, (0.1,), 10, 0, 0, True, True)
    assert good.good
    for bad in ({"twice": 1}, {"missing": 1}, {"same_soup": False}, {"same_record": False}):
        assert not Found(**{**vars(good), **bad}).good
