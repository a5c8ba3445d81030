"""Ingredients: alignment, the one error that lists everything, and the canonical order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stockpot.errors import CheckpointError, CheckpointFormatError, MismatchError, RecipeError
from stockpot.formats.memory import from_state_dict
from stockpot.formats.opening import open as formats_open
from stockpot.formats.runs import expand_paths
from stockpot.mixing.ingredients import Ingredients


def state(seed: int = 0, **change: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {
        "head.weight": rng.normal(size=(100, 8)).astype(np.float32),
        "norm.weight": rng.normal(size=8).astype(np.float32),
        "norm.bias": rng.normal(size=8).astype(np.float32),
    }
    return {**tensors, **change}


def named(path: str, tensors: dict[str, np.ndarray]) -> object:
    return from_state_dict(tensors, path=path)


def unfit() -> list[object]:
    short = {"head.weight": state()["head.weight"]}
    half = {name: value.astype(np.float16) for name, value in state(3).items()}
    return [
        named("run-00", state(0)),
        named("run-01", state(1)),
        named("run-04", state(4, **{"head.weight": np.zeros((10, 8), np.float32)})),
        named("run-07", short),
        named("run-09", half),
    ]


def test_one_error_lists_every_problem_of_every_ingredient() -> None:
    with pytest.raises(MismatchError) as caught:
        Ingredients(unfit())
    assert str(caught.value).splitlines() == [
        "3 of 5 ingredients cannot be averaged with run-00:",
        "  run-04  head.weight is (10, 8), expected (100, 8)",
        "  run-07  2 tensors missing: norm.weight, norm.bias",
        "  run-09  3 tensors are F16, expected F32",
        "Say which type the result shall have, and floating types are mixed exactly: "
        'dtype="f32" (--dtype f32, or bf16).',
        'Leave these 3 out: on_mismatch="leave-out" (--on-mismatch leave-out); '
        'or average the common tensors only: "common".',
    ]
    assert len(caught.value.problems) == 1 + 2 + 3
    assert {p.ingredient for p in caught.value.problems} == {"run-04", "run-07", "run-09"}


def test_leave_out_keeps_those_that_fit_and_says_why_the_others_do_not() -> None:
    ingredients = Ingredients(unfit(), on_mismatch="leave-out")
    assert [c.path for c in ingredients] == ["run-00", "run-01"]
    assert [left.path for left in ingredients.left_out] == ["run-04", "run-07", "run-09"]
    assert all(left.problems for left in ingredients.left_out)
    assert ingredients.averaged == frozenset(state())


def test_common_averages_what_all_hold_alike_and_takes_the_rest_from_the_usual_layout() -> None:
    donors = set()
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        ingredients = Ingredients([unfit()[i] for i in order], on_mismatch="common")
        assert len(ingredients) == 3
        assert ingredients.averaged == {"norm.weight", "norm.bias"}
        assert ingredients.specs["head.weight"].shape == (100, 8)
        assert any("head.weight" in note for note in ingredients.notes)
        donors.add(ingredients.donor.path)
    assert len(donors) == 1  # whatever the order of arguments


def test_nothing_in_common_is_refused_even_then() -> None:
    with pytest.raises(MismatchError, match="No tensor is common to all"):
        Ingredients(unfit()[:4], on_mismatch="common")


def test_the_largest_group_that_agrees_is_the_yardstick() -> None:
    odd = named("odd", {"other": np.zeros(3, np.float32)})
    with pytest.raises(MismatchError, match="1 of 3 ingredients cannot be averaged with run-00"):
        Ingredients([odd, *unfit()[:2]])


def test_the_base_is_the_yardstick_where_there_is_one() -> None:
    base = named("base", {**state(9), "extra": np.zeros(1, np.float32)})
    with pytest.raises(MismatchError, match="2 of 2 ingredients cannot be averaged with base"):
        Ingredients(unfit()[:2], base=base)
    ingredients = Ingredients(unfit()[:2], base=base, on_mismatch="common")
    assert ingredients.donor.path == "base"
    assert "extra" in ingredients.specs
    assert "extra" not in ingredients.averaged


def test_a_prefix_that_does_not_make_all_agree_is_named() -> None:
    other = {f"model.{name}": value[:4] for name, value in state(1).items()}
    with pytest.raises(MismatchError, match=r"without the prefix 'model\.' .*--strip-prefix model"):
        Ingredients([named("a", state()), named("b", state()), named("wrapped", other)])


def test_what_lies_in_memory_has_a_name_of_its_own_and_the_callers_keep_theirs() -> None:
    given = [from_state_dict(state(seed)) for seed in range(3)]
    apart = Ingredients([*given, state(3)], base=from_state_dict(state(4)))
    assert apart.base is not None
    names = [one.path for one in (*apart, apart.base)]
    assert names == ["<memory>", "<memory 1>", "<memory 2>", "<memory 3>", "<memory 4>"]
    assert [one.path for one in given] == ["<memory>"] * 3
    assert [one.fingerprint for one in apart][:3] == [one.fingerprint for one in given]
    plain = Ingredients([state(0), state(1)], base=state(2))
    assert plain.base is not None
    assert [one.path for one in (*plain, plain.base)] == ["<memory 0>", "<memory 1>", "<base>"]


def test_two_sections_of_a_file_keep_its_path_and_have_labels_of_their_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "run.pt"
    torch.save({"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}, file)
    both = Ingredients([formats_open(file, key="model"), formats_open(file, key="ema")])
    assert [one.path for one in both] == [str(file)] * 2
    assert both.labels == [str(file), f"{file} (1)"]


def test_no_ingredients_is_an_error() -> None:
    with pytest.raises(RecipeError):
        Ingredients([])


def test_the_canonical_order_does_not_depend_on_the_order_of_arguments(tmp_path: Path) -> None:
    paths = []
    for seed in range(5):
        save_file(state(seed), tmp_path / f"run-{seed}.safetensors")
        paths.append(tmp_path / f"run-{seed}.safetensors")
    # Two that agree in the first 4 KiB of every tensor are ordered by their fingerprints.
    late = state(0)
    late["head.weight"] = np.concatenate([late["head.weight"]] * 12)
    later = {name: value.copy() for name, value in late.items()}
    later["head.weight"][-1, -1] += 1
    for group in (paths, [late, later]):
        forward, backward = Ingredients(group), Ingredients(group[::-1])
        first = [forward[i].fingerprint for i in forward.canonical]
        assert first == [backward[i].fingerprint for i in backward.canonical]


def test_names_tied_in_all_stay_tied_and_names_tied_in_some_do_not() -> None:
    shared = np.ones((3, 2), np.float32)
    tied = {"embed": shared, "head": shared}
    untied = {"embed": shared, "head": shared.copy()}
    assert Ingredients([tied, dict(tied)]).tied == (("embed", "head"),)
    mixed = Ingredients([tied, untied])
    assert mixed.tied == ()
    assert "tied in some" in " ".join(mixed.notes)


def test_a_name_that_one_format_stores_once_is_explained() -> None:
    shared = np.ones((3, 2), np.float32)
    both = named("a.bin", {"embed": shared, "head": shared})
    one = named("b.safetensors", {"embed": shared})
    for order in ([both, one], [one, both]):
        with pytest.raises(MismatchError, match=r"head is tied to embed in a\.bin"):
            Ingredients(order)


def test_one_tensor_of_another_dtype_is_named() -> None:
    half = state(1, **{"norm.bias": np.zeros(8, np.float16)})
    with pytest.raises(MismatchError, match=r"odd  norm\.bias is F16, expected F32"):
        Ingredients([state(), state(2), named("odd", half)])


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.q_proj.lora_A.weight",
        "model.embed_tokens.lora_embedding_B",
        "base_model.model.q_proj.lora_magnitude_vector",
        "lora_unet_mid_block.lora_up.weight",
        "lora_te_text_model.hada_w1_a",
        "lora_unet_out.lokr_w2_b",
    ],
)
def test_factors_are_never_averaged_as_they_are(name: str) -> None:
    adapter = {name: np.ones((2, 4), np.float32)}
    model = {"q_proj.weight": np.ones((4, 4), np.float32)}
    for given in ([adapter, adapter], [adapter, model], [adapter]):
        for base in (None, model):
            with pytest.raises(CheckpointFormatError):
                Ingredients(given, base=base, on_mismatch="common")


def test_a_folder_of_runs_stands_for_its_runs_in_natural_order(tmp_path: Path) -> None:
    runs = tmp_path / "sweep" / "runs"
    runs.mkdir(parents=True)
    for seed, name in enumerate(("run-10", "run-2", "run-1")):
        save_file(state(seed), runs / f"{name}.safetensors")
    save_file(state(), tmp_path / "sweep" / "base.safetensors")
    (runs / "run-1.json").write_text("{}")
    names = [Path(path).name for path in expand_paths([tmp_path / "sweep"])]
    assert names == ["run-1.safetensors", "run-2.safetensors", "run-10.safetensors"]
    assert len(Ingredients([tmp_path / "sweep"])) == 3


def test_a_model_folder_stands_for_itself_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file(state(), tmp_path / "model" / "model.safetensors")
    assert expand_paths([tmp_path / "model"]) == [str(tmp_path / "model")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a checkpoint nor runs"):
        expand_paths([tmp_path / "empty"])


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "good.safetensors")
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"no")
    with pytest.raises(CheckpointFormatError, match="2 of 3 checkpoints cannot be read") as caught:
        Ingredients([tmp_path / n for n in ("a.safetensors", "good.safetensors", "b.safetensors")])
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        str(tmp_path / "a.safetensors"),
        str(tmp_path / "b.safetensors"),
    ]
    with pytest.raises(CheckpointError) as mixed:
        Ingredients([tmp_path / "a.safetensors", tmp_path / "none.safetensors"])
    assert not isinstance(mixed.value, CheckpointFormatError)
    assert len(mixed.value.problems) == 2


def test_float_buffers_that_differ_are_said_to_be_no_weights() -> None:
    states = [{"rope.inv_freq": np.full(4, i), "w": np.full(2, i)} for i in (1.0, 2.0)]
    (note,) = [n for n in Ingredients(states).notes if "no weights but buffers" in n]
    assert note.startswith("rope.inv_freq: ")
    assert not any("no weights" in n for n in Ingredients([states[0], states[0]]).notes)
