"""Recipes on pruned ingredients: soups as sparse as what went in, with records that verify it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.recipes.conftest import Lab

from stockpot.errors import MaskMismatchError, VerificationError
from stockpot.mixing import Ingredients, Mixture
from stockpot.mixing.mask import Mask
from stockpot.recipes import Auto, Greedy, Learned, Pruned, Uniform, WiseFT
from stockpot.recipes.record import verify
from stockpot.recipes.soup import Soup
from stockpot.train.sparse.selectors import Magnitude

WEIGHTS = ("0.weight", "3.weight")


@pytest.fixture(scope="module")
def sparse_lab(lab: Lab, tmp_path_factory) -> Lab:
    """The lab's runs, all with the mask of the base, and a base that has it too."""
    folder = tmp_path_factory.mktemp("sparse")
    base = load_file(lab.base)
    mask = Magnitude().select({name: base[name] for name in WEIGHTS}, 0.5)
    return replace(
        lab,
        base=pruned(lab.base, folder, mask),
        paths=[pruned(path, folder, mask) for path in lab.paths[:4]],
    )


@pytest.fixture(scope="module")
def mixed_lab(lab: Lab, tmp_path_factory) -> Lab:
    """The lab's runs, each with a mask of its own."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = []
    for path in lab.paths[:3]:
        values = {name: load_file(path)[name] for name in WEIGHTS}
        paths.append(pruned(path, folder, Magnitude().select(values, 0.5)))
    return replace(lab, paths=paths)


def pruned(path: str, folder: Path, mask: Mask) -> str:
    state = {n: torch.from_numpy(mask.applied(n, value)) for n, value in load_file(path).items()}
    target = folder / Path(path).name
    save_file(state, target)
    return str(target)


def mask_of(path: str | Path) -> Mask:
    state = load_file(path)
    return Mask.of_nonzero({name: state[name] for name in WEIGHTS})


RECIPES = {
    "uniform": Uniform(),
    "weighted": Uniform(weights=(0.1, 0.2, 0.3, 0.4)),
    "greedy": Greedy(),
    "pruned": Pruned(),
    "learned": Learned(n_epochs=1),
    "wise-ft": WiseFT(alphas=(0.5,)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_soups_keep_the_mask_and_their_records_verify_it(
    name: str, sparse_lab: Lab, tmp_path: Path
) -> None:
    soup = RECIPES[name].cook(sparse_lab.paths, sparse_lab.task, base=sparse_lab.base)
    soup.save(tmp_path / "soup.safetensors")
    assert mask_of(tmp_path / "soup.safetensors") == mask_of(sparse_lab.paths[0])
    assert verify(tmp_path / "soup.safetensors") == []
    assert any("one mask" in note for note in soup.notes)
    record = json.loads((tmp_path / "soup.safetensors.stockpot.json").read_text())
    if len(soup.selected) > 1:
        assert record["mask"]["fingerprint"] == mask_of(sparse_lab.paths[0]).fingerprint
        loaded = Soup.load(tmp_path / "soup.safetensors").mixture
        assert loaded.key == soup.mixture.key


@pytest.mark.parametrize("recipe", [Uniform(), Greedy(), Learned(n_epochs=1)])
def test_different_masks_are_refused(recipe, mixed_lab: Lab) -> None:
    with pytest.raises(MaskMismatchError, match="leave-out"):
        recipe.cook(mixed_lab.paths, mixed_lab.task)


def test_a_changed_mask_is_not_verified(mixed_lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "soup.safetensors"
    state = load_file(mixed_lab.paths[0])
    mask = Mask.of_nonzero({name: state[name] for name in WEIGHTS})
    mixture = Mixture(Ingredients(mixed_lab.paths), mask=mask)
    replace(Uniform().cook(mixed_lab.paths[:1]), mixture=mixture).save(path)
    assert verify(path) == []
    state = load_file(path)
    state["0.weight"][state["0.weight"] == 0] = 1e-9
    save_file(state, path)
    with pytest.raises(VerificationError, match=r"zeros of .* are not those of the mask"):
        verify(path)


def test_one_changed_weight_is_a_difference(sparse_lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "soup.safetensors"
    Uniform().cook(sparse_lab.paths).save(path)
    state = load_file(path)
    state["0.weight"][0, state["0.weight"][0].abs().argmin()] = -0.0
    save_file(state, path)
    assert verify(path) == ["0.weight differs in 1 bytes"]


def test_a_dense_base_is_not_mixed_with_pruned_models(sparse_lab: Lab, lab: Lab) -> None:
    with pytest.raises(MaskMismatchError, match=r"0\.00 % zero \(dense\)"):
        WiseFT(alpha=0.5).cook(sparse_lab.paths, base=lab.base)
    auto = Auto(learned=False).cook(sparse_lab.paths[:2], lab.task, base=lab.base, report=False)
    assert not any("wise" in str(row["recipe"]) for row in auto.details.to_json()["table"])
