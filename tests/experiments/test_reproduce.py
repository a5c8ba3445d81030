"""The commands behind every claim, tried in a few steps on stand-ins for the data."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.experiments import standins
from tests.tasks.transformers import tiny

from experiments import cifar_resnet, claims, efficientnet_lite, pacs, reproduce, robustness

FINDINGS = [finding for claim in claims.CLAIMS for finding in claim.findings]
N_TRAIN, N_HELD_OUT = 300, 60
"""Images that the stand-in for CIFAR-10 has in place of 10,000 and 4,000."""
IN_MANY_STEPS = ("sparse-resnet", "sparse_lengths-handwriting", "questions-handwriting")
"""Of these, `--quick` makes what some findings are of, and not all."""
DATA_SETS = tuple(dict.fromkeys(finding.data for finding in FINDINGS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the layout of the real data, and weights in place of the two packages."""
    data = tmp_path_factory.mktemp("data")
    standins.cifar_folder(data, n_train=N_TRAIN, n_test=N_HELD_OUT + 100)
    standins.resnet_folder(data, robustness.PUBLISHED)
    standins.pacs_folder(data)
    standins.text_folder(data)
    tiny.bert_folder(data / "bert", "BertModel")
    torch.save(efficientnet_lite.EfficientNetLite().state_dict(), data / "lite0.pth")
    return data


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: what several claims share is made once."""
    return tmp_path_factory.mktemp("again")


def here(words: Sequence[str]) -> None:
    """Run a command in this process, where torch is loaded already, and on the smallest lab."""
    module = importlib.import_module(words[0])
    takes_a_lab = "lab" in inspect.signature(module.main).parameters
    on_handwriting = takes_a_lab and getattr(module, "Lab", None) is type(standins.TINY)
    source = inspect.getsource(module)
    jobs = ["--jobs", "1"] if "--jobs" in source or "ingredients.add_arguments" in source else []
    workers = ["--workers", "1"] if '"--workers"' in source else []
    before = sys.argv
    sys.argv = [*words, *jobs, *workers]  # the last one counts
    try:
        module.main(**{"lab": standins.TINY} if on_handwriting else {})
    finally:
        sys.argv = before


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_published_commands_of_every_claim_run(
    name: str, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "_run", here)
    sizes = {"n_train": N_TRAIN, "n_held_out": N_HELD_OUT}
    for make_task, smaller in ((pacs.make_task, {"size": 32}), (cifar_resnet.make_task, sizes)):
        defaults = make_task.__kwdefaults__
        assert defaults is not None
        for option, size in smaller.items():
            monkeypatch.setitem(defaults, option, size)
    monkeypatch.setenv("STOCKPOT_MINILM", str(data / "bert"))
    monkeypatch.setenv("STOCKPOT_EFFICIENTNET", str(data / "lite0.pth"))
    reproduce.made_again(name, str(data), out, quick=True)
    for finding in FINDINGS:
        if finding.data == name:
            text, verdict = claims.ours(finding, out / "data", partial=True)
            assert verdict in ("one sweep", "holds", "does not hold", "within noise", "")
            assert "nan" not in text
            assert (verdict == "") == text.endswith("not made in a few steps")
            assert verdict or name in IN_MANY_STEPS, text
