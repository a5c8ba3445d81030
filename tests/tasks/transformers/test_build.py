from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tests.tasks.transformers import tiny

import stockpot
from stockpot import tasks
from stockpot.tasks.transformers import load_task, share_head

NAMES = ("negative", "positive")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_folder(
        tmp_path_factory.mktemp("bert"),
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_folder(tmp_path_factory.mktemp("masked"), "BertForMaskedLM")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.t5_folder(tmp_path_factory.mktemp("t5"))


def sentences(n: int, first: int = 0) -> list[tuple[str, str]]:
    words = {"positive": ["good", "great", "fine"], "negative": ["bad", "awful", "dull"]}
    out = []
    for i in range(first, first + n):
        name = NAMES[i % 2]
        out.append((f"the film was {words[name][i // 2 % 3]} number {'. ' * (i // 6)}{i}", name))
    return out


def write_csv(file: Path, rows: list[tuple[str, str]]) -> None:
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))


def task_file(tmp_path: Path, model: Path, extra: str = "") -> Path:
    write_csv(tmp_path / "train.csv", sentences(12))
    write_csv(tmp_path / "val.csv", sentences(7, 12))
    write_csv(tmp_path / "test.csv", sentences(6, 30))
    file = tmp_path / "task.yaml"
    file.write_text(
        f"kind: text-classification\nmodel: {model}\ntrain: train.csv\n"
        f"splits:\n  val: {{data: val.csv, role: held-out}}\n  test: test.csv\n{extra}"
    )
    return file


def logits(task: stockpot.ClassificationTask, model: Any, batch_size: int) -> torch.Tensor:
    model.eval()
    batches = task.batches(task.splits["val"].dataset, batch_size=batch_size)
    with torch.no_grad():
        return torch.cat([task.predict(model, batch) for batch in batches])


def test_a_head_predicts_what_transformers_predicts(tmp_path: Path, bert: Path) -> None:
    task = tasks.resolve(str(task_file(tmp_path, bert)))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert)
    found = logits(task, model, 7)
    texts = [text for text, _ in sentences(7, 12)]
    pipe = transformers.pipeline(
        "text-classification", model=model, tokenizer=tiny.tokenizer(), top_k=None
    )
    for row, scores in zip(found.softmax(1), pipe(texts), strict=True):
        by_name = {s["label"]: s["score"] for s in scores}
        assert row.tolist() == pytest.approx([by_name[name] for name in NAMES], abs=1e-5)


def test_labels_follow_the_names_of_the_config(tmp_path: Path, bert: Path) -> None:
    task = load_task(task_file(tmp_path, bert))
    batch = next(iter(task.batches(task.splits["val"].dataset)))
    assert task.targets(batch).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert task.splits["val"].role == "held-out"
    assert task.train_set is not None
    assert len(task.train_set) == 12


def test_predictions_do_not_depend_on_the_size_of_a_batch(tmp_path: Path, bert: Path) -> None:
    task = load_task(task_file(tmp_path, bert))
    model = task.build()
    torch.testing.assert_close(logits(task, model, 7), logits(task, model, 2), atol=1e-6, rtol=0)


def test_padding_by_batch_gives_the_same_up_to_rounding(tmp_path: Path, bert: Path) -> None:
    model = load_task(task_file(tmp_path, bert)).build()
    by_split = logits(load_task(task_file(tmp_path, bert)), model, 2)
    task = load_task(task_file(tmp_path, bert, "padding: batch\n"))
    torch.testing.assert_close(logits(task, model, 2), by_split)
    one = next(iter(task.batches(task.splits["val"].dataset, batch_size=1)))
    assert one["input_ids"].shape[1] < len(
        task.splits["val"].dataset.encode([("a " * 50,)])[0]["input_ids"]
    )


def test_label_words_are_read_at_the_mask(tmp_path: Path, masked: Path) -> None:
    extra = (
        "form: label-words\nlabel_words: {negative: bad, positive: good}\n"
        "template: '{text} . it was {mask} .'\n"
    )
    task = load_task(task_file(tmp_path, masked, extra))
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked)
    found = logits(task, model, 3)
    tokens = tiny.tokenizer()
    for row, (text, _) in zip(found, sentences(7, 12), strict=True):
        ids = tokens(f"{text} . it was [MASK] .", return_tensors="pt")
        with torch.no_grad():
            full = model(**ids).logits[0]
        at_mask = full[(ids["input_ids"][0] == tokens.mask_token_id).nonzero().item()]
        words = tokens.convert_tokens_to_ids(["bad", "good"])
        torch.testing.assert_close(row, at_mask[words])


def test_a_long_text_loses_words_but_never_the_mask(tmp_path: Path, masked: Path) -> None:
    extra = (
        "form: label-words\nlabel_words: {negative: bad, positive: good}\n"
        "template: '{text} was {mask}'\nmax_length: 12\n"
    )
    task = load_task(task_file(tmp_path, masked, extra))
    row = task.train_set.encode([("film " * 40,), ("film",)])
    assert len(row[0]["input_ids"]) == 12
    assert row[0]["input_ids"].count(4) == 1
    assert row[0]["input_ids"][1:9] == [12] * 8


