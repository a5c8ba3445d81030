from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tasks.clip import tiny_clip
from tests.tasks.transformers import tiny

import stockpot
from stockpot.tasks.clip import make_zero_shot
from stockpot.tasks.clip.classifier import build_classifier
from stockpot.tasks.clip.zero_shot import load_model, text_head


def pixels(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def classifier(folder: Path) -> torch.nn.Module:
    model = build_classifier(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_with_one_template_the_logits_are_those_of_the_whole_model(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)
    template = "a photo of the digit {}"
    made = make_zero_shot(source, tmp_path / "out", classes=tiny_clip.CLASSES, templates=[template])
    whole: Any = transformers.AutoModel.from_pretrained(source).eval()
    # SigLIP is used as it was trained: every row at full length, and no mask.
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tiny_clip.tokenizer()(
        [template.replace("{}", name) for name in tiny_clip.CLASSES], return_tensors="pt", **padding
    )
    if kind == "siglip":
        del tokens["attention_mask"]
    tokens.pop("token_type_ids", None)
    with torch.inference_mode():
        expected = whole(pixel_values=pixels(), **tokens).logits_per_image
        found = classifier(tmp_path / "out")(pixels())
    bias = whole.logit_bias if kind == "siglip" else 0.0  # the same for all: no softmax sees it
    torch.testing.assert_close(found, expected - bias, atol=1e-4, rtol=1e-5)
    assert found.std(dim=1).min() > 0.01, "the model tells the classes apart"
    assert made.scale == pytest.approx(np.exp(3.0))


def test_the_head_is_the_unit_mean_of_unit_features_times_the_scale(clip: Path) -> None:
    model, tokenizer = load_model(clip)
    found = text_head(model, tokenizer, tiny_clip.CLASSES, tiny_clip.TEMPLATES)
    for row, name in zip(found, tiny_clip.CLASSES, strict=True):
        total = np.zeros(12)
        for template in tiny_clip.TEMPLATES:
            tokens = tokenizer(template.replace("{}", name), return_tensors="pt")
            with torch.inference_mode():
                hidden = model.text_model(tokens["input_ids"]).pooler_output
                feature = model.text_projection(hidden)[0].double().numpy()
            total += feature / np.linalg.norm(feature)
        expected = np.exp(3.0) * total / np.linalg.norm(total)
        np.testing.assert_allclose(row.numpy(), expected, rtol=2e-5, atol=2e-5)


def test_the_head_does_not_depend_on_how_prompts_are_batched(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = text_head(*load_model(clip), tiny_clip.CLASSES, tiny_clip.TEMPLATES)
    monkeypatch.setattr("stockpot.tasks.clip.zero_shot._PROMPTS_PER_PASS", 1)
    apart = text_head(*load_model(clip), tiny_clip.CLASSES, tiny_clip.TEMPLATES)
    torch.testing.assert_close(whole, apart)


def test_the_folder_is_also_one_of_the_vision_tower(clip: Path, zero_shot: Path) -> None:
    whole: Any = transformers.AutoModel.from_pretrained(clip).eval()
    tower: Any = transformers.CLIPVisionModelWithProjection.from_pretrained(zero_shot).eval()
    with torch.inference_mode():
        found = whole.get_image_features(pixel_values=pixels())
        expected = getattr(found, "pooler_output", found)  # transformers 4 returns it as it is
        assert torch.equal(tower(pixel_values=pixels()).image_embeds, expected)
    config = json.loads((zero_shot / "config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(tiny_clip.CLASSES)}
    header = stockpot.open(zero_shot).metadata
    assert json.loads(header["templates"]) == list(tiny_clip.TEMPLATES)


def test_the_folder_of_a_siglip_is_one_of_its_vision_tower_too(
    siglip: Path, tmp_path: Path
) -> None:
    make_zero_shot(siglip, tmp_path / "out", classes=tiny_clip.CLASSES)
    whole: Any = transformers.AutoModel.from_pretrained(siglip).eval()
    tower: Any = transformers.SiglipVisionModel.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        found = whole.get_image_features(pixel_values=pixels())
        expected = getattr(found, "pooler_output", found)  # transformers 4 returns it as it is
        assert torch.equal(tower(pixel_values=pixels()).pooler_output, expected)


def test_image_features_have_unit_length_and_the_bias_starts_at_0(zero_shot: Path) -> None:
    model = classifier(zero_shot)
    with torch.inference_mode():
        torch.testing.assert_close(model.features(pixels()).norm(dim=1), torch.ones(5))
    assert torch.count_nonzero(model.head.bias) == 0


def test_a_head_alone_goes_to_a_file(clip: Path, zero_shot: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "classes": tiny_clip.CLASSES,
        "templates": tiny_clip.TEMPLATES,
        "head_only": True,
    }
    make_zero_shot(clip, tmp_path / "head.safetensors", **options)
    found = load_file(tmp_path / "head.safetensors")
    whole = load_file(zero_shot / "model.safetensors")
    assert set(found) == {"head.weight", "head.bias"}
    assert torch.equal(found["head.weight"], whole["head.weight"])
    with pytest.raises(stockpot.TaskError, match="goes to a file"):
        make_zero_shot(clip, tmp_path / "head", **options)


def test_nothing_is_overwritten_and_nothing_half_done_is_left(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_zero_shot(clip, out, classes=tiny_clip.CLASSES)
    with pytest.raises(stockpot.OutputExistsError):
        make_zero_shot(clip, out, classes=tiny_clip.CLASSES)
    make_zero_shot(clip, out, classes=tiny_clip.CLASSES[:2], force=True)
    assert stockpot.open(out)["head.weight"].shape == (2, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_that_lacks_weights_is_refused_and_not_filled_at_random(
    clip: Path, tmp_path: Path
) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(clip / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(stockpot.TaskError, match=r"lacks 1 tensors.*text_projection"):
        make_zero_shot(tmp_path, tmp_path / "out", classes=tiny_clip.CLASSES)


def test_other_models_and_names_of_the_hub_without_a_prefix_are_refused(tmp_path: Path) -> None:
    bert = tiny.bert_folder(tmp_path / "bert")
    with pytest.raises(stockpot.TaskError, match="model of type bert; expected"):
        make_zero_shot(bert, tmp_path / "out", classes=tiny_clip.CLASSES)
    with pytest.raises(stockpot.TaskError, match=r"no config.json.*written hf:openai/clip"):
        make_zero_shot("openai/clip", tmp_path / "out", classes=tiny_clip.CLASSES)


def test_a_name_of_the_hub_takes_the_same_way_as_a_folder(
    clip: Path, zero_shot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "stockpot.formats.remote.fetch", lambda name: asked.append(name) or str(clip)
    )
    out = tmp_path / "out"
    make_zero_shot("hf:org/name", out, classes=tiny_clip.CLASSES, templates=tiny_clip.TEMPLATES)
    assert asked == ["hf:org/name"]
    assert stockpot.open(out).fingerprint == stockpot.open(zero_shot).fingerprint


def test_a_sentence_that_the_model_cannot_take_whole_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(stockpot.TaskError, match=r"is 22 tokens.*the model takes 16"):
        make_zero_shot(
            clip, tmp_path / "out", classes=["one", "one" + " many" * 19], templates=["{}"]
        )


def test_classes_and_templates_are_checked_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(stockpot.TaskError) as caught:
        make_zero_shot("absent", tmp_path / "out", classes=["a", "a"], templates=["{} {}"])
    assert len(caught.value.problems) == 2
