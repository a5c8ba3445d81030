from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import stockpot
from stockpot.errors import CheckpointError, VerificationError
from stockpot.formats import opening, remote
from stockpot.formats.runs import find_runs
from stockpot.io import objects
from stockpot.recipes import Soup, Uniform
from stockpot.recipes.record import SoupRecord

ELSEWHERE = [
    "hf:org/name",
    "HF:org/name@v2",
    "s3://bucket/a.safetensors",
    "gs://bucket/a.safetensors",
    "az://container/a.safetensors",
    "https://example.org/a.safetensors",
    "http://example.org/a.safetensors",
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were fetched; no connection can be made."""
    names: list[str] = []

    def open_hub(name: str, *_: object) -> NoReturn:
        names.append(name)
        raise CheckpointError(f"{name} cannot be fetched: there is no network here")

    def connect(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(opening, "open_hub", open_hub)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    return names


@pytest.fixture
def soup(tmp_path: Path) -> Path:
    """A soup of two runs with a base, all in one folder."""
    rng = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        weights = {"w": torch.from_numpy(rng.standard_normal(4).astype(np.float32))}
        save_file(weights, tmp_path / f"{name}.safetensors")
    out = tmp_path / "soup.safetensors"
    runs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    Uniform().cook(runs, base=tmp_path / "base.safetensors").save(out)
    return out


def rewrite(soup: Path, name: str, *, of: str = "ingredient") -> None:
    """Let the record say that its second ingredient, or its base, is `name`."""
    path = soup.with_name(soup.name + ".stockpot.json")
    record = json.loads(path.read_text())
    (record["base"] if of == "base" else record["ingredients"][1])["path"] = name
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("of", ["ingredient", "base"])
def test_a_record_makes_no_connection_and_says_the_remedy(
    soup: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, name: str, of: str
) -> None:
    rewrite(soup, name, of=of)
    opened: list[str] = []
    there = opening.open

    def record_call(path: str | Path, **options: str | None) -> stockpot.Checkpoint:
        opened.append(str(path))
        return there(path, **options)

    monkeypatch.setattr("stockpot.recipes.record.open_checkpoint", record_call)
    calls = (stockpot.verify, Soup.load, SoupRecord.read(soup).rebuild)
    for call in calls:
        with pytest.raises(VerificationError, match="was not fetched") as caught:
            call(soup)
        assert name in str(caught.value)
        assert "--allow-remote" in str(caught.value)
        assert "--search DIR" in str(caught.value)
        (problem,) = caught.value.differences
        assert problem == f"{name} is not on this machine and was not fetched"
    assert name not in opened
    assert asked == []


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_elsewhere_is_tried_where_it_is_allowed(
    soup: Path, asked: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 1)  # nobody answers, however often it is asked
    rewrite(soup, name)
    with pytest.raises(VerificationError, match=f"{name} is not found: ") as caught:
        stockpot.verify(soup, allow_remote=True)
    assert "--allow-remote" not in str(caught.value)
    assert asked == ([name] if remote.is_remote(name) else [])


def test_what_is_fetched_is_verified(soup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(soup, "hf:org/name")
    copy = opening.open(soup.with_name("b.safetensors"))
    monkeypatch.setattr(opening, "open_hub", lambda *_: copy)
    assert stockpot.verify(soup, allow_remote=True) == []
    loaded = Soup.load(soup, allow_remote=True)
    assert torch.equal(loaded.state_dict()["w"], load_file(soup)["w"])


def test_a_copy_takes_the_place_of_a_name_elsewhere(soup: Path, asked: list[str]) -> None:
    rewrite(soup, "hf:org/name")
    assert stockpot.verify(soup, search=[soup.parent]) == []
    assert asked == []


def test_a_file_that_is_found_is_never_a_name_elsewhere(
    soup: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is walked from where one stands may hold anything."""
    trap = soup.with_name("hf:org")
    trap.mkdir()
    soup.with_name("b.safetensors").rename(trap / "b.safetensors")
    monkeypatch.chdir(soup.parent)
    assert stockpot.verify(soup, search=["."]) == []
    for path in find_runs(["."]).paths + find_runs(["hf:org"]).paths:
        stockpot.open(path)
    assert asked == []


def test_the_folder_of_a_soup_may_move_when_its_runs_stay(
    soup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = soup.parent / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    Uniform().cook(["../a.safetensors", "../b.safetensors"], base="../base.safetensors").save("out")
    monkeypatch.chdir(soup.parent)
    moved = place.rename(soup.parent / "moved")
    assert stockpot.verify(moved / "out") == []
