"""The benchmark of a training step, in a few steps."""

from __future__ import annotations

import pytest
from benchmarks.training import KINDS, minimal, ours

from stockpot.tasks.handwriting import base_task


@pytest.mark.parametrize("kind", KINDS)
def test_both_loops_do_every_kind_of_work_and_are_timed(kind: str) -> None:
    task = base_task(n_train=40, n_held_out=20)
    for loop in (minimal, ours):
        cost = loop(task, KINDS[kind], 4, 8)
        assert 0 < cost.wall < 1
        assert cost.processor > 0
