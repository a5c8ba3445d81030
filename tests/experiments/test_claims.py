"""The table of claims, and the commands that make its data again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import claim_findings, claims, reproduce, tables


def sweeps(*pairs: tuple[float, float]) -> list[dict[str, object]]:
    """Tables of two models on one split."""
    return [
        {
            "rows": [
                {"model": "a", "scores": {"test": {"value": a}}},
                {"model": "b", "scores": {"test": {"value": b}}},
            ]
        }
        for a, b in pairs
    ]


def test_a_finding_is_a_difference_in_every_sweep(tmp_path: Path) -> None:
    found = sweeps((0.9, 0.8), (0.8, 0.75), (0.7, 0.55))
    (tmp_path / "x.json").write_text(json.dumps({"found": found}))
    finding = claim_findings.Finding("x", "x", claim_findings.between("a", "b", "test"))
    cell = finding.cell(tmp_path)
    assert cell.mean == pytest.approx(0.1)
    # 0.05 / √3 is the standard error; 4.302653 the quantile of two degrees of freedom.
    assert cell.low == pytest.approx(0.1 - 4.302653 * 0.05 / 3**0.5)
    assert claims.verdict(cell) == "within noise"
    assert claims.shown(cell, "points") == "+10.00 (-2.42 to +22.42)"
    assert claims.shown(cell, "nat") == "+0.100 nat (-0.024 to +0.224)"
    assert claims.shown(cell, "r") == "r = +0.10 (-0.02 to +0.22)"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (tables.Cell(1.0, 0.1, 1.9), "holds"),
        (tables.Cell(-1.0, -1.9, -0.1), "does not hold"),
        (tables.Cell(1.0, -0.1, 2.1), "within noise"),
        (tables.Cell(0.0, 0.0, 0.0), "within noise"),
        (tables.Cell(1.0, float("nan"), float("nan")), "one sweep"),
    ],
)
def test_the_verdict_is_the_side_of_the_interval(cell: tables.Cell, said: str) -> None:
    assert claims.verdict(cell) == said


def test_losses_and_correlations_have_the_direction_of_the_claim() -> None:
    runs = {"0": {"window": {"test": 2.0}, "last": {"test": 2.5}}}
    assert claim_findings.below_in_loss("window", "last")(runs) == [0.5]
    pairs = [{"degrees": d, "advantage_loss": 2.0 * d} for d in (10.0, 20.0, 40.0)]
    assert claim_findings.angle_and_gain("seed")({"0": {"seed": pairs}}) == pytest.approx([1.0])
    curve = [
        {"alpha": a, "scores": {"test": {"value": v}}}
        for a, v in ((0.0, 0.1), (0.5, 0.9), (1, 0.6))
    ]
    assert claim_findings.on_the_line("test")(
        [{"tuned": {"best single": {"curve": curve}}}]
    ) == pytest.approx([0.3])


def test_numbers_of_smaller_questions_are_differences_by_sweep() -> None:
    line = {"0.5": {"test": 0.75, "held-out": 0.5}, "1.0": {"test": 0.5, "held-out": 0.5}}
    seed = {
        "lines": [line, {**line, "0.5": {"test": 0.5, "held-out": 0.5}}],
        "training": {"a": {"fonts": 0.75}, "b": {"fonts": 0.25}},
        "numbers": [{"k": k, "soup": {"test": 0.5 + k / 32}} for k in (2, 12)],
        "severities": {m: {"turned": {"ece": e}} for m, e in
                       (("best single", 0.5), ("ensemble", 0.125))},
    }  # fmt: skip
    assert claim_findings.half_way("test")([seed]) == [0.125]
    assert claim_findings.by_training("a", "b", "fonts")([seed]) == [0.5]
    assert claim_findings.members("test")([seed]) == [0.3125]
    assert claim_findings.calibrated("turned", "ensemble", "best single")([seed]) == [0.375]


def test_effective_robustness_is_that_of_the_point_of_each_sweep() -> None:
    found = [{"robustness": {"models": {"α = 0.5": {"rho": rho}}}} for rho in (0.25, 0.5)]
    assert claim_findings.above_the_line("α = 0.5")(found) == [0.25, 0.5]


def test_numbers_of_sparse_soups_are_of_one_length_and_of_what_varied() -> None:
    def one(epochs: int, kind: str, soup: float, best: float) -> dict[str, object]:
        return {
            "epochs": epochs, "sparsity": 0.98, "kind": kind, "seed": 0,
            "scores": {"soup": {"test": soup}, "best candidate": {"test": best}},
        }  # fmt: skip

    found = [one(10, "uniform", 0.75, 0.5), one(10, "vary-lr", 0.5, 0.75),
             one(30, "uniform", 1.0, 0.0), one(30, "imp-long", 0.875, 0.0)]  # fmt: skip
    longer = "IMP, 3× the epochs"
    assert claim_findings.by_length("soup", longer, 30, 0.98)(found) == [0.125]
    assert claim_findings.safer("lr", 0.98)(found) == [0.5]


def test_every_claim_stands_in_the_table_once_and_is_tested_or_says_why_not() -> None:
    text = claims.markdown()
    names = [claim.name for claim in claims.CLAIMS]
    assert len(set(names)) == len(names)
    for claim in claims.CLAIMS:
        assert text.count(f"| `{claim.name}` |") == 1
        assert bool(claim.findings) != bool(claim.untested)


def test_every_finding_has_commands_from_its_ingredients_on(tmp_path: Path) -> None:
    """No command reads a folder that no command before it writes."""
    for name in {finding.data for claim in claims.CLAIMS for finding in claim.findings}:
        made = {str(tmp_path / "data")}
        lines = reproduce.commands(name)
        for words in (reproduce.placed(w, str(tmp_path / "data"), tmp_path, tmp_path / name)
                      for w in lines):  # fmt: skip
            module = words[0].partition(".")[2]
            assert (reproduce.ROOT / "experiments" / f"{module}.py").exists()
            out = words[words.index("--out") + 1]
            read = [Path(w) for w in words if w.startswith(str(tmp_path)) and w != out]
            there = all(any(path.is_relative_to(one) for one in made) for path in read)
            assert there, f"{name} reads {read} before it is made"
            made.add(out)
        assert reproduce.results_of(words).parent == Path(out)


def test_a_claim_is_made_again_and_a_second_call_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [["experiments.zoo", "--out", "../zoo", "--seeds", "0"]]
    monkeypatch.setattr(reproduce, "commands", lambda name: one)
    arguments = ["zoo", "--quick", "--out", str(tmp_path)]
    text = reproduce.main(arguments)
    assert text.count("| `zoo` |") == 2
    scores = list(tmp_path.rglob("scores.json"))
    assert len(scores) == 1
    times = [file.stat().st_mtime_ns for file in scores]
    assert reproduce.main(arguments) == text
    assert [file.stat().st_mtime_ns for file in scores] == times


def test_what_cannot_be_made_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (
        ("large", "was not tested. Neither their data"),
        ("sparse-mean", "give --data FOLDER"),
        ("nothing", "there is no claim 'nothing'; choose greedy, "),
    ):
        with pytest.raises(SystemExit):
            reproduce.main([name, "--out", str(tmp_path)])
        assert said in capsys.readouterr().err


def test_commands_are_listed_and_shown() -> None:
    assert "sparse-reprune" in reproduce.main(["--list"])
    assert reproduce.main(["zoo", "--print"]).startswith("python -m experiments.zoo --out ../zoo")
