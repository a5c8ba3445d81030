"""Adapters of PEFT: `adapter_config.json` and the names of its tensors.

Scale, rank and their patterns as in peft/tuners/lora/model.py and layer.py (0.21).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stockpot._records import parse
from stockpot._types import JSON
from stockpot.errors import CheckpointFormatError
from stockpot.formats.adapters.layout import (
    Factors,
    Layout,
    not_low_rank,
    paired,
    refuse_damaged,
)
from stockpot.formats.base import Checkpoint

_PREFIX = "base_model.model."
_TABLE = "lora_embedding_A"
_CHANGE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that take the first factors out of the base's weights."""
_OTHER_KINDS = {
    "alora_invocation_tokens": "aLoRA (it acts on some tokens only)",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QA-LoRA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "LoRA with replicated layers",
    "target_parameters": "LoRA on parameters (target_parameters)",
    "lora_bias": "LoRA with biases of its factors (lora_bias)",
    "ensure_weight_tying": "LoRA that ties weights (ensure_weight_tying)",
}
"""Fields that, where they are set, make of an adapter something else than s·B·A."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of `adapter_config.json` that say what an adapter is."""

    peft_type: str = "LORA"
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: Mapping[str, int] | None = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] | None = field(default_factory=dict)
    base_model_name_or_path: str | None = None
    init_lora_weights: Any = True
    trainable_token_indices: Any = None

    def scale(self, module: str, rank: int) -> float:
        """s of the update of `module`, whose factors have rank `rank`."""
        alpha = _pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        """r of `module`."""
        return int(_pattern(self.rank_pattern, module, self.r))


def _pattern(patterns: Mapping[str, Any] | None, module: str, usual: float) -> float:
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        except re.error:
            continue
    return usual


def layout(adapter: Checkpoint, data: JSON, name: str) -> Layout:
    """What an adapter of PEFT holds.

    Args:
        adapter: its tensors, as stored.
        data: its configuration.
        name: of the configuration, for messages.
    """
    config = _config(adapter.path, data, name)
    assert isinstance(data, dict)
    downs = {n: _up(n) for n in adapter if re.search(r"\.(lora_A\.weight|lora_embedding_A)$", n)}
    modules = {down: _module(down) for down in downs}
    found = paired(adapter, downs, module_of=modules)
    factors, problems = [], list[str]()
    for module, down, up in found:
        rank = down.shape[0]
        if rank != config.rank(module):
            problems.append(
                f"{down.name} has rank {rank}, and {name} gives {config.rank(module)} for it"
            )
        magnitude = f"{_stem(down.name)}.lora_magnitude_vector"
        factors.append(
            Factors(
                module=module,
                down=down.name,
                up=up.name,
                rank=rank,
                scale=config.scale(module, rank),
                magnitude=magnitude if config.use_dora else None,
                is_embedding=down.name.endswith(_TABLE),
            )
        )
        if config.use_dora and magnitude not in adapter:
            problems.append(f"use_dora is set, and {magnitude} is not there")
    used = {n for f in factors for n in (f.down, f.up, f.magnitude) if n is not None}
    rest = [n for n in adapter if n not in used]
    rows, problem = _rows(config, [n for n in rest if n.endswith(".trainable_tokens_delta")])
    problems += problem
    taken = {stored for stored, _ in rows.values()}
    whole = {_whole(n): n for n in rest if n not in taken}
    problems += [f"{n} is of no kind that is known" for n in whole.values() if "lora_" in n]
    if not factors and not rows:
        problems.append("it holds no factors")
    refuse_damaged(adapter.path, problems)
    return Layout(
        style="peft",
        factors=tuple(factors),
        whole=whole,
        rows=rows,
        is_transposed=config.fan_in_fan_out,
        base=config.base_model_name_or_path or None,
        config=data,
    )


def _config(path: str, data: JSON, name: str) -> Config:
    if not isinstance(data, dict):
        raise CheckpointFormatError(f"{name} is no configuration of an adapter: expected an object")
    kind = data.get("peft_type", "LORA")
    if kind != "LORA":
        raise not_low_rank(path, str(kind)[:40])
    for key, meaning in _OTHER_KINDS.items():
        if data.get(key):
            raise not_low_rank(path, meaning)
    config = parse(Config, data, error=CheckpointFormatError)
    first = str(config.init_lora_weights).lower()
    if first.startswith(_CHANGE_BASE):
        raise CheckpointFormatError(
            f"{path} was trained from init_lora_weights={config.init_lora_weights!r}, which changes"
            " the weights of the base, so that it is no update of it; save it as one (in peft: "
            "save_pretrained(out, path_initial_model_for_weight_conversion=...))"
        )
    if config.r < 1 or not math.isfinite(config.lora_alpha):
        raise CheckpointFormatError(
            f"{name}: r is {config.r} and lora_alpha {config.lora_alpha}; expected a rank of at "
            "least 1 and a number"
        )
    return config


def _up(down: str) -> str:
    if down.endswith(_TABLE):
        return down[: -len(_TABLE)] + "lora_embedding_B"
    return down[: -len("lora_A.weight")] + "lora_B.weight"


def _stem(down: str) -> str:
    return re.sub(r"\.(lora_A\.weight|lora_embedding_A)$", "", down)


def _module(down: str) -> str:
    return _plain(_stem(down))


def _plain(name: str) -> str:
    """A name as the base has it: without what PEFT puts before and within it."""
    return name.removeprefix(_PREFIX).replace(".base_layer", "")


def _whole(name: str) -> str:
    plain = _plain(name)
    return re.sub(r"\.modules_to_save(\.[^.]+)?\.(?=[^.]+$)", ".", plain)


def _rows(
    config: Config, stored: list[str]
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], list[str]]:
    """Tables of which some rows were trained, with the positions of those."""
    given, found, problems = config.trainable_token_indices, {}, list[str]()
    for name in stored:
        module = _plain(name.removesuffix(".token_adapter.trainable_tokens_delta"))
        of_module = given
        if isinstance(given, dict):
            keys = [k for k in given if module == k or module.endswith(f".{k}")]
            of_module = given[keys[0]] if len(keys) == 1 else None
        if not isinstance(of_module, list) or not all(type(i) is int and i >= 0 for i in of_module):
            problems.append(f"trainable_token_indices does not say which rows {name} holds")
            continue
        found[f"{module}.weight"] = (name, tuple(of_module))
    return found, problems
