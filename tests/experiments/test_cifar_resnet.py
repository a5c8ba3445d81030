from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.experiments import standins

import stockpot
from experiments import cifar_resnet as cifar
from stockpot import TaskEvaluator


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.cifar_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sets(data: Path) -> dict[str, cifar.Images]:
    return cifar.data_sets(data, n_train=30, n_held_out=40)


def test_names_are_those_of_the_published_checkpoints() -> None:
    names = set(cifar.ResNet(20).state_dict())
    weights = {name for name in names if not name.endswith("num_batches_tracked")}
    assert len(weights) == 97
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer3.2.bn2.bias",
        "linear.weight",
        "linear.bias",
    } <= weights


def test_depth_counts_convolutions_and_the_linear_layer() -> None:
    for depth in (8, 20, 56):
        shapes = [p.shape for p in cifar.ResNet(depth).parameters() if p.ndim > 1]
        assert len(shapes) == depth
    with pytest.raises(ValueError, match="6 n"):
        cifar.ResNet(18)


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = cifar.Block(2, 6, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    y = block(x)
    assert y.shape == (1, 6, 2, 2)
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 4:].any()


def test_images_are_normalised_inside_the_model() -> None:
    model = cifar.ResNet(8).eval()
    seen: list[torch.Tensor] = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.full((1, 3, 8, 8), 0.5))
    expected = (0.5 - torch.tensor(cifar.MEAN)) / torch.tensor(cifar.STD)
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected)


def test_no_image_both_chooses_and_reports(sets: dict[str, cifar.Images]) -> None:
    held_out, test, part = sets["held-out"], sets["test"], sets["lossless"]
    assert not set(held_out.indices) & set(test.indices)
    assert len(test) == 60
    near = np.abs(
        part.pixels.numpy().astype(int)[:, None] - held_out.pixels.numpy().astype(int)[None]
    )
    assert near.mean(axis=(2, 3, 4)).min() > 8  # JPEG moves a pixel by about 2 levels
    assert 20 < len(held_out) < 40


def test_each_original_finds_its_jpeg_copy() -> None:
    images, labels = standins.pictures(50)
    noise = np.random.default_rng(0).integers(-4, 5, images.shape)
    copies = np.clip(images + noise, 0, 255).astype(np.uint8)
    order = np.random.default_rng(1).permutation(50)[:17]
    found = cifar.jpeg_copies(images[order], labels[order], copies, labels)
    assert np.array_equal(found, order)


def test_parts_are_stratified_and_seeded() -> None:
    labels = np.repeat(np.arange(10), 20)
    chosen = cifar.stratified(labels, 53, seed=0)
    assert set(np.bincount(labels[chosen])) == {5, 6}
    assert len(set(chosen)) == 53
    assert np.array_equal(chosen, cifar.stratified(labels, 53, seed=0))
    assert not np.array_equal(chosen, cifar.stratified(labels, 53, seed=1))
    with pytest.raises(ValueError, match="cannot give 300"):
        cifar.stratified(labels, 300, seed=0)


