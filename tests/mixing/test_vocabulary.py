"""Models with added tokens: rows matched by token, averaged where all have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot.errors import MismatchError, RecipeError
from stockpot.mixing import Coefficients, Ingredients, Mixture, Reconcile

WORDS = ["[PAD]", "the", "of", "and"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def model(
    folder: Path, words: list[str], *, seed: int, kind: str = "tokenizer.json", rows: int = 0
) -> dict[str, torch.Tensor]:
    """A folder with a model of these tokens, rows after them unused; its state."""
    n = rows or len(words)
    generator = torch.Generator().manual_seed(seed)
    state = {
        "embeddings.word_embeddings.weight": torch.randn(n, 5, generator=generator),
        "encoder.weight": torch.randn(5, 5, generator=generator),
        "cls.decoder.bias": torch.randn(n, generator=generator),
        "final_logits_bias": torch.randn(1, n, generator=generator),
    }
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": n}))
    numbered = {word: i for i, word in enumerate(words)}
    if kind == "vocab.txt":
        (folder / kind).write_text("\n".join(words))
    elif kind == "added_tokens.json":
        first = {word: i for word, i in numbered.items() if i < len(WORDS)}
        (folder / "vocab.json").write_text(json.dumps(first))
        rest = {word: i for word, i in numbered.items() if i >= len(WORDS)}
        (folder / kind).write_text(json.dumps(rest))
    elif kind == "list":
        vocab = [[word, 0.0] for word in words]
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    elif kind == "tokenizer.json":
        added = [{"id": i, "content": word} for word, i in numbered.items() if i >= len(WORDS)]
        own = {word: i for word, i in numbered.items() if i < len(WORDS)}
        (folder / kind).write_text(json.dumps({"model": {"vocab": own}, "added_tokens": added}))
    return state


def rows(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """One row a token: the bias of shape (1, n) turned."""
    value = state[name].double()
    return value.T if name == "final_logits_bias" else value


NAMES = ("embeddings.word_embeddings.weight", "cls.decoder.bias", "final_logits_bias")


@pytest.mark.parametrize("kind", ["tokenizer.json", "list", "vocab.txt", "added_tokens.json", ""])
@pytest.mark.parametrize("how", ["common", "union"])
def test_rows_that_all_have_are_averaged(how: Any, kind: str, tmp_path: Path) -> None:
    a = model(tmp_path / "a", [*WORDS, "<sku>", "<url>"], seed=0, kind=kind)
    b = model(tmp_path / "b", WORDS, seed=1, kind=kind)
    stockpot.average([tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary=how)).save(
        tmp_path / "soup"
    )
    assert stockpot.verify(tmp_path / "soup") == []
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    n = 4 if how == "common" else 6
    for name in NAMES:
        found, one, other = rows(soup, name), rows(a, name), rows(b, name)
        assert len(found) == n
        assert torch.equal(found[:4], ((one[:4] + other) / 2).float().double())
        assert torch.equal(found[4:], one[4:n])
    mean = (a["encoder.weight"].double() + b["encoder.weight"].double()) / 2
    assert torch.equal(soup["encoder.weight"], mean.float())
    assert json.loads((tmp_path / "soup" / "config.json").read_text()) == {"vocab_size": n}
    stockpot.average([tmp_path / "b", tmp_path / "a"], reconcile=Reconcile(vocabulary=how)).save(
        tmp_path / "again"
    )
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "soup" / file).read_bytes()


def test_rows_are_matched_by_token_and_not_by_place(tmp_path: Path) -> None:
    a = model(tmp_path / "a", [*WORDS, "<sku>", "<url>"], seed=0)
    b = model(tmp_path / "b", [*WORDS, "<url>"], seed=1)
    stockpot.average(
        [tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary="union")
    ).save(tmp_path / "s.pt")
    soup = stockpot.open(tmp_path / "s.pt").state_dict()
    for name in NAMES:
        found, one, other = rows(soup, name), rows(a, name), rows(b, name)
        assert torch.equal(found[5], ((one[5] + other[4]) / 2).float().double())
        assert torch.equal(found[4], one[4])


def test_rows_that_some_lack_are_the_bases_where_it_has_them(tmp_path: Path) -> None:
    base = model(tmp_path / "base", [*WORDS, "<sku>"], seed=0)
    a = model(tmp_path / "a", [*WORDS, "<sku>", "<url>"], seed=1)
    b = model(tmp_path / "b", WORDS, seed=2)
    c = model(tmp_path / "c", [*WORDS, "<sku>", "<url>"], seed=3)
    given = Ingredients(
        [tmp_path / name for name in "abc"],
        base=tmp_path / "base",
        reconcile=Reconcile(vocabulary="union"),
    )
    soup = Mixture(given).state_dict()
    for name in NAMES:
        found = rows(soup, name)
        assert torch.equal(found[4], rows(base, name)[4])
        means = sum(rows(one, name)[:4] for one in (a, b, c)) / 3
        assert torch.allclose(found[:4], means, atol=1e-7)
        holders = (rows(a, name)[5] + rows(c, name)[5]) / 2
        assert torch.allclose(found[5], holders, atol=1e-7)
    assert given.base is not None
    assert given.base[NAMES[0]].shape == (6, 5)


def test_aligned_checkpoints_are_aligned_again(tmp_path: Path) -> None:
    base = model(tmp_path / "base", WORDS, seed=0)
    tuned = model(tmp_path / "tuned", [*WORDS, "<sku>"], seed=1)
    given = Ingredients(
        [tmp_path / "tuned"], base=tmp_path / "base", reconcile=Reconcile(vocabulary="union")
    )
    assert given.base is not None
    both = Ingredients([*given, given.base], base=given.base, reconcile=given.reconcile)
    soup = Mixture(both, Coefficients.per_model([0.25, 0.75])).state_dict()
    found = soup[NAMES[0]].double()
    expected = 0.25 * tuned[NAMES[0]].double()[:4] + 0.75 * base[NAMES[0]].double()
    assert torch.allclose(found[:4], expected, atol=1e-7)
    assert torch.equal(found[4], tuned[NAMES[0]][4].double())


def test_without_being_asked_it_is_refused_with_that_remedy(tmp_path: Path) -> None:
    model(tmp_path / "a", [*WORDS, "<sku>"], seed=0)
    model(tmp_path / "b", WORDS, seed=1)
    with pytest.raises(MismatchError, match="--vocabulary common"):
        stockpot.average([tmp_path / "a", tmp_path / "b"])


def test_rows_of_other_tokens_in_one_place_are_refused_though_shapes_agree(tmp_path: Path) -> None:
    a = model(tmp_path / "a", [*WORDS, "<sku>"], seed=0)
    b = model(tmp_path / "b", [*WORDS, "<url>"], seed=1)
    with pytest.raises(MismatchError, match=r"row 4 is '<url>', expected '<sku>'[^$]*--vocabulary"):
        Ingredients([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(MismatchError, match=r"lacks 1 \('<"):
        Ingredients([tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary="union"))
    c = model(tmp_path / "c", WORDS, seed=2)
    given = Ingredients(
        [tmp_path / "a", tmp_path / "b"],
        base=tmp_path / "c",
        reconcile=Reconcile(vocabulary="common"),
    )
    soup = Mixture(given).state_dict()
    mean = (a[NAMES[0]].double() + b[NAMES[0]].double())[:4] / 2
    assert torch.equal(soup[NAMES[0]], mean.float())
    assert soup[NAMES[0]].shape == c[NAMES[0]].shape


def test_equal_tokenizers_that_are_written_otherwise_are_no_reason(tmp_path: Path) -> None:
    model(tmp_path / "a", WORDS, seed=0)
    model(tmp_path / "b", WORDS, seed=1, kind="list")
    assert len(Ingredients([tmp_path / "a", tmp_path / "b"]).averaged) == 4


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 4},
        {"text_config": {"vocab_size": 4}},
        {"vocab_size": None, "text_config": {"vocab_size": 4}},
        {"vocab_size": 0, "text_config": {"vocab_size": 4}},
    ],
    ids=str,
)
def test_where_no_size_differs_the_configuration_says_which_tensors_have_a_row_for_each_token(
    config: dict[str, Any], tmp_path: Path
) -> None:
    a = model(tmp_path / "a", WORDS, seed=0)
    b = model(tmp_path / "b", [WORDS[i] for i in (0, 2, 1, 3)], seed=1)
    for name in "ab":
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    given = Ingredients([tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary="common"))
    soup = Mixture(given).state_dict()
    first, other = (a, b) if torch.equal(given[0].read(NAMES[0]), a[NAMES[0]]) else (b, a)
    for name, axis in zip(NAMES, (0, 0, 1), strict=True):
        moved = other[name].double().index_select(axis, torch.tensor([0, 2, 1, 3]))
        assert torch.equal(soup[name], ((first[name].double() + moved) / 2).float())


def test_padded_rows_stay_with_those_that_have_them(tmp_path: Path) -> None:
    a = model(tmp_path / "a", [*WORDS, "<sku>"], seed=0, rows=8)
    b = model(tmp_path / "b", WORDS, seed=1)
    given = Ingredients([tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary="union"))
    soup = Mixture(given).state_dict()
    assert torch.equal(soup[NAMES[0]][4:], a[NAMES[0]][4:])
    assert torch.equal(
        soup[NAMES[0]][:4], ((a[NAMES[0]][:4].double() + b[NAMES[0]].double()) / 2).float()
    )


def test_classes_of_a_head_are_no_vocabulary(tmp_path: Path) -> None:
    for name, n in (("a", 3), ("b", 2)):
        save_file({"w": torch.ones(4), "classifier.weight": torch.ones(n, 4)}, tmp_path / name)
    with pytest.raises(MismatchError) as caught:
        Ingredients([tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary="common"))
    assert "--vocabulary" not in str(caught.value)


def test_files_without_tokenizers_are_matched_by_row(tmp_path: Path) -> None:
    states = [{"wte": torch.randn(n, 3)} for n in (5, 4)]
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    soup = Mixture(Ingredients(paths, reconcile=Reconcile(vocabulary="union"))).state_dict()["wte"]
    assert torch.equal(soup[:4], ((states[0]["wte"][:4] + states[1]["wte"].double()) / 2).float())
    assert torch.equal(soup[4], states[0]["wte"][4])


def test_any_piece_is_that_of_the_whole(tmp_path: Path) -> None:
    model(tmp_path / "a", [*WORDS, "<sku>", "<url>"], seed=0)
    model(tmp_path / "b", [*WORDS, "<url>"], seed=1)
    given = Ingredients([tmp_path / "a", tmp_path / "b"], reconcile=Reconcile(vocabulary="union"))
    for name in NAMES:
        whole = given[1].raw(name).tobytes()
        for start in range(0, len(whole), 7):
            for stop in (start + 3, start + 25, len(whole)):
                stop = min(stop, len(whole))
                assert given[1].part(name, start, stop).tobytes() == whole[start:stop]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected error, common or union"):
        Reconcile(vocabulary="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[", '{"model": 3}', '{"model": {"vocab": [3, []]}}'])
def test_tokenizers_that_are_not_understood_are_as_if_absent(text: str, tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        model(tmp_path / name, WORDS, seed=i, kind="")
        (tmp_path / name / "tokenizer.json").write_text(text + " " * i)
    assert len(Ingredients([tmp_path / "a", tmp_path / "b"]).averaged) == 4
