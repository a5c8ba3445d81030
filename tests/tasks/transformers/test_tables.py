from __future__ import annotations

import json
import warnings
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

import stockpot
from stockpot.tasks.transformers.tables import label_indices, read_table
from stockpot.tasks.transformers.taskfile import DataSource

ROWS = [("good, really", 1), ('a "bad" film', 0), ("über", 1)]


def write_all(folder: Path) -> dict[str, Path]:
    """The same rows in every format."""
    import datasets

    files = {kind: folder / f"x.{kind}" for kind in ("csv", "tsv", "jsonl", "json", "parquet")}
    files["csv"].write_text('text,label\n"good, really",1\n"a ""bad"" film",0\nüber,1\n')
    files["tsv"].write_text("\ufefftext\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in ROWS))
    objects = [{"text": t, "label": y} for t, y in ROWS]
    files["jsonl"].write_text("\n".join(map(json.dumps, objects)) + "\n\n")
    files["json"].write_text(json.dumps(objects))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects), files["parquet"])
    files["saved"] = folder / "saved"
    datasets.Dataset.from_list(objects).save_to_disk(str(files["saved"]))
    return files


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    for kind, file in write_all(tmp_path).items():
        table = read_table(DataSource(file), ["text", "label"])
        assert [*table.column("text")] == [t for t, _ in ROWS], kind
        assert label_indices(table, "label", ["neg", "pos"]) == [1, 0, 1], kind


def test_a_part_of_a_saved_dictionary_is_chosen_and_class_labels_become_names(
    tmp_path: Path,
) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    made = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)
    datasets.DatasetDict({"a": made, "b": made.select([1])}).save_to_disk(str(tmp_path / "d"))
    table = read_table(DataSource(tmp_path / "d", "b"), ["text", "label"])
    assert [*table.column("label")] == ["neg"]
    with pytest.raises(stockpot.TaskError, match=r"holds the parts a, b"):
        read_table(DataSource(tmp_path / "d"), ["text", "label"])


def test_an_image_folder_may_be_named_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images/cat").mkdir(parents=True)
    Path("images/cat/0.png").write_bytes(b"")
    table = read_table(DataSource(Path("images")), ("image", "label"))
    (name,) = table.column("image")
    assert (table.base / name).is_file()


def test_an_image_folder_has_one_folder_per_class(tmp_path: Path) -> None:
    for name, n in (("dog", 1), ("cat", 2)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    table = read_table(DataSource(tmp_path), ["image", "label"])
    assert [*table.column("label")] == ["cat", "cat", "dog"]
    assert all((tmp_path / path).is_file() for path in table.column("image"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\na,0,1\n", "line 2 has 3 fields, the header has 2"),
        ("x.csv", "text,text\na,0\n", "stands twice"),
        ("x.csv", "text\na\n", "has no column 'label'; it has: text"),
        ("x.csv", "text,label\n", "holds no example"),
        ("x.jsonl", '{"text": 1}\n{broken\n', "line 2"),
        ("x.jsonl", "[1]\n", "expected an object, found list"),
        ("x.json", "{}", "expected a list of objects"),
        ("x.parquet", "no parquet", "cannot be read"),
        ("x.xlsx", "", "of no known kind; expected .csv"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(stockpot.TaskError, match=message) as caught:
        read_table(DataSource(file), ["text", "label"])
    assert str(file) in str(caught.value)


def test_a_missing_file_and_a_folder_of_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(stockpot.TaskError, match=r"gone\.csv does not exist"):
        read_table(DataSource(tmp_path / "gone.csv"), ["text"])
    with pytest.raises(stockpot.TaskError, match="neither a saved data set"):
        read_table(DataSource(tmp_path), ["image", "label"])


def test_labels_are_names_or_indices_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("text,label\na,pos\nb,0\nc,1.0\nd, neg \n")
    table = read_table(DataSource(file), ["text", "label"])
    with pytest.raises(stockpot.TaskError, match=r"example 3 has the label '1\.0'"):
        label_indices(table, "label", ["neg", "pos"])
    file.write_text("text,label\na,7\nb,-1\nc,maybe\n")
    table = read_table(DataSource(file), ["text", "label"])
    with pytest.raises(stockpot.TaskError, match="expected one of neg, pos, or 0 to 1") as caught:
        label_indices(table, "label", ["neg", "pos"])
    assert len(caught.value.problems) == 3


def test_names_that_are_numbers_are_names_first(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a", "label": 2}\n{"text": "b", "label": 1.0}\n')
    table = read_table(DataSource(file), ["text", "label"])
    with warnings.catch_warnings():
        assert label_indices(table, "label", ["1", "2"]) == [1, 0]
