"""The table of every recipe, on tiny sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.experiments.standins import TINY

from experiments import every_recipe, results
from stockpot.tasks.handwriting.lab import make_base
from stockpot.train.sweep.run import run_sweep


def test_every_recipe_has_its_row_and_a_killed_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        folder = tmp_path / "demos" / f"seed-{seed}"
        make_base(folder / "base.safetensors", lab=TINY, seed=seed)
        run_sweep(
            TINY.task_maker(seed=seed), str(folder / "base.safetensors"), TINY.sweep(seed=seed),
            out=folder / "runs",
        )  # fmt: skip
    out = tmp_path / "out"
    arguments = ["--demos", str(tmp_path / "demos"), "--out", str(out), "--jobs", "1"]
    text = every_recipe.main([*arguments, "--seeds", "0", "1"], lab=TINY)
    found = json.loads((out / "every.json").read_text())
    for one in found:
        rows = {row["model"]: row for row in one["rows"]}
        assert tuple(rows) == every_recipe.MODELS
        held_out = {name: row["scores"]["held-out"]["value"] for name, row in rows.items()}
        # What searches on held-out finds nothing worse there than what it starts from.
        assert held_out["greedy"] >= held_out[results.BASELINE]
        assert held_out["pruned"] >= held_out["uniform"]
        for line, of in every_recipe.LINES.items():
            assert held_out[line] >= max(held_out[of], held_out["base"])
        # λ = 1/3 of the sum of three task vectors is the mean.
        assert held_out["task arithmetic"] >= held_out["uniform"]
        assert rows["ensemble"]["kept"] == 3
        assert 0 < float(rows[every_recipe.MONO]["note"]) <= 1
    above = text.split("Points above ")
    assert [part.split(",")[0] for part in above[1:]] == [results.BASELINE, every_recipe.MEAN]
    for name in every_recipe.MODELS:
        assert f"| {name} |" in above[0]
        assert (f"| {name} |" in above[1]) is (name != results.BASELINE)
        assert (f"| {name} |" in above[2].split("λ, α")[0]) is (name != every_recipe.MEAN)

    # Of a sweep that was cut short the missing rows are made, and no others.
    part = out / "parts" / "seed-0.json"
    cut = json.loads(part.read_text())
    last = cut["rows"].pop()
    part.write_text(json.dumps(cut))
    made = every_recipe._row
    again = []

    def counted(name: str, *rest: object) -> object:
        again.append(name)
        return made(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(every_recipe, "_row", counted)
    assert every_recipe.main([*arguments, "--seeds", "0", "1"], lab=TINY) == text
    assert again == [last["model"]]
