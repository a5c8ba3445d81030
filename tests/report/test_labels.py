"""Names of points never overlap."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stockpot.report.labels import Box, _crosses, place

FRAME = Box(0, 0, 334, 266)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
def test_labels_stay_apart_and_inside(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    anchors = [(float(x), float(y)) for x, y in random.uniform(0, 260, (count, 2))]
    sizes = [(float(w), 15.0) for w in random.uniform(20, 90, count)]
    boxes = [b for b in place(anchors, sizes, obstacles=anchors, bounds=FRAME) if b is not None]
    assert boxes
    assert all(box.inside(FRAME) for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_crowd_at_one_place_is_spread_around_it() -> None:
    anchors = [(150.0, 130.0)] * 6
    boxes = place(anchors, [(60.0, 15.0)] * 6, obstacles=anchors, bounds=FRAME)
    assert None not in boxes
    for box in boxes:
        assert box is not None
        assert not box.holds(150, 130)
        middle = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
        assert math.dist(middle, (150, 130)) < 120


def test_a_label_moves_away_from_points_that_it_would_hide() -> None:
    crowd = [(80.0 + i, 50.0) for i in range(0, 40, 5)]
    (box,) = place([(50.0, 50.0)], [(50.0, 15.0)], obstacles=crowd, bounds=FRAME)
    assert box is not None
    assert not any(box.holds(*point) for point in crowd)


def test_a_label_without_room_is_left_out() -> None:
    assert place([(5.0, 5.0)], [(400.0, 15.0)], obstacles=[], bounds=FRAME) == [None]


def test_leader_lines_do_not_cross_when_there_is_another_way() -> None:
    """The second point is fenced in by the line of the first, and goes the other way."""
    fence = [(100.0, 60.0 + i) for i in range(0, 80, 4)]
    first, second = place(
        [(60.0, 100.0), (75.0, 96.0)], [(50.0, 15.0)] * 2, obstacles=fence, bounds=FRAME
    )
    assert first is not None
    assert second is not None
    ends = [((b.left + b.right) / 2, (b.bottom + b.top) / 2) for b in (first, second)]
    assert not _crosses((60.0, 100.0), ends[0], (75.0, 96.0), ends[1])


def test_crossing_is_seen() -> None:
    assert _crosses((0, 0), (2, 2), (0, 2), (2, 0))
    assert not _crosses((0, 0), (2, 2), (3, 0), (3, 9))
