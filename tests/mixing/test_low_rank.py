"""Mixtures of adapters: the mean of what they do, one adapter that does it, and its record."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
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
    mean,
    merged_by_hand,
    merged_by_peft,
    network,
    save_adapter,
    save_base,
    save_kohya,
)

import stockpot
from stockpot.errors import CheckpointError, MismatchError, NonFiniteError, RecipeError
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.sum import truncated
from stockpot.mixing import Coefficients, Mixture
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.reconcile import Reconcile
from stockpot.recipes.interpolation import BaseAlignment, with_base

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load

SORTS: list[dict[str, Any]] = [
    {},
    {"r": 2, "lora_alpha": 7, "use_rslora": True},
    {"r": 3, "target_modules": ["lin", "emb", "conv", "point"]},
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base.safetensors")


def adapters(tmp_path: Path, *sorts: dict[str, Any]) -> list[Path]:
    return [save_adapter(tmp_path / f"a{i}", i, **sort) for i, sort in enumerate(sorts)]


def close(found: Any, expected: Any, most: float = 1e-6) -> bool:
    assert set(found) == set(expected)
    far = {n: distance(found[n], expected[n]) for n in expected}
    assert {name: d for name, d in far.items() if d > most} == {}
    return True


def same_bits(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(np.array_equal(one.raw(n), other.raw(n)) for n in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_adapters_of_other_ranks_scales_and_targets(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base.safetensors", dtype)
    folders = [save_adapter(tmp_path / f"a{i}", i, dtype=dtype, **s) for i, s in enumerate(SORTS)]
    most = 1e-6 if dtype == torch.float32 else 1e-12
    expected = mean([merged_by_peft(folder, dtype) for folder in folders])
    soup = stockpot.average(folders, base=base)
    assert close(soup.state_dict(), expected, most)
    soup.save(tmp_path / "soup")
    assert close(merged_by_peft(tmp_path / "soup", dtype), expected, most)
    merged = stockpot.average(folders, base=base, reconcile=Reconcile(merge=True))
    merged.save(tmp_path / "merged.safetensors")
    assert close(load_file(tmp_path / "merged.safetensors"), expected, most)


@pytest.mark.parametrize(
    "sorts",
    [
        SORTS,
        [{"modules_to_save": ["head"]}, {"modules_to_save": ["head"], "r": 2}],
        [{"bias": "all"}, {"bias": "lora_only"}],
        [{"trainable_token_indices": {"emb": [7, 2]}}, {"trainable_token_indices": {"emb": [3]}}],
        [{"use_dora": True}],
    ],
)
def test_what_is_scored_is_what_is_saved_bit_for_bit(
    sorts: list[dict[str, Any]], base: Path, tmp_path: Path
) -> None:
    folders = adapters(tmp_path, *sorts)
    soup = stockpot.average(folders, base=base)
    soup.save(tmp_path / "soup")
    assert same_bits(Adapter(base, tmp_path / "soup"), soup.mixture)
    assert close(merged_by_peft(tmp_path / "soup"), mean([*map(merged_by_peft, folders)]))
    assert stockpot.verify(tmp_path / "soup") == []


@pytest.mark.parametrize("dtype", [None, "bf16", "f64"])
@pytest.mark.parametrize("rank", [None, 2])
def test_any_part_of_a_factor_has_the_bits_of_the_whole(
    rank: int | None, dtype: str | None, base: Path, tmp_path: Path
) -> None:
    folders = adapters(tmp_path, *SORTS)
    soup = stockpot.average(folders, base=base, dtype=dtype, reconcile=Reconcile(rank=rank))
    written = soup.mixture.written(tmp_path / "soup")
    rng = np.random.default_rng(0)
    for name, spec in written.items():
        whole = written.raw(name)
        assert np.array_equal(written.part(name, 0, spec.nbytes), whole)
        for _ in range(20):
            a, b = sorted(rng.integers(0, spec.nbytes + 1, 2).tolist())
            assert np.array_equal(written.part(name, a, b), whole[a:b])


def test_two_threads_find_the_factors_that_one_has_made(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *SORTS)
    given = Ingredients(folders, base=base, reconcile=Reconcile(rank=2))
    mixed = Mixture(given).adapters
    assert mixed is not None
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(mixed.factors, ["lin.weight"] * 8))
    assert len({id(one) for one in found}) == 1


def test_one_adapter_stays_what_it_is(base: Path, tmp_path: Path) -> None:
    for i, sort in enumerate([*SORTS, {"use_dora": True}, {"modules_to_save": ["head"]}]):
        folder = save_adapter(tmp_path / f"a{i}", i, **sort)
        stockpot.average([folder], base=base).save(tmp_path / f"s{i}")
        names = ("adapter_model.safetensors",)
        assert all(
            (folder / n).read_bytes() == (tmp_path / f"s{i}" / n).read_bytes() for n in names
        )
        configs = [json.loads((f / "adapter_config.json").read_text())
                   for f in (folder, tmp_path / f"s{i}")]  # fmt: skip
        assert configs[0] == configs[1]


def test_the_order_of_arguments_changes_no_byte(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *SORTS)
    for name, order in (("one", folders), ("other", folders[::-1])):
        stockpot.average(order, base=base).save(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_two_spellings_of_one_function_average_to_it(base: Path, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", lora_alpha=4)
    other = Path(shutil.copytree(one, tmp_path / "other"))
    change_config(other, lora_alpha=16)
    change_tensors(other, lora_B_weight=lambda value: value / 4)
    soup = stockpot.average([one, other], base=base)
    assert close(soup.state_dict(), merged_by_peft(one))


def test_the_mean_of_factors_is_another_function(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, {}, {}, {})
    tensors = [load_file(f / "adapter_model.safetensors") for f in folders]
    up, down = (
        [t[f"base_model.model.lin.lora_{side}.weight"].double() for t in tensors] for side in "BA"
    )
    exact = sum(b @ a for b, a in zip(up, down, strict=True)) / 3
    pairs = combinations(range(3), 2)
    error = -sum((up[i] - up[j]) @ (down[i] - down[j]) for i, j in pairs) / 9
    by_factors = (sum(up) / 3) @ (sum(down) / 3)
    assert distance(by_factors - exact, error) <= 1e-12  # METHODS §10
    soup = stockpot.average(folders, base=base).mixture
    moved = soup.read("lin.weight").double() - network().state_dict()["lin.weight"].double()
    assert distance(moved, 3.0 * exact) <= 1e-6
    assert distance(moved, 3.0 * by_factors) > 0.1


def test_weights_and_points_between_base_and_adapter(base: Path, tmp_path: Path) -> None:
    a, b = adapters(tmp_path, *SORTS[:2])
    states = [merged_by_peft(one) for one in (a, b)]
    start = network().state_dict()
    weighted = stockpot.average([a, b], base=base, weights=(0.25, 0.75))
    for name, value in weighted.state_dict().items():
        expected = 0.25 * states[0][name].double() + 0.75 * states[1][name].double()
        assert distance(value, expected) <= 1e-6
    point = stockpot.interpolate(base, a, alpha=0.5)
    point.save(tmp_path / "half")
    found = Adapter(base, tmp_path / "half")
    for name, value in states[0].items():
        assert distance(found.read(name), (value.double() + start[name].double()) / 2) <= 1e-6
    assert stockpot.verify(tmp_path / "half") == []


def test_adapters_and_full_models_of_one_base(base: Path, tmp_path: Path) -> None:
    (a,) = adapters(tmp_path, {})
    tuned = {n: v + 0.1 if v.is_floating_point() else v for n, v in network().state_dict().items()}
    save_file({n: v.contiguous() for n, v in tuned.items()}, tmp_path / "tuned.safetensors")
    soup = stockpot.average([a, tmp_path / "tuned.safetensors"], base=base)
    assert close(soup.state_dict(), mean([merged_by_peft(a), tuned]))
    soup.save(tmp_path / "full.safetensors")
    assert stockpot.verify(tmp_path / "full.safetensors") == []


@pytest.mark.parametrize("rank", [1, 2, 5, 100])
def test_an_adapter_of_a_rank_is_the_best_there_is_and_is_what_is_scored(
    rank: int, base: Path, tmp_path: Path
) -> None:
    folders = adapters(tmp_path, *SORTS)
    soup = stockpot.average(folders, base=base, reconcile=Reconcile(rank=rank))
    soup.save(tmp_path / "soup")
    assert same_bits(Adapter(base, tmp_path / "soup"), soup.mixture)
    assert stockpot.verify(tmp_path / "soup") == []
    exact, start = mean([*map(merged_by_peft, folders)]), network().state_dict()
    written = merged_by_peft(tmp_path / "soup")
    recorded = json.loads((tmp_path / "soup" / "stockpot.json").read_text()).get("adapter")
    for name in ("lin.weight", "conv.weight", "square.weight", "point.weight"):
        change = (exact[name] - start[name].double()).reshape(len(exact[name]), -1)
        sigma = torch.linalg.svdvals(change)
        best = float(sigma[rank:].square().sum().sqrt())
        error = float((written[name].double() - exact[name]).norm())
        assert error == pytest.approx(best, abs=1e-5)
        said = (recorded or {"modules": {}})["modules"].get(name.removesuffix(".weight"))
        if said is not None:
            assert said["error"] == pytest.approx(best, abs=1e-5)
            assert said["norm"] == pytest.approx(float(sigma.square().sum().sqrt()), rel=1e-5)
    assert (recorded is None) == (rank == 100)


def test_cutting_off_leaves_what_eckart_and_young_say() -> None:
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(9, 6)), rng.normal(size=(6, 7))
    sigma = np.linalg.svd(up @ down, compute_uv=False)
    for rank in range(1, 8):
        left, right, norm, error = truncated(up, down, rank)
        rest = np.linalg.norm(left @ right - up @ down)
        assert rest == pytest.approx(np.sqrt(np.sum(sigma[rank:] ** 2)), abs=1e-12)
        assert error == pytest.approx(rest, abs=1e-12)
        assert norm == pytest.approx(np.linalg.norm(up @ down))


def test_dora_is_merged_or_cut_to_a_rank(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, {"use_dora": True}, {"use_dora": True, "r": 2}, {})
    exact = mean([*map(merged_by_peft, folders)])
    with pytest.raises(RecipeError, match=r"DoRA.*--merge.*--rank"):
        stockpot.average(folders, base=base).save(tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
    merged = stockpot.average(folders, base=base, reconcile=Reconcile(merge=True))
    assert close(merged.state_dict(), exact)
    cut = stockpot.average(folders, base=base, reconcile=Reconcile(rank=6))
    cut.save(tmp_path / "cut")
    assert close(merged_by_peft(tmp_path / "cut"), exact)  # of full rank
    assert same_bits(Adapter(base, tmp_path / "cut"), cut.mixture)


def test_files_of_kohya_stay_such_files(base: Path, tmp_path: Path) -> None:
    noted = {"ss_network_dim": "4", "ss_tag": "x"}
    paths = [
        save_kohya(tmp_path / f"k{i}.safetensors", i, rank=r, alpha=a, metadata=noted)
        for i, (r, a) in enumerate([(4, 2.0), (2, 8.0), (3, None)])
    ]
    soup = stockpot.average(paths, base=base)
    soup.save(tmp_path / "soup.safetensors")
    tensors = load_file(tmp_path / "soup.safetensors")
    assert float(tensors["lora_unet_lin.alpha"]) == 9
    assert tensors["lora_unet_conv.lora_down.weight"].shape == (9, 3, 3, 3)
    start = network().state_dict()
    expected = mean([merged_by_hand(path, start) for path in paths])
    assert close(merged_by_hand(tmp_path / "soup.safetensors", start), expected)
    assert same_bits(Adapter(base, tmp_path / "soup.safetensors"), soup.mixture)
    metadata = stockpot.open(tmp_path / "soup.safetensors").metadata
    assert (metadata.get("ss_tag"), metadata.get("ss_network_dim")) == ("x", None)


def test_an_adapter_of_peft_is_a_folder(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *SORTS[:2])
    with pytest.raises(CheckpointError, match="is a folder"):
        stockpot.average(folders, base=base).save(tmp_path / "soup.safetensors")
    (kohya,) = [save_kohya(tmp_path / "k.safetensors")]
    with pytest.raises(CheckpointError, match="layouts kohya and peft"):
        stockpot.average([folders[0], kohya], base=base).save(tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_the_base_of_a_configuration_is_found(base: Path, tmp_path: Path) -> None:
    (a, b) = adapters(tmp_path, *SORTS[:2])
    for folder in (a, b):
        change_config(folder, base_model_name_or_path=str(base))
    given = Ingredients([a, b])
    assert given.base is not None
    assert given.base.path == str(base)
    with pytest.raises(MismatchError, match="no configuration names one"):
        change_config(a, base_model_name_or_path=None)
        change_config(b, base_model_name_or_path=None)
        Ingredients([a, b])


def test_the_adapter_of_another_base_is_named(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *[{}] * 3)
    other = tmp_path / "other.safetensors"
    save_file({n: v.contiguous() for n, v in network(seed=9).state_dict().items()}, other)
    copied = Path(shutil.copy(base, tmp_path / "elsewhere.safetensors"))
    for folder, claim in zip(folders, (copied, base, other), strict=True):
        change_config(folder, base_model_name_or_path=str(claim))
    with pytest.raises(MismatchError, match="1 of 3 adapters were not trained on") as caught:
        Ingredients(folders)
    assert [problem.ingredient for problem in caught.value.problems] == [str(folders[2])]
    assert len(Ingredients(folders[:2])) == 2  # a copy of the base is the base
    names = ("org/model", "/elsewhere/model", "org/another")
    for folder, claim in zip(folders, names, strict=True):
        change_config(folder, base_model_name_or_path=claim)
    with pytest.raises(MismatchError, match="org/another"):
        Ingredients(folders, base=base)


def test_the_record_of_a_soup_tells_a_base_that_is_another(base: Path, tmp_path: Path) -> None:
    stockpot.average(adapters(tmp_path, *SORTS[:2]), base=base).save(tmp_path / "soup")
    with pytest.raises(MismatchError, match="by the record beside it"):
        Ingredients([tmp_path / "soup"], base=network(seed=9))
    base.unlink()
    save_file(
        {n: v.contiguous() for n, v in network(seed=9).state_dict().items()},
        tmp_path / "base.safetensors",
    )
    with pytest.raises(stockpot.StockpotError, match="gone or have changed"):
        stockpot.verify(tmp_path / "soup")


def test_nan_in_one_factor_names_its_adapter_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *SORTS)
    change_tensors(folders[1], lin_lora_A_weight=lambda value: value * float("inf"))
    for merge in (False, True):
        with pytest.raises(NonFiniteError) as caught:
            options = Reconcile(merge=merge)
            stockpot.average(folders, base=base, reconcile=options).save(tmp_path / "soup")
        assert caught.value.path == str(folders[1])
        assert not (tmp_path / "soup").exists()


def test_coefficients_that_do_not_sum_to_one_take_a_full_model(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *SORTS[:2])
    shares = Coefficients.per_model([1.0, 1.0], any_sum=True)
    with pytest.raises(RecipeError, match=r"sum to 2.*--merge"):
        Mixture(Ingredients(folders, base=base), shares).save(tmp_path / "soup")
    given = Ingredients(folders, base=base, reconcile=Reconcile(merge=True))
    found = Mixture(given, shares).read("lin.weight")
    states = [merged_by_peft(one)["lin.weight"].double() for one in folders]
    assert distance(found, states[0] + states[1]) <= 1e-6


def test_a_curve_that_holds_its_ends_in_memory_mixes_factors(base: Path, tmp_path: Path) -> None:
    (a,) = adapters(tmp_path, {"modules_to_save": ["head"]})
    how = BaseAlignment(in_memory=True)
    given = with_base([a], str(base), on_mismatch="error", how=how)
    half = Mixture(given, Coefficients.per_model([0.5, 0.5]))
    assert half.adapters is not None
    state, start = merged_by_peft(a), network().state_dict()
    for name, value in state.items():
        assert distance(half.read(name), (value.double() + start[name].double()) / 2) <= 1e-6


def test_tables_that_peft_saves_beside_their_updates_are_the_base(
    base: Path, tmp_path: Path
) -> None:
    folders = adapters(tmp_path, {"target_modules": ["emb"]}, {"target_modules": ["emb"]})
    expected = mean([*map(merged_by_peft, folders)])
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors["base_model.model.emb.base_layer.weight"] = network().state_dict()["emb.weight"]
        save_file(tensors, folder / "adapter_model.safetensors")
    soup = stockpot.average(folders, base=base)
    soup.save(tmp_path / "soup")
    assert close(merged_by_peft(tmp_path / "soup"), expected)
    change_tensors(folders[0], emb_base_layer_weight=lambda value: value + 1)
    with pytest.raises(RecipeError, match=r"replaces emb\.weight and updates it.*--merge"):
        stockpot.average(folders, base=base).save(tmp_path / "other")


def test_only_what_adapters_change_belongs_to_the_mixture(base: Path, tmp_path: Path) -> None:
    given = Ingredients(adapters(tmp_path, *SORTS[:2]), base=base)
    mixture = Mixture(given)
    changed = {name for name in mixture if mixture.owner(name) is mixture}
    assert changed == {"lin.weight", "square.weight"}
    assert {mixture.owner(name) for name in mixture if name not in changed} == {given.base}


def test_the_type_of_the_output_is_that_of_the_factors(base: Path, tmp_path: Path) -> None:
    folders = adapters(tmp_path, *SORTS[:2])
    soup = stockpot.average(folders, base=base, dtype="bf16")
    soup.save(tmp_path / "soup")
    assert {one.dtype.value for one in stockpot.open(tmp_path / "soup").values()} == {"BF16"}
    assert soup.mixture["lin.weight"].dtype.value == "F32"
    assert same_bits(Adapter(base, tmp_path / "soup"), soup.mixture)
    assert stockpot.verify(tmp_path / "soup") == []
    merged = stockpot.average(folders, base=base, dtype="bf16", reconcile=Reconcile(merge=True))
    assert merged.mixture["lin.weight"].dtype.value == "BF16"


def test_weights_that_are_stored_as_in_out(base: Path, tmp_path: Path) -> None:
    sort = {"target_modules": ["flipped", "flipped_square"], "fan_in_fan_out": True}
    folders = adapters(tmp_path, sort, {**sort, "r": 2})
    for rank in (None, 3):
        soup = stockpot.average(folders, base=base, reconcile=Reconcile(rank=rank))
        soup.save(tmp_path / f"soup{rank}")
        assert same_bits(Adapter(base, tmp_path / f"soup{rank}"), soup.mixture)
        assert close(merged_by_peft(tmp_path / f"soup{rank}"), soup.state_dict())
    exact = stockpot.average(folders, base=base)
    assert close(exact.state_dict(), mean([*map(merged_by_peft, folders)]))
