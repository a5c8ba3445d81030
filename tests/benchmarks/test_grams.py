from __future__ import annotations

from pathlib import Path

from benchmarks.grams import made, main, measured

import stockpot


def test_every_pass_is_measured_over_models_that_moved_from_their_base(tmp_path: Path) -> None:
    paths, base = made(tmp_path, 3, 32)
    moves = stockpot.inspect(paths, base=base).moves
    assert moves is not None
    assert all(0.009 < (one.distance or 0) < 0.011 for one in moves.ingredients)
    found = measured(paths, base)
    assert list(found) == ["fingerprints", "inner products", "moves"]
    assert all(seconds >= 0 for seconds in found.values())
    text = main(["--models", "2", "--width", "16"])
    assert text.startswith("2 models, 0 MB: fingerprints ")
