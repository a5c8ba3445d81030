"""An adapter with its base is the checkpoint that PEFT's merging gives; what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.lora import (
    change_config,
    change_tensors,
    distance,
    merged_by_hand,
    merged_by_peft,
    network,
    save_adapter,
    save_base,
    save_kohya,
)

import stockpot
from stockpot.errors import CheckpointFormatError, MismatchError, NonFiniteError
from stockpot.formats.adapters.checkpoint import Adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "patterns of rank and alpha": {"rank_pattern": {"square": 2}, "alpha_pattern": {"lin": 32}},
    "rsLoRA with patterns": {
        "use_rslora": True, "rank_pattern": {"lin": 3}, "alpha_pattern": {"square": 1}
    },
    "embedding": {"target_modules": ["emb"]},
    "convolutions": {"target_modules": ["conv", "point"]},
    "a head that is kept whole": {"modules_to_save": ["head"]},
    "all biases": {"bias": "all"},
    "biases of what is updated": {"bias": "lora_only"},
    "DoRA": {"use_dora": True, "target_modules": ["lin", "square"]},
    "DoRA of a table and convolutions": {
        "use_dora": True, "target_modules": ["emb", "conv", "point"]
    },
    "stored as (in, out)": {
        "target_modules": ["flipped", "flipped_square"], "fan_in_fan_out": True
    },
    "DoRA stored as (in, out)": {
        "target_modules": ["flipped", "flipped_square"], "fan_in_fan_out": True, "use_dora": True
    },
    "both orientations": {"target_modules": ["flipped", "lin"]},
    "rows of a table": {"trainable_token_indices": {"emb": [7, 2]}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_it_is_what_peft_merges(kind: str, dtype: torch.dtype, most: float, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", dtype=dtype, **KINDS[kind])
    adapter = Adapter(save_base(tmp_path / "base.safetensors", dtype), folder)
    merged = merged_by_peft(folder, dtype)
    assert set(adapter) == set(merged)
    before = network(dtype).state_dict()
    moved = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert moved
    for name, expected in merged.items():
        found = adapter.read(name)
        assert found.dtype == dtype
        assert distance(found, expected) <= most, name
        assert (name in adapter.changed) == (name in moved) or name.endswith("bias")


def test_a_half_precision_base_is_rounded_once(tmp_path: Path) -> None:
    base = {name: value.bfloat16() for name, value in network().state_dict().items()}
    save_file(base, tmp_path / "base.safetensors")
    adapter = Adapter(tmp_path / "base.safetensors", save_adapter(tmp_path / "a"))
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    up, down = (factors[f"base_model.model.lin.lora_{side}.weight"].double() for side in ("B", "A"))
    exact = base["lin.weight"].double() + 3.0 * up @ down
    assert torch.equal(adapter.read("lin.weight"), exact.bfloat16())


@pytest.mark.parametrize("alpha", [2.0, None])
def test_files_of_kohya_with_and_without_alpha(alpha: float | None, tmp_path: Path) -> None:
    path = save_kohya(tmp_path / "k.safetensors", alpha=alpha)
    adapter = Adapter(save_base(tmp_path / "base.safetensors"), path)
    expected = merged_by_hand(path, network().state_dict())
    for name in ("lin.weight", "conv.weight", "point.weight"):
        assert distance(adapter.read(name), expected[name]) <= 1e-6
    assert adapter.changed == {"lin.weight", "conv.weight", "point.weight"}


def test_files_of_diffusers_have_their_alpha_in_the_metadata(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    down, up = (torch.from_numpy(rng.normal(size=s)).float() for s in ((4, 6), (5, 4)))
    tensors = {"unet.lin.lora_A.weight": down, "unet.lin.lora_B.weight": up}
    noted = {"lora_adapter_metadata": '{"unet.lora_alpha": 8, "unet.r": 4}'}
    base = save_base(tmp_path / "base.safetensors")
    for metadata, scale in ((None, 1.0), (noted, 2.0)):
        save_file(tensors, tmp_path / "d.safetensors", metadata)
        expected = (
            network().state_dict()["lin.weight"].double() + scale * up.double() @ down.double()
        )
        found = Adapter(base, tmp_path / "d.safetensors").read("lin.weight")
        assert distance(found, expected) <= 1e-6


def test_names_of_a_pipeline_are_found_by_its_parts(tmp_path: Path) -> None:
    base = stockpot.from_state_dict(
        {
            "unet/mid_block.attentions.0.to_q.weight": np.zeros((2, 3), np.float32),
            "text_encoder_2/text_model.layers.1.fc1.weight": np.zeros((2, 3), np.float32),
        }
    )
    down, up = np.ones((1, 3), np.float32), np.ones((2, 1), np.float32)
    names = ("lora_unet_mid_block_attentions_0_to_q", "lora_te2_text_model_layers_1_fc1")
    tensors = {f"{n}.lora_{side}.weight": v for n in names for side, v in
               (("down", down), ("up", up))}  # fmt: skip
    adapter = Adapter(base, stockpot.from_state_dict(tensors))
    assert adapter.changed == set(base)
    assert all(adapter.read(name).eq(1).all() for name in base)


def test_a_part_of_a_tensor_has_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockpot.formats.adapters.update.BLOCK", 12)
    adapter = Adapter(save_base(tmp_path / "base.safetensors"), save_adapter(tmp_path / "a"))
    whole = adapter.raw("lin.weight")
    for start, stop in ((0, 8), (40, 100), (112, 120), (0, 120)):
        assert np.array_equal(adapter.part("lin.weight", start, stop), whole[start:stop])


def test_an_encoder_can_be_the_base_of_an_adapter_under_a_head(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", modules_to_save=["head"])
    # Cloned: older ones map the file, which is written anew here.
    given = load_file(tmp_path / "a" / "adapter_model.safetensors")
    tensors = {n: v.clone() for n, v in given.items()}
    under = {
        n.replace("model.lin", "model.net.lin").replace("model.square", "model.net.square"): v
        for n, v in tensors.items()
    }
    save_file(under, tmp_path / "a" / "adapter_model.safetensors")
    encoder = {n: v for n, v in network().state_dict().items() if not n.startswith("head")}
    adapter = Adapter(stockpot.from_state_dict(encoder), tmp_path / "a")
    assert set(adapter) == {f"net.{n}" for n in encoder} | {"head.weight", "head.bias"}
    assert torch.equal(adapter.read("head.weight"), tensors["base_model.model.head.weight"])


def test_the_head_of_an_adapter_takes_the_place_of_another_head_of_the_base() -> None:
    base = {"net.q.weight": np.zeros((2, 2), np.float32), "lm.weight": np.zeros((9, 2), np.float32)}
    factors = {
        "net.q.lora_A.weight": np.ones((1, 2), np.float32),
        "net.q.lora_B.weight": np.ones((2, 1), np.float32),
    }
    adapter = Adapter(stockpot.from_state_dict(base), stockpot.from_state_dict(factors))
    assert set(adapter) == set(base)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "r is 0"),
        ({"r": 8}, "has rank 4"),
        ({"r": "four"}, "whole number"),
        ({"use_dora": True}, "lora_magnitude_vector is not there"),
    ],
)
def test_what_is_no_plain_update_is_refused_by_name(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "a")
    change_config(folder, **changes)
    with pytest.raises(CheckpointFormatError, match=says):
        Adapter(save_base(tmp_path / "base.safetensors"), folder)


@pytest.mark.parametrize("name", ["x.hada_w1_a", "x.lokr_w1", "x.oft_blocks", "x.dora_scale"])
def test_other_kinds_in_one_file_are_refused_by_name(name: str) -> None:
    base = stockpot.from_state_dict({"x.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointFormatError, match=r"LoHa|LoKr|OFT|DoRA"):
        Adapter(base, stockpot.from_state_dict({name: np.ones((2, 2), np.float32)}))


def test_the_tensors_of_peft_alone_do_not_say_their_scale(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointFormatError, match=r"without its adapter_config\.json"):
        Adapter(save_base(tmp_path / "base.safetensors"), folder)


def test_another_base_is_refused_with_every_shape_that_shows_it(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a")
    state = {**network().state_dict(), "lin.weight": torch.zeros(5, 7)}
    with pytest.raises(MismatchError, match="does not fit the base") as caught:
        Adapter(stockpot.from_state_dict(state), folder)
    assert [problem.tensor for problem in caught.value.problems] == ["lin.weight"]
    del state["lin.weight"]
    with pytest.raises(MismatchError, match="not in the base"):
        Adapter(stockpot.from_state_dict(state), folder)


def test_a_half_of_a_pair_and_nan_are_named(tmp_path: Path) -> None:
    base, folder = save_base(tmp_path / "base.safetensors"), save_adapter(tmp_path / "a")
    change_tensors(folder, lin_lora_B_weight=lambda value: value * float("nan"))
    with pytest.raises(NonFiniteError, match=r"lin\.lora_B\.weight holds NaN") as caught:
        Adapter(base, folder).read("lin.weight")
    assert caught.value.path == str(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.lin.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointFormatError, match=r"lin\.lora_B\.weight is not"):
        Adapter(base, folder)


@pytest.mark.parametrize(
    "noted",
    [
        '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"lin": {}}}',
        '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"lin": "x"}}',
        '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"lin": true}}',
        '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"lin": NaN}}',
        f'{{"unet.lora_alpha": 4, "unet.alpha_pattern": {{"lin": {10**400}}}}}',
        f'{{"unet.lora_alpha": {10**400}}}',
        '{"unet.lora_alpha": 1e999}',
        '{"unet.lora_alpha": []}',
        '{"unet.lora_alpha": 4',
    ],
)
def test_an_alpha_that_is_no_finite_number_is_refused(noted: str, tmp_path: Path) -> None:
    tensors = {
        "unet.lin.lora_A.weight": torch.ones(4, 6),
        "unet.lin.lora_B.weight": torch.ones(5, 4),
    }
    save_file(tensors, tmp_path / "d.safetensors", {"lora_adapter_metadata": noted})
    with pytest.raises(CheckpointFormatError, match="lora_adapter_metadata"):
        Adapter(save_base(tmp_path / "base.safetensors"), tmp_path / "d.safetensors")
