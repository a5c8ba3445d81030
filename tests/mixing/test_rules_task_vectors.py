"""TIES, DARE, Breadcrumbs, DELLA, SCE, Iso-C and TSV-M against values worked by hand and NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stockpot
from stockpot.errors import NonFiniteError, RecipeError
from stockpot.mixing import Coefficients, Ingredients, Mixture, Rule
from stockpot.mixing.rules import order, singular
from stockpot.mixing.rules.base import PIECE
from stockpot.mixing.rules.breadcrumbs import Breadcrumbs
from stockpot.mixing.rules.dare import Dare
from stockpot.mixing.rules.della import Della
from stockpot.mixing.rules.sce import Sce
from stockpot.mixing.rules.singular import IsoC, MonoSoup, TsvM
from stockpot.mixing.rules.table import rule_from_json, rule_from_text
from stockpot.mixing.rules.task_vectors import Magnitudes
from stockpot.mixing.rules.ties import Ties
from stockpot.recipes import TaskArithmetic
from stockpot.recipes.record import verify

ALL = [
    Ties(keep=0.3),
    Ties(keep=0.3, per="tensor"),
    Dare(keep=0.4),
    Dare(keep=0.4, signs="elected", rescale="l1"),
    Breadcrumbs(keep=0.5, drop=0.1),
    Breadcrumbs(keep=0.5, signs="elected"),
    Della(keep=0.5),
    Della(keep=0.5, signs="all", rescale="l1", normalise=False),
    Sce(keep=0.5),
    IsoC(),
    TsvM(),
]


def merged(rule: Rule, changes: Sequence[object], base: object = 0.0) -> np.ndarray:
    """What the rule makes of changes in float64, with weight 1 each."""
    states = [{"w": np.asarray(change, float) + base} for change in changes]
    given = Ingredients(states, base={"w": np.zeros_like(states[0]["w"]) + base})
    weights = Coefficients.per_model([1.0] * len(states), any_sum=True)
    return Mixture(given, weights, rule=rule).read("w").numpy()


def test_ties_worked_by_hand() -> None:
    """METHODS: .4 of five entries are two; the second column elects −, the last has one voter."""
    changes = [[5, -4, 0.1, 0, 0.2], [3, 4, 0.1, -0.1, 0.3], [-1, -6, 0, 0.1, 2]]
    assert merged(Ties(keep=0.4), changes).tolist() == [4, -5, 0, 0, 2]
    assert merged(Ties(keep=0.4, per="tensor"), changes).tolist() == [4, -5, 0, 0, 2]
    assert merged(Ties(keep=0.4, scale=0.5), changes).tolist() == [2, -2.5, 0, 0, 1]


def test_entries_that_cancel_take_the_sign_of_the_majority() -> None:
    changes = [[2.0, -1, -1], [-2.0, -1, -1]]
    assert merged(Ties(keep=1), changes).tolist() == [-2, -1, -1]
    assert merged(Ties(keep=1, per="tensor"), changes).tolist() == [2, -1, -1]


def test_ties_trims_the_network_and_not_the_tensor() -> None:
    base = {"a": np.zeros(2), "b": np.zeros(2)}
    run = {"a": np.array([4.0, 3.0]), "b": np.array([2.0, 1.0])}
    given = Ingredients([run], base=base)
    network, tensor = (Mixture(given, rule=Ties(keep=0.5, per=per)) for per in ("model", "tensor"))
    assert [network.read(n).tolist() for n in "ab"] == [[4, 3], [0, 0]]
    assert [tensor.read(n).tolist() for n in "ab"] == [[4, 0], [2, 0]]


def test_breadcrumbs_worked_by_hand() -> None:
    """Of ten entries the largest is left out and the next four are kept; with 1 all are."""
    change = [1, -2, 3, -4, 5, -6, 7, -8, 9, -10]
    kept = [0, 0, 0, 0, 0, -6, 7, -8, 9, 0]
    assert merged(Breadcrumbs(keep=0.4, drop=0.1), [change]).tolist() == kept
    assert merged(Breadcrumbs(keep=1), [change, change]).tolist() == [2 * c for c in change]
    # 0.8 and 0.3 of ten are more than ten: two are left out.
    fewer = [1, -2, 3, -4, 5, -6, 7, -8, 0, 0]
    assert merged(Breadcrumbs(keep=0.8, drop=0.3), [change]).tolist() == fewer


def test_sce_worked_by_hand() -> None:
    """Two of four variances (4, 0.25, 1, 0.01): sums of squares 25 + 1 and 1 + 9, of 36 in all."""
    changes = [[5, 1, 1, 0.1], [1, 2, 3, 0.3]]
    a, b = 26 / 36, 10 / 36
    expected = [5 * a + 1 * b, 0, 1 * a + 3 * b, 0]
    np.testing.assert_allclose(merged(Sce(keep=0.5), changes), expected, rtol=1e-15)
    # The entry of the other sign is erased, and the weights of those that are left are divided by.
    changes = [[4.0, 1], [-2, 1]]
    np.testing.assert_allclose(merged(Sce(keep=1), changes), [4, 1], rtol=1e-15)
    assert merged(Sce(keep=1, floor=100), [[4.0, 1], [2, 1]]).tolist() == [3, 1]


def test_singular_values_worked_by_hand() -> None:
    """Iso-C: σ = 3 and 1 become 2. TSV-M: of two tasks the leading direction of each."""
    assert merged(IsoC(), [np.diag([2.0, 0]), np.diag([1.0, -1])]) == pytest.approx(
        np.diag([2.0, -2.0])
    )
    assert merged(TsvM(), [np.diag([4.0, 1]), np.diag([1.0, 2])]) == pytest.approx(
        np.diag([4.0, 2.0])
    )
    assert merged(IsoC(), [[1.0, 2], [3, 4]]).tolist() == [2, 3]  # vectors: the mean


def test_tsv_m_of_one_task_is_the_task_and_iso_c_turns_with_the_axes() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 6, 9))
    np.testing.assert_allclose(merged(TsvM(), [one]), one, atol=1e-13)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    for rule in (IsoC(), TsvM()):
        turned = merged(rule, [turn @ one, turn @ other])
        np.testing.assert_allclose(turned, turn @ merged(rule, [one, other]), atol=1e-12)
    values = np.linalg.svd(merged(IsoC(), [one, other]), compute_uv=False)
    assert np.ptp(values) < 1e-12
    assert values.sum() == pytest.approx(np.linalg.svd(one + other, compute_uv=False).sum())


@pytest.mark.parametrize("room", [1 << 20, 6 * 9 * 8, 0])
@pytest.mark.parametrize("rule", [IsoC(), TsvM()])
def test_matrices_are_taken_apart_once_for_all_scales(
    rule: IsoC | TsvM, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there is room for; and the bytes are those of a rule of that scale."""
    monkeypatch.setattr(singular, "_KEPT_BYTES", room)
    taken = []
    made = type(rule).merged_matrix

    def counted(self: IsoC | TsvM, changes: Sequence[np.ndarray]) -> np.ndarray:
        taken.append(changes[0].shape)
        return made(self, changes)

    monkeypatch.setattr(type(rule), "merged_matrix", counted)
    rng = np.random.default_rng(1)
    names = {"a": (6, 9), "b": (4, 5), "c": (7,)}
    states = [{n: rng.normal(size=s).astype(np.float32) for n, s in names.items()} for _ in "xyz"]
    given = Ingredients(states[:2], base=states[2])
    mixture = Mixture(given, rule=rule)
    scaled = {scale: mixture.with_scale(scale) for scale in (0.5, 1.0, 2.0)}
    found = {scale: {n: one.read(n).numpy() for n in names} for scale, one in scaled.items()}
    assert len(taken) == {1 << 20: 2, 6 * 9 * 8: 1 + 3, 0: 6}[room]
    for scale, values in found.items():
        direct = Mixture(given, rule=replace(rule, scale=scale))
        for name in names:
            np.testing.assert_array_equal(values[name], direct.read(name).numpy())


