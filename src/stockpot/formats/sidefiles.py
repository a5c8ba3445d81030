"""The files of a model folder that are no weights: configuration, tokenizer, code, licence."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError
from stockpot.formats.output import RECORD, OutputRequest
from stockpot.tensors.spec import DType

_BESIDE_WEIGHTS = (".index.json", ".onnx_data")
# What trainers leave behind, and pages that describe another model than the one being written.
_NOT_COPIED = {
    "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json",
    "predict_results.json", "zero_to_fp32.py", "latest", "readme.md", RECORD,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What a folder takes over from others.

    Attributes:
        stem: name of its weight files up to `.safetensors` or the shard number.
        largest_shard_bytes: size of the largest shard of the folder it is like, if sharded.
        copies: (name, source path), sorted.
        rewritten: (name, bytes) of files that had to be adapted.
        differing: names of side files that are not the same in all ingredient folders.
    """

    stem: str
    largest_shard_bytes: int | None
    copies: tuple[tuple[str, str], ...]
    rewritten: tuple[tuple[str, bytes], ...]
    differing: tuple[str, ...]


def is_side_file(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file of a model folder belongs to every model that is made of it.

    Args:
        name: of the file.
        suffixes: how files with weights end.

    >>> [is_side_file(name, (".bin",)) for name in ("config.json", "merges.txt", "model.bin")]
    [True, True, False]
    """
    lower = name.lower()
    return not (
        lower.startswith((".", "events.out.tfevents"))
        or lower.endswith((*suffixes, *_BESIDE_WEIGHTS, "." + RECORD))
        or lower in _NOT_COPIED
    )


def collect(request: OutputRequest, suffixes: tuple[str, ...]) -> SideFiles:
    """Side files from `request.config_from`, else from the folder that `request.like` is.

    `config.json` is adapted when it names another dtype than the one that all floating-point
    tensors of the output have, because transformers would convert them on loading; and when it
    does not say the layout of weights that are stored in one, or says it of weights that are not.

    Args:
        request: the output.
        suffixes: how files with weights end.

    Raises:
        CheckpointError: `config_from` is no folder.
    """
    source = _folder(None if request.like is None else request.like.path)
    donor = source
    if request.config_from is not None:
        donor = Path(request.config_from)
        if not donor.is_dir():
            raise CheckpointError(
                f"{donor} is no folder: config_from (--config-from) takes the model folder whose "
                "configuration and tokenizer files the output gets"
            )
    stem, largest = _weights_of(source)
    names = _names(donor, suffixes)
    copies = {name: str(donor / name) for name in names} if donor is not None else {}
    dtypes = {spec.dtype for spec in request.specs.values() if spec.dtype.mixable}
    rewritten = _adapted_config(copies, dtypes, request.quantization)
    for name in rewritten:
        del copies[name]
    return SideFiles(
        stem,
        largest,
        tuple(sorted(copies.items())),
        tuple(sorted(rewritten.items())),
        _differing([f for one in request.inputs if (f := _folder(one.path)) is not None], suffixes),
    )


def _folder(path: StrPath | None) -> Path | None:
    return Path(path) if path is not None and Path(path).is_dir() else None


def _names(folder: Path | None, suffixes: tuple[str, ...]) -> list[str]:
    if folder is None:
        return []
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file() and is_side_file(entry.name, suffixes)
    )


def _weights_of(folder: Path | None) -> tuple[str, int | None]:
    """The stem of a folder's weight files, and the size of its largest shard."""
    if folder is None:
        return "model", None
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        stem = indices[0].name.removesuffix(".safetensors.index.json")
        sizes = [path.stat().st_size for path in folder.glob(f"{stem}-*-of-*.safetensors")]
        return stem, max(sizes, default=None)
    if (folder / "pytorch_model.bin.index.json").exists():
        sizes = [path.stat().st_size for path in folder.glob("pytorch_model-*-of-*.bin")]
        return "model", max(sizes, default=None)
    singles = sorted(folder.glob("*.safetensors"))
    return (singles[0].stem if len(singles) == 1 else "model"), None


def _adapted_config(
    copies: dict[str, str], dtypes: set[DType], layout: Mapping[str, JSON] | None
) -> dict[str, bytes]:
    if "config.json" not in copies:
        return {}
    try:
        config = json.loads(Path(copies["config.json"]).read_bytes())
    except ValueError:
        return {}  # not ours to judge: copied as it is
    if not isinstance(config, dict):
        return {}
    changed = {**config, **_dtype_change(config, dtypes)}
    if layout is not None:
        changed["quantization_config"] = dict(layout)
    elif _is_sparse_layout(config.get("quantization_config")):
        del changed["quantization_config"]
    if changed == config:
        return {}
    return {"config.json": (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()}


def _dtype_change(config: Mapping[str, object], dtypes: set[DType]) -> dict[str, str]:
    if len(dtypes) != 1:
        return {}
    dtype = str(next(iter(dtypes)).torch_name)
    return {k: dtype for k in ("dtype", "torch_dtype") if config.get(k) not in (None, dtype)}


def _is_sparse_layout(config: object) -> bool:
    """Whether it says that weights are stored sparse, and nothing of quantised ones."""
    if not isinstance(config, dict) or config.get("config_groups"):
        return False
    sparsity = config.get("sparsity_config")
    return isinstance(sparsity, dict) and sparsity.get("format") == "sparse-bitmask"


def _differing(folders: Sequence[Path], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Names that some folder has and another has not, or has with other content."""
    names = sorted({name for folder in folders for name in _names(folder, suffixes)})
    return tuple(name for name in names if not _same_everywhere(name, folders))


def _same_everywhere(name: str, folders: Sequence[Path]) -> bool:
    contents = {
        path.read_bytes() if (path := folder / name).is_file() else None for folder in folders
    }
    return len(contents) == 1