def test_label_words_that_are_no_single_token_are_all_named(tmp_path: Path, masked: Path) -> None:
    extra = "form: label-words\nlabel_words: {negative: bad dog, positive: wonderful}\n"
    with pytest.raises(stockpot.TaskError) as caught:
        load_task(task_file(tmp_path, masked, extra))
    assert len(caught.value.problems) == 2


def test_text_to_text_scores_the_words_of_each_class(tmp_path: Path, t5: Path) -> None:
    extra = "form: text-to-text\nlabel_words: {negative: not good, positive: good}\n"
    task = load_task(task_file(tmp_path, t5, extra))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5)
    found = logits(task, model, 4)
    tokens = tiny.tokenizer()
    for row, (text, _) in zip(found, sentences(7, 12), strict=True):
        for score, words in zip(row, ("not good", "good"), strict=True):
            source = tokens(f"text: {text}", return_tensors="pt")
            target = tokens(words, return_tensors="pt").input_ids
            with torch.no_grad():
                loss = model(
                    input_ids=source.input_ids, attention_mask=source.attention_mask, labels=target
                ).loss
            assert score.item() == pytest.approx(-loss.item() * target.numel(), rel=1e-4)


@pytest.mark.parametrize("form", ["label-words", "text-to-text"])
def test_forms_without_a_head_learn_with_no_new_parameter(
    tmp_path: Path, masked: Path, t5: Path, form: str
) -> None:
    folder = masked if form == "label-words" else t5
    extra = f"form: {form}\nlabel_words: {{negative: bad, positive: good}}\n"
    task = load_task(task_file(tmp_path, folder, extra))
    start = stockpot.open(folder)
    config = stockpot.TrainConfig(lr=1e-2, epochs=25, batch_size=6)
    result = stockpot.fine_tune(task, start, config, out=tmp_path / "tuned.safetensors")
    assert result.epochs[-1].loss < result.epochs[0].loss - 0.1
    assert set(stockpot.open(result.path)) == set(start)


def test_an_image_folder_becomes_a_task(tmp_path: Path) -> None:
    model = tiny.vit_folder(tmp_path / "vit", labels=("cat", "dog"))
    for part, shade in (("val", 10), ("test", 90)):
        for i, name in enumerate(("cat", "dog", "cat")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 24), (shade + i, 50 * i, 9)).save(folder / f"{i}.png")
    file = tmp_path / "task.yaml"
    file.write_text(
        "kind: image-classification\nmodel: vit\n"
        "splits: {held-out: val, test: test}\nbatch_size: 2\n"
    )
    plain = load_task(file)
    file.write_text(file.read_text() + "augment: {shift_pixels: 3}\n")
    task = load_task(file)
    assert plain.augment is None
    (batch, *_) = task.batches(task.splits["test"].dataset)
    moved = task.augment(batch, torch.Generator().manual_seed(0))
    assert moved["labels"] is batch["labels"]
    assert not torch.equal(moved["pixel_values"], batch["pixel_values"])
    data = task.splits["test"].dataset
    assert [data[i]["labels"] for i in range(3)] == [0, 0, 1]
    vit = transformers.AutoModelForImageClassification.from_pretrained(model)
    vit.eval()
    with torch.no_grad():
        found = torch.cat([task.predict(vit, batch) for batch in task.batches(data)])
        pipe = transformers.pipeline(
            "image-classification", model=vit, image_processor=data.processor
        )
    expected = {s["label"]: s["score"] for s in pipe(str(tmp_path / "test/dog/1.png"))}
    assert found[2].softmax(0).tolist() == pytest.approx(
        [expected["cat"], expected["dog"]], abs=1e-5
    )
    assert len(pickle.dumps(data)) < len(pickle.dumps(data[0])) * 20
    file.write_text(file.read_text() + "category: topic\n")
    with pytest.raises(stockpot.TaskError, match="which has no column 'topic'"):
        load_task(file)


def test_a_label_out_of_range_is_refused_with_its_place(tmp_path: Path, bert: Path) -> None:
    file = task_file(tmp_path, bert)
    write_csv(tmp_path / "val.csv", [("x", "2"), ("y", "positive")])
    with pytest.raises(stockpot.TaskError, match=r"val\.csv: example 1 has the label '2'"):
        load_task(file)


def test_labels_in_another_order_than_the_config_are_refused(tmp_path: Path, bert: Path) -> None:
    file = task_file(tmp_path, bert, "labels: [positive, negative]\n")
    with pytest.raises(
        stockpot.TaskError, match=r"class 0 is 'positive' in task\.yaml, 'negative'"
    ):
        load_task(file)
    file = task_file(tmp_path, bert, "labels: [negative, neutral, positive]\n")
    with pytest.raises(stockpot.TaskError, match=r"lists 3 labels, the model in .* has 2"):
        load_task(file)


