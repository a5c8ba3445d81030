"""Archives of NeMo, made with tarfile and torch as its `save_to` does."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

import stockpot
from stockpot.errors import CheckpointError, CheckpointFormatError


def saved(path: Path, state: dict[str, torch.Tensor], *, mode: str = "w:", dot: str = "./") -> Path:
    weights = io.BytesIO()
    torch.save(state, weights)
    config = f"name: {path.stem}\n".encode()
    members = {"model_config.yaml": config, "model_weights.ckpt": weights.getvalue()}
    members["tokenizer.model"] = b"\0\1" * 700
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(dot + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("dot", ["./", ""])
def test_a_soup_of_archives_is_one_with_all_that_lies_beside_the_weights(
    dot: str, tmp_path: Path
) -> None:
    states = [{"encoder.w": torch.randn(5, 3), "decoder.b": torch.randn(4)} for _ in range(3)]
    paths = [saved(tmp_path / f"run{i}.nemo", one, dot=dot) for i, one in enumerate(states)]
    stockpot.average(paths).save(tmp_path / "soup.nemo")
    assert stockpot.verify(tmp_path / "soup.nemo") == []
    with tarfile.open(tmp_path / "soup.nemo") as archive:
        names = archive.getnames()
        assert names == [dot + n for n in ("model_config.yaml", "model_weights.ckpt")] + [
            f"{dot}tokenizer.model"
        ]
        weights, config, side = (
            archive.extractfile(names[1]),
            archive.extractfile(names[0]),
            archive.extractfile(names[2]),
        )
        assert weights is not None
        assert config is not None
        assert side is not None
        found = torch.load(io.BytesIO(weights.read()), weights_only=True)
        assert config.read() == b"name: run0\n"
        assert side.read() == b"\0\1" * 700
    for name, value in found.items():
        mean = torch.stack([one[name].double() for one in states]).mean(0)
        assert torch.equal(value, mean.float())


def test_the_archive_does_not_depend_on_the_order_of_arguments(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"run{i}.nemo", {"w": torch.full((2,), i * 1.0)}) for i in range(3)]
    stockpot.average(paths).save(tmp_path / "a.nemo")
    stockpot.average(paths[::-1]).save(tmp_path / "b.nemo")
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()


def test_an_archive_out_of_nothing_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="configuration"):
        stockpot.average([tmp_path / "a.pt"]).save(tmp_path / "soup.nemo")


def test_compressed_and_damaged_archives_are_named_with_the_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nemo", {"w": torch.ones(2)}, mode="w:gz")
    with pytest.raises(CheckpointFormatError, match="gunzip"):
        stockpot.open(path)
    whole = saved(tmp_path / "b.nemo", {"w": torch.ones(2000)}).read_bytes()
    for cut in (3, 600, 2000, 5000):
        (tmp_path / "c.nemo").write_bytes(whole[:cut])
        with pytest.raises(CheckpointFormatError, match=r"c\.nemo"):
            stockpot.open(tmp_path / "c.nemo")


def test_extended_headers_before_the_weights_are_passed_over(tmp_path: Path) -> None:
    """Long names, comments, and the size of a file of 8 GiB or more, which its header has not."""
    weights = io.BytesIO()
    torch.save({"w": torch.arange(3.0)}, weights)
    data = weights.getvalue()
    config = tarfile.TarInfo("./" + "long" * 60 + ".yaml")
    own = tarfile.TarInfo("./model_weights.ckpt")  # of size 0, as where it does not fit
    sizes = tarfile.TarInfo("./PaxHeader")
    record = b"13 comment=a\n%d size=%d\n" % (len(str(len(data))) + 9, len(data))
    sizes.type, sizes.size = tarfile.XHDTYPE, len(record)
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        blocks = [config.tobuf(form), sizes.tobuf(), record, bytes(-len(record) % 512)]
        blocks += [own.tobuf(), data, bytes(-len(data) % 512), bytes(1024)]
        (tmp_path / f"{number}.nemo").write_bytes(b"".join(blocks))
    paths = [tmp_path / "0.nemo", tmp_path / "1.nemo"]
    assert stockpot.open(paths[0]).read("w").tolist() == [0.0, 1.0, 2.0]
    stockpot.average(paths).save(tmp_path / "soup.nemo")
    with tarfile.open(tmp_path / "soup.nemo") as archive:
        assert len(archive.getnames()) == 2
    assert stockpot.verify(tmp_path / "soup.nemo") == []


def test_an_archive_without_weights_says_what_was_expected(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.nemo", "w:") as archive:
        archive.addfile(tarfile.TarInfo("model_config.yaml"), io.BytesIO())
    with pytest.raises(CheckpointFormatError, match=r"model_weights\.ckpt"):
        stockpot.open(tmp_path / "a.nemo")
