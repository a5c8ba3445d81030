from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from stockpot.errors import RecipeError
from stockpot.recipes import WiseFT


def test_the_ends_are_the_base_and_the_tuned_model_bit_for_bit(lab):
    for alpha, path in ((0.0, lab.base), (1.0, lab.paths[0])):
        soup = WiseFT(alpha=alpha).cook(lab.paths[:1], base=lab.base)
        for name, value in load_file(path).items():
            assert torch.equal(soup.mixture.read(name), value)


def test_a_point_is_the_interpolation(lab):
    soup = WiseFT(alpha=0.3).cook(lab.paths[:1], base=lab.base)
    a, b = load_file(lab.base), load_file(lab.paths[0])
    for name in a:
        expected = (0.7 * a[name].double() + 0.3 * b[name].double()).float()
        torch.testing.assert_close(soup.mixture.read(name), expected, rtol=1e-6, atol=0)


def test_the_curve_holds_both_ends_and_the_best_point_is_chosen_on_held_out(lab):
    soup = WiseFT(alphas=(0.25, 0.5, 0.75)).cook(lab.paths[:1], lab.task, base=lab.base)
    curve = soup.extra["curve"]
    assert [point["alpha"] for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    best = max(point["scores"]["held-out"]["value"] for point in curve)
    assert soup.scores["held-out"].value == best
    assert set(curve[0]["scores"]) == {"held-out", "test", "noise", "shifted", "shift_average"}


def test_ties_go_to_the_alpha_nearest_one_half(lab):
    soup = WiseFT(alphas=(0.25, 0.4, 0.75)).cook([lab.base], lab.task, base=lab.base)
    assert soup.extra["alpha"] == 0.4


def test_several_ingredients_stand_for_their_mean(lab):
    soup = WiseFT(alpha=0.5).cook(lab.paths[:2], base=lab.base)
    a, b, c = (load_file(p) for p in (lab.base, *lab.paths[:2]))
    name = "0.weight"
    expected = 0.5 * a[name] + 0.25 * b[name] + 0.25 * c[name]
    torch.testing.assert_close(soup.mixture.read(name), expected)


def test_without_a_base_it_is_refused(lab):
    with pytest.raises(RecipeError, match="--base"):
        WiseFT(alpha=0.5).cook(lab.paths[:1])


def test_alpha_out_of_range_is_refused(lab):
    with pytest.raises(RecipeError, match="expected 0 to 1"):
        WiseFT(alpha=1.5).cook(lab.paths[:1], base=lab.base)
