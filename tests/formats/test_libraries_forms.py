"""Checkpoints of libraries that differ in form: types, names, counters; each kind of three inputs.

The soup, loaded by the library, gives the outputs of a model whose weights are the mean by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.formats.souped import State, aligned, copied, mean, moved, souped

import stockpot
from stockpot.cli import main
from stockpot.mixing import Reconcile

pytestmark = pytest.mark.extras

_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_TINY, "intermediate_size": 24, "vocab_size": 40}
_IMAGE = {**_TINY, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
_WORDS = {"input_ids": torch.tensor([[3, 7, 1, 5]])}
_PIXELS = {"pixel_values": torch.ones(1, 3, 8, 8)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def _runs(kind: Any, config: Any, folder: Path, *dtypes: torch.dtype) -> tuple[Any, list[State]]:
    """A model, and the states of its runs, saved in `folder` as run0, run1, …"""
    torch.manual_seed(0)
    start = kind(config)
    state, states = copied(start.state_dict()), []
    for i, dtype in enumerate(dtypes):
        start.float().load_state_dict(state)
        moved(start, i, 0.002).to(dtype).save_pretrained(folder / f"run{i}")
        states.append(copied(start.state_dict()))
    return start.float(), states


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_models_of_three_types_are_mixed_exactly(
    dtype: str, transformers: Any, tmp_path: Path
) -> None:
    kind = transformers.BertForSequenceClassification
    types = (torch.float32, torch.bfloat16, torch.float16)
    start, states = _runs(kind, transformers.BertConfig(**_TEXT), tmp_path, *types)
    paths = [tmp_path / f"run{i}" for i in range(3)]
    with pytest.raises(stockpot.StockpotError, match="--dtype f32"):
        stockpot.average(paths)
    out = souped(paths, tmp_path / "soup", reconcile=Reconcile(dtype=dtype))
    soup = aligned(kind.from_pretrained(out))
    assert soup.dtype == (torch.float32 if dtype == "f32" else torch.bfloat16)
    start.load_state_dict(mean([{n: v.double() for n, v in one.items()} for one in states]))
    with torch.no_grad():
        assert torch.equal(soup(**_WORDS)[0], start.to(soup.dtype)(**_WORDS)[0])


BACKBONES = {
    "ViT": ("ViTModel", "ViTForImageClassification", "ViTConfig", _IMAGE, _PIXELS),
    "BERT": ("BertModel", "BertForSequenceClassification", "BertConfig", _TEXT, _WORDS),
    "RoBERTa": ("RobertaModel", "RobertaForTokenClassification", "RobertaConfig", _TEXT, _WORDS),
}


@pytest.mark.parametrize("related", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_headless_backbone_is_the_base_of_a_model_with_a_head(
    name: str,
    related: bool,
    transformers: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that is of another start is mixed as it is asked for too, and said."""
    backbone, kind, config_name, options, inputs = BACKBONES[name]
    config = getattr(transformers, config_name)(**options)
    with_head = getattr(transformers, kind)
    start, states = _runs(with_head, config, tmp_path, *[torch.float32] * 3)
    base, prefix = getattr(transformers, backbone)(config), start.base_model_prefix
    if related:
        torch.manual_seed(0)
        own = getattr(with_head(config), prefix).state_dict()
        base.load_state_dict(own, strict=False)
    base.save_pretrained(tmp_path / "base")
    own = {f"{prefix}.{n}": v for n, v in base.state_dict().items()}
    for i, state in enumerate(states):
        given = [str(tmp_path / "base"), str(tmp_path / f"run{i}"), "--alpha", "0.5"]
        assert main(["interpolate", *given, "--keep-head", "-o", str(tmp_path / f"out{i}")]) == 0
        assert ("initialisation" in capsys.readouterr().err) is not related
        soup = aligned(with_head.from_pretrained(tmp_path / f"out{i}"))
        half = {n: mean([{n: own[n]}, {n: v}])[n] if n in own else v for n, v in state.items()}
        start.load_state_dict(half)
        with torch.no_grad():
            assert torch.equal(soup(**inputs)[0], start(**inputs)[0])
    # In the other direction: a mean of what a model without a head and those with one share.
    paths = [tmp_path / "base", tmp_path / "run0", tmp_path / "run1"]
    stockpot.average(paths, on_mismatch="common").save(tmp_path / "common.pt")
    found = stockpot.open(tmp_path / "common.pt").state_dict()
    stored, *others = (stockpot.open(path).state_dict() for path in paths)
    short = {name.removeprefix(f"{prefix}."): value for name, value in found.items()}
    for name in short.keys() & stored.keys():
        values = [stored[name], *(one[f"{prefix}.{name}"] for one in others)]
        assert torch.equal(short[name], mean([{name: value} for value in values])[name])
    assert len(short) >= len(stored) - 2  # a pooler that some heads do without


