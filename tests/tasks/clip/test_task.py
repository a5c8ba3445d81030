from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.tasks.clip import tiny_clip
from torch.utils.data import TensorDataset

import stockpot
from stockpot.tasks import resolve
from stockpot.tasks.clip import HEAD, ClassGroups, CLIPTask, image_data
from stockpot.testing import task_conformance


def make_task(folder: Path) -> CLIPTask:
    def data(n: int, seed: int) -> Any:
        labels = torch.arange(n).remainder(4).tolist()
        return image_data(folder, tiny_clip.images(n, seed=seed), labels)

    two = image_data(folder, tiny_clip.images(10, seed=4), [0, 1] * 5)
    return CLIPTask(
        folder,
        {
            "val": stockpot.Split(data(13, 1), role="held-out"),
            "test": stockpot.Split(data(11, 2), role="test"),
            "two": stockpot.Split(two, role="shift"),
        },
        batch_size=8,
        train_set=data(32, 3),
        groups={"two": {"odd": ["one", "three"], "even": ["zero", "two"]}},
    )


@pytest.fixture(scope="module")
def task(zero_shot: Path) -> CLIPTask:
    return make_task(zero_shot)


def test_it_is_a_task_like_any_other(zero_shot: Path) -> None:
    task_conformance(functools.partial(make_task, zero_shot))


def test_a_split_with_labels_of_its_own_is_scored_on_them(task: CLIPTask, zero_shot: Path) -> None:
    evaluator = stockpot.TaskEvaluator(task, cache=None)
    base = stockpot.open(zero_shot)
    found = evaluator.predictions(base, "two").outputs
    model = task.build()
    model.load_state_dict({name: base.read(name) for name in base})
    plain = CLIPTask(zero_shot, {"two": stockpot.Split(task.splits["two"].dataset.dataset)})
    with torch.inference_mode():
        logits = torch.cat(
            [plain.predict(model.eval(), b) for b in plain.batches(plain.splits["two"].dataset)]
        )
    expected = torch.stack([logits[:, [1, 3]].amax(1), logits[:, [0, 2]].amax(1)], 1)
    torch.testing.assert_close(torch.from_numpy(found), expected)
    right = expected.argmax(1) == torch.tensor([0, 1] * 5)
    assert evaluator.score(base, "two").value == pytest.approx(right.double().mean().item())


def test_pairs_of_tensors_are_data_too(zero_shot: Path) -> None:
    data = TensorDataset(torch.randn(6, 3, 8, 8), torch.arange(6) % 2)
    groups = {"val": ClassGroups.of(["two", "one"], tiny_clip.CLASSES)}
    split = stockpot.Split(data, fingerprint="abc")
    task = CLIPTask(zero_shot, {"val": split}, groups=groups)
    assert task.splits["val"].fingerprint not in (None, "abc")
    (batch,) = task.batches(task.splits["val"].dataset)
    assert task.predict(task.build(), batch).shape == (6, 2)


def fine_tune(task: CLIPTask, start: Path, out: Path, **options: Any) -> stockpot.Checkpoint:
    config = stockpot.TrainConfig(lr=1e-2, batch_size=8, **options)
    stockpot.fine_tune(task, start, config, out=out, seed=0, device="cpu")
    return stockpot.open(out)


def moved(base: stockpot.Checkpoint, tuned: stockpot.Checkpoint) -> set[str]:
    return {name for name in base if base.raw(name).tobytes() != tuned.raw(name).tobytes()}


def test_end_to_end_moves_everything_and_a_linear_probe_the_head(
    task: CLIPTask, zero_shot: Path, tmp_path: Path
) -> None:
    base = stockpot.open(zero_shot)
    whole = fine_tune(task, zero_shot, tmp_path / "whole", epochs=1)
    probe = fine_tune(task, zero_shot, tmp_path / "probe", head=HEAD, probe_epochs=1, epochs=0)
    assert moved(base, probe) == {"head.weight", "head.bias"}
    # The key's bias of an attention changes no output, and so gets no gradient to speak of.
    assert {n for n in base if "k_proj.bias" not in n} <= moved(base, whole)
    both = fine_tune(task, zero_shot, tmp_path / "both", head=HEAD, probe_epochs=1, epochs=1)
    assert moved(probe, both) >= {"head.weight", "visual_projection.weight"}


def test_wise_ft_interpolates_encoder_and_head(
    task: CLIPTask, zero_shot: Path, tmp_path: Path
) -> None:
    tuned = fine_tune(task, zero_shot, tmp_path / "tuned", epochs=2)
    base = stockpot.open(zero_shot)
    evaluator = stockpot.TaskEvaluator(task, cache=None)
    recipe = stockpot.WiseFT(alphas=(0.0, 0.5, 1.0))
    soup = recipe.cook([tuned], task, base=base, evaluator=evaluator)
    curve = {point["alpha"]: point["scores"] for point in soup.to_json()["curve"]}
    for alpha, end in ((0.0, base), (1.0, tuned)):
        for split in task.splits:
            assert curve[alpha][split]["value"] == evaluator.score(end, split).value
    half = stockpot.WiseFT(alpha=0.5).cook([tuned], base=base)
    half.save(tmp_path / "half")
    for name in ("head.weight", "visual_projection.weight"):
        mean = (base.read(name).double() + tuned.read(name).double()) / 2
        assert torch.equal(stockpot.open(tmp_path / "half").read(name), mean.float())
    # The soup's folder is a classifier again: configuration and processor came along.
    assert CLIPTask(tmp_path / "half", dict(task.splits)).classes == tiny_clip.CLASSES


