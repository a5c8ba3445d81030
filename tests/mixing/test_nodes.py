"""Several machines that share a disk make one output: the bytes of one machine's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import stockpot
from stockpot.cli import main
from stockpot.errors import CheckpointError, OutputExistsError, RecipeError
from stockpot.recipes import Slerp, Soup

SHARD = 300_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three model folders of 2.4 MB with a base in common."""
    folder = tmp_path_factory.mktemp("models")
    base = np.random.default_rng(0)
    start = {f"layer.{i}.w": base.normal(size=(64, 1000)).astype(np.float32) for i in range(9)}
    made = []
    for seed in range(3):
        move = np.random.default_rng(seed + 1)
        path = folder / f"run-{seed}"
        path.mkdir()
        save_file(
            {n: w + 0.01 * move.normal(size=w.shape).astype(np.float32) for n, w in start.items()}
            | {"steps": np.array([7])},
            path / "model.safetensors",
            {"format": "pt"},
        )
        (path / "config.json").write_text("{}")
        made.append(path)
    return made


def soup_of(models: list[Path], rule: str = "average") -> Soup:
    if rule == "slerp":
        return Slerp(t=0.3).cook([str(path) for path in models[:2]])
    return stockpot.average([str(path) for path in models])


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("nodes", [1, 3, 12])
def test_the_last_node_puts_the_bytes_of_one_machine_in_place(
    models: list[Path], tmp_path: Path, nodes: int
) -> None:
    whole = soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD)
    expected = on_disk(tmp_path / "out")
    shared = tmp_path / "shared"
    shared.mkdir()
    saved = [
        soup_of(models).save(shared / "out", max_shard_bytes=SHARD, node=(rank, nodes))
        for rank in range(nodes)
    ]
    found = on_disk(shared / "out")
    assert {n: d for n, d in found.items() if n != "README.md"} == {
        n: d for n, d in expected.items() if n != "README.md"
    }
    assert [bool(one.fingerprint) for one in saved].count(True) == 1
    last = next(one for one in saved if one.fingerprint)
    assert (last.fingerprint, last.fingerprints) == (whole.fingerprint, whole.fingerprints)
    assert leftovers(shared) == []
    assert stockpot.verify(shared / "out") == []


def test_nodes_at_the_same_time_put_it_in_place_once(models: list[Path], tmp_path: Path) -> None:
    soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD)
    (tmp_path / "shared").mkdir()

    def work(rank: int) -> Any:
        return soup_of(models).save(
            tmp_path / "shared" / "out", max_shard_bytes=SHARD, node=(rank, 4)
        )

    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(work, range(4)))
    assert sum(bool(one.fingerprint) for one in saved) == 1
    first, second = on_disk(tmp_path / "out"), on_disk(tmp_path / "shared" / "out")
    assert first["model-00001-of-00009.safetensors"] == second["model-00001-of-00009.safetensors"]
    assert first.keys() == second.keys()
    assert leftovers(tmp_path / "shared") == []


def test_a_node_that_died_is_started_again_and_makes_only_what_is_missing(
    models: list[Path], tmp_path: Path
) -> None:
    soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD)
    shared = tmp_path / "shared"
    shared.mkdir()
    n_calls = 0

    def dies(done: int, total: int, unit: str) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"max_shard_bytes": SHARD, "node": (0, 2)}
    with pytest.raises(KeyboardInterrupt):
        soup_of(models).save(shared / "out", progress=dies, **options)
    assert not (shared / "out").exists()
    other = soup_of(models).save(shared / "out", max_shard_bytes=SHARD, node=(1, 2))
    assert "files are made" in other.notes[0]
    again = soup_of(models).save(shared / "out", **options)
    whole = sum(path.stat().st_size for path in models[0].glob("*.safetensors")) * 3
    assert again.bytes_read < 0.5 * whole
    assert (
        on_disk(shared / "out")["model.safetensors.index.json"]
        == (tmp_path / "out" / "model.safetensors.index.json").read_bytes()
    )
    assert stockpot.open(shared / "out").fingerprint == stockpot.open(tmp_path / "out").fingerprint


def test_parts_of_other_inputs_are_never_put_together(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    out = tmp_path / "s" / "out"
    soup_of(models).save(out, max_shard_bytes=SHARD, node=(0, 2))
    saved = soup_of(models[:2]).save(out, max_shard_bytes=SHARD, node=(1, 2))
    assert not saved.fingerprint
    assert not out.exists()


@pytest.mark.parametrize(
    "text",
    ['{"known": [], "seen": [], "made": {}}', "[" * 5000, "\ud800", "{", "[1]", "null", "NaN"],
)
def test_damaged_digests_are_refused(models: list[Path], tmp_path: Path, text: str) -> None:
    soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD, node=(0, 2))
    digests = next(tmp_path.rglob("*.digests.json"))
    digests.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
        soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD, node=(1, 2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["part", "digests", "folder", "pipe"])
def test_nothing_is_followed_out_of_the_folder_of_parts(
    models: list[Path], tmp_path: Path, what: str
) -> None:
    soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD, node=(0, 2))
    digests = next(tmp_path.rglob("*.digests.json"))
    part = digests.with_name(digests.name.removesuffix(".digests.json"))
    secret = tmp_path / "secret"
    taken = {"part": part, "digests": digests, "folder": part.parent, "pipe": part}[what]
    if what == "pipe":
        part.unlink()
        os.mkfifo(part)
    else:
        taken.rename(secret)
        taken.symlink_to(secret)
    with pytest.raises(CheckpointError, match="not made by a node"):
        soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD, node=(1, 2))
    assert not (tmp_path / "out").exists()


def test_a_rule_that_is_no_mean_is_divided_as_well(models: list[Path], tmp_path: Path) -> None:
    soup_of(models, "slerp").save(tmp_path / "out", max_shard_bytes=SHARD)
    for rank in range(2):
        soup_of(models, "slerp").save(
            tmp_path / "shared" / "out", max_shard_bytes=SHARD, node=(rank, 2)
        )
    assert (
        stockpot.open(tmp_path / "shared" / "out").fingerprint
        == stockpot.open(tmp_path / "out").fingerprint
    )


def test_what_cannot_be_divided_is_refused(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="folder"):
        soup_of(models).save(tmp_path / "one.safetensors", node=(0, 2))
    with pytest.raises(RecipeError, match="ranks are 0 to 1"):
        soup_of(models).save(tmp_path / "out", node=(2, 2))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").touch()
    with pytest.raises(OutputExistsError):
        soup_of(models).save(tmp_path / "there", node=(0, 2))


def test_the_command_line_says_what_is_missing(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in models]
    for rank in (0, 1):
        options = ["--nodes", "2", "--node-rank", str(rank), "--max-shard-size", "300KB"]
        assert main(["average", *paths, "-o", str(tmp_path / "out"), *options, "--json"]) == 0
        assert ('"complete": false' in capsys.readouterr().out) == (rank == 0)
    assert stockpot.verify(tmp_path / "out") == []
    assert main(["average", *paths, "-o", str(tmp_path / "other"), "--nodes", "2"]) == 2
