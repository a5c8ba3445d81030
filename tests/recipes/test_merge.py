"""Merges by configuration, against what mergekit 0.1.5 makes of the same small models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from experiments.mergekit_agreement import (
    MERGES,
    RANDOM,
    REFERENCE,
    make_models,
    projections,
)
from safetensors.numpy import load_file

import stockpot
from stockpot.cli.app import main
from stockpot.errors import MismatchError, RecipeError
from stockpot.recipes import Soup
from stockpot.recipes.merge import Merge
from stockpot.recipes.merge_config import MergeConfig, evaluate
from stockpot.recipes.record import verify

CONFIGS = {path.stem: path for path in sorted(MERGES.glob("*.yml"))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the reference, in float64."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, hidden=12, vocabulary=40, dtype="float64")
    return folder


def by_stockpot(config: dict[str, object], folder: Path) -> dict[str, np.ndarray]:
    recipe = Merge(config=config, folder=str(folder))
    mixture = recipe.cook(recipe.ingredients()).mixture
    return {name: mixture.read(name).numpy() for name in mixture}


def config(name: str, **changes: object) -> dict[str, object]:
    """A configuration of the experiment with other keys."""
    return {**yaml.safe_load(CONFIGS[name].read_text()), **changes}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in RANDOM])
def test_it_makes_what_mergekit_makes(name: str, models: Path) -> None:
    """Both compute in float64; what is compared are sums over each tensor."""
    expected = json.loads(REFERENCE.read_text())[name]
    found = projections(by_stockpot(config(name), models))
    assert set(found) == set(expected)
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_drawn_at_random_keeps_its_share_and_the_norms(name: str, models: Path) -> None:
    """Densities 0.4 and 0.6: in both 0.24 of the entries, in one 0.52; L1 norms are kept."""
    found = by_stockpot(config(name), models)
    base, a, b = (load_file(models / m / "model.safetensors") for m in ("base", "a", "b"))
    moved = np.concatenate([(found[n] != base[n]).ravel() for n in found])
    assert abs(moved.mean() - 0.76) < 4 * np.sqrt(0.76 * 0.24 / moved.size)
    alone = config(name, models=[{"model": "a", "parameters": {"weight": 1.0, "density": 0.4}}])
    one = by_stockpot(alone, models)
    for tensor in one:
        norms = [np.abs(state[tensor] - base[tensor]).sum() for state in (one, a)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    assert not np.array_equal(found["lm_head.weight"], b["lm_head.weight"])


def run(name: str, models: Path, out: Path, *more: str) -> int:
    place = out.parent / f"{name}.yml"
    place.write_text(CONFIGS[name].read_text())
    for model in ("base", "a", "b", "c"):
        if not (out.parent / model).exists():
            (out.parent / model).symlink_to(models / model)
    return main(["merge", str(place), "-o", str(out), *more])


@pytest.mark.parametrize("name", ["ties", "dare_ties", "slerp", "passthrough", "stacked_linear"])
def test_the_command_writes_a_folder_that_verifies(
    name: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert run(name, models, out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == str(out)
    written = stockpot.open(out)
    by_hand = by_stockpot(config(name), models)
    assert {n: written.read(n).numpy().tolist() for n in written} == {
        n: value.tolist() for n, value in by_hand.items()
    }
    assert verify(out) == []
    soup = Soup.load(out)
    assert soup.recipe == "merge"
    assert soup.options["config"]["merge_method"] == CONFIGS[name].stem.replace("stacked_", "")
    layers = {"passthrough": 6, "stacked_linear": 5}.get(name, 4)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == layers
    written_layers = {n.split(".")[2] for n in written if n.startswith("model.layers")}
    assert len(written_layers) == layers


def test_a_stack_that_changed_does_not_verify(models: Path, tmp_path: Path) -> None:
    make_models(tmp_path, hidden=8, vocabulary=20)
    recipe = Merge(config=config("passthrough"), folder=str(tmp_path))
    recipe.cook(recipe.ingredients()).save(tmp_path / "out")
    assert verify(tmp_path / "out") == []
    make_models(tmp_path / "other", hidden=8, vocabulary=20, dtype="float16")
    (tmp_path / "b" / "model.safetensors").write_bytes(
        (tmp_path / "other" / "b" / "model.safetensors").read_bytes()
    )
    with pytest.raises(stockpot.errors.VerificationError, match="gone or have changed"):
        verify(tmp_path / "out")


def test_settings_are_filters_gradients_and_values() -> None:
    setting = [{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 0.5}]
    assert evaluate(setting, "layers.0.mlp.w", 0.25) == 0.25
    assert evaluate(setting, "norm", 0.25) == 0.5
    assert evaluate([{"filter": "mlp", "value": 1}], "norm", 0) is None
    assert evaluate([0.0, 1, 0], "w", 0.75) == 0.5
    assert evaluate([0.2, 0.4], "w", 1) == 0.4
    for wrong in ({}, [], [1, "a"], None):
        with pytest.raises(RecipeError):
            evaluate(wrong, "w", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "multislerp"}, "'multislerp' is not known; expected one of linear"),
        ({"tokenizer_source": "union"}, "vocabularies are not merged here"),
        ({"tokenizer": {"source": "union"}}, "tokenizer cannot be done here"),
        ({"modules": {}}, "modules cannot be done here"),
        ({"models": None}, "either models or slices"),
        ({"base_model": None}, "needs the base"),
        ({"models": [{"model": "a"}]}, "a has no weight for model"),
        ({"models": [{"model": "a", "parameters": {"weight": "much"}}]}, "expected a number"),
        ({"models": [{"model": "nowhere"}]}, "hf:nowhere for the hub"),
        ({"models": [{"model": "a+adapter"}]}, "adapters"),
        ({"models": [{"modle": "a"}]}, "lacks 'model'"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "slerp merges 1 model and a base"),
        ({"merge_method": "passthrough"}, "one model for each slice"),
    ],
)
def test_what_cannot_be_done_is_named(
    changes: dict[str, object], message: str, models: Path
) -> None:
    recipe = Merge(config=config("ties", **changes), folder=str(models))
    with pytest.raises(RecipeError, match=message):
        recipe.cook(recipe.ingredients())


def test_files_that_are_no_configuration_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "c.yml"
    for text, message in [
        ("merge_method: [", "line"),
        ("- a", "holds no merge"),
        ("a: &x 1\nb: *x", "anchors"),
        ("merge_method: linear\nmodels: 3", "models: expected a list"),
    ]:
        place.write_text(text)
        assert main(["merge", str(place), "-o", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "none.yml"), "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_slices_have_to_fit() -> None:
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 3]}]
    with pytest.raises(RecipeError, match="different numbers of layers"):
        MergeConfig.from_json({"merge_method": "linear", "slices": [{"sources": sources}]})


def test_models_of_other_shapes_are_refused(models: Path, tmp_path: Path) -> None:
    make_models(tmp_path, hidden=8, vocabulary=20)
    given = config("karcher", models=[{"model": str(tmp_path / "a")}, {"model": str(models / "b")}])
    with pytest.raises(MismatchError):
        Merge(config=given).ingredients()


def test_layers_beyond_the_last_are_refused(models: Path) -> None:
    source = {"model": "a", "layer_range": [2, 6]}
    given = {"merge_method": "passthrough", "slices": [{"sources": [source]}]}
    with pytest.raises(RecipeError, match="beyond the 4"):
        Merge(config=given, folder=str(models)).ingredients()


def test_della_drops_a_model_of_density_0_and_takes_the_epsilon_of_each(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).normal
    base = {"w": draw(size=(40, 50))}
    tuned = [{"w": base["w"] + draw(size=(40, 50))} for _ in range(2)]
    for name, state in zip(("base", "a", "b"), (base, *tuned), strict=True):
        stockpot.average([state]).save(tmp_path / f"{name}.safetensors")

    def moved(one: dict[str, float], other: dict[str, float]) -> np.ndarray:
        models = [
            {"model": f"{name}.safetensors", "parameters": {"weight": 1.0, **parameters}}
            for name, parameters in (("a", one), ("b", other))
        ]
        found = by_stockpot(
            {
                "merge_method": "della_linear",
                "base_model": "base.safetensors",
                "models": models,
                "parameters": {"rescale": False, "normalize": False},
            },
            tmp_path,
        )
        return found["w"] - base["w"]

    alone = moved({"density": 0.0}, {"density": 1.0})
    np.testing.assert_allclose(alone, tuned[1]["w"] - base["w"], atol=1e-12)
    # The larger half of a row is kept more often where epsilon is larger.
    change = np.abs(tuned[1]["w"] - base["w"])
    large = change > np.median(change, axis=1, keepdims=True)

    def share(epsilon: float) -> float:
        kept = moved({"density": 0.0, "epsilon": 0.01}, {"density": 0.5, "epsilon": epsilon}) != 0
        return float(kept[large].mean() - kept[~large].mean())

    assert share(0.4) - share(0.01) == pytest.approx(0.39, abs=0.08)