def test_mono_soup_worked_by_hand() -> None:
    """σ = 8, 1.5, .5: H = .61287, k = 2, P = 66.25/66.5, ρ = 1/256: s = .06498; energy: k = 1."""
    low = 1 / 256 + 255 / 256 * np.sqrt(0.25 / 66.5)
    change = np.diag([8.0, 1.5, 0.5])
    expected = np.diag([8 * (1 - low), 1.5 * (1 - low), 0.5 * low])
    np.testing.assert_allclose(merged(MonoSoup(), [change], base=0.1), expected + 0.1, rtol=1e-14)
    low = (1.5 / 8) ** 2 + (1 - (1.5 / 8) ** 2) * np.sqrt(2.5 / 66.5)
    expected = np.diag([8 * (1 - low), 1.5 * low, 0.5 * low])
    found = merged(MonoSoup(cut="energy"), [change])
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_mono_soup_leaves_what_has_no_lesser_directions() -> None:
    rng = np.random.default_rng(6)
    flat = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for change in (flat, np.outer(rng.normal(size=4), rng.normal(size=6)), rng.normal(size=7)):
        np.testing.assert_allclose(merged(MonoSoup(), [change]), change, atol=1e-14)
    small = rng.normal(size=(8, 8))
    assert np.array_equal(merged(MonoSoup(), [1e-3 * small], base=1e4), 1e-3 * small + 1e4)
    change, turn = rng.normal(size=(8, 6)), np.linalg.qr(rng.normal(size=(8, 8)))[0]
    turned = merged(MonoSoup(), [turn @ change])
    np.testing.assert_allclose(turned, turn @ merged(MonoSoup(), [change]), atol=1e-13)
    with pytest.raises(RecipeError, match="one fine-tuned model"):
        merged(MonoSoup(), [change, change])


