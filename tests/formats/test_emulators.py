"""Buckets of emulators that others made: what was tried against our own server holds there too."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.formats.gcs_proxy import Proxy

import stockpot
from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.io import objects, s3_uploads
from stockpot.io.uploads import Upload
from stockpot.recipes import Soup

pytestmark = pytest.mark.extras

BUCKET = "bucket"
SHARD = 700_000
_START_SECONDS = 60


@dataclass(frozen=True)
class Emulator:
    """A store with an empty bucket.

    Attributes:
        kind: what its names begin with.
        environment: what leads there.
        unfinished: how many uploads began and did not end; None where it cannot be asked.
    """

    kind: str
    environment: Mapping[str, str]
    unfinished: Callable[[], int] | None = None


@dataclass(frozen=True)
class Place:
    """A folder in the bucket of an emulator, of one test."""

    root: str
    emulator: Emulator
    store: objects.Store = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        store, key = objects.open_store(self.root)
        object.__setattr__(self, "store", store)
        object.__setattr__(self, "key", key)

    def put(self, name: str, folder: Path) -> str:
        """Upload a folder by obstore itself; its name there."""
        import obstore

        for file in folder.iterdir():
            obstore.put(self.store.handle, f"{self.key}/{name}/{file.name}", file)
        return f"{self.root}/{name}"

    def visible(self, name: str) -> dict[str, bytes]:
        """What can be seen below a folder, by its name there."""
        prefix = f"{self.key}/{name}"
        return {
            key.removeprefix(f"{prefix}/"): self.store.read(key)
            for key, _, _ in self.store.entries(prefix)
        }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    """A server in a process of its own, from when it takes connections."""
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            end = time.monotonic() + _START_SECONDS
            while True:
                with contextlib.suppress(ConnectionError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"{command[0]} does not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def put(url: str, headers: Mapping[str, str]) -> None:
    urlopen(Request(url, method="PUT", headers=dict(headers)), timeout=60).close()


def needs(module: str) -> None:
    # Looked for and not imported: only the process of the emulator needs what it brings.
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@contextlib.contextmanager
def moto(log: Path) -> Iterator[Emulator]:
    for module in ("moto", "flask_cors"):
        needs(module)
    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
    }

    def unfinished() -> int:
        listed = s3_uploads._ask("GET", BUCKET, "", {"uploads": ""}).decode()
        return len(list(s3_uploads._listed(listed)))

    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, log):
        put(f"http://127.0.0.1:{port}/{BUCKET}", {})
        yield Emulator("s3", environment, unfinished)


@contextlib.contextmanager
def azurite(log: Path) -> Iterator[Emulator]:
    found = os.environ.get("STOCKPOT_AZURITE") or shutil.which("azurite-blob")
    if not found:
        pytest.skip("azurite is not installed: npm install azurite, and set STOCKPOT_AZURITE")
    port, account, key = free_port(), "loopback", base64.b64encode(b"not-a-secret").decode()
    endpoint = f"http://127.0.0.1:{port}/{account}"
    command = [found, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck"]
    command += ["--inMemoryPersistence", "--silent", "--disableTelemetry"]
    with running(command, port, log, AZURITE_ACCOUNTS=f"{account}:{key}"):
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        lines = "\n".join(f"{name}:{value}" for name, value in sorted(headers.items()))
        resource = f"/{account}/{account}/{BUCKET}\nrestype:container"
        signed = "PUT" + "\n" * 12 + f"{lines}\n{resource}"
        mac = hmac.digest(base64.b64decode(key), signed.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {account}:{base64.b64encode(mac).decode()}"
        put(f"{endpoint}/{BUCKET}?restype=container", headers)
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": account,
            "AZURE_STORAGE_ACCOUNT_KEY": key,
            "AZURE_STORAGE_ENDPOINT": endpoint,
        }
        yield Emulator("az", environment)


@contextlib.contextmanager
def google(log: Path) -> Iterator[Emulator]:
    needs("gcp_storage_emulator")
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--default-bucket", BUCKET, "--in-memory", "--quiet"]
    with running(command, port, log), Proxy(f"127.0.0.1:{port}") as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        # `disable_oauth` keeps obstore from asking the machine for its account.
        account = {"gcs_base_url": proxy.endpoint, "disable_oauth": True, "client_email": ""}
        account |= {"private_key": "", "private_key_id": ""}
        file = log.with_suffix(".json")
        file.write_text(json.dumps(account))
        environment = {"GOOGLE_SERVICE_ACCOUNT": str(file)}
        yield Emulator("gs", environment, lambda: len(proxy.uploads))
        proxy.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=[moto, azurite, google], ids=["s3", "az", "gs"])
def emulator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    pytest.importorskip("obstore")
    with request.param(tmp_path_factory.mktemp("emulator") / "log") as started:
        yield started


@pytest.fixture
def place(
    emulator: Emulator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    objects._handle.cache_clear()
    yield Place(f"{emulator.kind}://{BUCKET}/{request.node.originalname}", emulator)
    objects._handle.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three model folders on the disk; small, since moto copies an object for each range of it."""
    made = [tmp_path_factory.mktemp("models") / f"m{i}" for i in range(3)]
    shapes = {"big": (400, 400), "other": (400, 400), "none": (0, 3)}
    shapes |= {f"layer.{i}.b": (7,) for i in range(20)}
    for seed, folder in enumerate(made):
        folder.mkdir()
        random = np.random.default_rng(seed)
        tensors = {k: random.normal(size=shape).astype("f4") for k, shape in shapes.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "toy"}')
    return made


