"""A rule that is not linear, from outside the package: mixed, saved, recorded and verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import stockpot
from stockpot._options import option
from stockpot.errors import NonFiniteError, RecipeError
from stockpot.mixing import Coefficients, Ingredients, Mixture
from stockpot.mixing.rules.base import PIECE, Linear, Raw, Rule, TensorPlan
from stockpot.mixing.rules.table import RULES, register_rule, rule_from_json
from stockpot.recipes import Uniform
from stockpot.recipes.record import verify
from stockpot.recipes.soup import Soup


@dataclass(frozen=True)
class LargestChanges(Rule):
    """base + the mean of those changes that are among the largest `share` of the whole network.

    Which they are takes a first pass over all tensors.
    """

    share: float = option(0.5, help="Share of the changes that is kept.")
    scale: float = option(1.0, help="What kept changes are multiplied with.")
    threshold: float = 0.0

    name = "largest-changes"

    @property
    def uses_base(self) -> bool:
        return True

    def prepare(self, tensors: Sequence[TensorPlan]) -> LargestChanges:
        changes = [np.abs(change).ravel() for tensor in tensors for change in whole(tensor)]
        return replace(self, threshold=float(np.quantile(np.concatenate(changes), 1 - self.share)))

    def combine(self, tensor: TensorPlan, blocks: Sequence[Raw], out: Raw, start: int) -> None:
        *values, base = tensor.values(blocks)
        total = np.zeros_like(base)
        for value, coefficient in zip(values, tensor.coefficients, strict=True):
            change = value - base
            total += coefficient * np.where(np.abs(change) >= self.threshold, change, 0)
        tensor.store(base + self.scale * total, out)


def whole(tensor: TensorPlan) -> list[np.ndarray]:
    *values, base = tensor.values([c.raw(tensor.source.name) for c in tensor.inputs])
    return [value - base for value in values]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
    register_rule(LargestChanges)
    yield
    del RULES["largest-changes"]


@pytest.fixture
def given(tmp_path: Path) -> Ingredients:
    """A base and three models in files, of several pieces, with a counter."""
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(3, PIECE)).astype(np.float32), "b": np.zeros(5, np.float32)}
    paths = []
    for i in range(4):
        state = {name: (v + i * 0.1 * rng.normal(size=v.shape)).astype(np.float32)
                 for name, v in base.items()}  # fmt: skip
        state["bn.num_batches_tracked"] = np.array(i)
        Mixture(Ingredients([state])).save(tmp_path / f"{i}.safetensors")
        paths.append(str(tmp_path / f"{i}.safetensors"))
    return Ingredients(paths[1:], base=paths[0])


def by_hand(given: Ingredients, name: str, rule: LargestChanges) -> np.ndarray:
    base = {n: given.base.read(n).double().numpy() for n in ("w", "b")}
    changes = {n: [c.read(n).double().numpy() - base[n] for c in given] for n in ("w", "b")}
    every = np.concatenate([np.abs(c).ravel() for n in ("b", "w") for c in changes[n]])
    least = np.quantile(every, 1 - rule.share)
    kept = [np.where(np.abs(c) >= least, c, 0) for c in changes[name]]
    return (base[name] + rule.scale * sum(kept) / 3).astype(np.float32)


def test_a_rule_with_a_first_pass_is_what_it_says(given: Ingredients) -> None:
    rule = LargestChanges(share=0.1, scale=1.5)
    mixture = Mixture(given, rule=rule)
    for name in ("w", "b"):
        expected = by_hand(given, name, rule)
        np.testing.assert_allclose(mixture.read(name).numpy(), expected, rtol=0, atol=5e-7)
    assert mixture.read("bn.num_batches_tracked").item() == 3


def test_it_is_saved_by_the_engine_with_a_record_that_verifies(
    given: Ingredients, tmp_path: Path
) -> None:
    mixture = Mixture(given, rule=LargestChanges(share=0.1))
    soup = replace(Uniform().cook(given), mixture=mixture)
    path = tmp_path / "soup.safetensors"
    saved = soup.save(path, threads=2)
    assert saved.fingerprint == stockpot.open(path).fingerprint
    for name in mixture:
        assert stockpot.open(path).raw(name).tobytes() == mixture.raw(name).tobytes()
    assert verify(path) == []
    loaded = Soup.load(path).mixture
    assert loaded.rule == LargestChanges(share=0.1)
    assert loaded.key == mixture.key


def test_a_record_names_a_rule_that_nobody_knows(given: Ingredients, tmp_path: Path) -> None:
    path = tmp_path / "soup.safetensors"
    replace(Uniform().cook(given), mixture=Mixture(given, rule=LargestChanges())).save(path)
    known = RULES.pop("largest-changes")
    with pytest.raises(RecipeError, match="no mixing rule is named 'largest-changes'"):
        verify(path)
    RULES["largest-changes"] = known


def test_rules_and_their_options_belong_to_the_key(given: Ingredients) -> None:
    rules = [None, LargestChanges(), LargestChanges(share=0.2)]
    assert len({Mixture(given, rule=rule).key for rule in rules}) == 3
    one = Coefficients.per_model([1.0, 0.0, 0.0])
    assert Mixture(given, one).key == given[0].fingerprint
    assert Mixture(given, one, rule=LargestChanges()).key != given[0].fingerprint


def test_a_rule_survives_masks_and_overrides(given: Ingredients) -> None:
    mixture = Mixture(given, rule=LargestChanges(share=0.2))
    changed = mixture.with_overrides({"b": np.ones(5, np.float32)}).with_mask(None)
    assert changed.rule == mixture.rule
    assert changed.read("b").tolist() == [1.0] * 5


def test_a_rule_of_changes_needs_the_base(given: Ingredients) -> None:
    with pytest.raises(RecipeError, match="--base"):
        Mixture(Ingredients(list(given)), rule=LargestChanges())


def test_a_result_that_does_not_fit_names_the_tensor(given: Ingredients) -> None:
    with pytest.raises(NonFiniteError, match="the mean does not fit F32"):
        Mixture(given, rule=LargestChanges(scale=1e60)).read("w")


def test_linear_mixtures_have_a_rule_without_options() -> None:
    assert rule_from_json(Linear().to_json()) == Linear()
    with pytest.raises(RecipeError, match="no options density"):
        rule_from_json({"name": "linear", "density": 0.2})


def test_two_rules_cannot_share_a_name() -> None:
    class Other(LargestChanges):
        pass

    with pytest.raises(RecipeError, match="another rule named"):
        register_rule(Other)
