"""The files of a model folder that are no weights: configuration, tokenizer, code, licence."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot._records import read_regular, require_modest
from stockpot._types import StrPath
from stockpot.errors import CheckpointError
from stockpot.formats.output import RECORD, OutputRequest
from stockpot.io.storage import same_content, stays_inside
from stockpot.tensors.spec import DType, TensorSpec

_MAX_JSON_BYTES = 10_000_000
_BESIDE_WEIGHTS = (".index.json", ".onnx_data")
# What trainers leave behind, and pages that describe another model than the one being written.
_NOT_COPIED = {
    "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json",
    "predict_results.json", "zero_to_fp32.py", "latest", "readme.md", "adapter_config.json", RECORD,
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
        links: names of links that lead out of the folder, and are left out.
    """

    stem: str
    largest_shard_bytes: int | None
    copies: tuple[tuple[str, str], ...]
    rewritten: tuple[tuple[str, bytes], ...]
    differing: tuple[str, ...]
    links: tuple[str, ...]


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


def collect(
    request: OutputRequest,
    suffixes: tuple[str, ...],
    *,
    part: str = "",
    dtypes: frozenset[DType] = frozenset(),
) -> SideFiles:
    """Side files from `request.config_from`, else from the folder that `request.like` is.

    `config.json` is adapted when it names another dtype than the one that all floating-point
    tensors beside it have, because transformers would convert them on loading; and when it does
    not say the layout of weights that are stored in one, or says it of weights that are not; and to
    the layers of a model that is put together of others' layers.

    Args:
        request: the output.
        suffixes: how files with weights end.
        part: the subfolder that is meant, of a folder with several models; names are relative to
            the whole.
        dtypes: of the tensors that can be averaged.

    Raises:
        CheckpointError: `config_from` is no folder.
    """
    source = _folder(None if request.like is None else request.like.folder, part)
    donor = source
    if request.config_from is not None:
        if not Path(request.config_from).is_dir():
            raise CheckpointError(
                f"{request.config_from} is no folder: config_from (--config-from) takes the model "
                "folder whose configuration and tokenizer files the output gets"
            )
        donor = _folder(request.config_from, part)
    stem, largest = _weights_of(source)
    if largest is not None and request.like is not None and request.like.mirror is not None:
        # In a store: the files that stand for its weights on this machine are empty.
        of_part = (f for f in request.like.files if f.path.rpartition("/")[0].endswith(part))
        largest = max((file.size for file in of_part), default=None)
    names, links = _names(donor, suffixes)
    prefix = f"{part}/" if part else ""
    copies = {name: str(donor / name) for name in names} if donor is not None else {}
    layers = getattr(request.like, "layers", None)
    adapted = _adapted_config(copies, dtypes, request, layers)
    rewritten = {**adapted, **request.rewritten}
    copies = {name: path for name, path in copies.items() if name not in rewritten}
    folders = [f for one in request.inputs if (f := _folder(one.folder, part)) is not None]
    return SideFiles(
        stem if request.stem is None else request.stem,
        largest,
        tuple((prefix + name, source) for name, source in sorted(copies.items())),
        tuple((prefix + name, data) for name, data in sorted(rewritten.items())),
        tuple(prefix + n for n in _differing(folders, suffixes) if n not in request.rewritten),
        tuple(prefix + name for name in links),
    )


def parts_of(folder: Path) -> list[str]:
    """Subfolders that belong to the model in `folder`, by its `modules.json` or `model_index.json`.

    These are how sentence-transformers and diffusers say of which parts a model is made. Other
    subfolders, such as a trainer's `checkpoint-500`, are no parts.
    """
    modules = _read_json(folder / "modules.json")
    listed = modules if isinstance(modules, list) else []
    named = [one.get("path") for one in listed if isinstance(one, dict)]
    index = _read_json(folder / "model_index.json")
    named += list(index) if isinstance(index, dict) else []
    found = {name for name in named if isinstance(name, str) and _is_part(folder, name)}
    if isinstance(index, dict) and not found:  # one that names no part: every model in it is one
        found = {path.parent.name for path in folder.glob("*/config.json")}
    return sorted(name for name in found if _is_part(folder, name))


def _is_part(folder: Path, name: str) -> bool:
    if not name or "\0" in name or ".." in Path(name).parts or Path(name).is_absolute():
        return False
    return (folder / name).is_dir() and stays_inside(folder / name, folder)


