from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import stockpot
from stockpot._types import format_bytes
from stockpot.errors import MismatchError, NonFiniteError, RecipeError
from stockpot.mixing import BufferPolicy, Coefficients, Mixture, engine
from stockpot.mixing.ingredients import Ingredients

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def states(n: int = 3, *, seed: int = 0) -> list[State]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [
        {
            "block.weight": draw(7, 11).bfloat16(),
            "block.bias": draw(11),
            "head.weight": draw(3, 5).half(),
            "scale": draw().double(),
            "empty": torch.empty(0, 4),
            "bn.num_batches_tracked": torch.tensor(10 * i),
            "positions": torch.arange(6),
            "mask": torch.tensor([True, False]),
        }
        for i in range(n)
    ]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}
    view = integers[found.element_size()]
    assert torch.equal(found.reshape(-1).view(view), expected.reshape(-1).view(view))


def test_every_kind_of_tensor_is_mixed_as_the_methods_say() -> None:
    given = states()
    mixture = Mixture(Ingredients(given))
    assert_same(mixture.read("block.bias"), _mean(given, "block.bias").float())
    assert_same(mixture.read("head.weight"), _mean(given, "head.weight").half())
    assert_same(mixture.read("scale"), _mean(given, "scale"))
    assert_same(mixture.read("empty"), torch.empty(0, 4))
    assert_same(mixture.read("bn.num_batches_tracked"), torch.tensor(20))
    assert_same(mixture.read("positions"), torch.arange(6))
    assert_same(mixture.read("mask"), torch.tensor([True, False]))


def _mean(given: list[State], name: str) -> torch.Tensor:
    values = [state[name].double().numpy().astype(np.longdouble) for state in given]
    return torch.from_numpy(np.asarray(sum(values) / len(given), dtype=np.float64))


def test_saved_bytes_are_those_that_read_gives(tmp_path: Path) -> None:
    mixture = Mixture(Ingredients(states()))
    saved = mixture.save(tmp_path / "soup.safetensors")
    written = stockpot.open(tmp_path / "soup.safetensors")
    for name in mixture:
        assert_same(written.read(name), mixture.read(name))
    assert saved.fingerprint == written.fingerprint == mixture.fingerprint
    assert saved.fingerprints == tuple(c.fingerprint for c in mixture.ingredients)


def test_different_buffers_are_all_listed_and_refused(tmp_path: Path) -> None:
    given = states(2)
    given[1]["positions"] = torch.arange(6) + 1
    given[1]["mask"] = torch.tensor([True, True])
    mixture = Mixture(Ingredients(given))
    with pytest.raises(MismatchError) as caught:
        mixture.save(tmp_path / "soup.safetensors")
    assert {problem.tensor for problem in caught.value.problems} == {"positions", "mask"}
    assert not (tmp_path / "soup.safetensors").exists()
    first = Mixture(Ingredients(given), buffers=BufferPolicy(differing="first"))
    assert_same(first.read("positions"), torch.arange(6))


def test_quantised_tensors_are_copied_when_equal_and_else_refused_with_the_remedy() -> None:
    values = torch.ones(4).to(torch.float8_e4m3fn)
    same = Mixture(Ingredients([{"q": values}, {"q": values.clone()}]))
    assert_same(same.read("q"), values)
    other = Mixture(Ingredients([{"q": values}, {"q": (values.float() * 2).to(values.dtype)}]))
    with pytest.raises(MismatchError, match="dequantise"):
        other.read("q")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_not_a_number_is_refused_naming_file_and_tensor(bad: float, dtype: torch.dtype) -> None:
    given = [{"w": torch.ones(70_000, dtype=dtype)} for _ in range(3)]
    given[1]["w"][69_999] = bad
    with pytest.raises(NonFiniteError) as caught:
        Mixture(Ingredients(given)).read("w")
    assert (caught.value.path, caught.value.tensor) == ("<memory 1>", "w")


def test_a_value_too_large_for_the_output_type_is_refused() -> None:
    given = [{"w": torch.tensor([1e5])}, {"w": torch.tensor([1e5])}]
    with pytest.raises(NonFiniteError, match="does not fit F16"):
        Mixture(Ingredients(given), dtype="fp16").read("w")
    small = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([-1e6])}]
    with pytest.raises(NonFiniteError, match=r"values up to 1e\+06 in <memory 1>") as caught:
        Mixture(Ingredients(small), dtype="fp16").read("w")
    assert caught.value.path == "<memory 1>"


def test_an_ingredient_of_coefficient_zero_takes_no_part() -> None:
    given = states(3)
    given[1]["block.bias"][:] = float("nan")
    given[1]["positions"] += 1
    mixture = Mixture(Ingredients(given), Coefficients.per_model([0.5, 0.0, 0.5]))
    without = Mixture(Ingredients([given[0], given[2]]))
    for name in mixture:
        assert_same(mixture.read(name), without.read(name))


def test_the_number_of_coefficients_is_checked() -> None:
    with pytest.raises(RecipeError, match="2 coefficients for 3"):
        Mixture(Ingredients(states(3)), Coefficients.uniform(2))


def test_overrides_take_the_place_of_computed_tensors_and_change_the_key() -> None:
    given = states(2)
    bias = torch.full((11,), 2.0)
    mixture = Mixture(Ingredients(given), overrides={"block.bias": bias})
    assert_same(mixture.read("block.bias"), bias)
    assert mixture.key != Mixture(Ingredients(given)).key


