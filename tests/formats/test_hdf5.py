"""HDF5 files and archives of Keras: values mapped, other files never reached, written in place."""

from __future__ import annotations

import random
import tracemalloc
import zipfile
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stockpot
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats import hdf5
from stockpot.testing import READER_CHECKS, sample_tensors

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.extras


def sample() -> dict[str, torch.Tensor]:
    found = {n: t for n, t in sample_tensors().items() if t.dtype is not torch.bfloat16}
    return {name.replace(".", "/"): value for name, value in found.items()}


def written(path: Path, arrays: dict[str, Any], **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            one = options if getattr(value, "ndim", 0) else {}
            file.create_dataset(name, data=value, **one)
    return path


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"chunks": True}])
@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_the_reader_conforms(check: Any, options: dict[str, Any], tmp_path: Path) -> None:
    tensors = sample()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if options:
        del arrays["empty"], tensors["empty"]
    path = written(tmp_path / "a.h5", arrays, **options)
    check(lambda: stockpot.open(path), {n.replace("/", "."): t for n, t in tensors.items()})


def test_bfloat16_is_told_by_the_attribute_that_keras_gives_it(tmp_path: Path) -> None:
    values = torch.randn(4, dtype=torch.bfloat16)
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        raw = values.view(torch.int16).numpy().view("V2")
        file.create_dataset("w", data=raw).attrs["dtype"] = "bfloat16"
    assert torch.equal(stockpot.open(tmp_path / "a.weights.h5").read("w"), values)


def test_a_soup_is_the_file_of_an_ingredient_with_other_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(3, 4)).astype("f4") for _ in range(3)]
    paths = []
    for i, value in enumerate(given):
        path = written(tmp_path / f"{i}.h5", {"layers/d/vars/0": value, "optimizer/m": value * i})
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = "{}"
        paths.append(path)
    mixture = stockpot.Mixture(stockpot.Ingredients(paths))
    assert "optimiser" in mixture.plan(tmp_path / "soup.h5").output.notes[0]
    stockpot.average(paths).save(tmp_path / "soup.h5")
    assert stockpot.verify(tmp_path / "soup.h5") == []
    with h5py.File(tmp_path / "soup.h5") as file:
        mean = np.mean([value.astype("f8") for value in given], axis=0).astype("f4")
        assert np.array_equal(file["layers/d/vars/0"][()], mean)
        assert file.attrs["model_config"] == "{}"
    stockpot.average(paths[::-1]).save(tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "soup.h5").read_bytes()


def test_an_archive_of_keras_keeps_its_members_and_their_checksums(tmp_path: Path) -> None:
    for i in range(2):
        written(tmp_path / "w.h5", {"layers/d/vars/0": np.full(5, i, np.float32)})
        with zipfile.ZipFile(tmp_path / f"{i}.keras", "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(tmp_path / "w.h5", "model.weights.h5")
    stockpot.average([tmp_path / "0.keras", tmp_path / "1.keras"]).save(tmp_path / "soup.keras")
    assert stockpot.verify(tmp_path / "soup.keras") == []
    with zipfile.ZipFile(tmp_path / "soup.keras") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["config.json", "model.weights.h5"]
        with archive.open("model.weights.h5") as inner, h5py.File(inner) as file:
            assert file["layers/d/vars/0"][()].tolist() == [0.5] * 5


def test_what_cannot_be_written_in_place_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", {"w": np.ones((40, 40), np.float32)}, compression="gzip")
    with pytest.raises(CheckpointError, match=r"compressed; write \.safetensors"):
        stockpot.average([path]).save(tmp_path / "soup.h5")
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no ingredient is such a file"):
        stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.keras")
    plain = written(tmp_path / "b.h5", {"w": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match="other names, shapes or types"):
        stockpot.average([plain], dtype="f16").save(tmp_path / "soup.h5")


def test_values_in_other_files_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\1" * 8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "w", (2,), "f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(CheckpointFormatError, match="lie in other files"):
        stockpot.open(tmp_path / "a.h5")


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "other.h5", {"secret": np.ones(2)})
    path = written(tmp_path / "a.h5", {"w": np.ones(2, np.float32)})
    with h5py.File(path, "a") as file:
        file["x"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
        file["y"] = h5py.SoftLink("/w")
        file["self"] = file["/"]
    assert list(stockpot.open(path)) == ["w"]


def test_a_claim_beyond_what_is_stored_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", (1 << 40,), "f4", chunks=(1 << 20,))
    with pytest.raises(CheckpointFormatError, match="claims more"):
        stockpot.open(tmp_path / "a.h5")


def test_damaged_files_are_refused_or_harmless(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.h5", {"g/w": np.ones((2, 3), np.float32)}).read_bytes()
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "b.h5").write_bytes(data[: generator.choice([len(data), 100, 700])])
        try:
            checkpoint = stockpot.open(tmp_path / "b.h5")
            for name, spec in checkpoint.items():
                assert len(checkpoint.raw(name)) == spec.nbytes
        except CheckpointFormatError:
            pass


def test_an_archive_without_weights_says_what_was_expected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(CheckpointFormatError, match=r"model\.weights\.h5"):
        stockpot.open(tmp_path / "a.keras")


def test_the_ingredient_is_the_one_whose_kept_bytes_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "_BLOCK_BYTES", 1000)
    rng = np.random.default_rng(0)
    paths = []
    for i, last in enumerate((5, 3, 4)):
        state = np.arange(2000, dtype=np.float32)
        state[-1] = last
        arrays = {"layers/d/vars/0": rng.normal(size=(3, 4)).astype("f4"), "optimizer/m": state}
        paths.append(written(tmp_path / f"{i}.h5", arrays))
    for order in permutations(paths):
        stockpot.average(order).save(tmp_path / "soup.h5", force=True)
        soup = (tmp_path / "soup.h5").read_bytes()
        opened = [stockpot.open(path) for path in paths]
        run = opened[0]._runs["layers.d.vars.0"][0]
        begin, end = run.at, run.at + run.n_bytes
        data = [path.read_bytes() for path in paths]
        kept = min((one[:begin], one[end:]) for one in data)
        assert (soup[:begin], soup[end:]) == kept


def test_what_is_kept_of_an_ingredient_is_not_held_in_memory(tmp_path: Path) -> None:
    for i in range(3):
        arrays = {"w": np.full(100, i, np.float32), "optimizer/m": np.ones(8 << 20, np.float32)}
        written(tmp_path / f"{i}.h5", arrays)
    mixture = stockpot.Mixture(stockpot.Ingredients([tmp_path / f"{i}.h5" for i in range(3)]))
    tracemalloc.start()
    try:
        mixture.save(tmp_path / "soup.h5")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
    with h5py.File(tmp_path / "soup.h5") as file:
        assert file["optimizer/m"][()].sum() == 8 << 20
        assert file["w"][()].tolist() == [1.0] * 100
