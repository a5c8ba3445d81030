from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

import stockpot
from stockpot.tasks.clip import ClassGroups
from stockpot.tasks.clip.groups import Grouped, project

CLASSES = ("cat", "dog", "car", "bus", "sea")


def test_a_label_has_the_largest_logit_of_its_classes() -> None:
    groups = ClassGroups.of({"pet": ["dog", "cat"], "road": ["bus"], "none": ["sea"]}, CLASSES)
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([logits[:, [1, 0]].max(1)[0], logits[:, 3], logits[:, 4]], dim=1)
    assert torch.equal(project(logits, groups.tensor()), expected)


def test_a_subset_is_the_softmax_over_its_classes_alone() -> None:
    groups = ClassGroups.of(["bus", "cat"], CLASSES)
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    masked = torch.full_like(logits, -torch.inf)
    masked[:, [3, 0]] = logits[:, [3, 0]]
    found = project(logits, groups.tensor()).softmax(1)
    torch.testing.assert_close(found, masked.softmax(1)[:, [3, 0]])


def test_every_problem_of_the_groups_is_listed() -> None:
    with pytest.raises(stockpot.TaskError) as caught:
        ClassGroups.of({"pet": ["cat", "cow"], "more": ["cat"], "void": []}, CLASSES)
    text = "\n".join(caught.value.problems)
    assert "no class 'cow'" in text
    assert "'void' stands for no class" in text
    assert "'cat' stands under more than one label" in text
    with pytest.raises(stockpot.TaskError, match="1 different labels"):
        ClassGroups.of(["cat", "cat"], CLASSES)


def test_the_fingerprint_depends_on_what_labels_mean() -> None:
    data = TensorDataset(torch.zeros(2, 3), torch.tensor([0, 1]))
    one, other = (ClassGroups.of(names, CLASSES) for names in (["cat", "dog"], ["dog", "cat"]))
    assert not hasattr(Grouped(data, one), "fingerprint")
    data.fingerprint = "abc"
    assert Grouped(data, one).fingerprint != Grouped(data, other).fingerprint
    assert Grouped(data, one).example_digests() == Grouped(data, other).example_digests()
