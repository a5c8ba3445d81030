"""Archives of NumPy: stored, compressed, in Fortran's order; nothing in them is unpickled."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stockpot
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.testing import READER_CHECKS, sample_tensors


def sample() -> dict[str, torch.Tensor]:
    return {n: t for n, t in sample_tensors().items() if t.dtype is not torch.bfloat16}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("check", READER_CHECKS, ids=lambda check: check.__name__)
def test_the_reader_conforms(check: Any, save: Any, tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in sample().items()}
    arrays["layer.1.weight"] = np.asfortranarray(arrays["layer.1.weight"])
    save(tmp_path / "a.npz", **arrays)
    check(lambda: stockpot.open(tmp_path / "a.npz"), sample())


def test_a_soup_of_archives_is_one_that_numpy_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [{"enc/w": rng.normal(size=(3, 4)).astype("f4"), "b": np.float64(i)} for i in range(3)]
    for i, arrays in enumerate(given):
        np.savez(tmp_path / f"{i}.npz", **arrays)
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    stockpot.average(paths).save(tmp_path / "soup.npz")
    with np.load(tmp_path / "soup.npz", allow_pickle=False) as soup:
        mean = np.mean([one["enc/w"].astype("f8") for one in given], axis=0).astype("f4")
        assert np.array_equal(soup["enc/w"], mean)
        assert soup["b"] == 1.0
    assert zipfile.ZipFile(tmp_path / "soup.npz").testzip() is None
    assert stockpot.verify(tmp_path / "soup.npz") == []


def test_what_numpy_has_no_type_for_is_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="--dtype f32"):
        stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.npz")


def _npy(header: str, values: bytes = b"\0" * 8) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


def _archive(path: Path, member: bytes, *, deflated: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("w.npy", member)
    return path


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY",
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}"),
        _npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}"),
        _npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}"),
        _npy("{'descr': '<f16', 'fortran_order': False, 'shape': ()}"),
        _npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"),
        _npy("__import__('os').system('true')"),
        _npy("(" * 5000),
        _npy("1+" * 20000 + "1"),
        _npy("{[]: 1}"),
        _npy("{'descr': {{}}, 'fortran_order': False, 'shape': (2,)}"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 0, 9)}"),
    ],
)
@pytest.mark.parametrize("deflated", [False, True])
def test_damaged_arrays_are_refused(member: bytes, deflated: bool, tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match=r"a\.npz"):
        stockpot.open(_archive(tmp_path / "a.npz", member, deflated=deflated))


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([print, None], dtype=object))
    with pytest.raises(CheckpointFormatError, match="would run its code"):
        stockpot.open(tmp_path / "a.npz")


def test_a_size_that_deflate_cannot_reach_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    member = _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000,)}")
    path = _archive(tmp_path / "a.npz", member, deflated=True)
    data = bytearray(path.read_bytes())
    claimed = (len(member) - 8 + 1_000_000_000).to_bytes(4, "little")
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = claimed
    path.write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="claims more bytes"):
        stockpot.open(path)


def test_packed_bytes_that_are_cut_off_are_said(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.random.default_rng(0).normal(size=50_000))
    data = bytearray(buffer.getvalue())
    data[90_000:90_100] = b"\xff" * 100
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(CheckpointFormatError, match=r"damaged|cut off"):
        stockpot.open(tmp_path / "a.npz").raw("w")


@pytest.mark.parametrize("name", ["n" * 65_531, "ü" * 32_765])
def test_names_are_as_long_as_an_archive_holds_them(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.ones(1)}, tmp_path / "a.pt")
    stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.npz")
    with np.load(tmp_path / "soup.npz", allow_pickle=False) as soup:
        assert soup.files == [name]
    torch.save({name + "ü": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"65535: write \.safetensors"):
        stockpot.average([tmp_path / "b.pt"]).save(tmp_path / "long.npz")
    assert not (tmp_path / "long.npz").exists()