def test_dare_keeps_what_it_says_and_has_the_expectation_of_the_sum() -> None:
    change = np.random.default_rng(1).normal(size=(200, 50))
    found = merged(Dare(keep=0.25), [change])
    kept = found != 0
    np.testing.assert_allclose(found[kept], change[kept] / 0.25)
    # Binomial, four standard deviations.
    assert abs(kept.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / change.size)
    draws = [merged(Dare(keep=0.25, seed=seed), [change]) for seed in range(200)]
    sd = np.abs(change) * np.sqrt(0.75 / 0.25 / len(draws))
    assert (np.abs(np.mean(draws, axis=0) - change) < 6 * sd).all()
    assert np.array_equal(merged(Dare(keep=1), [change, change]), 2 * change)


def test_rescaling_keeps_the_l1_norm_of_each_tensor() -> None:
    change = np.random.default_rng(2).normal(size=(30, 40))
    for rule in (Dare(keep=0.3, rescale="l1"), Ties(keep=0.3, rescale="l1", per="tensor")):
        assert np.abs(merged(rule, [change])).sum() == pytest.approx(np.abs(change).sum())


def test_della_keeps_by_rank_in_the_row_and_is_dare_without_a_spread() -> None:
    rng = np.random.default_rng(3)
    change = rng.normal(size=(4000, 5))
    plain = {"signs": "all", "normalise": False, "seed": 4}
    found = merged(Della(keep=0.5, spread=0.4, **plain), [change])
    ranks = np.argsort(np.argsort(np.abs(change), axis=1), axis=1)
    for rank in range(5):
        probability = 0.1 + 0.2 * rank
        kept = found[ranks == rank] != 0
        assert abs(kept.mean() - probability) < 4 * np.sqrt(0.25 / 4000)
        np.testing.assert_allclose(
            found[ranks == rank][kept], change[ranks == rank][kept] / probability
        )
    same = merged(Della(keep=0.5, spread=0, **plain), [change])
    assert np.array_equal(same, merged(Dare(keep=0.5, seed=4), [change]))