@pytest.fixture
def models(place: Place, folders: list[Path]) -> list[str]:
    """The names of two models in the bucket."""
    return [place.put(folder.name, folder) for folder in folders[:2]]


def soup_of(models: Sequence[Path | str]) -> Soup:
    return stockpot.average([str(path) for path in models])


def test_an_average_from_bucket_to_bucket_is_the_local_one(
    place: Place, models: list[str], folders: list[Path], tmp_path: Path
) -> None:
    soup_of(folders[:2]).save(tmp_path / "out", max_shard_bytes=SHARD)
    saved = soup_of(models).save(f"{place.root}/out", max_shard_bytes=SHARD)
    there = place.visible("out")
    assert there.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert sum(name.endswith(".safetensors") for name in there) > 1
    for name, data in there.items():
        if name not in ("stockpot.json", "README.md"):  # they name where the ingredients are
            assert data == (tmp_path / "out" / name).read_bytes(), name
    record = json.loads(there["stockpot.json"])
    assert [one["path"] for one in record["ingredients"]] == models
    opened, here = stockpot.open(saved.path), stockpot.open(tmp_path / "out")
    assert opened.fingerprint == here.fingerprint == record["output"]
    np.testing.assert_array_equal(opened.raw("big"), here.raw("big"))
    assert stockpot.verify(saved.path, allow_remote=True) == []


def test_a_file_in_a_bucket_is_the_local_one(
    place: Place, models: list[str], folders: list[Path], tmp_path: Path
) -> None:
    soup_of(folders[:2]).save(tmp_path / "one.safetensors")
    name = f"{place.root}/out/one.safetensors"
    soup_of(models).save(name)
    there = place.visible("out")
    assert there.keys() == {"one.safetensors", "one.safetensors.stockpot.json"}
    assert there["one.safetensors"] == (tmp_path / "one.safetensors").read_bytes()
    assert stockpot.verify(name, allow_remote=True) == []


def test_an_output_that_is_there_is_replaced_by_force_only(
    place: Place, models: list[str], folders: list[Path], tmp_path: Path
) -> None:
    soup_of(models).save(f"{place.root}/out", max_shard_bytes=SHARD)
    before = place.visible("out")
    with pytest.raises(OutputExistsError):
        soup_of(models[:1]).save(f"{place.root}/out")
    assert place.visible("out") == before
    soup_of(models[:1]).save(f"{place.root}/out", force=True)
    soup_of(folders[:1]).save(tmp_path / "out")
    after = place.visible("out")
    assert after.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert after["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()


def test_an_object_that_is_replaced_while_it_is_read_is_refused_and_nothing_is_left(
    place: Place, models: list[str], folders: list[Path]
) -> None:
    soup = soup_of(models)
    place.put("m1", folders[2])
    for name in ("out", "out/one.safetensors"):
        with pytest.raises(CheckpointError, match=r"/m1/model\.safetensors changed while"):
            soup.save(f"{place.root}/{name}")
    assert place.visible("out") == {}
    assert place.emulator.unfinished is None or place.emulator.unfinished() == 0


def test_pieces_in_any_order_become_one_object_of_many_parts(place: Place) -> None:
    data = np.random.default_rng(0).bytes(20 << 20)
    assert f"'{place.emulator.kind}://{BUCKET}/'" in repr(place.store)
    upload = Upload(place.store, f"{place.key}/a b+ü", len(data))
    step = 3 << 20
    starts = list(range(0, len(data), step))
    for start in [*starts[2:], *starts[:2]]:
        upload.write(memoryview(data)[start : start + step], start)
    assert place.visible("") == {}
    upload.complete()
    assert place.store.read(f"{place.key}/a b+ü") == data
    place.store.delete([f"{place.key}/a b+ü", f"{place.key}/none"])
    assert place.store.find(f"{place.key}/a b+ü") is None


def test_what_is_not_there_is_said(
    place: Place, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=f"there is nothing at {place.root}/none"):
        stockpot.open(f"{place.root}/none")
    bucket = f"{place.emulator.kind}://no-such-bucket"
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: pytest.fail("it was asked again"))
    for use in (stockpot.open, soup_of(folders).save):
        with pytest.raises(
            CheckpointError, match=f"{bucket}/m cannot be used: there is no {bucket}$"
        ):
            use(f"{bucket}/m")


# Google's and Azure's are not listed by us: those of a killed run go by a rule of the bucket there.
@pytest.mark.parametrize("emulator", [moto], ids=["s3"], indirect=True, scope="module")
def test_unfinished_uploads_of_a_killed_run_are_aborted_by_the_next(
    place: Place, models: list[str]
) -> None:
    for name in ("out/model.safetensors", "other/model.safetensors"):
        s3_uploads._ask("POST", BUCKET, f"{place.key}/{name}", {"uploads": ""})
    assert place.emulator.unfinished is not None
    assert place.emulator.unfinished() == 2
    soup_of(models).save(f"{place.root}/out")
    assert place.emulator.unfinished() == 1, "that of another output stays"
    s3_uploads.abort_uploads(f"s3://{BUCKET}/", f"{place.key}/other", folder=True)
    assert place.emulator.unfinished() == 0
