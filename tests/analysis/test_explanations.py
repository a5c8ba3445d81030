from __future__ import annotations

import torch
from safetensors.torch import load_file

from stockpot.analysis.explanations import explain, relative_distances
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.mixing.ingredients import Ingredients
from stockpot.recipes import Auto, auto


def reasons(lab, models, base=None):
    given = Ingredients(models, base=base)
    return explain(given, [0, 1], evaluator=TaskEvaluator(lab.task), split="held-out")


def from_scratch(lab, seed):
    torch.manual_seed(seed)
    model = lab.task.build()
    x, y = lab.task.train_set.tensors
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.state_dict()


def kinds(findings):
    return {finding.kind for finding in findings}


def test_models_trained_from_different_seeds_are_recognised(lab):
    found = reasons(lab, [from_scratch(lab, 1), from_scratch(lab, 2)])
    assert kinds(found) == {"no-shared-initialisation", "barrier"}


def test_heads_of_different_starts_are_named(lab):
    a, b = load_file(lab.paths[0]), load_file(lab.paths[1])
    torch.manual_seed(5)
    b["3.weight"] = torch.randn(10, 24)
    findings = reasons(lab, [a, b])
    heads = [f for f in findings if f.kind == "heads-differ"]
    assert "3.weight" in heads[0].text
    assert "0.weight" not in heads[0].text


def test_a_run_with_too_high_a_learning_rate_stands_out_from_the_base(lab):
    distances = relative_distances(Ingredients(lab.paths, base=lab.base))
    assert max(distances) == distances[5]
    outlier = [f for f in reasons(lab, lab.paths, lab.base) if f.kind == "outlier"]
    times = distances[5] / sorted(distances)[len(distances) // 2 - 1]
    assert f"1 of {len(distances)} moved" in outlier[0].text
    assert lab.paths[5] in outlier[0].text
    assert times > 3


def test_auto_warns_of_runs_that_moved_too_far_before_anything_is_scored(lab, monkeypatch):
    asked = []
    score = TaskEvaluator.predictions
    monkeypatch.setattr(
        TaskEvaluator, "predictions", lambda *args: asked.append("scored") or score(*args)
    )
    measured = auto.expected_collapse
    monkeypatch.setattr(
        auto, "expected_collapse", lambda given: asked.append("measured") or measured(given)
    )
    options = {"recipes": ("uniform",), "ensembles": False, "learned": False}
    soup = Auto(**options).cook(lab.paths, lab.task, base=lab.base)
    assert asked[0] == "measured"
    (warning,) = (note for note in soup.notes if "collapse" in note)
    assert warning.startswith("warning: the uniform soup will probably collapse: 1 of")
    assert warning.endswith(lab.paths[5])
    kind = Auto(**options).cook(lab.paths[:3], lab.task, base=lab.base)
    assert not any("collapse" in note for note in kind.notes)


def test_distances_are_relative_norms(lab):
    given = Ingredients(lab.paths[:2], base=lab.base)
    base, run = load_file(lab.base), load_file(lab.paths[1])
    move = torch.cat([(run[n].double() - base[n].double()).reshape(-1) for n in base]).norm()
    norm = torch.cat([base[n].double().reshape(-1) for n in base]).norm()
    assert abs(relative_distances(given)[1] - float(move / norm)) < 1e-12


def test_auto_gives_reasons_where_models_do_not_share_a_basin(lab):
    soup = Auto(ensembles=False).cook([from_scratch(lab, 1), from_scratch(lab, 2)], lab.task)
    assert soup.details.to_json()["chosen"] == "best-single"
    assert {reason["kind"] for reason in soup.details.to_json()["reasons"]} >= {"barrier"}


def test_nothing_is_claimed_where_nothing_is_found(lab):
    findings = reasons(lab, [lab.paths[0], lab.paths[0]])
    assert kinds(findings) == {"nothing-found"}