def test_overrides_that_do_not_fit_are_all_listed() -> None:
    overrides = {"block.bias": torch.zeros(3), "other": torch.zeros(1)}
    with pytest.raises(MismatchError) as caught:
        Mixture(Ingredients(states(2)), overrides=overrides)
    assert {problem.tensor for problem in caught.value.problems} == {"block.bias", "other"}


def test_the_key_of_one_ingredient_is_its_fingerprint() -> None:
    ingredients = Ingredients(states(2))
    mixture = Mixture(ingredients, Coefficients.per_model([0.0, 1.0]))
    assert mixture.key == ingredients[1].fingerprint


def test_the_key_of_one_ingredient_that_is_scaled_is_another() -> None:
    ingredients = Ingredients(states())
    scaled = Mixture(ingredients, Coefficients.per_model([0, 0.2, 0], any_sum=True))
    twice = Mixture(ingredients, Coefficients.per_model([0, 0.4, 0], any_sum=True))
    assert len({scaled.key, twice.key, ingredients[1].fingerprint}) == 3


def test_the_key_does_not_depend_on_the_order_of_arguments() -> None:
    given = states(3)
    one = Mixture(Ingredients(given), Coefficients.per_model([0.5, 0.25, 0.25]))
    other = Mixture(Ingredients(given[::-1]), Coefficients.per_model([0.25, 0.25, 0.5]))
    assert one.key == other.key
    assert one.key != Mixture(Ingredients(given)).key


def test_tied_tensors_are_averaged_once_and_stay_tied(tmp_path: Path) -> None:
    given = []
    for i in range(2):
        weight = torch.full((3, 2), float(i))
        given.append({"embed.weight": weight, "head.weight": weight})
    mixture = Mixture(Ingredients(given))
    assert mixture.tied == (("embed.weight", "head.weight"),)
    mixture.save(tmp_path / "soup.pt")
    written = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert_same(written["head.weight"], torch.full((3, 2), 0.5))
    assert written["head.weight"].data_ptr() == written["embed.weight"].data_ptr()


def test_output_type_is_cast_with_one_rounding() -> None:
    given = [{"w": torch.tensor([1.0]), "n": torch.tensor([3])}] * 2
    mixture = Mixture(Ingredients(given), dtype="bf16")
    assert_same(mixture.read("w"), torch.tensor([1.0]).bfloat16())
    assert_same(mixture.read("n"), torch.tensor([3]))


def test_elementwise_coefficients_weigh_every_value() -> None:
    given = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}]
    shares = [{"w": torch.tensor([0.25, 1.0])}, {"w": torch.tensor([0.75, 0.0])}]
    elements = [stockpot.from_state_dict(share) for share in shares]
    mixture = Mixture(Ingredients(given), Coefficients.elementwise(elements))
    assert_same(mixture.read("w"), torch.tensor([2.5, 2.0]))


def test_elementwise_coefficients_must_sum_to_one() -> None:
    given = [{"w": torch.ones(2)}, {"w": torch.ones(2)}]
    elements = [stockpot.from_state_dict({"w": torch.full((2,), 0.6)}) for _ in range(2)]
    with pytest.raises(RecipeError, match=r"0\.2 away from 1"):
        Mixture(Ingredients(given), Coefficients.elementwise(elements)).read("w")


def test_a_mixture_can_be_an_ingredient(tmp_path: Path) -> None:
    base, one, two = states(3)
    soup = Mixture(Ingredients([one, two]))
    wise = Mixture(Ingredients([base, soup]), Coefficients.per_model([0.5, 0.5]))
    expected = (base["block.bias"].double() + soup.read("block.bias").double()) / 2
    assert_same(wise.read("block.bias"), expected.float())
    wise.save(tmp_path / "wise.safetensors")
    assert_same(stockpot.open(tmp_path / "wise.safetensors").read("block.bias"), expected.float())


@pytest.fixture
def process_of_100_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests grows while they run; plans count what it holds."""
    monkeypatch.setattr(engine, "anonymous_bytes", lambda: 100_000_000)


@pytest.mark.usefixtures("process_of_100_mb")
def test_less_memory_than_the_minimum_is_refused_naming_it(tmp_path: Path) -> None:
    mixture = Mixture(Ingredients(states()))
    needed = mixture.plan(tmp_path / "soup.safetensors", threads=1).memory
    assert needed > 100_000_000
    with pytest.raises(RecipeError, match=f"needs {format_bytes(needed)}, of which .* are Python"):
        mixture.save(tmp_path / "soup.safetensors", max_memory=needed // 2)


@pytest.mark.usefixtures("process_of_100_mb")
def test_memory_for_one_thread_runs_one_thread(tmp_path: Path) -> None:
    mixture = Mixture(Ingredients(states()))
    needed = mixture.plan(tmp_path / "soup.safetensors", threads=1).memory
    plan = mixture.plan(tmp_path / "s", threads=4, max_memory=needed)
    assert plan.threads == 1
    assert plan.memory == needed
    mixture.save(tmp_path / "soup.safetensors", max_memory=needed)


def test_a_tensor_of_the_same_type_and_layout_is_filled_in_place() -> None:
    mixture = Mixture(Ingredients(states(2)))
    for name in mixture:
        expected = mixture.read(name)
        target = torch.zeros_like(expected)
        assert mixture.fill(name, target) == (target.numel() > 0)
        assert torch.equal(target, expected)


def test_what_has_another_type_or_layout_is_left_alone() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    mixture = Mixture(Ingredients([{"w": weight}, {"w": weight}]))
    targets = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2).T, torch.zeros(3, 2)]
    for target in (*targets, torch.zeros(2, 3, device="meta")):
        assert not mixture.fill("w", target)
    assert all(not target.any() for target in targets)
