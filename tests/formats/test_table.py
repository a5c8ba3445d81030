"""The table says how an output of a name is written, and what a file is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import stockpot
from stockpot.errors import CheckpointError, CheckpointFormatError
from stockpot.formats.table import output_format, record_path, suffix_of


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("soup.safetensors", "safetensors"),
        ("SOUP.SAFETENSORS", "safetensors"),
        ("soup.pt", "torch"),
        ("soup.pth.tar", "torch"),
        ("soups/llama-3.1-8b", "folder"),
        ("runs.v2", "folder"),
        ("soup", "folder"),
        ("soup.final/", "folder"),
    ],
)
def test_the_name_of_an_output_says_its_format(name: str, format: str) -> None:
    assert output_format(name).name == format


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("soup.safetensor", r"did you mean \.safetensors\?"),
        ("soup.ptj", r"did you mean \.pt\?"),
        ("soup.final", "soup.final/"),
        ("ftp://bucket/soup.safetensors", "written to a disk"),
        ("https://bucket/soup", "written to a disk"),
    ],
)
def test_an_unknown_suffix_or_scheme_is_no_folder(name: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        output_format(name)


def test_a_folder_that_is_there_may_be_named_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "soup.final").mkdir()
    assert output_format(tmp_path / "soup.final").is_folder
    assert record_path(tmp_path / "soup.final") == tmp_path / "soup.final" / "stockpot.json"


def test_a_suffix_is_found_whole() -> None:
    assert suffix_of("a/b.PTH.TAR") == ".PTH.TAR"
    assert suffix_of("model.gguf") == ".gguf"
    assert suffix_of("model.gguf", readable=True) == ""


def test_a_pointer_of_git_lfs_is_named_wherever_it_stands(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name in ("pytorch_model.bin", "model.safetensors", "run.pt"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(pointer)
        for path in (folder / name, folder):
            with pytest.raises(CheckpointError, match="git lfs pull"):
                stockpot.open(path)


def test_runs_of_timm_are_found_in_their_folder(tmp_path: Path) -> None:
    for i in (10, 9):
        torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / f"checkpoint-{i}.pth.tar")
    found = stockpot.expand_paths([tmp_path])
    assert [Path(path).name for path in found] == ["checkpoint-9.pth.tar", "checkpoint-10.pth.tar"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("graph.pb", "TensorFlow.*export"),
        ("model.ckpt.index", "TensorFlow.*export"),
        ("model.ckpt-7.data-00000-of-00001", "TensorFlow.*export"),
        ("saved/saved_model.pb", "TensorFlow.*export"),
        ("tf1/model.ckpt-7.index", "TensorFlow.*export"),
        ("step/_CHECKPOINT_METADATA", "orbax.*to_bytes"),
        ("step/manifest.ocdbt", "orbax.*to_bytes"),
    ],
)
def test_what_other_libraries_export_is_named_with_a_remedy(
    name: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x0a\x05" + bytes(60))
    with pytest.raises(CheckpointFormatError, match=said):
        stockpot.open(file if file.parent == tmp_path else file.parent)


def test_a_model_for_several_libraries_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "saved_model.pb").write_bytes(bytes(9))
    assert list(stockpot.open(tmp_path)) == ["w"]
