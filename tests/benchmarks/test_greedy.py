"""The greedy benchmark on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.greedy import Stage, main, make_data, make_models, side_by_side

TASK = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks.greedy import make_task
task = make_task(Path({folder!r}), "tiny")
"""


def test_one_and_several_workers_find_the_same_soup(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    (tmp_path / "task.py").write_text(TASK.format(root=root, folder=str(tmp_path)))
    runs = make_models(tmp_path, 4, "tiny")
    make_data(tmp_path, "tiny", 300)
    task = f"{tmp_path / 'task.py'}:task"
    found = main(["speed", "--task", task, "--runs", *runs, "--rounds", "2", "--most", "3"])
    assert found["same"]
    assert found["ingredients"] == 3
    assert len(found["gains"]) == 2
    assert found["side_by_side_at_best"] >= 1


def test_memory_is_that_of_the_process_and_of_its_workers(tmp_path: Path) -> None:
    arguments = ["memory", "--k", "3", "--workers", "1", "2", "--size", "tiny", "--examples", "200"]
    found = main([*arguments, "--json", str(tmp_path / "found.json")])
    one, two = found["rows"]
    assert len(one["private_bytes"]) == 1
    assert len(two["private_bytes"]) == 3
    assert one["private_bytes"][0] > one["idle_bytes"] > 50 << 20
    assert json.loads((tmp_path / "found.json").read_text()) == found


@pytest.mark.parametrize(
    ("accepted", "seconds"),
    [
        ((False, False, False, False), 10 - 8 + 2 * 2),
        ((True, False, False, False), 10 - 8 + 3 * 2),  # the second is tried again
        ((False, True, False, False), 10 - 8 + 2 * 2),
    ],
)
def test_side_by_side_tries_again_what_was_tried_against_the_wrong_soup(
    accepted: tuple[bool, ...], seconds: float
) -> None:
    assert side_by_side(Stage(10.0, (2.0,) * 4, accepted, {})) == seconds