def test_what_is_wrong_is_said(zero_shot: Path, clip: Path, tmp_path: Path) -> None:
    split = stockpot.Split(TensorDataset(torch.zeros(1, 3, 8, 8), torch.zeros(1).long()))
    with pytest.raises(stockpot.TaskError, match=r"clip model and no head.*stockpot clip-head"):
        CLIPTask(clip, {"val": split})
    with pytest.raises(stockpot.TaskError, match=r"no config.json.*stockpot clip-head"):
        CLIPTask(tmp_path, {"val": split})
    with pytest.raises(stockpot.TaskError, match=r"split val: .*\n.*no class 'four'"):
        CLIPTask(zero_shot, {"val": split}, groups={"val": ["one", "four"]})
    with pytest.raises(stockpot.TaskError, match="groups are given for test; the splits are val"):
        CLIPTask(zero_shot, {"val": split}, groups={"test": ["one", "two"]})
    with pytest.raises(stockpot.TaskError, match="at least one split"):
        CLIPTask(zero_shot, {})
    with pytest.raises(stockpot.TaskError, match="batch_size is 0"):
        CLIPTask(zero_shot, {"val": split}, batch_size=0)
    with pytest.raises(stockpot.TaskError, match="2 images and 1 labels"):
        image_data(zero_shot, tiny_clip.images(2, seed=0), [0])


TASK = """
kind: zero-shot-image-classification
model: {model}
train: train
splits:
  val:  {{data: val, role: held-out}}
  test: {{data: test, role: test}}
  odd:  {{data: odd, role: shift, classes: odd.yaml}}
  some: {{data: some.jsonl, role: shift, classes: [three, one]}}
"""


def image_folder(path: Path, names: tuple[str, ...], seed: int) -> None:
    for i, pixels in enumerate(tiny_clip.images(2 * len(names), seed=seed)):
        folder = path / names[i % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_task_file_says_it_all(zero_shot: Path, tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "val", "test")):
        image_folder(tmp_path / part, tiny_clip.CLASSES, seed)
    image_folder(tmp_path / "odd", ("odd", "even"), 5)
    image_folder(tmp_path / "some", ("three", "one"), 6)
    rows = [
        {"image": str(path.relative_to(tmp_path)), "label": path.parent.name}
        for path in sorted((tmp_path / "some").rglob("*.png"))
    ]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "odd.yaml").write_text("even: [zero, two]\nodd: [one, three]\n")
    (tmp_path / "task.yaml").write_text(TASK.format(model=zero_shot))
    task = resolve(str(tmp_path / "task.yaml"))
    assert isinstance(task, CLIPTask)
    assert task.groups["odd"].names == ("even", "odd")
    (batch,) = task.batches(task.splits["odd"].dataset)
    # The folders come sorted: even first, as the labels of the split's own file say.
    assert task.targets(batch).tolist() == [0, 0, 1, 1]
    (batch,) = task.batches(task.splits["some"].dataset)
    assert task.targets(batch).tolist() == [1, 1, 0, 0]
    scores = stockpot.TaskEvaluator(task, cache=None).scores(stockpot.open(zero_shot))
    assert set(scores) >= {"val", "test", "odd", "some", "shift_average"}


def test_a_task_file_names_the_classes_that_its_model_lacks(
    zero_shot: Path, tmp_path: Path
) -> None:
    image_folder(tmp_path / "val", tiny_clip.CLASSES, 0)
    text = f"kind: zero-shot-image-classification\nmodel: {zero_shot}\nsplits:\n"
    (tmp_path / "task.yaml").write_text(
        text + "  val: {data: val, role: held-out, classes: [one, nine, ten]}\n"
    )
    with pytest.raises(stockpot.TaskError, match=r"val: .*\n.*'nine'.*\n.*'ten'"):
        resolve(str(tmp_path / "task.yaml"))
    (tmp_path / "task.yaml").write_text(
        text.replace("zero-shot-", "") + "  val: {data: val, role: held-out, classes: none.yaml}\n"
    )
    with pytest.raises(stockpot.TaskError, match=r"none.yaml cannot be read"):
        resolve(str(tmp_path / "task.yaml"))
    (tmp_path / "none.yaml").write_text("- one\n- two\n")
    with pytest.raises(stockpot.TaskError, match="only the kind zero-shot-image-classification"):
        resolve(str(tmp_path / "task.yaml"))
    (tmp_path / "none.yaml").write_text("")
    with pytest.raises(stockpot.TaskError, match="neither a list nor a mapping"):
        resolve(str(tmp_path / "task.yaml"))