def _read_json(path: Path) -> Any:
    """What the small file `path` holds, None where it is absent, too large, or no JSON."""
    try:
        if not stays_inside(path, path.parent):
            return None
        data = read_regular(path, _MAX_JSON_BYTES)
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        require_modest(text)
        return json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None


def _folder(path: StrPath | None, part: str) -> Path | None:
    return found if path is not None and (found := Path(path) / part).is_dir() else None


def _names(folder: Path | None, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Side files of `folder`, and those that are links out of it, which are not followed."""
    names: list[str] = []
    links: list[str] = []
    for entry in os.scandir(folder) if folder is not None else ():
        if entry.is_file() and is_side_file(entry.name, suffixes):
            inside = not entry.is_symlink() or stays_inside(entry.path, folder or "")
            (names if inside else links).append(entry.name)
    return sorted(names), sorted(links)


def _weights_of(folder: Path | None) -> tuple[str, int | None]:
    """The stem of a folder's weight files, and the size of its largest shard."""
    if folder is None:
        return "model", None
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        stem = indices[0].name.removesuffix(".safetensors.index.json")
        sizes = [path.stat().st_size for path in folder.glob(f"{stem}-*-of-*.safetensors")]
        return stem, max(sizes, default=None)
    if (folder / "diffusion_pytorch_model.bin").exists():
        return "diffusion_pytorch_model", None
    if (folder / "pytorch_model.bin.index.json").exists():
        sizes = [path.stat().st_size for path in folder.glob("pytorch_model-*-of-*.bin")]
        return "model", max(sizes, default=None)
    singles = sorted(folder.glob("*.safetensors"))
    return (singles[0].stem if len(singles) == 1 else "model"), None


def _adapted_config(
    copies: dict[str, str],
    dtypes: frozenset[DType],
    request: OutputRequest,
    layers: Sequence[int] | None,
) -> dict[str, bytes]:
    layout, specs = request.quantization, request.specs
    if "config.json" not in copies:
        return {}
    config = _read_json(Path(copies["config.json"]))
    if not isinstance(config, dict):
        return {}  # not ours to judge: copied as it is
    changed = {**config, **_dtype_change(config, dtypes), **_layer_change(config, layers)}
    if layout is not None:
        changed["quantization_config"] = dict(layout)
    elif _is_left(config.get("quantization_config"), specs):
        del changed["quantization_config"]
    if changed == config:
        return {}
    return {"config.json": (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()}


def _dtype_change(config: Mapping[str, object], dtypes: frozenset[DType]) -> dict[str, str]:
    if len(dtypes) != 1:
        return {}
    dtype = str(next(iter(dtypes)).torch_name)
    return {k: dtype for k in ("dtype", "torch_dtype") if config.get(k) not in (None, dtype)}


def _layer_change(config: Mapping[str, Any], layers: Sequence[int] | None) -> dict[str, Any]:
    """The number of layers, and what is said of each, of a model put together of `layers`."""
    if layers is None:
        return {}
    changed: dict[str, Any] = {
        key: len(layers)
        for key in ("num_hidden_layers", "n_layer", "num_layers")
        if isinstance(config.get(key), int)
    }
    types = config.get("layer_types")
    if isinstance(types, list) and max(layers, default=0) < len(types):
        changed["layer_types"] = [types[layer] for layer in layers]
    return changed


def _is_left(config: object, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether it describes a layout that the weights beside it do not have."""
    fp8 = isinstance(config, dict) and config.get("quant_method") == "fp8"
    there = any(spec.dtype.value.startswith("F8") for spec in specs.values())
    return _is_sparse_layout(config) or (fp8 and not there)


def _is_sparse_layout(config: object) -> bool:
    """Whether it says that weights are stored sparse, and nothing of quantised ones."""
    if not isinstance(config, dict) or config.get("config_groups"):
        return False
    sparsity = config.get("sparsity_config")
    return isinstance(sparsity, dict) and sparsity.get("format") == "sparse-bitmask"


def _differing(folders: Sequence[Path], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Names that some folder has and another has not, or has with other content."""
    names = sorted({name for folder in folders for name in _names(folder, suffixes)[0]})
    return tuple(name for name in names if not _same_everywhere(name, folders))


def _same_everywhere(name: str, folders: Sequence[Path]) -> bool:
    first, *others = [folder / name for folder in folders]
    if not all(path.is_file() for path in (first, *others)):
        return False
    return all(same_content(first, other) for other in others)