def test_every_first_part_of_a_split_holds_the_classes_in_their_shares(
    sets: dict[str, cifar.Images],
) -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 70])
    order = cifar.evenly(labels, seed=0)
    assert sorted(order) == list(range(100))
    for n in (10, 30, 50):
        shares = np.bincount(labels[order[:n]], minlength=3) / n
        np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.11)
    assert not np.array_equal(order, cifar.evenly(labels, seed=1))
    # The files are sorted by class: a first part of them would hold the first classes only.
    for name in ("test", "natural", "tiny-imagenet"):
        labels = sets[name].labels
        assert len(set(labels[: len(labels) // 2])) > len(set(labels)) * 0.45
        assert list(labels) != sorted(labels)


@pytest.mark.parametrize("seed", range(20))
def test_any_first_part_of_any_labels_has_their_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 200, rng.integers(2, 12))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    order = cifar.evenly(labels, seed=seed)
    assert sorted(order) == list(range(len(labels)))
    for n in rng.integers(1, len(labels) + 1, 10):
        found = np.bincount(labels[order[:n]], minlength=len(counts))
        # Of K classes each is at most one off where the n-th example lies: n itself at most K.
        bound = 1 + counts * len(counts) / len(labels)
        assert (np.abs(found - counts * n / len(labels)) <= bound).all()


def test_movements_are_whole_pixels_and_mirror_half_of_the_images() -> None:
    images = torch.rand(200, 3, 6, 5) + 1
    moved, labels = cifar.Movements(pixels=1)((images, "labels"), torch.Generator().manual_seed(0))
    assert labels == "labels"
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    n_mirrored = 0
    for image, wide in zip(moved, padded, strict=True):
        crops = {
            (row, column, flip): crop.flip(-1) if flip else crop
            for row in range(3)
            for column in range(3)
            for flip in (False, True)
            for crop in [wide[:, row : row + 6, column : column + 5]]
        }
        same = [key for key, crop in crops.items() if torch.equal(image, crop)]
        assert len(same) == 1
        n_mirrored += same[0][2]
    assert 70 < n_mirrored < 130
    alone = cifar.Movements(pixels=0, flip=False)((images,), torch.Generator())[0]
    assert torch.equal(alone, images)


def test_recalibrated_statistics_are_of_moved_images(data: Path) -> None:
    task = cifar.make_task(data, depth=8, n_train=30, n_held_out=40)
    model = stockpot.from_state_dict(cifar.ResNet(8).state_dict())
    found = {
        policy: TaskEvaluator(task, device="cpu", batchnorm=policy).statistics(model)
        for policy in ("recalibrated", "clean", "averaged")
    }
    means = {policy: told["bn1.running_mean"] for policy, told in found.items()}
    assert not torch.equal(means["recalibrated"], means["clean"])
    assert torch.equal(means["averaged"], torch.zeros(16))


def test_smaller_images_are_enlarged_and_inputs_lie_in_the_unit_interval(
    sets: dict[str, cifar.Images],
) -> None:
    image, label = sets["natural"][3]
    assert image.shape == (3, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    assert label == sets["natural"].labels[3]


def test_a_batch_holds_each_of_its_images(sets: dict[str, cifar.Images]) -> None:
    images, labels = sets["train"].__getitems__([4, 0, 7])
    for image, label, index in zip(images, labels, [4, 0, 7], strict=True):
        assert torch.equal(image, sets["train"][index][0])
        assert int(label) == sets["train"][index][1]


def test_the_task_asks_for_whole_batches(data: Path) -> None:
    task = cifar.make_task(data, depth=8, n_train=30, n_held_out=40, device="cpu")
    part = task.splits["test"].dataset
    batches = list(task.batches(part, [5, 2, 9], batch_size=2))
    assert [len(labels) for _, labels in batches] == [2, 1]
    assert torch.equal(batches[1][0][0], part[9][0])


def test_a_pickled_data_set_holds_no_pixels_and_reads_the_same(
    sets: dict[str, cifar.Images],
) -> None:
    train = sets["train"]
    assert len(train.pixels) == 30
    packed = pickle.dumps(train)
    assert len(packed) < 3000
    assert torch.equal(pickle.loads(packed).pixels, train.pixels)


def test_fingerprints_tell_the_sets_apart_and_are_stable(sets: dict[str, cifar.Images]) -> None:
    prints = {name: s.fingerprint for name, s in sets.items() if name != "calibration"}
    assert len(set(prints.values())) == len(prints)
    again = cifar.Images(sets["test"].file, sets["test"].indices, sets["test"].labels)
    assert again.fingerprint == sets["test"].fingerprint


def test_a_missing_data_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STOCKPOT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="STOCKPOT_DATA"):
        cifar.data_folder()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        cifar.data_folder("nowhere")
