"""Model folders to measure with: llama-like shapes, bfloat16, sharded as transformers does it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def llama_shapes(n_bytes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a llama-like model of about `n_bytes` in bfloat16.

    As wide as real models of that size are: of a narrow one, even its first values are most of it.
    """
    widths = {400_000_000: (2048, 32_000), 40_000_000: (512, 8000), 0: (128, 1000)}
    hidden, vocabulary = next(width for least, width in widths.items() if n_bytes >= least)
    inner = hidden * 11 // 4
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    per_layer = 2 * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden)
    n_layers = max(1, round((n_bytes - 4 * vocabulary * hidden) / per_layer))
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        for part in "qkvo":
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        for part in ("gate", "up"):
            shapes[f"{at}.mlp.{part}_proj.weight"] = (inner, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        for part in ("input", "post_attention"):
            shapes[f"{at}.{part}_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def make_models(
    folder: Path, n_models: int, n_bytes: int, *, moved: float, seed: int = 0
) -> list[Path]:
    """Write `n_models` folders: one base, and moves from it of `moved` σ of its weights."""
    shapes = llama_shapes(n_bytes)
    paths = [folder / f"run-{i:02}" for i in range(n_models)]
    generator = np.random.default_rng(seed)
    # A table of noise, read from other places for each tensor: drawing it all would take minutes.
    noise = generator.standard_normal(1 << 22, np.float32)
    shards = _shards(shapes, max_bytes=max(n_bytes // 3, 1))
    weight_map: dict[str, str] = {}
    for path in paths:
        path.mkdir(parents=True)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        header, begin = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            end = begin + 2 * int(np.prod(shapes[name]))
            entry = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
            header[name], begin = entry, end  # type: ignore[assignment]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((path / file).open("wb")) for path in paths]
            for out in files:
                out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                n = int(np.prod(shapes[name]))
                base = _tiled(noise, n, generator) * 0.02
                for out in files:
                    out.write(_bf16(base + _tiled(noise, n, generator) * (0.02 * moved)).tobytes())
    for path in paths:
        write_json(path / "model.safetensors.index.json", _index(shapes, weight_map))
        write_json(path / "config.json", _config(shapes))
    return paths


def _shards(shapes: Mapping[str, tuple[int, ...]], *, max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _tiled(
    noise: npt.NDArray[np.float32], n: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    start = int(generator.integers(noise.size))
    return np.resize(np.roll(noise, -start), n)


def _bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)


def _index(shapes: Mapping[str, tuple[int, ...]], weight_map: Mapping[str, str]) -> Any:
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}


def _config(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    vocabulary, hidden = shapes["model.embed_tokens.weight"]
    n_layers = sum(name.endswith("q_proj.weight") for name in shapes)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "vocab_size": vocabulary,
        "num_hidden_layers": n_layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64, "tie_word_embeddings": False,
    }  # fmt: skip


def write_json(path: Path, data: Any) -> None:
    """Write `data` to a file."""
    path.write_text(json.dumps(data))
