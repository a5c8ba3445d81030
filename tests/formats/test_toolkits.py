"""Files of toolkits keep their dictionary: what loaders ask for is beside the new weights."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stockpot
from stockpot import Ingredients, Mixture
from stockpot.errors import CheckpointError, VerificationError
from stockpot.formats import toolkits
from stockpot.mixing.reconcile import Reconcile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def averaged(tmp_path: Path, contents: list[Any], name: str = "soup.pt") -> Any:
    paths = []
    for i, content in enumerate(contents):
        torch.save(content, tmp_path / f"run{i}.pt")
        paths.append(tmp_path / f"run{i}.pt")
    Mixture(Ingredients(paths)).save(tmp_path / name)
    return torch.load(tmp_path / name, weights_only=False)


def fairseq(value: float) -> dict[str, Any]:
    return {
        "args": None,
        "cfg": {"model": {"arch": "transformer", "dropout": 0.1, "layers": [6, -7, 2**40]}},
        "model": OrderedDict(w=torch.full((2, 2), value)),
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(2, 2)}}},
        "extra_state": {"epoch": 3, "done": True, "name": "süß"},
    }


def timm(value: float) -> dict[str, Any]:
    return {
        "epoch": 10,
        "arch": "vit",
        "state_dict": {"w": torch.full((2,), value)},
        "optimizer": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(model="vit", lr=1e-3, betas=(0.9, 0.99)),
        "version": 2,
        "metric": 81.25,
    }


def test_a_fairseq_file_keeps_configuration_and_loses_the_optimiser(tmp_path: Path) -> None:
    soup = averaged(tmp_path, [fairseq(1.0), fairseq(3.0)])
    expected = fairseq(2.0)
    del expected["last_optimizer_state"]
    assert soup["model"]["w"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    del soup["model"], expected["model"]
    assert soup == expected


def test_a_timm_file_keeps_its_namespace(tmp_path: Path) -> None:
    soup = averaged(tmp_path, [timm(1.0), timm(3.0)], "soup.pth.tar")
    assert soup["state_dict"]["w"].tolist() == [2.0, 2.0]
    assert soup["args"] == argparse.Namespace(model="vit", lr=1e-3, betas=(0.9, 0.99))
    assert (soup["epoch"], soup["version"], soup["metric"]) == (10, 2, 81.25)
    assert "optimizer" not in soup


def test_a_lightning_file_loads_in_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Net(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, width: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(width, 1)

    nets = [Net(width=3) for _ in range(2)]
    paths = []
    for i, net in enumerate(nets):
        trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        trainer.strategy.connect(net)
        trainer.save_checkpoint(tmp_path / f"{i}.ckpt", weights_only=True)
        paths.append(tmp_path / f"{i}.ckpt")
    Mixture(Ingredients(paths)).save(tmp_path / "soup.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "soup.ckpt", weights_only=False)
    assert loaded.hparams.width == 3
    expected = (nets[0].layer.weight + nets[1].layer.weight) / 2
    torch.testing.assert_close(loaded.layer.weight.detach(), expected.detach())


def test_a_bare_state_dict_stays_one(tmp_path: Path) -> None:
    soup = averaged(tmp_path, [{"w": torch.ones(2)}, {"w": torch.zeros(2)}])
    assert list(soup) == ["w"]
    with pytest.raises(CheckpointError, match="no input has"):
        Mixture(Ingredients([tmp_path / "run0.pt"])).save(tmp_path / "soup.ckpt")


def test_bytes_do_not_depend_on_the_order_of_inputs_that_differ(tmp_path: Path) -> None:
    paths = []
    for i in range(3):
        torch.save({"epoch": i, "model": {"w": torch.full((2,), float(i))}}, tmp_path / f"{i}.pt")
        paths.append(tmp_path / f"{i}.pt")
    made = set()
    for n, order in enumerate(permutations(paths)):
        Mixture(Ingredients(list(order))).save(tmp_path / f"soup{n}.pt")
        made.add((tmp_path / f"soup{n}.pt").read_bytes())
    assert len(made) == 1


class Custom:
    """Of a class that is not loaded."""


def test_what_is_not_plain_is_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    content = {
        "cfg": {"kept": 1, "custom": Custom(), "seen": {1, 2}, "many": [Custom()]},
        "ema": {"w": torch.ones(2)},
        "best": torch.ones(()),
        "model": {"w": torch.ones(2)},
    }
    torch.save(content, tmp_path / "a.pt")
    opened = stockpot.open(tmp_path / "a.pt", key="model")
    around = opened.surroundings()
    assert around is not None
    assert set(around.left_out) == {"cfg.custom", "cfg.seen", "cfg.many", "ema", "best"}
    Mixture(Ingredients([tmp_path / "a.pt"], key="model")).save(tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert soup["cfg"] == {"kept": 1}
    assert list(soup) == ["cfg", "model"]


def test_references_that_multiply_cost_no_more_than_a_budget(tmp_path: Path) -> None:
    laughs: Any = ["lol"]
    for _ in range(60):
        laughs = (laughs, laughs)
    again: dict[str, Any] = {"w": torch.ones(2)}
    torch.save({"cfg": laughs, "model": again, "copies": [again] * 1000}, tmp_path / "a.pt")
    around = stockpot.open(tmp_path / "a.pt", key="model").surroundings()
    assert around is not None
    assert around.left_out == ("cfg", "copies")
    Mixture(Ingredients([tmp_path / "a.pt"], key="model")).save(tmp_path / "soup.pt")
    assert (tmp_path / "soup.pt").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (("model", "model_avg"), "--key model_avg"),
        (("net", "ema_net"), "an average by its name"),
        (("state_dict", "teacher_state"), "'teacher_state' is not"),
    ],
)
def test_sections_that_were_not_chosen_are_named(
    tmp_path: Path, sections: tuple[str, str], said: str
) -> None:
    content = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(sections)}
    torch.save(content, tmp_path / "a.pt")
    opened = stockpot.open(tmp_path / "a.pt")
    assert opened.read("w").tolist() == [0.0, 0.0]
    assert any(said in note for note in opened.notes)
    other = stockpot.open(tmp_path / "a.pt", key=sections[1])
    assert other.read("w").tolist() == [1.0, 1.0]


def test_dictionaries_side_by_side_are_parts_of_one_model_and_come_out_so(tmp_path: Path) -> None:
    part = {"encoder": {"w": torch.ones(2)}, "decoder": {"w": torch.zeros(3)}}
    adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    content = {"nets": part, "encoder_optimizer": adam, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    opened = stockpot.open(tmp_path / "a.pt")
    assert list(opened) == ["encoder.w", "decoder.w"]
    assert "parts of one model" in opened.notes[0]
    stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert soup["epoch"] == 3
    assert {name: list(one) for name, one in soup["nets"].items()} == {
        "encoder": ["w"], "decoder": ["w"],
    }  # fmt: skip
    assert soup["nets"]["decoder"]["w"].tolist() == [0.0] * 3
    assert list(stockpot.open(tmp_path / "a.pt", key="nets.decoder")) == ["w"]
    both = stockpot.open(tmp_path / "a.pt", key="nets.encoder+nets.decoder")
    assert list(both) == ["encoder.w", "decoder.w"]


@pytest.mark.parametrize("names", [("teacher", "student"), ("net_a", "net_b")])
def test_dictionaries_of_the_same_tensors_are_no_parts(
    names: tuple[str, str], tmp_path: Path
) -> None:
    torch.save({name: {"w": torch.ones(2)} for name in names}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="choose one with key"):
        stockpot.open(tmp_path / "a.pt")


@pytest.mark.parametrize("names", [("model", "model_avg"), ("state_dict", "state_dict_ema")])
def test_a_soup_of_another_section_is_verified(names: tuple[str, str], tmp_path: Path) -> None:
    paths = []
    for i in range(3):
        content = {name: {"w": torch.full((2,), float(i + n))} for n, name in enumerate(names)}
        torch.save({**content, "epoch": i, "optimizer": {"state": {}}}, tmp_path / f"{i}.pt")
        paths.append(tmp_path / f"{i}.pt")
    for name in names:
        stockpot.average(Ingredients(paths, key=name)).save(tmp_path / f"{name}.soup.pt")
        assert stockpot.verify(tmp_path / f"{name}.soup.pt") == []
    torch.save({names[1]: {"w": torch.zeros(2)}}, paths[0])
    with pytest.raises(VerificationError, match="gone or have changed"):
        stockpot.verify(tmp_path / f"{names[1]}.soup.pt")


def test_a_name_that_fits_none_of_the_parts_is_refused_and_not_lost(tmp_path: Path) -> None:
    parts = {"encoder": {"w": torch.ones(2)}, "decoder": {"v": torch.zeros(3)}, "epoch": 3}
    torch.save(parts, tmp_path / "a.pt")
    paths = [tmp_path / "a.pt"]
    mixture = Mixture(Ingredients(paths, reconcile=Reconcile(rename=("encoder.=enc.",))))
    with pytest.raises(CheckpointError, match=r"'enc\.w' belongs to no part.*write \.safetensors"):
        mixture.save(tmp_path / "soup.pt")
    mixture.save(tmp_path / "soup.safetensors")
    assert set(stockpot.open(tmp_path / "soup.safetensors")) == {"enc.w", "decoder.v"}
    moved = Ingredients(paths, reconcile=Reconcile(rename=("encoder.=decoder.",)))
    Mixture(moved).save(tmp_path / "moved.pt")
    soup = torch.load(tmp_path / "moved.pt", weights_only=True)
    assert (list(soup["encoder"]), list(soup["decoder"])) == ([], ["v", "w"])


def test_parts_that_are_called_alike_are_no_key(tmp_path: Path) -> None:
    content = {"a": {"model": {"w": torch.ones(2)}}, "b": {"model": {"w": torch.zeros(2)}}}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="begin alike"):
        stockpot.open(tmp_path / "a.pt", key="a.model+b.model")


@pytest.mark.parametrize(
    "many",
    [
        ["x" * 1000] * 50,
        ["ü" * 300] * 50,
        [{"k" * 1000: 1}] * 50,
        {"inner": [argparse.Namespace(text="x" * 1000)] * 50},
    ],
)
def test_a_text_costs_its_bytes_at_every_place(
    many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolkits, "_MAX_TEXT_BYTES", 40_000)
    long = "y" * 30_000
    content = {"args": {"a": many, "b": 1}, "model": {"w": torch.ones(2)}, "long": long}
    torch.save(content, tmp_path / "a.pt")
    around = stockpot.open(tmp_path / "a.pt").surroundings()
    assert around is not None
    assert around.left_out == ("args.a",)
    Mixture(Ingredients([tmp_path / "a.pt"])).save(tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    assert (soup["args"], soup["long"]) == ({"b": 1}, long)


def test_what_is_left_out_is_named_in_short(tmp_path: Path) -> None:
    content = {
        "k" * 5000: {"s": {1}, ("t" * 5000, 1): 1, "n": 1},
        "model": {"w": torch.ones(2)},
    }
    torch.save(content, tmp_path / "a.pt")
    around = stockpot.open(tmp_path / "a.pt").surroundings()
    assert around is not None
    assert around.left_out == ("k" * 200, "k" * 200)