def test_random_numbers_depend_on_content_and_place_alone() -> None:
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=(2, 1000))
    rule = Dare(keep=0.5)
    assert np.array_equal(merged(rule, [one, other]), merged(rule, [other, one]))
    assert np.array_equal(merged(rule, [one, one]), 2 * merged(rule, [one]))
    assert not np.array_equal(merged(rule, [one]) != 0, merged(Dare(keep=0.5, seed=1), [one]) != 0)
    assert not np.array_equal(merged(rule, [one]) != 0, merged(rule, [other]) != 0)


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_copies_and_single_models(rule: Rule) -> None:
    """Where there is nothing to choose or to drop, all rules are the sum or the mean."""
    whole = {"ties": {"keep": 1.0}, "dare": {"keep": 1.0}, "della": {"keep": 1.0},
             "breadcrumbs": {"keep": 1.0}, "sce": {"keep": 1.0}}.get(rule.name)  # fmt: skip
    if whole is None:
        return
    rule = rule_from_json({**rule.to_json(), **whole})
    change = np.random.default_rng(5).normal(size=(7, 3))
    np.testing.assert_allclose(merged(rule, [change]), change, rtol=1e-14)
    assert np.array_equal(merged(rule, [0 * change, 0 * change]), 0 * change)


@pytest.mark.parametrize("n", [1, 10, 4097])
@pytest.mark.parametrize("kind", ["normal", "few", "zero"])
def test_order_statistics_of_more_numbers_than_are_held(
    n: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.abs(np.random.default_rng(n).normal(size=n))
    values = {"normal": values, "few": np.round(values), "zero": values * 0}[kind]
    blocks = np.array_split(values, 3)
    ranks = [1, n // 3 + 1, n]
    expected = [np.sort(values)[n - rank] for rank in ranks]
    for held, few in itertools.product((0, 5, 10**6), (0, 10**6)):
        monkeypatch.setattr(order, "HELD", held)
        monkeypatch.setattr(order, "_FEW", few)
        assert order.largest(order.Blocks(lambda: blocks, n), ranks) == expected


def test_thresholds_of_a_network_are_those_of_its_sorted_magnitudes(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over tensors of two types, by reading twice, as of more numbers than memory holds."""
    monkeypatch.setattr(order, "HELD", 1000)
    monkeypatch.setattr(order, "_FEW", 1000)
    base, run = (stockpot.open(path) for path in files[:2])
    every = np.concatenate(
        [(run.read(n).double() - base.read(n).double()).abs().numpy().ravel() for n in "wb"]
    )
    given = Ingredients(files[1:2], base=files[0])
    mixture = Mixture(given, rule=Ties())
    tensors = [mixture.tensor(name) for name in "wb"]
    numbers = Magnitudes(tensors, 0)
    assert numbers.n == every.size
    ranks = [1, 777, every.size // 5, every.size]
    assert order.largest(numbers, ranks) == np.sort(every)[[-rank for rank in ranks]].tolist()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A base and three models of several pieces, with a counter; rows that pieces cut."""
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(300, 2 * PIECE // 500)).astype(np.float32), "b": np.ones(5)}
    paths = []
    for i in range(4):
        state = {name: (v + i * 0.1 * rng.normal(size=v.shape)).astype(np.float32)
                 for name, v in base.items()}  # fmt: skip
        state["n.num_batches_tracked"] = np.array(i)
        paths.append(str(tmp_path / f"{i}.safetensors"))
        Mixture(Ingredients([state])).save(paths[-1])
    return paths


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_what_is_saved_is_rebuilt_whatever_the_threads(
    rule: Rule, files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "merged.safetensors"
    recipe = TaskArithmetic(rule=rule, scale=0.7)
    soup = recipe.cook(files[1:], base=files[0])
    soup.save(out, threads=3)
    assert verify(out) == []
    assert stockpot.recipes.Soup.load(out).mixture.key == soup.mixture.key
    turned = recipe.cook(files[:0:-1], base=files[0]).mixture
    for name in turned:
        assert bytes(stockpot.open(out).raw(name)) == bytes(turned.raw(name))
    assert turned.read("n.num_batches_tracked").item() == 3


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        (Ties(keep=0.3, per="tensor"), lambda c: ties(c, 0.3)),
        (Ties(keep=0.3, per="tensor", signs="all"), lambda c: np.mean(trimmed(c, 0.3), axis=0)),
        (Sce(keep=0.4), lambda c: sce(c, 0.4)),
    ],
)
def test_in_pieces_they_are_what_numpy_makes_at_once(
    rule: Rule, by_hand: Callable[[np.ndarray], np.ndarray], files: list[str]
) -> None:
    base, *runs = (stockpot.open(path).read("w").double().numpy() for path in files)
    given = Ingredients(files[1:], base=files[0])
    weights = Coefficients.per_model([1.0] * 3, any_sum=True)
    found = Mixture(given, weights, rule=rule).read("w").numpy()
    expected = (base + by_hand(np.stack([run - base for run in runs]))).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-12)


def trimmed(changes: np.ndarray, keep: float) -> np.ndarray:
    least = [np.sort(np.abs(c).ravel())[-int(keep * c.size)] for c in changes]
    return np.stack([c * (np.abs(c) >= t) for c, t in zip(changes, least, strict=True)])


def ties(changes: np.ndarray, keep: float) -> np.ndarray:
    kept = trimmed(changes, keep)
    sign = np.where(kept.sum(0) >= 0, 1, -1)
    agree = np.sign(kept) == sign
    return (kept * agree).sum(0) / np.maximum(agree.sum(0), 1)


def sce(changes: np.ndarray, keep: float) -> np.ndarray:
    spread = changes.var(0)
    chosen = spread >= np.sort(spread.ravel())[-int(keep * spread.size)]
    kept = changes * chosen
    weights = (kept**2).sum((1, 2)) / (kept**2).sum()
    agree = weights[:, None, None] * (np.sign(kept) == np.where(kept.sum(0) >= 0, 1, -1))
    share = agree.sum(0)
    return (kept * agree).sum(0) / np.where(share == 0, 1, share)


def test_what_is_trimmed_away_is_looked_at_too() -> None:
    with pytest.raises(NonFiniteError, match="leave this ingredient out"):
        merged(Ties(keep=0.5), [[1.0, np.nan, 2, 3]])
    states = [{"w": np.ones(2)}]
    given = Ingredients(states, base={"w": np.array([np.inf, 0])})
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        Mixture(given, rule=Ties(keep=0.5)).read("w")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ties,keep=2", "0 to 1"),
        ("ties,keep=much", "keep: expected a number"),
        ("ties,per=layer", "one of model, tensor"),
        ("ties,density=0.2", "no options density; it has scale, keep"),
        ("tie", "no mixing rule is named 'tie'"),
        ("della,keep=0.1", "smaller spread"),
        ("breadcrumbs,drop=1", "0 to below 1"),
        ("sce,keep=-1", "0 to 1"),
    ],
)
def test_a_rule_that_cannot_be_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_from_text(text)


def test_rules_of_other_kinds_merge_no_task_vectors() -> None:
    with pytest.raises(RecipeError, match="expected one of ties, dare"):
        TaskArithmetic(rule=rule_from_text("linear"))


def test_each_model_may_keep_a_share_of_its_own() -> None:
    changes = [[1.0, 2, 3, 4], [8.0, 7, 6, 5]]
    rule = Ties(keep=(0.25, 0.5), signs="all", normalise=False)
    assert merged(rule, changes).tolist() == [8, 7, 0, 4]
    assert rule_from_json(rule.to_json()) == rule
