"""Adapters for tests: a small network, what PEFT writes of it, and what PEFT makes of that."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

PLAIN = {"r": 4, "lora_alpha": 12, "target_modules": ["lin", "square"]}


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A table, convolutions, linear layers of both orientations, a norm and a head."""
    from transformers.pytorch_utils import Conv1D

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(11, 6)
            self.conv = nn.Conv2d(3, 8, 3)
            self.point = nn.Conv2d(8, 8, 1)
            self.lin = nn.Linear(6, 5)
            self.square = nn.Linear(6, 6)
            self.flipped = Conv1D(7, 6)
            self.flipped_square = Conv1D(6, 6)
            self.norm = nn.LayerNorm(5)
            self.head = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lin(self.flipped_square(self.square(x)))))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().to(dtype)


def save_base(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The weights of `network` in a file."""
    state = network(dtype).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def save_adapter(
    folder: Path, seed: int = 0, *, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """What PEFT writes of `network` with an adapter of these options, its factors drawn."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(100 + seed)
        config = LoraConfig(init_lora_weights=False, **{**PLAIN, **options})
        model = get_peft_model(network(dtype), config, autocast_adapter_dtype=False)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "magnitude" in name:
                    value.mul_(1 + 0.3 * torch.rand_like(value))
                elif value.requires_grad:
                    value.add_(0.3 * torch.randn_like(value))
        model.save_pretrained(str(folder))
    return folder


def merged_by_peft(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The state dict of `network` with the adapter in `folder`, merged by PEFT."""
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(
        copy.deepcopy(network(dtype)), str(folder), autocast_adapter_dtype=False
    )
    return dict(model.merge_and_unload().state_dict())


def mean(states: list[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of state dicts, in float64."""
    return {n: torch.stack([s[n].double() for s in states]).mean(dim=0) for n in states[0]}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))


def change_config(folder: Path, **changes: Any) -> None:
    """Change `adapter_config.json`."""
    place = folder / "adapter_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def change_tensors(folder: Path, **changes: Any) -> None:
    """Put functions of a tensor in the place of those whose names end so (`_` for `.`)."""
    place = folder / "adapter_model.safetensors"
    tensors = load_file(place)
    for ending, change in changes.items():
        for name in [n for n in tensors if n.replace(".", "_").endswith(ending)]:
            tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, place)


def save_kohya(
    path: Path, seed: int = 0, *, rank: int = 4, alpha: float | None = 2.0, metadata: Any = None
) -> Path:
    """An adapter of `network` in kohya's spelling."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    tensors = {
        "lora_unet_lin.lora_down.weight": drawn(rank, 6),
        "lora_unet_lin.lora_up.weight": drawn(5, rank),
        "lora_unet_conv.lora_down.weight": drawn(rank, 3, 3, 3),
        "lora_unet_conv.lora_up.weight": drawn(8, rank, 1, 1),
        "lora_unet_point.lora_down.weight": drawn(rank, 8, 1, 1),
        "lora_unet_point.lora_up.weight": drawn(8, rank, 1, 1),
    }
    if alpha is not None:
        modules = {name.partition(".")[0] for name in tensors}
        tensors |= {f"{module}.alpha": torch.tensor(alpha) for module in modules}
    save_file(tensors, path, metadata)
    return path


def merged_by_hand(path: Path, base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`base` with a file of kohya's merged, as their merge script does it, in float64."""
    tensors = load_file(path)
    made = {name: value.double() for name, value in base.items()}
    for module in {name.partition(".")[0] for name in tensors}:
        down = tensors[f"{module}.lora_down.weight"].double()
        up = tensors[f"{module}.lora_up.weight"].double()
        alpha = float(tensors.get(f"{module}.alpha", torch.tensor(float(len(down)))))
        name = module.removeprefix("lora_unet_") + ".weight"
        if down.ndim == 2:
            update = up @ down
        else:
            update = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        made[name] = made[name] + alpha / len(down) * update
    return made
