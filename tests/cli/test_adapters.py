"""Adapters through the commands: mistakes that write nothing, and every recipe on files of PEFT."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.lora import (
    change_config,
    change_tensors,
    network,
    save_adapter,
    save_base,
    save_kohya,
)

import stockpot

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and torch say while they load

Run = Callable[..., Any]


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def no_base(folders: list[Path]) -> list[Path]:
    for folder in folders:
        change_config(folder, base_model_name_or_path="org/not-on-this-machine")
    return folders


def other_shapes(folders: list[Path]) -> list[Path]:
    state = {n: v.contiguous() for n, v in network().state_dict().items()}
    base = folders[0].with_name("base.safetensors")
    save_file({**state, "lin.weight": torch.zeros(5, 7)}, base)
    return folders


def other_name(folders: list[Path]) -> list[Path]:
    for i, folder in enumerate(folders):
        change_config(folder, base_model_name_or_path="org/another" if i == 5 else "org/model")
    return folders


def other_file(folders: list[Path]) -> list[Path]:
    """All say the base, but one that says another file on this machine."""
    base = folders[0].with_name("base.safetensors")
    other = base.with_name("other.safetensors")
    save_file({n: v.contiguous() for n, v in network(seed=9).state_dict().items()}, other)
    for i, folder in enumerate(folders):
        change_config(folder, base_model_name_or_path=str(other if i == 5 else base))
    return folders


def other_shape_of_one(folders: list[Path]) -> list[Path]:
    change_tensors(folders[5], lin_lora_B_weight=lambda value: torch.zeros(9, value.shape[1]))
    return folders


def recorded(folders: list[Path]) -> list[Path]:
    """A soup of adapters whose record has the fingerprint of another base."""
    base = folders[0].with_name("base.safetensors")
    stockpot.average(folders[:2], base=base).save(folders[5].with_name("a-soup"))
    save_file({n: v.contiguous() for n, v in network(seed=9).state_dict().items()}, base)
    return [folders[5].with_name("a-soup")]


def no_config(folders: list[Path]) -> list[Path]:
    (folders[5] / "adapter_config.json").unlink()
    return folders


def rank_of_config(folders: list[Path]) -> list[Path]:
    change_config(folders[5], r=0)
    return folders


def rank_of_factors(folders: list[Path]) -> list[Path]:
    change_tensors(
        folders[5], lin_lora_A_weight=lambda v: v[:0], lin_lora_B_weight=lambda v: v[:, :0]
    )
    return folders


def not_a_number(folders: list[Path]) -> list[Path]:
    change_tensors(folders[5], square_lora_B_weight=lambda value: value * float("nan"))
    return folders


def other_kind(folders: list[Path]) -> list[Path]:
    change_config(folders[5], peft_type="IA3")
    return folders


def unknown_kind(folders: list[Path]) -> list[Path]:
    change_config(folders[5], peft_type="NEXT_YEARS")
    return folders


def kohya_of_another_kind(folders: list[Path]) -> list[Path]:
    path = save_kohya(folders[0].with_name("a5.safetensors"))
    save_file({**load_file(path), "lora_unet_lin.hada_w1_a": torch.ones(2, 2)}, path)
    return [path]


def of_two_layouts(folders: list[Path]) -> list[Path]:
    return [*folders, save_kohya(folders[0].with_name("a5.safetensors"))]


def of_no_pair(folders: list[Path]) -> list[Path]:
    place = folders[5] / "adapter_model.safetensors"
    tensors = load_file(place)
    del tensors["base_model.model.lin.lora_B.weight"]
    save_file(tensors, place)
    return folders


MISTAKES: dict[str, tuple[Callable[[list[Path]], list[Path]], tuple[str, ...]]] = {
    "no base": (no_base, ("8 adapters need the base", "not-on-this-machine", "--base")),
    "another base, by shapes": (other_shapes, ("lin.weight", "does not fit the base", "--base")),
    "another base of one, by name": (other_name, ("1 of 8 adapters", "a5", "org/another")),
    "another base of one, by its file": (other_file, ("1 of 8 adapters", "a5", "other")),
    "another base of one, by shapes": (other_shape_of_one, ("a5", "does not fit the base")),
    "another base, by the record": (recorded, ("a-soup", "by the record beside it")),
    "no configuration": (no_config, ("a5", "without its adapter_config.json", "beside it")),
    "rank 0 in the configuration": (rank_of_config, ("a5", "r is 0", "at least 1")),
    "rank 0 in the factors": (rank_of_factors, ("a5", "lin.lora_A", "no common one")),
    "NaN": (not_a_number, ("a5", "square.lora_B.weight holds NaN", "leave this ingredient out")),
    "a kind that is not linear": (other_kind, ("a5", "IA3", "merge_and_unload")),
    "a kind that is not known": (unknown_kind, ("a5", "NEXT_YEARS", "merge_and_unload")),
    "a kind in a file of kohya": (kohya_of_another_kind, ("a5", "LoHa", "merge_and_unload")),
    "two layouts": (of_two_layouts, ("kohya and peft", "--merge")),
    "half of a pair": (of_no_pair, ("a5", "lin.lora_B.weight is not", "Save it again")),
}  # fmt: skip


FORMS = {"exact": (), "cut": ("--rank", "2"), "merged": ("--merge",)}


@pytest.mark.parametrize(
    ("mistake", "form"),
    # A full model has one layout.
    [one for one in itertools.product(MISTAKES, FORMS) if one != ("two layouts", "merged")],
)
def test_a_mistake_is_named_and_nothing_is_written(
    mistake: str, form: str, run: Run, tmp_path: Path
) -> None:
    break_, says = MISTAKES[mistake]
    base = save_base(tmp_path / "base.safetensors")
    first = save_adapter(tmp_path / "a0")
    folders = [first, *(Path(shutil.copytree(first, tmp_path / f"a{i}")) for i in range(1, 8))]
    for i, folder in enumerate(folders):
        change_config(folder, base_model_name_or_path=None)
        change_tensors(folder, lora_B_weight=lambda value, by=1 + i: value * by)
    given = break_(folders)
    there = sorted(tmp_path.rglob("*"))
    bases = () if mistake == "no base" else ("--base", base)
    result = run("average", *given, *bases, *FORMS[form], "-o", tmp_path / "out")
    assert result.code == 1, result.err
    for text in says:
        assert text in result.err
    assert "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == there


def test_a_base_that_is_not_there_or_is_an_adapter(run: Run, tmp_path: Path) -> None:
    folders = [save_adapter(tmp_path / f"a{i}", i) for i in range(2)]
    for base, says in ((tmp_path / "none", "there is nothing at"), (folders[0], "is no base")):
        result = run("average", *folders, "--base", base, "-o", tmp_path / "out")
        assert result.code == 1
        assert says in result.err
        assert not (tmp_path / "out").exists()


# ── every recipe ──────────────────────────────────────────────────────────────────────────────────

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "dull")
FILL = ("a", "the", "it", "was", "is", "film", "dog", "one", "slept", ",", ".")


def sentences(n: int, rng: random.Random, seen: set[str]) -> list[tuple[str, int]]:
    """Sentences that no other split has; their words say their label, mostly."""
    found = list[tuple[str, int]]()
    while len(found) < n:
        label = rng.randrange(2)
        words = [rng.choice(FILL) for _ in range(5)]
        for _ in range(2):
            is_good = bool(label) if rng.random() < 0.85 else not label
            words.insert(rng.randrange(6), rng.choice(GOOD if is_good else BAD))
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            found.append((text, label))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT, four adapters and two full models of it, a run, files of kohya, and a task."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from tests.tasks.transformers import tiny

    folder = tmp_path_factory.mktemp("adapters")
    base = tiny.bert_folder(folder / "base", num_labels=2)
    rng, seen = random.Random(0), set[str]()
    splits = {name: sentences(n, rng, seen) for name, n in
              (("train", 300), ("val", 120), ("test", 120))}  # fmt: skip
    for name, rows in splits.items():
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(
        "kind: text-classification\nmodel: base\ntext: [sentence]\nlabel: label\n"
        'labels: ["0", "1"]\nmetric: accuracy\nsplits:\n'
        "  val: {data: val.tsv, role: held-out}\n  test: {data: test.tsv, role: test}\n"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)

    def fit(name: str, seed: int, *, steps: int = 25, every: int = 0, **options: Any) -> None:
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
        if "r" in options:
            usual = {"target_modules": ["query", "value", "dense"], "lora_alpha": 8}
            config = peft.LoraConfig(task_type="SEQ_CLS", **{**usual, **options})
            model = peft.get_peft_model(model, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=8e-3 if "r" in options else 2e-3)
        draw = random.Random(seed)
        for step in range(1, steps + 1):
            batch = draw.sample(splits["train"], 32)
            encoded = tokenizer([text for text, _ in batch], return_tensors="pt", padding=True)
            labels = torch.tensor([label for _, label in batch])
            optimiser.zero_grad()
            model(**encoded, labels=labels).loss.backward()
            optimiser.step()
            if every and step % every == 0:
                model.save_pretrained(folder / name / f"checkpoint-{step}")
        if not every:
            model.save_pretrained(folder / name)

    fit("a0", 0, r=4)
    fit("a1", 1, r=2, use_rslora=True)
    fit("a2", 2, r=8, rank_pattern={"query": 3})
    fit("a3", 3, r=4, target_modules=["query", "key"])
    fit("dora", 4, r=4, use_dora=True)
    fit("full", 5)
    fit("run", 6, every=5, r=4)
    for i in range(2):
        stored = load_file(folder / f"a{i}" / "adapter_model.safetensors")
        made: dict[str, torch.Tensor] = {}
        for key, value in stored.items():
            module, side, _ = key.removeprefix("base_model.model.").rpartition(".lora_")
            if side:
                name = "lora_unet_" + module.replace(".", "_")
                end = "lora_down" if ".lora_A." in key else "lora_up"
                made |= {f"{name}.{end}.weight": value, f"{name}.alpha": torch.tensor(3.0 + i)}
        save_file(made, folder / f"k{i}.safetensors")
    return folder


def accuracy(place: Path, soup: Path) -> float:
    """On the test split, of what PEFT or transformers make of an output."""
    import peft
    import transformers

    kind = transformers.AutoModelForSequenceClassification
    if (soup / "adapter_config.json").exists():
        model = peft.PeftModel.from_pretrained(kind.from_pretrained(place / "base"), soup)
    else:
        model = kind.from_pretrained(soup)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "base")
    rows = [line.split("\t") for line in (place / "test.tsv").read_text().splitlines()[1:]]
    encoded = tokenizer([text for text, _ in rows], return_tensors="pt", padding=True)
    with torch.inference_mode():
        chosen = model.eval()(**encoded).logits.argmax(1).numpy()
    return float(np.mean(chosen == np.array([int(label) for _, label in rows])))


FOUR = ("a0", "a1", "a2", "a3")
CHECKPOINTS = tuple(f"run/checkpoint-{n}" for n in (5, 10, 15, 20, 25))
SOUPS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "greedy": ("greedy", FOUR, ()),
    "greedy, cut": ("greedy", FOUR, ("--rank", "4")),
    "greedy, merged": ("greedy", FOUR, ("--merge",)),
    "greedy of DoRA, cut": ("greedy", ("dora", "a0"), ("--rank", "6")),
    "greedy with a full model": ("greedy", ("a0", "a2", "full"), ()),
    "pruned": ("pruned", FOUR, ()),
    "learned": ("learned", FOUR, ("--epochs", "1")),
    "learned by layer": ("learned", FOUR, ("--epochs", "1", "--by", "layer")),
    "learned of DoRA, merged": ("learned", ("dora", "a0"), ("--epochs", "1", "--merge")),
    "learned with a full model": ("learned", ("a0", "full"), ("--epochs", "1")),
    "auto": ("auto", FOUR[:3], ()),
    "trajectory": ("trajectory", CHECKPOINTS, ()),
    "task vectors": ("arithmetic", FOUR, ("--scales", "0.2,0.5")),
    "ties": ("arithmetic", FOUR, ("--rule", "ties,keep=0.5", "--scale", "1")),
    "model stock": ("model-stock", FOUR, ()),
    "a point between": ("interpolate", ("base", "a0"), ("--alpha", "0.6")),
}


@pytest.mark.parametrize("name", SOUPS)
def test_what_a_recipe_scored_is_what_its_output_does(
    name: str, place: Path, run: Run, tmp_path: Path
) -> None:
    command, given, options = SOUPS[name]
    base = () if command == "interpolate" else ("--base", place / "base")
    task = ("--task", place / "task.yaml", "--cache", tmp_path / "cache")
    out = tmp_path / "soup"
    paths = [place / one for one in given]
    result = run(command, *paths, *base, *task, *options, "-o", out, "--json")
    assert result.code == 0, result.err
    assert result.json["scores"]["test"]["value"] == pytest.approx(accuracy(place, out), abs=1e-9)
    verified = run("verify", out)
    assert verified.code == 0, verified.err
    page = run("report", out, "-o", tmp_path / "page.html")
    assert page.code == 0, page.err
    loads = (
        "PeftModel.from_pretrained"
        if (out / "adapter_config.json").exists()
        else "ForSequenceClassification"
    )
    assert loads in (tmp_path / "page.html").read_text()


def test_two_workers_choose_what_one_does(place: Path, run: Run, tmp_path: Path) -> None:
    for workers in (1, 2):
        out = tmp_path / f"soup{workers}"
        given = [place / one for one in FOUR]
        task = ("--task", place / "task.yaml", "--cache", tmp_path / f"cache{workers}")
        result = run("greedy", *given, *task, "--workers", workers, "-o", out)
        assert result.code == 0, result.err
    names = ("adapter_model.safetensors", "adapter_config.json")
    assert all(
        (tmp_path / "soup1" / n).read_bytes() == (tmp_path / "soup2" / n).read_bytes()
        for n in names
    )


def test_they_are_diagnosed_as_models_are(place: Path, run: Run, tmp_path: Path) -> None:
    given = [place / one for one in FOUR[:3]]
    task = ("--task", place / "task.yaml", "--cache", tmp_path / "cache")
    result = run("diagnose", *given, "--base", place / "base", *task, "--budget", "40", "--json")
    assert result.code == 0, result.err
    assert result.json["same_init"]
    assert result.json["verdict"]["sentences"]
    again = run("diagnose", *given, *task, "--budget", "40", "--json")  # adapters name their base
    assert again.json["verdict"] == result.json["verdict"]


def test_kohya_in_is_kohya_out_and_how_to_load_it_is_said(
    place: Path, run: Run, tmp_path: Path
) -> None:
    given = [place / f"k{i}.safetensors" for i in range(2)]
    task = ("--task", place / "task.yaml", "--cache", tmp_path / "cache")
    out = tmp_path / "soup.safetensors"
    result = run("greedy", *given, "--base", place / "base", *task, "-o", out)
    assert result.code == 0, result.err
    assert f'pipeline.load_lora_weights("{out}")' in result.out
    assert any(name.endswith(".lora_down.weight") for name in stockpot.open(out))
    assert run("verify", out).code == 0
    both = [given[0], place / "a0"]
    merged = run("average", *both, "--base", place / "base", "--merge", "-o", tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert 0 <= accuracy(place, tmp_path / "merged") <= 1


def test_rules_of_matrices_are_refused_by_name(place: Path, run: Run, tmp_path: Path) -> None:
    given = [place / one for one in FOUR]
    options = ("--base", place / "base", "--rule", "iso-c", "--scale", "1")
    result = run("arithmetic", *given, *options, "-o", tmp_path / "soup")
    assert result.code == 1
    assert "iso-c takes all directions" in result.err
    assert not (tmp_path / "soup").exists()


def test_a_record_holds_the_base_and_the_adapters(place: Path, run: Run, tmp_path: Path) -> None:
    result = run("average", *(place / one for one in FOUR), "-o", tmp_path / "soup")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "soup" / "stockpot.json").read_text())
    assert record["base"]["path"] == str(place / "base")
    assert record["base"]["fingerprint"].startswith("heads:")
    found = [one["fingerprint"] for one in record["ingredients"]]
    assert found == [stockpot.open(place / one).fingerprint for one in FOUR]
