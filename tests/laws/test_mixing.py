"""Identities that averaging has to keep exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import stockpot
from stockpot import Coefficients, Ingredients, Mixture
from stockpot.train.ema import ExponentialMean, RunningMean

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def states(n: int, *, seed: int = 0, rows: int = 7) -> list[State]:
    """`n` small models around one base, with every type that is averaged or copied."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn((rows, 11), generator=generator)

    def near() -> torch.Tensor:
        return base + 0.05 * torch.randn((rows, 11), generator=generator)

    return [
        {
            "a.bf16": near().bfloat16(),
            "b.f16": near().half(),
            "c.f32": near(),
            "d.f64": near().double(),
            "e.scalar": near()[0, 0].clone(),
            "f.empty": torch.empty(0, 3),
            "bn.num_batches_tracked": torch.tensor(100 + i),
            "ids": torch.arange(4),
        }
        for i in range(n)
    ]


def contents(checkpoint: stockpot.Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.raw(name).tobytes() for name in checkpoint}


def mixed(given: list[State], coefficients: list[float] | None = None) -> dict[str, bytes]:
    chosen = None if coefficients is None else Coefficients.per_model(coefficients)
    return contents(Mixture(Ingredients(given), chosen))


@pytest.mark.parametrize("i", range(3))
def test_one_hot_coefficients_give_the_ingredient_bit_for_bit(i: int) -> None:
    given = states(3)
    one_hot = [float(i == j) for j in range(3)]
    assert mixed(given, one_hot) == contents(stockpot.from_state_dict(given[i]))


@pytest.mark.parametrize("k", [1, 2, 3, 7, 20])
def test_copies_give_the_copy_bit_for_bit(k: int) -> None:
    copies = [{n: t.clone() for n, t in states(1)[0].items()} for _ in range(k)]
    assert mixed(copies) == contents(stockpot.from_state_dict(copies[0]))


def test_permuting_the_ingredients_changes_no_bit() -> None:
    given = states(4, seed=1)
    weights = [0.1, 0.2, 0.3, 0.4]
    uniform, weighted = mixed(given), mixed(given, weights)
    for order in permutations(range(4)):
        shuffled = [given[i] for i in order]
        assert mixed(shuffled) == uniform
        assert mixed(shuffled, [weights[i] for i in order]) == weighted


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 0), (1.0, 1)])
def test_wise_ft_ends_are_the_endpoints_counters_included(alpha: float, end: int) -> None:
    base, tuned = states(2)
    expected = contents(stockpot.from_state_dict([base, tuned][end]))
    assert mixed([base, tuned], [1 - alpha, alpha]) == expected


def test_weight_space_is_output_space_for_a_linear_head_over_fixed_features() -> None:
    torch.manual_seed(0)
    features = torch.randn(64, 16, dtype=torch.float64)
    heads = [nn.Linear(16, 5, dtype=torch.float64) for _ in range(3)]
    weights = [0.5, 0.3, 0.2]
    soup = Mixture(Ingredients(heads), Coefficients.per_model(weights))
    head = nn.Linear(16, 5, dtype=torch.float64)
    head.load_state_dict({name: soup.read(name) for name in soup})
    with torch.no_grad():
        ensemble = sum(w * h(features) for w, h in zip(weights, heads, strict=True))
        torch.testing.assert_close(head(features), ensemble, rtol=1e-13, atol=1e-13)


def test_an_ema_from_the_base_is_wise_ft_on_the_debiased_ema() -> None:
    generator = np.random.default_rng(0)
    decay, n_steps = 0.9, 25
    base = {"w": torch.from_numpy(generator.normal(size=100))}
    started, debiased = ExponentialMean(decay, start=base), ExponentialMean(decay)
    for _ in range(n_steps):
        weights = {"w": base["w"] + torch.from_numpy(generator.normal(size=100))}
        for average in (started, debiased):
            average.update(weights)
    alpha = 1 - decay**n_steps
    coefficients = Coefficients.per_model([1 - alpha, alpha])
    soup = Mixture(Ingredients([base, debiased.state_dict()]), coefficients)
    torch.testing.assert_close(soup.read("w"), started.state_dict()["w"], rtol=0, atol=1e-12)


def test_swa_of_0_3_6_is_3() -> None:
    mean = RunningMean()
    for snapshot in (0.0, 3.0, 6.0):
        mean.update({"w": torch.tensor([snapshot])})
    assert mean.state_dict()["w"].item() == 3.0


