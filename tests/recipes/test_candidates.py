from __future__ import annotations

import pytest

from stockpot.recipes import Greedy, Pruned
from stockpot.recipes.base import prepare
from stockpot.recipes.candidates import Candidates, fits_in_memory


def test_candidates_are_the_same_with_and_without_a_running_sum(lab):
    kitchen = prepare(lab.paths, None)
    summed, plain = (Candidates(kitchen, [2], incremental=flag) for flag in (True, False))
    for i in (0, 5, 3):
        assert summed.with_(i).key == plain.with_(i).key
        for name in plain.with_(i):
            assert summed.with_(i).raw(name).tobytes() == plain.with_(i).raw(name).tobytes()
        summed.add(i)
        plain.add(i)
    for i in (0, 2):
        for name in plain.without(i):
            assert summed.without(i).raw(name).tobytes() == plain.without(i).raw(name).tobytes()
        summed.remove(i)
        plain.remove(i)


@pytest.mark.parametrize("recipe", [Greedy(), Pruned()])
def test_soups_do_not_depend_on_how_candidates_are_computed(lab, recipe, monkeypatch):
    plain = recipe.cook(lab.paths, lab.task, report=False)
    monkeypatch.setattr("stockpot.recipes.candidates.fits_in_memory", lambda n: False)
    assert recipe.cook(lab.paths, lab.task, report=False).to_json() == plain.to_json()


def test_a_petabyte_does_not_fit():
    assert fits_in_memory(1)
    assert not fits_in_memory(10**15)
