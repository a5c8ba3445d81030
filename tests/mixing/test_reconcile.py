"""Checkpoints that differ in form only are mixed as if they did not, and that is said."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import stockpot
from stockpot.errors import MismatchError, RecipeError
from stockpot.mixing import Coefficients, Ingredients, Mixture, Reconcile
from stockpot.recipes import Uniform, WiseFT
from stockpot.recipes.record import verify
from stockpot.recipes.soup import Soup


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.0.weight": torch.randn(6, 4, generator=generator).to(dtype),
        "layer.0.bias": torch.randn(6, generator=generator).to(dtype),
        "layer.1.weight": torch.randn(3, 6, generator=generator).to(dtype),
    }


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def written(path: Path, state: dict[str, torch.Tensor]) -> str:
    save_file(state, path)
    return str(path)


def saved_and_verified(mixture: Mixture, given: Ingredients, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the saved mixture, whose record rebuilds it."""
    from dataclasses import replace

    replace(Uniform().cook(given), mixture=mixture).save(path)
    assert verify(path) == []
    assert Soup.load(path).mixture.key == mixture.key
    return stockpot.open(path).state_dict()


# Precision


@pytest.mark.parametrize("out", ["f32", "bf16", "f16", "f64"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)
def test_floating_types_are_mixed_exactly_and_rounded_once(
    out: str, dtypes: tuple[torch.dtype, ...], tmp_path: Path
) -> None:
    states = [weights(i, dtype) for i, dtype in enumerate(dtypes)]
    paths = [written(tmp_path / f"{i}.safetensors", state) for i, state in enumerate(states)]
    given = Ingredients(paths, reconcile=Reconcile(dtype=out))
    mixture = Mixture(given, Coefficients.per_model([0.25, 0.75]))
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.double}
    found = saved_and_verified(mixture, given, tmp_path / "soup.safetensors")
    for name in states[0]:
        exact = 0.25 * states[0][name].double() + 0.75 * states[1][name].double()
        # Into float64 and from there: exact here, since the sums take fewer than 53 bits.
        torch.testing.assert_close(found[name], exact.to(kind[out]), rtol=0, atol=0)


def test_without_a_type_for_the_result_the_refusal_names_the_flag() -> None:
    with pytest.raises(MismatchError, match="--dtype"):
        Ingredients([weights(0), weights(1, torch.bfloat16)])
    with pytest.raises(MismatchError, match="--dtype"):
        Ingredients([weights(0)], base=weights(1, torch.float16))
    with pytest.raises(MismatchError) as caught:
        Ingredients([weights(0), {n: v.long() for n, v in weights(1).items()}])
    assert "--dtype" not in str(caught.value)  # integers are not mixed at all


def test_a_recipe_takes_the_base_in_another_precision() -> None:
    base, tuned = weights(0, torch.bfloat16), weights(1)
    soup = WiseFT(alpha=0.5).cook([tuned], base=base, dtype="f32")
    for name, value in tuned.items():
        expected = (0.5 * base[name].double() + 0.5 * value.double()).float()
        torch.testing.assert_close(soup.mixture.read(name), expected, rtol=0, atol=0)
    mean = Uniform().cook([base, tuned], dtype="f64").mixture
    assert mean.read("layer.0.bias").dtype == torch.float64


def test_one_ingredient_alone_is_only_rounded() -> None:
    given = Ingredients([weights(0), weights(1, torch.float16)], reconcile=Reconcile(dtype="bf16"))
    for i in (0, 1):
        vector = [float(j == i) for j in (0, 1)]
        found = Mixture(given, Coefficients.per_model(vector)).read("layer.0.weight")
        assert torch.equal(found, given[i].read("layer.0.weight").bfloat16())


# Names


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "vit.", "ema_model.", "module._orig_mod."]
)
@pytest.mark.parametrize("first", [False, True])
def test_a_prefix_on_one_side_only_is_taken_away_and_said(
    prefix: str, first: bool, tmp_path: Path
) -> None:
    states = [prefixed(prefix, weights(0)), weights(1)]
    if first:
        states.reverse()
    paths = [written(tmp_path / f"{i}.safetensors", state) for i, state in enumerate(states)]
    given = Ingredients(paths)
    assert set(given.averaged) == set(weights(0))
    assert sum("prefix" in note for note in given.notes) == 1
    found = saved_and_verified(Mixture(given), given, tmp_path / "soup.safetensors")
    for name, value in weights(0).items():
        torch.testing.assert_close(found[name], (value + weights(1)[name]) / 2)


