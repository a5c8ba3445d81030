from __future__ import annotations

from pathlib import Path

import pytest

import stockpot
from stockpot.tasks.transformers import parse_task_file
from stockpot.tasks.transformers.taskfile import DataSource

GOOD = """
kind: text-classification
model: base
text: [premise, hypothesis]
label: answer
labels: [no, yes]
train: train.csv
splits:
  held-out: val.csv
  test: {data: more/test.jsonl}
  films: {data: saved, part: films, role: shift}
max_length: 40
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "task.yaml"
    file.write_text(text)
    return file


def problems(tmp_path: Path, text: str) -> list[str]:
    file = write(tmp_path, text)
    with pytest.raises(stockpot.TaskError) as caught:
        parse_task_file(file)
    return [problem.removeprefix(str(file)) for problem in caught.value.problems]


def test_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path) -> None:
    task = parse_task_file(write(tmp_path, GOOD))
    assert task.model == tmp_path / "base"
    assert task.train == DataSource(tmp_path / "train.csv")
    assert task.splits["test"].data == DataSource(tmp_path / "more/test.jsonl")
    assert task.splits["films"].data == DataSource(tmp_path / "saved", "films")


def test_a_split_named_after_a_role_needs_no_role(tmp_path: Path) -> None:
    splits = parse_task_file(write(tmp_path, GOOD)).splits
    assert {name: split.role.value for name, split in splits.items()} == {
        "held-out": "held-out",
        "test": "test",
        "films": "shift",
    }


def test_one_column_may_be_written_without_a_list(tmp_path: Path) -> None:
    text = GOOD.replace("[premise, hypothesis]", "sentence")
    assert parse_task_file(write(tmp_path, text)).text == ("sentence",)


def test_names_that_yaml_takes_for_booleans_stay_names(tmp_path: Path) -> None:
    assert parse_task_file(write(tmp_path, GOOD)).labels == ("no", "yes")


def test_invalid_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert problems(tmp_path, "kind: text-classification\nmodel: [base\nsplits: 3\n")[0].startswith(
        ":3: not valid YAML"
    )


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    text = """kind: text-clasification
model: 3
labl: x
splits:
  val: {data: val.csv, role: validation}
  test: {role: test}
batch_size: 0
batch_size: 4
max_length: many
drop_shared: maybe
labels: [a, a]
"""
    found = problems(tmp_path, text)
    assert found == [
        ":3: unknown key 'labl'; did you mean 'label'?",
        ":8: 'batch_size' stands twice",
        ":5: split 'val' needs a role: one of held-out, test, shift (found 'validation')",
        ":6: 'data' is missing: the file or folder of this split",
        ":1: kind is 'text-clasification', expected one of text-classification, "
        "image-classification, zero-shot-image-classification, causal-lm",
        ":2: model is 3, expected a folder",
        ":7: batch_size is 0, expected a whole number above 0",
        ":9: max_length is 'many', expected a whole number above 0",
        ":10: drop_shared is 'maybe', expected true or false",
        ":11: labels is ('a', 'a'), expected a list of two or more different names",
    ]


def test_the_column_of_categories_is_text(tmp_path: Path) -> None:
    assert parse_task_file(write(tmp_path, GOOD)).category is None
    assert parse_task_file(write(tmp_path, GOOD + "category: topic\n")).category == "topic"
    assert problems(tmp_path, GOOD + "category: [a, b]\n") == [
        ":13: category is ['a', 'b'], expected text"
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path, "label: y\n") == [
        ":1: 'kind' is missing",
        ":1: 'model' is missing",
        ":1: 'splits' is missing",
    ]


def test_forms_without_a_head_need_words_and_a_place_for_them(tmp_path: Path) -> None:
    text = GOOD + "form: label-words\ntemplate: '{premise} so {hypothesis}'\n"
    found = problems(tmp_path, text)
    assert "form label-words needs label_words" in found[0]
    assert "{mask} once" in found[1]


def test_images_have_a_head(tmp_path: Path) -> None:
    text = "kind: image-classification\nmodel: m\nform: text-to-text\nsplits: {test: t}\n"
    assert "images know 'head' only" in problems(tmp_path, text)[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(stockpot.TaskError, match=r"nowhere\.yaml: cannot be read"):
        parse_task_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected a mapping" in problems(tmp_path, text)[0]


IMAGES = "kind: image-classification\nmodel: m\nsplits: {test: t}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IMAGES + "augment: {blur: 2}\n", "keys of min_crop, shift_pixels, rotate_degrees"),
        (IMAGES + "augment: shift_pixels\n", "expected a mapping"),
        (IMAGES + "augment: {shift_pixels: -1}\n", "shift_pixels is -1, expected at least 0"),
        (IMAGES + "augment: {shift_pixels: yes}\n", "expected numbers"),
        (IMAGES + "augment: {min_crop: 1.5}\n", "min_crop is 1.5, expected between 0 and 1"),
        (IMAGES + "augment: {min_crop: 0}\n", "leaves no image"),
        (IMAGES + "augment: {rotate_degrees: 200}\n", "expected between 0 and 180"),
        (GOOD + "augment: {shift_pixels: 2}\n", "of image-classification only"),
    ],
)
def test_an_augmentation_is_checked(tmp_path: Path, text: str, message: str) -> None:
    (found,) = problems(tmp_path, text)
    assert message in found


def test_an_augmentation_of_images_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, IMAGES + "augment: {shift_pixels: 2, rotate_degrees: 7.5}\n")
    assert parse_task_file(file).augment == {"shift_pixels": 2, "rotate_degrees": 7.5}