def test_swa_is_the_uniform_mixture_of_the_snapshots() -> None:
    snapshots = [
        {"w": torch.from_numpy(np.random.default_rng(i).normal(size=50))} for i in range(6)
    ]
    mean = RunningMean()
    for snapshot in snapshots:
        mean.update(snapshot)
    soup = Mixture(Ingredients(snapshots)).read("w")
    torch.testing.assert_close(soup, mean.state_dict()["w"], rtol=0, atol=1e-15)


class KeptRows:
    """A mask that keeps every second element of one tensor."""

    fingerprint = "every second"

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.array = (np.arange(int(np.prod(shape))) % 2 == 0).reshape(shape)

    def __contains__(self, name: object) -> bool:
        return name == self.name

    def kept(self, name: str) -> npt.NDArray[np.bool_]:
        return self.array


def test_a_shared_mask_in_is_the_same_mask_out() -> None:
    given = states(3, rows=9000)
    mask = KeptRows("a.bf16", (9000, 11))
    for state in given:
        state["a.bf16"].abs_().clamp_min_(0.125)
        state["a.bf16"][~torch.from_numpy(mask.array)] = 0
    dense, masked = (Mixture(Ingredients(given), mask=m) for m in (None, mask))
    assert contents(dense) == contents(masked)
    assert torch.equal(masked.read("a.bf16") != 0, torch.from_numpy(mask.array))


def test_a_mask_sets_positive_zeros_after_rounding() -> None:
    given = [{"w": -torch.ones(4)} for _ in range(2)]
    soup = Mixture(Ingredients(given), mask=KeptRows("w", (4,))).read("w")
    assert soup.tolist() == [-1.0, 0.0, -1.0, 0.0]
    assert not torch.signbit(soup[1::2]).any()


def _write_single(state: State, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(state, path.with_suffix(".safetensors"), metadata={"format": "pt"})
    return path.with_suffix(".safetensors")


def _write_sharded(state: State, path: Path) -> Path:
    from safetensors.torch import save_file

    path.mkdir()
    names = sorted(state, reverse=True)
    weight_map = {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: state[name] for name in names[i::3]}, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[i::3], file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.fixture(scope="module")
def models() -> list[State]:
    # More than one unit of a tensor, and a remainder.
    return states(3, rows=250_001)


@pytest.mark.parametrize(
    ("write", "threads", "order", "weights"),
    [
        (_write_single, 1, (0, 1, 2), None),
        (_write_single, 4, (2, 0, 1), (0.5, 0.25, 0.25)),
        (_write_sharded, 1, (2, 0, 1), (0.5, 0.25, 0.25)),
        (_write_sharded, 4, (0, 1, 2), None),
    ],
)
def test_streamed_output_is_the_in_memory_one_whatever_the_layout(
    models: list[State],
    tmp_path: Path,
    write: Callable[[State, Path], Path],
    threads: int,
    order: tuple[int, ...],
    weights: tuple[float, ...] | None,
) -> None:
    paths = [write(models[i], tmp_path / f"run-{i}") for i in order]
    chosen = None if weights is None else Coefficients.per_model([weights[i] for i in order])
    in_memory = None if weights is None else Coefficients.per_model(weights)
    expected = contents(Mixture(Ingredients(models), in_memory))
    mixture = Mixture(Ingredients(paths), chosen)
    saved = mixture.save(tmp_path / "soup.safetensors", threads=threads)
    written = stockpot.open(tmp_path / "soup.safetensors")
    assert contents(written) == expected
    assert saved.fingerprint == written.fingerprint
    assert saved.fingerprints == tuple(stockpot.open(path).fingerprint for path in paths)


SCRIPT = """
import sys
from stockpot import Ingredients, Mixture
Mixture(Ingredients(sys.argv[3:])).save(sys.argv[1], threads=int(sys.argv[2]))
assert "torch" not in sys.modules
"""


def test_the_bytes_of_the_file_depend_on_nothing_but_the_ingredients(tmp_path: Path) -> None:
    """Argument order, hash seed, threads and shard layout of the inputs; and no torch is loaded."""
    given = states(3, rows=50)
    single = [str(_write_single(state, tmp_path / f"s{i}")) for i, state in enumerate(given)]
    sharded = [str(_write_sharded(state, tmp_path / f"d{i}")) for i, state in enumerate(given)]
    outputs = set()
    for seed, threads, paths in (
        (1, 1, single),
        (2, 4, single[::-1]),
        (1, 4, sharded),
        (2, 1, [sharded[1], single[2], sharded[0]]),
    ):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}.safetensors"
        src = Path(stockpot.__file__).parents[1]
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(src)}
        command = [sys.executable, "-c", SCRIPT, str(out), str(threads), *paths]
        subprocess.run(command, check=True, env=env)
        outputs.add(out.read_bytes())
    assert len(outputs) == 1
