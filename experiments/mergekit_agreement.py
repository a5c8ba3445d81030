"""Whether `stockpot merge` writes what mergekit writes, on models of 20 million parameters.

    python -m experiments.mergekit_agreement --mergekit VENV/bin/mergekit-yaml [--write-reference]

For each configuration in `experiments/merges`, on Llama-like models in float32: mergekit computing
in float64 (`dtype: float64`, `out_dtype: float32`), where both round once at the end, and mergekit
computing in float32, its usual way. Differences are in units of the last place of the larger
of the two values and the base's, so that a difference that cancels does not count for more. Methods
that draw at random are compared by the share of entries that changed and by their mean sizes.

`--write-reference` writes what mergekit makes, in float64, of the small models that
`tests/recipes/test_merge.py` makes: sums that the test compares with, so that it needs no mergekit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from safetensors.numpy import load_file, save_file

MERGES = Path(__file__).parent / "merges"
REFERENCE = Path(__file__).parents[1] / "tests" / "recipes" / "mergekit_reference.json"
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
MODELS = ("base", "a", "b", "c")
_FLAGS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet", "--random-seed", "1")

Arrays = Mapping[str, npt.NDArray[np.floating]]


def shapes(hidden: int, n_layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of `n_layers` layers."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    inner = 2 * hidden
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        found |= {f"{at}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{at}.{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")}
    return {**found, "model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_models(
    folder: Path, *, hidden: int, vocabulary: int, n_layers: int = 4, dtype: str = "float32"
) -> None:
    """A base and three models that moved from it, as folders."""
    sizes = shapes(hidden, n_layers, vocabulary)
    rng = np.random.default_rng(0)
    base = {name: 0.02 * rng.normal(size=shape) for name, shape in sizes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": n_layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }  # fmt: skip
    for i, model in enumerate(MODELS):
        path = folder / model
        path.mkdir(parents=True)
        state = {n: (v + 0.002 * i * rng.normal(size=v.shape)).astype(dtype)
                 for n, v in base.items()}  # fmt: skip
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))


def written_by(
    program: Sequence[str], config: Mapping[str, object], folder: Path, *flags: str
) -> Arrays:
    """What a program writes for a configuration, whose models lie in `folder`."""
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "config.yml"
        written.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        command = [*program, str(written), *flags, str(Path(place) / "out")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        files = sorted((Path(place) / "out").glob("*.safetensors"))
        return {name: value for file in files for name, value in load_file(file).items()}


def differences(ours: Arrays, theirs: Arrays, base: Arrays) -> tuple[float, float]:
    """Share of the values that differ, and the largest difference in units of the last place."""
    if set(ours) != set(theirs):
        raise SystemExit(f"other tensors: {sorted(set(ours) ^ set(theirs))[:5]}")
    n = n_other = 0
    worst = 0.0
    for name, value in ours.items():
        other = theirs[name]
        size = np.maximum(np.abs(value), np.abs(other))
        if name in base and base[name].shape == value.shape:
            size = np.maximum(size, np.abs(base[name]))
        n += value.size
        n_other += int((value != other).sum())
        worst = max(worst, float((np.abs(value - other) / np.spacing(size)).max()))
    return n_other / n, worst


def distribution(found: Arrays, base: Arrays) -> tuple[float, float]:
    """Share of the values that moved from the base, and the mean size of the moves."""
    moves = [np.abs(value - base[name]).ravel() for name, value in found.items()]
    every = np.concatenate(moves)
    return float((every > 0).mean()), float(every.mean())


def projections(found: Arrays) -> dict[str, list[float]]:
    """Two sums for each tensor: of its values, and of its values times cos of their index."""
    return {
        name: [float(v.sum()), float((v.ravel() * np.cos(np.arange(v.size))).sum())]
        for name, v in sorted((n, np.asarray(x, np.float64)) for n, x in found.items())
    }


def main() -> None:
    """Print the table, or write the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", required=True, help="mergekit-yaml of version 0.1.5.")
    parser.add_argument("--write-reference", action="store_true")
    parser.add_argument("--only", help="Names of configurations, after commas.")
    given = parser.parse_args()
    mergekit = partial(written_by, [str(Path(given.mergekit).absolute()), *_FLAGS])
    stockpot = partial(written_by, [sys.executable, "-m", "stockpot", "merge"])
    wanted = None if given.only is None else given.only.split(",")
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(MERGES.glob("*.yml"))}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if given.write_reference:
            make_models(folder, hidden=12, vocabulary=40, dtype="float64")
            found = {name: projections(mergekit(config, folder))
                     for name, config in configs.items() if name not in RANDOM}  # fmt: skip
            REFERENCE.write_text(json.dumps(found, indent=1) + "\n")
            return
        make_models(folder, hidden=448, vocabulary=10_000)
        base = load_file(folder / "base" / "model.safetensors")
        print("| configuration | in float64: differ, largest | in float32: differ, largest |")
        print("|---|---|---|")
        for name, config in configs.items():
            if wanted is not None and name not in wanted:
                continue
            wide = {**config, "dtype": "float64", "out_dtype": "float32"}
            ours = stockpot(wide, folder, "-o")
            theirs = [mergekit(one, folder) for one in (wide, config)]
            if name in RANDOM:
                shown = ["share {:.4f}, mean {:.4e}".format(*distribution(one, base))
                         for one in (ours, theirs[1])]  # fmt: skip
                print(f"| `{name}` | ours: {shown[0]} | mergekit: {shown[1]} |", flush=True)
                continue
            found = [differences(ours, one, base) for one in theirs]
            cells = [f"{100 * share:.2g} %, {worst:.2g} ulp" for share, worst in found]
            print(f"| `{name}` | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
