"""Checkpoints in a bucket on the loopback: read by ranges, checked, and never copied."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.object_store import Server

import stockpot
from stockpot.analysis.initialisation import quick_evidence
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import Checkpoint
from stockpot.formats.zeros import sampled_sparsity
from stockpot.io import objects
from stockpot.mixing import Coefficients, Mixture


def uniform(paths: list[str]) -> Mixture:
    given = stockpot.mixing.Ingredients([stockpot.open(path) for path in paths])
    return Mixture(given, Coefficients.uniform(len(paths)))


def test_a_folder_in_a_bucket_reads_as_it_does_on_a_disk(models: list[Path]) -> None:
    here, there = stockpot.open(models[0]), stockpot.open("s3://b/m0")
    assert there.path == "s3://b/m0"
    assert dict(there) == dict(here)
    for name in here:
        np.testing.assert_array_equal(there.raw(name), here.raw(name))
    assert there.fingerprint == here.fingerprint
    assert Path(there.folder, "config.json").read_text() == '{"model_type": "toy"}'
    assert Path(there.folder, "model.safetensors").stat().st_size == 0, "no copy of the weights"


def test_shards_in_a_bucket_read_as_on_a_disk(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    uniform([str(p) for p in models]).save(tmp_path / "shards", max_shard_bytes=9_000_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    store.put_folder("b/deep/shards", tmp_path / "shards")
    here, there = stockpot.open(tmp_path / "shards"), stockpot.open("s3://b/deep/shards/")
    assert (there.format, there.fingerprint) == (here.format, here.fingerprint)


def test_opening_reads_headers_only_and_a_tensor_only_its_bytes(
    models: list[Path], store: Server
) -> None:
    opened = stockpot.open("s3://b/m1/model.safetensors")
    assert len(store.requests) == 2, store.requests  # which version there is, and its header
    store.requests.clear()
    np.testing.assert_array_equal(opened.part("layer.7.b", 4, 12), opened.raw("layer.7.b")[4:12])
    assert len(store.requests) <= 2


def test_pieces_come_in_the_order_asked_for_from_a_bucket_as_from_a_disk(
    models: list[Path],
) -> None:
    here, there = stockpot.open(models[0]), stockpot.open("s3://b/m0")
    names = [*here][:70]
    wanted = [(name, start, start + 9) for name in reversed(names) for start in (8, 0)]
    wanted += [(names[0], 0, here[names[0]].nbytes + 100)]
    for (name, start, stop), local, remote in zip(
        wanted, here.pieces(iter(wanted)), there.pieces(iter(wanted)), strict=True
    ):
        np.testing.assert_array_equal(local, here.raw(name)[start:stop])
        np.testing.assert_array_equal(remote, local)


def test_a_look_at_a_few_values_asks_for_all_of_them_at_once(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    fetch = objects.RemoteFile.fetch

    def counting(self: objects.RemoteFile, ranges: Sequence[tuple[int, int]]) -> Any:
        asked.append(len(ranges))
        return fetch(self, ranges)

    given = [stockpot.open(f"s3://b/{path.name}") for path in models]
    monkeypatch.setattr(objects.RemoteFile, "fetch", counting)
    monkeypatch.delattr(objects.RemoteFile, "part")  # would wait for each
    found = quick_evidence(*given[:2])
    assert found == quick_evidence(*(stockpot.open(path) for path in models[:2]))
    assert asked == [found.n_tensors] * 2
    asked.clear()
    assert sampled_sparsity(given[0], [*given[0]]) == sampled_sparsity(
        stockpot.open(models[0]), [*given[0]]
    )
    assert len(asked) == 1


@pytest.mark.parametrize("fail", [0.0, 0.1])
def test_an_average_of_a_bucket_has_the_bytes_of_a_local_one(
    models: list[Path], store: Server, tmp_path: Path, fail: float
) -> None:
    uniform([str(p) for p in models]).save(tmp_path / "local.safetensors")
    there = uniform([f"s3://b/{p.name}" for p in models])
    store.requests.clear()
    store.fail = fail
    saved = there.save(tmp_path / "remote.safetensors")
    assert (tmp_path / "remote.safetensors").read_bytes() == (
        tmp_path / "local.safetensors"
    ).read_bytes()
    assert list(saved.fingerprints) == [stockpot.open(p).fingerprint for p in models]
    if fail:
        assert store.failed, "nothing failed: the test shows nothing"
    else:
        assert len(store.requests) < 60, "303 small tensors came in few requests"


def test_an_object_that_is_replaced_while_it_is_read_is_refused(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    mixture = uniform(["s3://b/m0", "s3://b/m1"])
    store.put_file("b/m1/model.safetensors", models[2] / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"s3://b/m1/model\.safetensors changed while"):
        mixture.save(tmp_path / "soup.safetensors")
    assert not (tmp_path / "soup.safetensors").exists()


def test_memory_counts_what_waits_ahead_of_the_sums(models: list[Path], tmp_path: Path) -> None:
    local = uniform([str(p) for p in models]).plan(tmp_path / "a.safetensors", threads=1)
    there = uniform([f"s3://b/{p.name}" for p in models]).plan(tmp_path / "b", threads=1)
    assert there.memory > local.memory + objects.PIECE_BYTES
    with pytest.raises(stockpot.errors.RecipeError, match="max_memory"):
        there.result.plan(tmp_path / "c", max_memory=local.memory)  # type: ignore[attr-defined]


def test_a_record_names_the_bucket_and_is_verified_only_with_leave(
    models: list[Path], store: Server, tmp_path: Path
) -> None:
    soup = stockpot.average(["s3://b/m0", "s3://b/m1"])
    soup.save(tmp_path / "soup.safetensors")
    record = json.loads((tmp_path / "soup.safetensors.stockpot.json").read_text())
    assert [one["path"] for one in record["ingredients"]] == ["s3://b/m0", "s3://b/m1"]
    assert "not-a-secret" not in json.dumps(record)
    store.requests.clear()
    with pytest.raises(stockpot.errors.VerificationError, match="--allow-remote"):
        stockpot.verify(tmp_path / "soup.safetensors")
    assert store.requests == []
    assert stockpot.verify(tmp_path / "soup.safetensors", allow_remote=True) == []


def test_a_file_on_a_web_server_is_read_by_ranges(models: list[Path], store: Server) -> None:
    name = f"{store.endpoint}/b/m0/model.safetensors"
    secret = name.replace("://", "://user:pass@") + "?X-Amz-Signature=secret"
    for given in (name, secret):
        opened = stockpot.open(given)
        assert opened.path == name
        assert all(file.path == name for file in opened.files)
        np.testing.assert_array_equal(opened.raw("big"), stockpot.open(models[0]).raw("big"))
    with pytest.raises(CheckpointError, match=r"name a \.safetensors file") as caught:
        stockpot.open(secret.replace("model.safetensors", "other.safetensors"))
    assert "secret" not in str(caught.value)
    assert "pass" not in str(caught.value)


def test_what_is_not_there_or_not_read_is_said(store: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is nothing at s3://b/none"):
        stockpot.open("s3://b/none")
    with pytest.raises(CheckpointError, match="names no bucket"):
        stockpot.open("s3:///x")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    store.put_file("b/model.pt", tmp_path / "model.pt")
    store.put_file("b/folder/pytorch_model.bin", tmp_path / "model.pt")
    for name in ("s3://b/model.pt", "s3://b/folder"):
        with pytest.raises(CheckpointFormatError, match="only safetensors files are read"):
            stockpot.open(name)


def test_a_folder_whose_writer_was_stopped_is_refused(models: list[Path], store: Server) -> None:
    store.put_file("b/m0/.stockpot-staged", models[0] / "config.json")
    with pytest.raises(CheckpointError, match="is not complete"):
        stockpot.open("s3://b/m0")


def test_names_in_a_bucket_stay_in_the_folder(models: list[Path], store: Server) -> None:
    store.put_file("b/m0/../../../outside.json", models[0] / "config.json")
    with pytest.raises(CheckpointError, match="invalid path"):
        stockpot.open("s3://b/m0")


def test_a_server_that_is_gone_is_an_error_without_secrets(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(objects, "_ATTEMPTS", 1)
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0)
    objects._handle.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(CheckpointError, match="cannot be used") as caught:
        stockpot.open("s3://b/m0")
    assert not re.search("not-a-secret|loopback", str(caught.value))


def test_a_server_that_never_answered_is_given_up_sooner_than_one_that_did(
    store: Server, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is misspelt makes nobody wait; an outage in the middle of a run is sat out."""
    exceptions = pytest.importorskip("obstore.exceptions")
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: None)
    calls = 0

    def dead() -> None:
        nonlocal calls
        calls += 1
        raise exceptions.GenericError("after 10 retries, max_retries: 10, retry_timeout: 120s")

    for answers, expected in ((False, 1), (True, objects._ATTEMPTS)):
        calls = 0
        place, key = objects.open_store("s3://b/m0/model.safetensors")
        if answers:
            assert place.find(key) is not None
        with pytest.raises(CheckpointError, match="cannot be used"):
            place.asked(key, dead)
        assert calls == expected


def test_a_profile_signs_what_is_asked(
    store: Server, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "profiles").write_text(
        "[default]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "profiles"))
    objects._handle.cache_clear()
    opened = stockpot.open("s3://b/m0")
    assert opened["big"].shape == (3000, 900)
    assert store.keys == {"AKIAPROFILE"}


def test_a_public_bucket_is_read_without_a_signature(
    store: Server, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    objects._handle.cache_clear()
    assert stockpot.open("s3://b/m0")["big"].shape == (3000, 900)
    assert store.keys == {""}


def test_a_folder_of_too_many_objects_is_refused(
    models: list[Path], store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_MAX_OBJECTS", 3)
    with pytest.raises(CheckpointError, match="more than 3 objects"):
        stockpot.open("s3://b/")


def test_a_file_url_is_a_path(models: list[Path]) -> None:
    opened: Checkpoint = stockpot.open(f"file://{models[0]}")
    assert opened.path == str(models[0])


def test_no_connection_is_made_for_names_of_this_machine(
    models: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Any connection at all fails here, and so does any use of the library that makes them."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was made: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(objects, "_handle", refuse)
    soup = stockpot.average([str(p) for p in models])
    soup.save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