def test_a_prefix_that_all_have_stays() -> None:
    given = Ingredients([prefixed("model.", weights(i)) for i in (0, 1)])
    assert set(given.averaged) == {f"model.{name}" for name in weights(0)}
    assert given.notes == ()


def test_names_of_the_many_stay_where_the_prefix_belongs_to_the_model() -> None:
    given = Ingredients(
        [prefixed("encoder.", weights(0)), weights(1), prefixed("encoder.", weights(2))]
    )
    assert set(given.averaged) == {f"encoder.{name}" for name in weights(0)}
    wrapped = Ingredients(
        [prefixed("module.", weights(0)), weights(1), prefixed("module.", weights(2))]
    )
    assert set(wrapped.averaged) == set(weights(0))


def test_names_within_wrapped_modules_agree() -> None:
    plain = {"net." + name: value for name, value in weights(0).items()}
    compiled = {"net._orig_mod." + name: value for name, value in weights(1).items()}
    sharded = {
        name.replace("net.", "net._fsdp_wrapped_module."): value
        for name, value in prefixed("net.", weights(2)).items()
    }
    given = Ingredients([plain, compiled, sharded])
    assert set(given.averaged) == set(plain)
    assert sum("_orig_mod" in note or "_fsdp_wrapped" in note for note in given.notes) == 2


def test_the_counter_of_an_averaged_model_does_not_keep_its_prefix() -> None:
    model = nn.Linear(4, 4)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    for states in ([averaged.state_dict(), model.state_dict()],
                   [model.state_dict(), averaged.state_dict()]):  # fmt: skip
        given = Ingredients(states)
        assert set(given.specs) == {"weight", "bias"}
        assert any("n_averaged" in note for note in given.notes)
        torch.testing.assert_close(Mixture(given).read("weight"), model.weight.detach())


@pytest.mark.parametrize("prefix", ["vit.", "bert.", "model.", "base_model.transformer."])
@pytest.mark.parametrize("headless_is_base", [True, False])
def test_a_headless_backbone_gets_the_prefix_that_the_model_gives_it(
    prefix: str, headless_is_base: bool
) -> None:
    head = {"classifier.weight": torch.ones(2, 3), "classifier.bias": torch.zeros(2)}
    moved = {name: value + 0.01 * weights(1)[name] for name, value in weights(0).items()}
    backbone, full = weights(0), {**prefixed(prefix, moved), **head}
    tuned, base = (full, backbone) if headless_is_base else (backbone, full)
    given = Ingredients([tuned], base=base, on_mismatch="common")
    assert set(given.averaged) == {prefix + name for name in weights(0)}
    if headless_is_base:
        with pytest.raises(MismatchError, match="keep-head"):
            WiseFT(alpha=0.5).cook([tuned], base=base)
        soup = WiseFT(alpha=0.5, keep_head=True).cook([tuned], base=base)
        assert torch.equal(soup.mixture.read("classifier.weight"), torch.ones(2, 3))
        name = prefix + "layer.0.bias"
        expected = (weights(0)["layer.0.bias"] + moved["layer.0.bias"]) / 2
        torch.testing.assert_close(soup.mixture.read(name), expected)


def test_what_could_be_two_prefixes_is_left_alone_and_the_flags_are_named() -> None:
    twins = {**prefixed("student.", weights(0)), **prefixed("teacher.", weights(1))}
    with pytest.raises(MismatchError, match="--strip-prefix"):
        Ingredients([weights(2), weights(3), twins])
    given = Ingredients(
        [weights(2), twins], on_mismatch="common", reconcile=Reconcile(strip_prefix=("teacher.",))
    )
    torch.testing.assert_close(
        Mixture(given).read("layer.0.bias"),
        (weights(2)["layer.0.bias"] + weights(1)["layer.0.bias"]) / 2,
    )


def test_other_shapes_make_no_prefix() -> None:
    other = {f"x.{name}": value[:1] for name, value in weights(0).items()}
    with pytest.raises(MismatchError):
        Ingredients([weights(1), other])


