"""Outputs in a bucket on the loopback: whole or not at all, and nothing of killed runs stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.object_store import Server

import stockpot
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.io import objects
from stockpot.io.uploads import Upload
from stockpot.recipes import Soup

SHARD = 4_000_000


def soup_of(models: Sequence[Path | str]) -> Soup:
    return stockpot.average([str(path) for path in models])


def visible(store: Server, prefix: str = "b/out") -> dict[str, bytes]:
    return {
        key.removeprefix(prefix).strip("/"): store.read(key)
        for key in store.objects
        if key.startswith(prefix)
    }


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.endswith(("json", "README.md"))}


@pytest.mark.parametrize("fail", [0.0, 0.1])
def test_a_folder_in_a_bucket_has_the_bytes_of_a_local_one(
    models: list[Path], store: Server, tmp_path: Path, fail: float
) -> None:
    soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD)
    store.fail = fail
    saved = soup_of([f"s3://b/{path.name}" for path in models]).save(
        "s3://b/out", max_shard_bytes=SHARD
    )
    store.fail = 0
    there, here = visible(store), on_disk(tmp_path / "out")
    assert there.keys() == here.keys()
    assert without_times(there) == without_times(here)
    for name in ("config.json", "model.safetensors.index.json"):
        assert there[name] == here[name]
    assert saved.path == "s3://b/out"
    assert store.uploads == {}
    assert stockpot.open("s3://b/out").fingerprint == stockpot.open(tmp_path / "out").fingerprint
    record = json.loads(there["stockpot.json"])
    assert record["output"] == saved.fingerprint
    assert stockpot.verify("s3://b/out", search=models) == []
    assert not fail or store.failed


def test_shards_of_a_bucket_stay_as_large_as_they_are(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    for place in (models[0], models[1]):
        stockpot.average([str(place)]).save(tmp_path / place.name, max_shard_bytes=SHARD)
        store.put_folder(f"b/sharded/{place.name}", tmp_path / place.name)
    soup_of([tmp_path / "m0", tmp_path / "m1"]).save(tmp_path / "out")
    soup_of(["s3://b/sharded/m0", "s3://b/sharded/m1"]).save("s3://b/out")
    there = visible(store)
    assert without_times(there) == without_times(on_disk(tmp_path / "out"))
    assert sum(name.endswith(".safetensors") for name in there) == 2


def test_a_file_in_a_bucket_has_the_bytes_of_a_local_one_and_its_record(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    for place in (str(tmp_path / "one.safetensors"), "s3://b/out/one.safetensors"):
        soup_of(models).save(place)
    found = visible(store)
    assert found["one.safetensors"] == (tmp_path / "one.safetensors").read_bytes()
    assert set(found) == {"one.safetensors", "one.safetensors.stockpot.json"}
    assert stockpot.verify("s3://b/out/one.safetensors") == []


def test_nothing_is_overwritten_without_force_and_with_it_only_what_is_ours(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    soup_of(models[:2]).save("s3://b/out", max_shard_bytes=SHARD)
    store.put_file("b/out/notes.txt", models[0] / "config.json")
    before = visible(store)
    with pytest.raises(OutputExistsError):
        soup_of(models).save("s3://b/out")
    assert visible(store) == before
    assert store.uploads == {}
    soup_of(models).save("s3://b/out", force=True)
    soup_of(models).save(tmp_path / "out")
    after = visible(store)
    assert set(after) == {*on_disk(tmp_path / "out"), "notes.txt"}
    assert after["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()


def test_an_older_output_in_a_bucket_goes_however_it_called_its_weights(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    soup_of(models).save("s3://b/out", max_shard_bytes=SHARD)
    store.put_file("b/out/notes.txt", models[0] / "config.json")
    places = []
    for path in models:
        places.append(tmp_path / path.name)
        places[-1].mkdir()
        (places[-1] / "weights.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    soup_of(places).save("s3://b/out", force=True)
    names = {"weights.safetensors", "config.json", "stockpot.json", "README.md", "notes.txt"}
    assert set(visible(store)) == names
    store.put_file("b/mine/model.safetensors", models[0] / "model.safetensors")
    with pytest.raises(OutputExistsError, match=r"s3://b/mine holds model\.safetensors"):
        soup_of(places).save("s3://b/mine", force=True)
    assert set(visible(store, "b/mine")) == {"model.safetensors"}


@pytest.mark.parametrize("name", ["s3://b/m0", "s3://b/m0/", "s3://b//m0"])
@pytest.mark.parametrize("max_shard_bytes", [SHARD, 1 << 40])
def test_an_output_never_takes_the_place_of_its_ingredient(
    models: list[Path], store: Server, tmp_path: Path, name: str, max_shard_bytes: int
) -> None:
    """Neither under the names of its files nor under others, as shards and one file have."""
    soup_of(models).save(tmp_path / "sharded", max_shard_bytes=SHARD)
    for file in (tmp_path / "sharded").glob("model*"):
        store.put_file(f"b/m0/{file.name}", file)
    store.objects.pop("b/m0/model.safetensors")
    before = visible(store, "b/")
    with pytest.raises(OutputExistsError, match="is the ingredient s3://b/m0"):
        soup_of(["s3://b/m0", "s3://b/m1"]).save(name, force=True, max_shard_bytes=max_shard_bytes)
    assert visible(store, "b/") == before


def test_an_output_never_holds_its_ingredient(models: list[Path], store: Server) -> None:
    store.put_folder("b/runs/m0", models[0])
    for place in ("s3://b/runs", "s3://b/runs/m0"):
        with pytest.raises(OutputExistsError, match="holds the ingredient"):
            soup_of(["s3://b/runs/m0/model.safetensors", "s3://b/m1"]).save(place, force=True)
    with pytest.raises(OutputExistsError, match="part of the ingredient"):
        soup_of(["s3://b/m0", "s3://b/m1"]).save("s3://b/m0/model.safetensors", force=True)
    soup_of(["s3://b/runs/m0", "s3://b/m1"]).save("s3://b/runs/m")


def test_what_cannot_be_written_there_is_said_before_anything_is_read(
    models: list[Path], store: Server
) -> None:
    for place in ("s3://b/out.pt", "https://host/out", "s3://b"):
        with pytest.raises(CheckpointError, match=r"safetensors|written to|names no object"):
            soup_of(models).save(place)
    assert visible(store) == {}


def test_an_error_leaves_nothing(models: list[Path], store: Server) -> None:
    soup = soup_of(["s3://b/m0", "s3://b/m1"])
    store.put_file("b/m1/model.safetensors", models[2] / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed while"):
        soup.save("s3://b/out")
    assert visible(store) == {}
    assert store.uploads == {}, "the upload was aborted"


def test_readers_see_the_folder_only_when_all_of_it_is_there(
    models: list[Path], store: Server
) -> None:
    soup_of(models).save("s3://b/out", max_shard_bytes=SHARD)
    made = [line for line in store.requests if "/b" in line and "GET" not in line]
    order = [
        next(i for i, line in enumerate(made) if wanted in line and line.startswith(verb))
        for verb, wanted in (
            ("PUT", "staged"),
            ("POST", "model-00001-of-00002.safetensors?uploadId"),
            ("POST", "model.safetensors.index.json?uploadId"),
            ("PUT", "config.json"),
            ("PUT", "stockpot.json"),
            ("POST", "/b?delete"),
        )
    ]
    assert order == sorted(order)


_KILLED = """
import sys, stockpot
soup = stockpot.average(sys.argv[2:])
print("ready", flush=True)
soup.save(sys.argv[1], max_shard_bytes=4_000_000)
print("done", flush=True)
"""


@pytest.mark.parametrize("n_requests", [3, 9, 14, 22])
def test_a_killed_run_leaves_nothing_half_visible_and_the_next_one_is_clean(
    models: list[Path], store: Server, tmp_path: Path, n_requests: int
) -> None:
    soup_of(models).save(tmp_path / "out", max_shard_bytes=SHARD)
    store.rate = 40e6
    source = str(Path(stockpot.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, "s3://b/out", *(f"s3://b/{p.name}" for p in models)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        begun = len(store.requests)
        for _ in range(20_000):
            uploads = [r for r in store.requests[begun:] if "/b/out" in r]
            if len(uploads) >= n_requests or process.poll() is not None:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    store.rate = 0
    time.sleep(0.2)  # requests that were under way end
    found = visible(store)
    if ".stockpot-staged" in found or not found:
        with pytest.raises(CheckpointError, match=r"not complete|nothing at"):
            stockpot.open("s3://b/out")
    else:
        assert "stockpot.json" in found
    soup_of(models).save("s3://b/out", max_shard_bytes=SHARD, force="stockpot.json" in found)
    assert without_times(visible(store)) == without_times(on_disk(tmp_path / "out"))
    assert store.uploads == {}


def test_a_mark_that_says_nothing_is_removed_and_what_it_does_not_name_stays(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    (tmp_path / "mark").write_text("{not JSON")
    store.put_file("b/out/.stockpot-staged", tmp_path / "mark")
    store.put_file("b/out/notes.txt", models[0] / "config.json")
    soup_of(models).save("s3://b/out")
    assert ".stockpot-staged" not in visible(store)
    assert "notes.txt" in visible(store)


def test_pieces_in_any_order_become_one_object(store: Server) -> None:
    data = np.random.default_rng(0).bytes(20 << 20)
    opened, key = objects.open_store("s3://b/any/order")
    upload = Upload(opened, key, len(data))
    step = 3 << 20
    starts = list(range(0, len(data), step))
    for start in [*starts[2:], *starts[:2]]:
        upload.write(memoryview(data)[start : start + step], start)
    assert "b/any/order" not in store.objects
    upload.complete()
    assert store.read("b/any/order") == data


def test_an_upload_with_a_hole_is_refused(store: Server) -> None:
    upload = Upload(*objects.open_store("s3://b/hole"), 100)
    upload.write(memoryview(bytes(10)), 0)
    with pytest.raises(CheckpointError, match="cannot be uploaded"):
        upload.complete()
    assert "b/hole" not in store.objects
    assert store.uploads == {}
