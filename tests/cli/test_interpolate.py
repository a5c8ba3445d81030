from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    for name, value, counter in (("base", 1.0, 5), ("tuned", 3.0, 9)):
        tensors = {"w": torch.full((3,), value), "bn.num_batches_tracked": torch.tensor(counter)}
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
    return [tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"]


def test_alpha_is_the_share_of_the_tuned_checkpoint(run, pair, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run("interpolate", *pair, "--alpha", "0.25", "-o", out, "--json")
    assert result.code == 0
    assert result.json["alpha"] == 0.25
    shares = {one["path"]: one["coefficient"] for one in result.json["ingredients"]}
    assert shares == {str(pair[0]): 0.75, str(pair[1]): 0.25}
    assert result.json["chosen"] == {"alpha": 0.25, "scores": None}
    assert result.json["curve"] is None
    assert load_file(out)["w"].tolist() == [1.5] * 3


@pytest.mark.parametrize(("alpha", "end"), [("0", 0), ("1", 1)])
def test_the_ends_are_the_checkpoints_bit_for_bit(run, pair, tmp_path, alpha, end) -> None:
    out = tmp_path / "x.safetensors"
    assert run("interpolate", *pair, "--alpha", alpha, "-o", out).code == 0
    assert out.read_bytes() == pair[end].read_bytes(), "counters included"


def test_without_alpha_there_must_be_a_task(run, pair, tmp_path: Path) -> None:
    result = run("interpolate", *pair, "-o", tmp_path / "x.safetensors")
    assert result.code == 2
    assert "--task" in result.err


@pytest.mark.parametrize("grid", ["0:1", "1:0:0.1", "0:1:0", "a,b"])
def test_a_grid_is_first_last_and_step(run, pair, tmp_path: Path, grid: str) -> None:
    arguments = ["interpolate", *pair, "-o", tmp_path / "x.safetensors", "--task", "handwriting"]
    assert run(*arguments, "--alphas", grid).code == 2


def test_the_curve_and_the_chosen_point(run, kitchen, tmp_path: Path) -> None:
    arguments = ["interpolate", kitchen.base, kitchen.runs[0], "--task", kitchen.task]
    options = ["--alphas", "0:1:0.25", "--cache", tmp_path / "cache"]
    result = run(*arguments, *options, "-o", tmp_path / "x.safetensors", "--json")
    assert result.code == 0, result.err
    curve, chosen = result.json["curve"], result.json["chosen"]
    assert [point["alpha"] for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    best = max(point["scores"]["val"]["value"] for point in curve)
    assert chosen["scores"]["val"]["value"] == best
    assert {"test", "shifted", "shift_average"} <= set(chosen["scores"])
    assert run("verify", tmp_path / "x.safetensors", "--json").json["verified"] is True
    text = run(*arguments, *options, "-o", tmp_path / "x.safetensors", "--force").out
    assert f"α = {chosen['alpha']:g} between the base (0) and the tuned model (1)" in text


def test_each_of_several_gets_a_curve_and_an_output_of_its_own(run, kitchen, tmp_path) -> None:
    arguments = ["interpolate", kitchen.base, *kitchen.runs[:2], "--alpha", "0.5"]
    result = run(*arguments, "-o", tmp_path / "out", "--json")
    assert set(result.json["curves"]) == set(kitchen.runs[:2])
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == ["run-00.safetensors", "run-01.safetensors"]
    refused = run(*arguments, "-o", tmp_path / "one.safetensors")
    assert refused.code == 2
    assert "2 TUNED need a folder" in " ".join(refused.err.split())


def test_beside_the_chosen_point_stand_the_middle_and_what_each_column_would_choose(
    run, kitchen, tmp_path: Path
) -> None:
    arguments = ["interpolate", kitchen.base, kitchen.runs[0], "--task", kitchen.task]
    options = ["--alphas", "0:1:0.25", "--cache", tmp_path / "cache"]
    text = run(*arguments, *options, "-o", tmp_path / "x.safetensors").out
    for words in ("best α", "above both ends", "α = 0.5", "ensemble at 0.5", "mean_of_both"):
        assert words in text


def test_a_report_holds_the_curves_of_all(run, kitchen, tmp_path: Path) -> None:
    from stockpot.report import load

    arguments = ["interpolate", kitchen.base, *kitchen.runs[:2], "--task", kitchen.task]
    options = ["--alphas", "0,1", "--cache", tmp_path / "cache", "--report", tmp_path / "report"]
    result = run(*arguments, *options, "-o", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    report = load(tmp_path / "report")
    assert [curve.title for curve in report.figures] == [
        "From the base to run-00", "From the base to run-01",
    ]  # fmt: skip
    told = result.json["curves"][kitchen.runs[0]]
    assert (
        report.model("run-00").scores["test"].value == told["curve"][-1]["scores"]["test"]["value"]
    )
    assert run("report", tmp_path / "report").code == 0
    again = run(*arguments, *options, "-o", tmp_path / "other")
    assert again.code == 1
    assert "report.json exists" in again.err


def test_a_report_without_a_curve_is_a_wrong_usage(run, pair, tmp_path: Path) -> None:
    options = ["--alpha", "0.5", "-o", tmp_path / "x.safetensors", "--report", tmp_path / "r"]
    assert run("interpolate", *pair, *options).code == 2


def test_tensors_can_have_an_alpha_of_their_own(run, pair, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    options = ["--alpha", "0.5", "--layer-alpha", "w=1", "-o", out]
    assert run("interpolate", *pair, *options).code == 0
    assert load_file(out)["w"].tolist() == [3.0] * 3
    wrong = run("interpolate", *pair, "--alpha", "0.5", "--layer-alpha", "w", "-o", out, "--force")
    assert wrong.code == 2
    assert "'head.*=1'" in wrong.err


def test_a_head_that_only_tuned_has_is_refused_with_an_offer_that_works(run, tmp_path) -> None:
    save_file({"body": torch.zeros(2, 2)}, tmp_path / "base.safetensors")
    save_file({"body": torch.ones(2, 2), "head": torch.ones(3)}, tmp_path / "tuned.safetensors")
    arguments = ["interpolate", tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"]
    options = ["--alpha", "0.25", "-o", tmp_path / "x.safetensors"]
    refused = run(*arguments, *options)
    assert refused.code == 1
    assert "--keep-head" in refused.err
    assert run(*arguments, *options, "--keep-head").code == 0
    found = load_file(tmp_path / "x.safetensors")
    assert (found["body"][0, 0].item(), found["head"].tolist()) == (0.25, [1, 1, 1])


def test_options_of_choosing_reach_the_recipe(run, kitchen, tmp_path: Path) -> None:
    arguments = ["interpolate", kitchen.base, kitchen.runs[0], "--task", kitchen.task]
    options = ["--alphas", "0,1", "--cache", tmp_path / "cache", "-o", tmp_path / "x.safetensors"]
    both = run(*arguments, *options, "--objective", "both")
    assert both.code == 1
    assert "expected two or more" in both.err
    layers = run(*arguments, *options, "--by", "layer", "--fisher", "--alternatives")
    assert layers.code == 0, layers.err
    assert "Layers with an α of their own" in layers.out
