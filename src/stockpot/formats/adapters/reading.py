"""Whether a checkpoint is an adapter, of which kind, and what it holds."""

from __future__ import annotations

import re
from pathlib import Path

from stockpot._records import read_json
from stockpot._types import StrPath
from stockpot.errors import CheckpointFormatError, StockpotError
from stockpot.formats.adapters import kohya, peft
from stockpot.formats.adapters.layout import CONFIG, Layout, not_low_rank
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint

_FACTOR = re.compile(
    r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|lora_(up|down)|lora\.(up|down)|"
    r"dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2|oft_(r|blocks)|"
    r"ia3_l|vera_lambda_[bd]|prompt_embeddings|trainable_tokens_delta)(\.|$)"
)


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether the tensors are those of an adapter (LoRA, LoHa, IA³, …), no model's weights."""
    return any(_FACTOR.search(name) for name in checkpoint) or _config_of(checkpoint) is not None


def how_to_load(path: StrPath) -> str | None:
    """The line of Python that loads the adapter at `path` into a model; None for anything else."""
    place = Path(path)
    if (place / CONFIG).is_file():
        return f'PeftModel.from_pretrained(model, "{place}")'
    try:
        is_one = place.is_file() and is_adapter(open_checkpoint(place))
    except (StockpotError, OSError):
        return None
    return f'pipeline.load_lora_weights("{place}")' if is_one else None


def _config_of(checkpoint: Checkpoint) -> Path | None:
    """The configuration beside an adapter, in its folder or beside its file."""
    path = Path(checkpoint.folder)
    place = (path if path.is_dir() else path.parent) / CONFIG
    known = path.is_dir() or path.name.startswith("adapter_model.")
    return place if known and checkpoint.files and place.is_file() else None


def read_layout(adapter: Checkpoint) -> Layout:
    """What `adapter` holds, from its headers and its configuration.

    Raises:
        CheckpointFormatError: it is of a kind that is no low-rank update, or damaged; it says how
            it could be used nevertheless.
    """
    config = _config_of(adapter)
    if config is not None:
        data = read_json(config, error=CheckpointFormatError)
        return peft.layout(adapter, data, str(config))
    _refuse_kinds(adapter)
    if any(name.startswith("base_model.model.") for name in adapter):
        raise CheckpointFormatError(
            f"{adapter.path} holds an adapter of PEFT without its {CONFIG}, so that its scale is "
            f"not known; put the {CONFIG} of its training beside it"
        )
    return kohya.layout(adapter)


_KINDS = {
    "LoHa": re.compile(r"(^|\.)hada_"),
    "LoKr": re.compile(r"(^|\.)lokr_"),
    "OFT": re.compile(r"(^|\.)oft_"),
    "LoCon with a middle factor (lora_mid)": re.compile(r"(^|\.)lora_mid(\.|$)"),
    "DoRA in kohya's spelling (dora_scale)": re.compile(r"(^|\.)dora_scale(\.|$)"),
}


def _refuse_kinds(adapter: Checkpoint) -> None:
    for kind, pattern in _KINDS.items():
        if any(pattern.search(name) for name in adapter):
            raise not_low_rank(adapter.path, kind)