def test_held_out_and_test_that_share_examples_are_refused_or_parted(
    tmp_path: Path, bert: Path
) -> None:
    file = task_file(tmp_path, bert)
    shared = [(f" {text.replace(' ', '  ')}", label) for text, label in sentences(2, 12)]
    write_csv(tmp_path / "test.csv", [*sentences(6, 30), *shared])
    with pytest.raises(stockpot.TaskError, match="val and test share 2 examples"):
        load_task(file)
    file.write_text(file.read_text() + "drop_shared: true\n")
    task = load_task(file)
    assert len(task.splits["val"].dataset) == 5
    assert len(task.splits["test"].dataset) == 8


def with_topics(file: Path, rows: list[tuple[str, str]], topics: list[str]) -> None:
    lines = [f"{text},{label},{topic}" for (text, label), topic in zip(rows, topics, strict=True)]
    file.write_text("\n".join(["text,label,topic", *lines]) + "\n")


def test_a_column_names_the_category_of_each_example(tmp_path: Path, bert: Path) -> None:
    file = task_file(tmp_path, bert, "category: topic\ndrop_shared: true\n")
    shared = sentences(2, 12)
    with_topics(tmp_path / "val.csv", sentences(7, 12), list("abcabca"))
    with_topics(tmp_path / "test.csv", [*sentences(6, 30), *shared], list("aabbccab"))
    task = load_task(file)
    assert task.splits["val"].categories == ("c", "a", "b", "c", "a")
    assert task.splits["test"].categories == tuple("aabbccab")
    assert len(task.train_set) == 12
    with_topics(tmp_path / "val.csv", sentences(3, 12), ["a", " ", ""])
    with pytest.raises(stockpot.TaskError, match=r"val\.csv: example 2 has no topic; 2 examples"):
        load_task(file)
    write_csv(tmp_path / "val.csv", sentences(7, 12))
    with pytest.raises(stockpot.TaskError, match=r"no column 'topic'; it has: text, label"):
        load_task(file)


def test_training_on_what_is_scored_is_refused(tmp_path: Path, bert: Path) -> None:
    file = task_file(tmp_path, bert)
    write_csv(tmp_path / "train.csv", [*sentences(4), *sentences(3, 12)])
    with pytest.raises(stockpot.TaskError, match="share 3 examples"):
        load_task(file)


def test_problems_of_several_splits_are_raised_together(tmp_path: Path, bert: Path) -> None:
    file = task_file(tmp_path, bert)
    (tmp_path / "val.csv").unlink()
    (tmp_path / "test.csv").write_text("sentence,label\nx,0\n")
    with pytest.raises(stockpot.TaskError) as caught:
        load_task(file)
    assert len(caught.value.problems) == 2
    assert "val.csv does not exist" in str(caught.value)
    assert "no column 'text'; it has: sentence, label" in str(caught.value)


def test_weights_without_a_head_are_refused_by_name_and_share_head_makes_one(
    tmp_path: Path,
) -> None:
    encoder = tiny.bert_folder(tmp_path / "encoder", "BertModel")
    with pytest.raises(stockpot.TaskError, match="share_head") as caught:
        load_task(task_file(tmp_path, encoder, "labels: [negative, positive]\n"))
    assert any("classifier.weight" in problem for problem in caught.value.problems)
    folder = share_head(encoder, tmp_path / "base", labels=NAMES, seed=3)
    bare = tmp_path / "bare"  # without a tokenizer: none is made up
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(encoder, name), bare)
    made = share_head(bare, tmp_path / "headed", labels=NAMES, seed=3)
    assert {path.name for path in made.iterdir()} == {"config.json", "model.safetensors"}
    again = share_head(encoder, tmp_path / "again", labels=NAMES, seed=3)
    other = share_head(encoder, tmp_path / "other", labels=NAMES, seed=4)
    heads = [stockpot.open(f).read("classifier.weight") for f in (folder, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    task = load_task(task_file(tmp_path, folder))
    assert logits(task, task.build(), 3).shape == (7, 2)
    with pytest.raises(stockpot.OutputExistsError):
        share_head(encoder, folder, labels=NAMES)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(stockpot.TaskError, match=r"no config\.json"):
        load_task(task_file(tmp_path, tmp_path))


def test_a_length_beyond_the_model_is_refused(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(stockpot.TaskError, match="the model takes 96 tokens"):
        load_task(task_file(tmp_path, bert, "max_length: 500\n"))


def test_the_version_follows_template_and_config(tmp_path: Path, masked: Path) -> None:
    extra = "form: label-words\nlabel_words: {negative: bad, positive: good}\n"
    one = load_task(task_file(tmp_path, masked, extra)).version
    same = load_task(task_file(tmp_path, masked, extra)).version
    other = load_task(task_file(tmp_path, masked, extra + "template: '{text} {mask} !'\n")).version
    assert one == same != other