def test_names_are_changed_as_asked_and_the_record_knows(tmp_path: Path) -> None:
    old = {name.replace("layer.", "blocks."): value for name, value in weights(0).items()}
    paths = [written(tmp_path / "a.safetensors", old),
             written(tmp_path / "b.safetensors", weights(1))]  # fmt: skip
    given = Ingredients(paths, reconcile=Reconcile(rename=("blocks.=layer.",)))
    found = saved_and_verified(Mixture(given), given, tmp_path / "soup.safetensors")
    assert set(found) == set(weights(0))
    deep = Reconcile(rename=("gamma=weight",))
    assert deep.renamed("bn.gamma") == "bn.weight"
    assert deep.renamed("bn.my_gamma") == "bn.my_gamma"


@pytest.mark.parametrize("rename", ["weight", "=x"])
def test_a_renaming_without_two_sides_is_refused(rename: str) -> None:
    with pytest.raises(RecipeError, match="OLD=NEW"):
        Reconcile(rename=(rename,))


def test_renamings_that_make_two_names_one_are_refused() -> None:
    with pytest.raises(RecipeError, match="keeps them apart"):
        Ingredients([weights(0)], reconcile=Reconcile(rename=("layer.1.=layer.0.",)))


def test_tied_names_stay_tied() -> None:
    shared = torch.randn(3, 2)
    model = {"embed.weight": shared, "head.weight": shared, "b": torch.ones(2)}
    wrapped = {f"model.{n}": v for n, v in model.items()}
    given = Ingredients([model, wrapped])
    assert given.tied == (("embed.weight", "head.weight"),)


# Buffers


def counted(seed: int, **buffers: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**weights(seed), **buffers}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("n_averaged", [torch.tensor(3), torch.tensor(7)], 7),
        ("ema.num_updates", [torch.tensor(9), torch.tensor(2)], 9),
        ("step", [torch.tensor([1000]), torch.tensor([2000])], 2000),
        ("moco.queue_ptr", [torch.tensor([5]), torch.tensor([1])], 5),
        ("bn.num_batches_tracked", [torch.tensor(1), torch.tensor(4)], 4),
    ],
)
def test_counters_of_wrappers_become_the_largest(
    name: str, values: list[torch.Tensor], expected: int
) -> None:
    given = Ingredients([counted(i, **{name: value}) for i, value in enumerate(values)])
    assert Mixture(given).read(name).item() == expected


@pytest.mark.parametrize(("buffers", "expected"), [("maximum", [7, 4]), ("first", [7, 1]),
                                                   ("base", [2, 2])])  # fmt: skip
def test_a_policy_decides_between_buffers_that_differ(
    buffers: str, expected: list[int], tmp_path: Path
) -> None:
    base, *states = (
        counted(i, ids=torch.tensor(ids)) for i, ids in enumerate(([2, 2], [7, 1], [3, 4]))
    )
    with pytest.raises(MismatchError, match="--buffers"):
        Mixture(Ingredients(states, base=base)).read("ids")
    paths = [written(tmp_path / f"{i}.safetensors", state) for i, state in enumerate(states)]
    start = written(tmp_path / "base.safetensors", base)
    given = Ingredients(paths, base=start, reconcile=Reconcile(buffers=buffers))
    found = saved_and_verified(Mixture(given), given, tmp_path / "soup.safetensors")
    assert found["ids"].tolist() == expected


def test_buffers_of_the_base_need_one() -> None:
    given = Ingredients([weights(0)], reconcile=Reconcile(buffers="base"))
    with pytest.raises(RecipeError, match="--base"):
        Mixture(given)


def test_masks_of_infinity_are_copied_where_they_agree_and_refused_where_not() -> None:
    mask = torch.full((3, 3), -torch.inf).triu(1)
    given = Ingredients([counted(i, mask=mask.clone()) for i in (0, 1)])
    assert torch.equal(Mixture(given).read("mask"), mask)
    for wrong in (torch.full((3, 3), -torch.inf), torch.full((3, 3), torch.nan).triu(1)):
        with pytest.raises(stockpot.errors.NonFiniteError):
            Mixture(Ingredients([counted(0, mask=mask), counted(1, mask=wrong)])).read("mask")
    for bad in (torch.nan, torch.inf):
        same = [counted(i, mask=torch.full((3, 3), bad)) for i in (0, 1)]
        with pytest.raises(stockpot.errors.NonFiniteError):
            Mixture(Ingredients(same)).read("mask")


