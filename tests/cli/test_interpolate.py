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
    assert [one["coefficient"] for one in result.json["ingredients"]] == [0.75, 0.25]
    assert load_file(out)["w"].tolist() == [1.5] * 3


@pytest.mark.parametrize(("alpha", "end"), [("0", 0), ("1", 1)])
def test_the_ends_are_the_checkpoints_bit_for_bit(run, pair, tmp_path, alpha, end) -> None:
    out = tmp_path / "x.safetensors"
    assert run("interpolate", *pair, "--alpha", alpha, "-o", out).code == 0
    assert out.read_bytes() == pair[end].read_bytes(), "counters included"