def _compiled(net: torch.nn.Module) -> State:
    return torch.compile(net).state_dict()


def _parallel(net: torch.nn.Module) -> State:
    return torch.nn.DataParallel(net).state_dict()


def _checkpointed(net: torch.nn.Module) -> State:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return torch.nn.Sequential(checkpoint_wrapper(net[0]), net[1], net[2]).state_dict()


def _inside(net: torch.nn.Module) -> State:
    return torch.nn.Sequential(net[0], net[1], torch.compile(net[2])).state_dict()


def _averaged(net: torch.nn.Module) -> State:
    from torch.optim.swa_utils import AveragedModel

    return AveragedModel(net).state_dict()


def _ema(net: torch.nn.Module) -> State:
    library = pytest.importorskip("ema_pytorch")
    average = library.EMA(net, include_online_model=False)
    average.copy_params_from_model_to_ema()
    found: State = average.state_dict()
    return found


def _deep(net: torch.nn.Module) -> State:
    return torch.nn.ModuleDict({"model": torch.nn.DataParallel(torch.compile(net))}).state_dict()


WRAPPERS = [_compiled, _parallel, _checkpointed, _inside, _averaged, _ema]
# Of two with "model.", which may be a part of the model, the names would stay: of the many.
CASES = [(one, n) for one in WRAPPERS for n in (1, 2)] + [(_deep, 1)]


@pytest.mark.parametrize(("wrap", "n_wrapped"), CASES)
def test_names_and_counters_of_wrappers_are_reconciled(
    wrap: Callable[[torch.nn.Module], State], n_wrapped: int, tmp_path: Path
) -> None:
    """Some of the three are wrapped; the output has the names of the plain model."""
    states, paths = [], []
    for i in range(3):
        layers = [torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)]
        net = moved(torch.nn.Sequential(*layers), i)
        states.append(copied(net.state_dict()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(wrap(net) if i < n_wrapped else states[i], tmp_path / f"{i}.pt")
        paths.append(tmp_path / f"{i}.pt")
    soup = torch.load(souped(paths, tmp_path / "soup.pt"), weights_only=True)
    net.load_state_dict(soup)
    assert all(torch.equal(v, mean(states)[name]) for name, v in net.state_dict().items())


def test_networks_with_batchnorm_are_pointed_out(
    transformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_channels=3
    )
    kind = transformers.ResNetForImageClassification
    torch.manual_seed(0)
    start = kind(config)
    state, states, paths = copied(start.state_dict()), [], []
    for i in range(3):
        start.load_state_dict(state)
        moved(start, i).train()
        for _ in range(i + 1):  # so that counters differ, and statistics
            start(torch.randn(2, 3, 16, 16))
        start.eval().save_pretrained(tmp_path / f"run{i}")
        states.append(copied(start.state_dict()))
        paths.append(tmp_path / f"run{i}")
    assert main(["average", *map(str, paths), "-o", str(tmp_path / "soup")]) == 0
    assert "running statistics" in capsys.readouterr().err
    soup = kind.from_pretrained(tmp_path / "soup").state_dict()
    for name, value in soup.items():
        counter = name.endswith("num_batches_tracked")
        expected = max(one[name] for one in states) if counter else mean(states)[name]
        assert torch.equal(value, expected)


def test_patterns_choose_which_tensors_of_a_model_are_mixed(
    transformers: Any, tmp_path: Path
) -> None:
    kind = transformers.BertForSequenceClassification
    start, states = _runs(kind, transformers.BertConfig(**_TEXT), tmp_path, *[torch.float32] * 3)
    runs = [str(tmp_path / f"run{i}") for i in range(3)]
    out = tmp_path / "out"
    given = ["--exclude", "*embeddings*", "--coefficients", "*attention*=0,1,0"]
    assert main(["average", *runs, *given, "-o", str(out)]) == 0
    by_hand = mean(states)
    for name in by_hand:
        if "attention" in name:
            by_hand[name] = states[1][name]
        if "embeddings" in name:
            by_hand[name] = states[0][name]
    start.load_state_dict(by_hand)
    soup = aligned(kind.from_pretrained(out))
    with torch.no_grad():
        assert torch.equal(soup(**_WORDS)[0], start(**_WORDS)[0])
