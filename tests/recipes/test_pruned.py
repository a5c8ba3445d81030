from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from stockpot.errors import RecipeError
from stockpot.formats.memory import from_state_dict
from stockpot.recipes import BestSingle, Pruned


def plain_pruned(lab, n_passes):
    """The published loop with nothing but torch."""
    weights = {p: load_file(p) for p in lab.paths}
    data = lab.task.splits["held-out"].dataset.tensors
    model = lab.task.build().eval()

    def score(members):
        first = weights[members[0]]
        mean = {n: (sum(weights[p][n].double() for p in members) / len(members)).float()
                for n in first}  # fmt: skip
        from_state_dict(mean).load_into(model)
        with torch.inference_mode():
            return float((model(data[0]).argmax(-1) == data[1]).double().mean())

    ranking = sorted(lab.paths, key=lambda p: -score([p]))
    kept, best = list(ranking), score(ranking)
    for _ in range(n_passes):
        before = len(kept)
        for path in [p for p in reversed(ranking[1:]) if p in kept]:
            found = score([p for p in kept if p != path])
            if found >= best:
                kept.remove(path)
                best = found
        if len(kept) == before:
            break
    return kept, best


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("n_passes", [1, 3])
def test_keeps_what_a_plain_loop_keeps(lab, early, n_passes):
    soup = Pruned(early_rejection=early, n_passes=n_passes).cook(lab.paths, lab.task, report=False)
    kept, best = plain_pruned(lab, n_passes)
    assert list(soup.selected) == kept
    assert soup.scores["held-out"].value == pytest.approx(best)


def test_every_step_says_what_was_taken_out(lab):
    soup = Pruned().cook(lab.paths, lab.task, report=False)
    gone = {s.candidate for s in soup.steps if s.accepted}
    assert gone == set(lab.paths) - set(soup.selected)


def test_the_best_ingredient_is_never_taken_out(lab):
    (best,) = BestSingle().cook(lab.paths, lab.task, report=False).selected
    assert best in Pruned().cook(lab.paths, lab.task, report=False).selected


def test_early_rejection_saves_examples(lab):
    soup = Pruned().cook(lab.paths, lab.task, report=False)
    assert soup.examples_evaluated < soup.examples_plain


def test_no_passes_are_refused(lab):
    with pytest.raises(RecipeError, match="n_passes is 0"):
        Pruned(n_passes=0).cook(lab.paths, lab.task)
