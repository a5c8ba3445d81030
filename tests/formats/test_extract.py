"""An adapter of a full fine-tune: the best of its rank, loaded by PEFT, refused where none is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.formats.lora import distance, merged_by_peft, network, save_adapter, save_base

import stockpot
from stockpot.cli import main
from stockpot.errors import CheckpointError, MismatchError, NonFiniteError
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.extract import ExtractOptions, extract

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load


def save_tuned(path: Path, **changes: torch.Tensor) -> Path:
    """`network` with a little of everything changed, or with `changes` (`_` for `.`)."""
    generator = torch.Generator().manual_seed(1)
    state = {n: v.clone() for n, v in network().state_dict().items()}
    for name, value in state.items():
        if not changes and not name.startswith(("head", "flipped")):
            state[name] = value + 0.1 * torch.randn(value.shape, generator=generator)
        state[name] = changes.get(name.replace(".", "_"), state[name])
    save_file({n: v.contiguous() for n, v in state.items()}, path)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base.safetensors")


def test_what_a_rank_adds_is_found_again(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", target_modules=["lin", "conv", "emb"], r=2)
    adapter = Adapter(base, folder)
    tuned = tmp_path / "tuned.safetensors"
    save_file({name: adapter.read(name) for name in adapter}, tuned)
    found = extract(base, tuned, tmp_path / "out", ExtractOptions(rank=2))
    assert set(found.modules) == {"lin", "conv", "emb"}
    assert found.error <= 1e-5 * found.norm
    assert found.whole == ()
    for name, expected in merged_by_peft(tmp_path / "out").items():
        assert distance(adapter.read(name), expected) <= 1e-5


@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_best_of_its_rank_and_peft_loads_it(
    rank: int, base: Path, tmp_path: Path
) -> None:
    tuned = save_tuned(tmp_path / "tuned.safetensors")
    found = extract(base, tuned, tmp_path / "out", ExtractOptions(rank=rank))
    merged, start = merged_by_peft(tmp_path / "out"), network().state_dict()
    wanted = Adapter(base, tmp_path / "out")
    errors = []
    for module, said in found.modules.items():
        name = f"{module}.weight"
        with torch.no_grad():
            state = _load(tuned)
        change = (state[name].double() - start[name].double()).flatten(start_dim=1)
        sigma = torch.linalg.svdvals(change)
        best = float(sigma[rank:].square().sum().sqrt())
        assert said.error == pytest.approx(best, abs=1e-6)
        assert said.norm == pytest.approx(float(change.norm()), rel=1e-6)
        assert float((merged[name].double() - state[name].double()).norm()) <= best + 1e-5
        assert distance(wanted.read(name), merged[name]) <= 1e-6
        errors.append(best)
    assert found.error == pytest.approx(sum(e * e for e in errors) ** 0.5, rel=1e-4)
    assert set(found.whole) == {
        *("norm.weight", "norm.bias", "conv.bias", "point.bias", "lin.bias", "square.bias")
    }
    assert all(torch.equal(merged[name], state[name]) for name in found.whole)
    assert torch.equal(merged["head.weight"], start["head.weight"])


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:org/name", "org/name"),
        ("hf:org/name@v2", "org/name"),
        ("hf:org/name@v2:unet/model.safetensors", "org/name"),
        ("s3://bucket/runs/model", "s3://bucket/runs/model"),
        ("./base.safetensors", str(Path("base.safetensors").absolute())),
        ("./hf:base", str(Path("hf:base").absolute())),
    ],
)
def test_the_base_is_named_as_peft_finds_it(
    name: str, expected: str, base: Path, tmp_path: Path
) -> None:
    start = stockpot.open(base)
    start.path = name
    tuned = save_tuned(tmp_path / "tuned.safetensors")
    extract(start, tuned, tmp_path / "out", ExtractOptions(rank=1))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == expected


def test_what_has_no_adapter_is_refused_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", ExtractOptions(rank=1)
    folder = save_adapter(tmp_path / "a")
    short = save_tuned(tmp_path / "short.safetensors", lin_weight=torch.zeros(5, 7))
    nan = save_tuned(tmp_path / "nan.safetensors", lin_weight=torch.full((5, 6), float("nan")))
    for tuned, error, says in (
        (base, CheckpointError, "nothing that"),
        (folder, CheckpointError, "is an adapter already"),
        (short, MismatchError, "lin.weight"),
        (nan, NonFiniteError, "lin.weight"),
    ):
        with pytest.raises(error, match=says):
            extract(base, tuned, out, options)
        assert not out.exists()
    with pytest.raises(CheckpointError, match="is a folder"):
        extract(base, nan, tmp_path / "out.safetensors", options)


def test_the_command_shows_what_is_lacking(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, out = save_tuned(tmp_path / "tuned.safetensors"), tmp_path / "out"
    words = ["adapter", "extract", str(base), str(tuned), "--rank", "1", "-o", str(out)]
    assert main([*words, "--exclude", "*norm*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["error"] > 0
    assert not any("norm" in name for name in found["whole"])
    assert main(words) == 1  # it is there
    assert main([*words, "--force"]) == 0
    assert "cut off" in capsys.readouterr().out
