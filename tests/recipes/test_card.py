from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from stockpot.recipes import Greedy, Uniform
from stockpot.recipes.card import how_to_load_folder, hub_name, model_card


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_tells_which_split_chose_and_every_score_with_its_interval(lab, tmp_path):
    soup = Greedy().cook(lab.paths, lab.task, base=lab.base)
    soup.save(tmp_path / "soup")
    text = (tmp_path / "soup" / "README.md").read_text()
    assert "held-out (chose)" in text
    test = soup.scores["test"]
    assert f"| test | accuracy | {test.value:.4f} | {test.low:.4f} – {test.high:.4f} |" in text
    metadata = front(text)
    assert "base_model" not in metadata, "names of this machine lead nowhere on the hub"
    assert "&id" not in text
    assert metadata["metrics"] == ["accuracy"]
    values = [r["metrics"][0]["value"] for r in metadata["model-index"][0]["results"]]
    assert values == [score.value for score in soup.scores.values()]


def test_without_a_task_there_are_no_scores(lab, tmp_path):
    Uniform().cook(lab.paths[:2]).save(tmp_path / "soup")
    text = (tmp_path / "soup" / "README.md").read_text()
    assert "## Scores" not in text
    assert "model-index" not in front(text)


def test_a_single_file_has_no_card(lab, tmp_path):
    Uniform().cook(lab.paths[:2]).save(tmp_path / "soup.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {
        "soup.safetensors", "soup.safetensors.stockpot.json",
    }  # fmt: skip


def test_the_same_soup_has_the_same_card(lab, tmp_path):
    for place in ("a", "b"):
        Uniform().cook(lab.paths[:3]).save(tmp_path / place / "soup")
    a, b = ((tmp_path / place / "soup" / "README.md").read_bytes() for place in ("a", "b"))
    assert a == b


@pytest.mark.parametrize(
    ("architecture", "pipeline"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("LlamaForCausalLM", "text-generation"),
        ("ViTForImageClassification", "image-classification"),
        ("MyOwn", None),
    ],
)
def test_the_pipeline_is_that_of_the_architecture(tmp_path, architecture, pipeline):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    soup = Uniform().cook([tmp_path / "a.safetensors"])
    text = model_card(soup.record(), tmp_path, name="x")
    assert front(text).get("pipeline_tag") == pipeline
    line = f"from transformers import {architecture}"
    assert (line in text) == (pipeline is not None)


def test_models_of_the_hub_are_named_as_what_it_was_made_of(lab):
    soup = Uniform().cook(lab.paths[:2])
    record = json.loads(json.dumps(soup.record()))
    record["ingredients"][0]["path"] = "/c/models--org--bert/snapshots/1f"
    record["ingredients"][1]["path"] = "hf:org/other@v2"
    metadata = front(model_card(record, Path("absent"), name="x"))
    assert metadata["base_model"] == ["org/bert", "org/other"]
    assert metadata["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    ("file", "library", "line"),
    [
        ("modules.json", "sentence-transformers", 'model = SentenceTransformer("x")'),
        ("model_index.json", "diffusers", 'model = DiffusionPipeline.from_pretrained("x")'),
    ],
)
def test_the_code_is_that_of_the_library_of_the_folder(lab, tmp_path, file, library, line):
    (tmp_path / file).write_text("{}")
    text = model_card(Uniform().cook(lab.paths[:2]).record(), tmp_path, name="x")
    assert front(text)["library_name"] == library
    assert line in text


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"architectures": ["BertForSequenceClassification"]},
            'BertForSequenceClassification.from_pretrained("{}")',
        ),
        ({"architectures": ["BertModel"]}, 'BertModel.from_pretrained("{}")'),
        ({"architectures": ["OwnModel"], "auto_map": {}}, None),
        ({}, None),
    ],
)
def test_a_folder_is_loaded_by_the_class_with_its_head(tmp_path, config, line):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert how_to_load_folder(tmp_path) == (line and line.format(tmp_path))


def test_what_is_no_model_folder_names_no_class(tmp_path):
    (tmp_path / "a.safetensors").touch()
    assert how_to_load_folder(tmp_path) is None
    assert how_to_load_folder(tmp_path / "a.safetensors") is None


def test_names_of_the_hub_are_links():
    assert hub_name("/x/models--org--a-b/snapshots/abc") == "org/a-b"
    assert hub_name("my runs/run 1.safetensors") == "run-1"


def test_coefficients_by_group_are_said_to_be_so(lab, tmp_path):
    record = Uniform().cook(lab.paths[:2]).record()
    for one in record["ingredients"]:
        one["coefficient"] = None
    assert "by group" in model_card(record, tmp_path, name="x")


def test_the_card_begins_with_the_gain(lab, tmp_path):
    soup = Greedy().cook(lab.paths[:4], lab.task)
    soup.save(tmp_path / "soup")
    text = (tmp_path / "soup" / "README.md").read_text()
    assert text.split("# soup\n\n")[1].startswith(f"**{soup.gain}**")


def test_names_in_a_card_are_no_markup(tmp_path):
    hostile = "x`|<img src=x onerror=alert(1)>[a](http://b)"
    score = {"value": 0.5, "low": None, "high": None, "n": 3, "metric": hostile}
    record = {
        "stockpot": hostile,
        "ingredients": [{"path": f"/r/{hostile.replace('/', '')}", "fingerprint": hostile}],
        "mixing": {},
        "soup": {
            "recipe": {"name": hostile}, "selected": [], "coefficients": {}, "steps": [],
            "scores": {hostile: score}, "direction": "max", "chosen_on": hostile, "notes": [],
        },
    }  # fmt: skip
    text = model_card(record, tmp_path, name=hostile).split("---\n", 2)[2]
    assert "<" not in text
    assert "](http://b)" not in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert line.count(" | ") in (2, 4)
