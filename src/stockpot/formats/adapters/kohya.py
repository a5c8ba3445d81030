"""Adapters in one file: kohya's names (`lora_unet_….lora_down.weight`, `alpha`) and diffusers'."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from stockpot.errors import CheckpointFormatError
from stockpot.formats.adapters.layout import Factors, Layout, paired, refuse_damaged
from stockpot.formats.base import Checkpoint
from stockpot.tensors.rounding import widen

_DOWN = re.compile(r"\.(lora_down\.weight|lora\.down\.weight|lora_A\.weight)$")
_UPS = {
    "lora_down.weight": "lora_up.weight",
    "lora.down.weight": "lora.up.weight",
    "lora_A.weight": "lora_B.weight",
}


def layout(adapter: Checkpoint) -> Layout:
    """What a single file holds.

    α is a tensor beside the factors, or stands in the metadata that diffusers writes; without one
    it is the rank, and the scale 1.

    Raises:
        CheckpointFormatError: it holds no pairs of factors, or other tensors beside them.
    """
    downs = {n: _DOWN.sub(lambda m: f".{_UPS[m[1]]}", n) for n in adapter if _DOWN.search(n)}
    modules = {down: _DOWN.sub("", down) for down in downs}
    alphas = _alphas(adapter)
    factors = []
    for module, down, up in paired(adapter, downs, module_of=modules):
        rank, stored = down.shape[0], f"{module}.alpha"
        alpha = _number(adapter, stored) if stored in adapter else alphas.get(module, float(rank))
        factors.append(
            Factors(
                module=module,
                down=down.name,
                up=up.name,
                rank=rank,
                scale=alpha / rank,
                alpha=stored if stored in adapter else None,
            )
        )
    used = {n for f in factors for n in (f.down, f.up, f.alpha) if n is not None}
    rest = [n for n in adapter if n not in used]
    if not factors:
        raise CheckpointFormatError(f"{adapter.path} holds no pairs of factors of an adapter")
    refuse_damaged(adapter.path, (f"{n} belongs to no pair of factors" for n in rest))
    style = "kohya" if any(f.down.endswith("lora_down.weight") for f in factors) else "diffusers"
    return Layout(style=style, factors=tuple(factors), base=_base(adapter))  # type: ignore[arg-type]


def _number(adapter: Checkpoint, name: str) -> float:
    spec = adapter[name]
    if spec.numel != 1 or not spec.dtype.mixable:
        raise CheckpointFormatError(f"{adapter.path}: {name} is no number, but {spec.shape}")
    value = float(widen(adapter.raw(name).view(spec.dtype.storage), spec.dtype.value)[0])
    if not np.isfinite(value):
        raise CheckpointFormatError(f"{adapter.path}: {name} is {value}; expected a number")
    return value


def _alphas(adapter: Checkpoint) -> dict[str, float]:
    """Module → α as diffusers notes it (`lora_adapter_metadata`); empty where it does not."""
    try:
        noted = json.loads(adapter.metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        raise CheckpointFormatError(
            f"{adapter.path}: its lora_adapter_metadata, which says the scale, is no JSON that can "
            "be read"
        ) from None
    found: dict[str, float] = {}
    for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        alpha = noted.get(f"{part}.lora_alpha") if isinstance(noted, dict) else None
        own = noted.get(f"{part}.alpha_pattern") if isinstance(noted, dict) else None
        if alpha is not None:
            names = [_DOWN.sub("", n) for n in adapter if n.startswith(f"{part}.")]
            patterns = own if isinstance(own, dict) else {}
            noted_of = {n: patterns.get(n.removeprefix(f"{part}."), alpha) for n in names}
            found |= {n: _finite(adapter, n, one) for n, one in noted_of.items()}
    return found


def _finite(adapter: Checkpoint, module: str, value: Any) -> float:
    """α of `module` as the metadata has it."""
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(found := float(value)):
            return found
    except OverflowError:  # JSON has integers of any length
        pass
    shown = str(value)[:40] if isinstance(value, str | int | float) else type(value).__name__
    raise CheckpointFormatError(
        f"{adapter.path}: lora_adapter_metadata gives {module[:200]} an alpha that is {shown}; "
        "expected a finite number"
    )


def _base(adapter: Checkpoint) -> str | None:
    return adapter.metadata.get("ss_sd_model_name") or None


def tensor_of(module: str, names: dict[str, str]) -> str | None:
    """The tensor of the base that a module of a single file means.

    Args:
        module: such as `lora_unet_mid_block_attentions_0_proj_in` or `unet.mid_block.proj_in`.
        names: see `spelled`.
    """
    for prefix, parts in _PARTS.items():
        if module.startswith(prefix):
            rest = re.sub(r"[./]", "_", module[len(prefix) :])
            return next((names[p + rest] for p in parts if p + rest in names), None)
    return names.get(re.sub(r"[./]", "_", module))


_PARTS = {
    "lora_unet_": ("unet_", "model_diffusion_model_", "transformer_", ""),
    "lora_transformer_": ("transformer_", ""),
    "lora_te1_": ("text_encoder_", "conditioner_embedders_0_transformer_", ""),
    "lora_te2_": ("text_encoder_2_", "conditioner_embedders_1_model_", ""),
    "lora_te_": ("text_encoder_", "cond_stage_model_transformer_", ""),
    "unet.": ("unet_", ""),
    "transformer.": ("transformer_", ""),
    "text_encoder.": ("text_encoder_", ""),
    "text_encoder_2.": ("text_encoder_2_", ""),
}
"""How single files begin the names of a part of a pipeline → how the base may begin them."""


def spelled(base: Checkpoint) -> dict[str, str]:
    """Modules of the base, dots and slashes as underscores → the name of their weight."""
    return {
        re.sub(r"[./]", "_", n.removesuffix(".weight")): n for n in base if n.endswith(".weight")
    }