def test_triangles_of_ones_are_no_pruning() -> None:
    table = torch.ones(64, 64).tril()[None, None]
    given = Ingredients([counted(i, bias=table.clone()) for i in (0, 1)])
    assert given.zeros is None
    soup = Uniform().cook(given)
    assert soup.mixture.mask is None
    assert torch.equal(soup.mixture.read("bias"), table)


# Which tensors


def test_only_and_exclude_take_the_rest_from_the_base_or_the_first(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{i}.safetensors", weights(i)) for i in range(3)]
    given = Ingredients(paths, reconcile=Reconcile(exclude=("layer.1.*",)))
    assert given.averaged == {"layer.0.weight", "layer.0.bias"}
    assert any("layer.1.weight" in note and "0.safetensors" in note for note in given.notes)
    found = saved_and_verified(Mixture(given), given, tmp_path / "soup.safetensors")
    assert torch.equal(found["layer.1.weight"], weights(0)["layer.1.weight"])
    based = Ingredients(paths[:2], base=paths[2], reconcile=Reconcile(only=("*.weight",)))
    assert torch.equal(Mixture(based).read("layer.0.bias"), weights(2)["layer.0.bias"])


def test_excluded_tensors_may_differ_in_shape() -> None:
    other = {**weights(1), "layer.1.weight": torch.ones(9, 6)}
    with pytest.raises(MismatchError):
        Ingredients([weights(0), other])
    given = Ingredients([weights(0), other], reconcile=Reconcile(exclude=("layer.1.*",)))
    assert given.averaged == {"layer.0.weight", "layer.0.bias"}


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="no tensor matches 'head"):
        Ingredients([weights(0)], reconcile=Reconcile(only=("head.*",)))


def test_common_lists_what_it_leaves_out_and_gives_the_same_in_every_order(tmp_path: Path) -> None:
    states = [weights(0), {**weights(1), "extra.a": torch.ones(2), "extra.b": torch.ones(3)}]
    paths = [written(tmp_path / f"{i}.safetensors", state) for i, state in enumerate(states)]
    results = []
    for order in (paths, paths[::-1]):
        given = Ingredients(order, on_mismatch="common")
        assert any("extra.a, extra.b" in note for note in given.notes)
        mixture = Mixture(given)
        results.append({name: mixture.raw(name).tobytes() for name in sorted(mixture)})
        saved_and_verified(mixture, given, tmp_path / f"soup-{len(results)}.safetensors")
    assert results[0] == results[1]


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="error, maximum, first or base"):
        Reconcile(buffers="mean")  # type: ignore[arg-type]


def test_options_survive_json() -> None:
    options = Reconcile(dtype="f32", strip_prefix=("a.",), only=("b*", "c"), buffers="first")
    assert Reconcile.from_json(options.to_json(), dtype="f32") == options
    assert Reconcile().to_json() == {}


def test_values_are_untouched_by_names() -> None:
    given = Ingredients([prefixed("model.", weights(0)), weights(1)])
    found = given[0].raw("layer.0.bias").view(np.float32)
    np.testing.assert_array_equal(found, weights(0)["layer.0.bias"].numpy())
    with pytest.raises(stockpot.errors.TensorNotFoundError):
        given[0].raw("model.layer.0.bias")


def test_many_layouts_and_long_names_take_time_in_proportion() -> None:
    odd = [{f"a{i}." * 2000 + f"w{j}": np.zeros(2) for j in range(20)} for i in range(40)]
    began = time.process_time()
    with pytest.raises(MismatchError):
        Ingredients(odd)
    assert time.process_time() - began < 20


def test_all_follow_the_usual_layout_whatever_they_differ_by() -> None:
    states = [
        prefixed("encoder.", weights(0)),
        prefixed("module.encoder.", weights(1)),
        weights(2),
        prefixed("encoder.", weights(3)),
    ]
    given = Ingredients(states)
    assert set(given.averaged) == {f"encoder.{name}" for name in weights(0)}
    assert sum("prefix" in note for note in given.notes) == 2
