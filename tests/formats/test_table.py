"""The table says how an output of a name is written, and what a file is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stockpot
from stockpot.errors import CheckpointError
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
