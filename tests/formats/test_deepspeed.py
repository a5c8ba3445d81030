"""Folders of DeepSpeed, laid out here as its ZeRO stages do; the weights must come out whole."""

from __future__ import annotations

import enum
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

import stockpot
from stockpot.errors import CheckpointFormatError

Tensors = dict[str, torch.Tensor]


class ZeroStageEnum(int, enum.Enum):
    """As DeepSpeed has it: files hold the stage as a member, of a class that is not loaded."""

    optimizer_states = 1
    gradients = 2
    weights = 3


class LossScaler:
    """Another object that its files hold."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name in ((ZeroStageEnum, "zero.config"), (LossScaler, "fp16.loss_scaler")):
        module = types.ModuleType(f"deepspeed.runtime.{name}")
        setattr(module, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))


MODEL = "mp_rank_00_model_states.pt"


def groups_of(tensors: Tensors) -> list[Tensors]:
    """Two groups, as an optimiser without weight decay for biases has them."""
    decayed = {n: t for n, t in tensors.items() if t.dim() > 1}
    return [decayed, {n: t for n, t in tensors.items() if n not in decayed}]


def saved(
    folder: Path,
    tensors: Tensors,
    *,
    stage: int,
    n_ranks: int = 2,
    frozen: Tensors | None = None,
    **more: Any,
) -> Path:
    step = folder / "global_step7"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step7")
    groups = groups_of(tensors)
    parts: list[list[torch.Tensor]] = [[] for _ in range(n_ranks)]
    for group in groups:
        if stage == 3:
            rows = [_cut(t.flatten(), n_ranks) for t in group.values()]
            for rank in range(n_ranks):
                parts[rank].append(torch.cat([cut[rank] for cut in rows]))
        else:
            flat = torch.cat([t.flatten() for t in group.values()])
            flat = pad(flat, (0, -len(flat) % (2 * n_ranks)))
            for rank, part in enumerate(flat.chunk(n_ranks)):
                parts[rank].append(part.clone())
    field = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    held = frozen or {}
    for rank in range(n_ranks):
        optimiser = {
            "loss_scaler": LossScaler(),
            "zero_stage": ZeroStageEnum(stage),
            "partition_count": n_ranks,
            field: parts[rank],
        }
        torch.save(
            {"optimizer_state_dict": optimiser, "ds_version": "0.16.0"},
            step / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
        empty = {n: torch.empty(0, dtype=torch.bfloat16) for n in tensors}
        module = empty if stage == 3 else {n: t.bfloat16() for n, t in tensors.items()}
        state = {
            "module": {**module, "mean": torch.full((3,), 0.5), "steps": torch.tensor(9)},
            "buffer_names": ["mean", "steps"],
            "param_shapes": [{n: t.shape for n, t in group.items()} for group in groups],
            "frozen_param_shapes": {n: t.shape for n, t in held.items()} or None,
            "frozen_param_fragments": {
                n: _cut(t.flatten(), n_ranks)[rank] if stage == 3 else t for n, t in held.items()
            }
            or None,
            "shared_params": {"head": "embed"},
            **more,
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00" if stage == 3 else "mp_rank_00"
        torch.save(state, step / f"{name}_model_states.pt")
    return folder


def _cut(flat: torch.Tensor, n: int) -> list[torch.Tensor]:
    return [part.clone() for part in pad(flat, (0, -len(flat) % n)).chunk(n)]


def tensors(seed: int) -> Tensors:
    torch.manual_seed(seed)
    return {
        "embed": torch.randn(11, 3),
        "layer.weight": torch.randn(5, 7),
        "layer.bias": torch.randn(5),
        "norm": torch.randn(1),
        "gate": torch.randn(2, 1),
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_partitions_are_put_together(stage: int, n_ranks: int, tmp_path: Path) -> None:
    given, frozen = tensors(0), {"lora_base": torch.randn(4, 5)}
    folder = saved(tmp_path / "run", given, stage=stage, n_ranks=n_ranks, frozen=frozen)
    for path in (folder, folder / "global_step7"):
        checkpoint = stockpot.open(path)
        buffers = {"mean": torch.full((3,), 0.5), "steps": torch.tensor(9)}
        expected = {**given, **frozen, **buffers, "head": given["embed"]}
        assert set(checkpoint) == set(expected)
        for name, value in expected.items():
            assert torch.equal(checkpoint.read(name), value)
        assert ("embed", "head") in checkpoint.tied


def test_any_piece_is_that_of_the_whole(tmp_path: Path) -> None:
    checkpoint = stockpot.open(saved(tmp_path / "run", tensors(0), stage=3, n_ranks=4))
    whole = checkpoint.raw("layer.weight").tobytes()
    for start in range(0, len(whole), 9):
        for stop in (start + 1, start + 50, len(whole)):
            assert checkpoint.part("layer.weight", start, stop).tobytes() == whole[start:stop]


@pytest.mark.parametrize("stage", [2, 3])
def test_folders_are_averaged(stage: int, tmp_path: Path) -> None:
    given = [tensors(seed) for seed in range(3)]
    paths = [saved(tmp_path / f"run{i}", one, stage=stage) for i, one in enumerate(given)]
    stockpot.average(paths).save(tmp_path / "soup.safetensors")
    assert stockpot.verify(tmp_path / "soup.safetensors") == []
    soup = stockpot.open(tmp_path / "soup.safetensors")
    for name in given[0]:
        mean = torch.stack([one[name].double() for one in given]).mean(0).float()
        assert torch.equal(soup.read(name), mean)


def damaged(path: Path, change: Any) -> None:
    value = torch.load(path, weights_only=False)
    change(value)
    torch.save(value, path)


@pytest.mark.parametrize("stage", [2, 3])
def test_what_does_not_add_up_is_refused_with_deepspeeds_own_script(
    stage: int, tmp_path: Path
) -> None:
    field = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    optim = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    model = ("zero_pp_rank_0_" if stage == 3 else "") + "mp_rank_00_model_states.pt"

    def first(state: Any) -> list[torch.Tensor]:
        found: list[torch.Tensor] = state["optimizer_state_dict"][field]
        return found

    changes = {
        optim: [
            lambda s: first(s).__setitem__(0, first(s)[0][:-4].clone()),
            lambda s: first(s).__setitem__(0, pad(first(s)[0], (0, 40))),
            lambda s: first(s).__setitem__(0, "x"),
            lambda s: s["optimizer_state_dict"].__setitem__("partition_count", 5),
            lambda s: s["optimizer_state_dict"].__setitem__("zero_stage", 4),
            lambda s: s["optimizer_state_dict"].__setitem__("zero_stage", {"a": [1]}),
            lambda s: s["optimizer_state_dict"].__setitem__("zero_stage", LossScaler()),
            lambda s: s["optimizer_state_dict"].__setitem__("zero_stage", 5 - stage),
            lambda s: s.pop("optimizer_state_dict"),
        ],
        model: [
            lambda s: s.pop("param_shapes"),
            lambda s: s["param_shapes"][0].__setitem__("embed", (1 << 40, 1 << 40)),
            lambda s: s["param_shapes"][0].__setitem__("embed", "wide"),
            lambda s: s.pop("module"),
            lambda s: s.__setitem__("frozen_param_shapes", {"x": (3,)}),
        ],
    }
    for i, (name, change) in enumerate((n, c) for n, some in changes.items() for c in some):
        folder = saved(tmp_path / f"run{i}", tensors(0), stage=stage)
        damaged(folder / "global_step7" / name, change)
        with pytest.raises(CheckpointFormatError, match=r"DeepSpeed.*zero_to_fp32\.py"):
            stockpot.open(folder)


def test_a_missing_partition_and_several_tensor_parallel_ranks_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", tensors(0), stage=2, n_ranks=3)
    step = folder / "global_step7"
    (step / "zero_pp_rank_1_mp_rank_00_optim_states.pt").rename(tmp_path / "aside")
    with pytest.raises(CheckpointFormatError, match="partition of rank 1 is missing"):
        stockpot.open(folder)
    (tmp_path / "aside").rename(step / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    with pytest.raises(CheckpointFormatError, match="tensor-parallel"):
        stockpot.open(folder)


def test_names_of_one_storage_are_one_tensor_and_others_need_a_partition(tmp_path: Path) -> None:
    given = tensors(0)
    module: Tensors = {name: value.bfloat16() for name, value in given.items()}
    module["head"] = module["embed"]
    folder = saved(
        tmp_path / "run", given, stage=2, module=module, shared_params=None, buffer_names=[]
    )
    assert torch.equal(stockpot.open(folder).read("head"), given["embed"])
    module["other"] = torch.ones(2)
    folder = saved(
        tmp_path / "b", given, stage=2, module=module, shared_params=None, buffer_names=[]
    )
    assert torch.equal(stockpot.open(folder).read("other"), torch.ones(2))
    inside = {"deep": [torch.ones(2)]}
    damaged(folder / "global_step7" / MODEL, lambda s: s["module"].__setitem__("x", inside))
    with pytest.raises(CheckpointFormatError, match="'x' is no tensor, and holds some"):
        stockpot.open(folder)


def test_weights_that_no_optimiser_has_are_those_of_the_file(tmp_path: Path) -> None:
    """Before ZeRO 2, frozen ones are listed nowhere; after it, they are not in the file either."""
    given, frozen = tensors(0), torch.randn(3, 2).bfloat16()
    module = {**{n: t.bfloat16() for n, t in given.items()}, "frozen": frozen}
    folder = saved(tmp_path / "a", given, stage=1, module=module, shared_params={})
    checkpoint = stockpot.open(folder)
    assert torch.equal(checkpoint.read("frozen"), frozen)
    assert torch.equal(checkpoint.read("embed"), given["embed"])
    module = {n: torch.empty(0, dtype=torch.bfloat16) for n in module}
    folder = saved(tmp_path / "b", given, stage=3, module=module, shared_params={})
    with pytest.raises(CheckpointFormatError, match="'frozen' is in no partition"):
        stockpot.open(folder)


def test_files_of_training_in_bfloat16_name_no_stage(tmp_path: Path) -> None:
    given = tensors(0)
    folder = saved(tmp_path / "run", given, stage=1)
    for path in sorted((folder / "global_step7").glob("zero_pp_rank_*_optim_states.pt")):
        damaged(path, lambda state: state["optimizer_state_dict"].pop("zero_stage"))
        path.rename(path.with_name(f"bf16_{path.name}"))
    checkpoint = stockpot.open(folder)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in given.items())


def test_weights_of_training_without_zero_are_whole(tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        folder = saved(tmp_path / f"run{seed}", tensors(seed), stage=2)
        for path in (folder / "global_step7").glob("*_optim_states.pt"):
            path.unlink()
        paths.append(folder)
    stockpot.average([*paths[:2], paths[2] / "global_step7"]).save(tmp_path / "soup.safetensors")
    soup = stockpot.open(tmp_path / "soup.safetensors")
    for name, value in tensors(0).items():
        mean = torch.stack([tensors(i)[name].bfloat16().double() for i in range(3)]).mean(0)
        assert torch.equal(soup.read(name), mean.to(torch.bfloat16))
        assert soup[name].shape == value.shape
    first = paths[0] / "global_step7" / MODEL
    first.with_name("mp_rank_01_model_states.pt").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointFormatError, match="tensor-parallel"):
        stockpot.open(paths[0])


@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_what_is_no_tensor_is_left_out_with_a_note(stage: int | None, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", tensors(0), stage=stage or 2)
    expected = dict(stockpot.open(folder))
    others = {"_extra_state": {"step": 1}, "näme": "text", "nothing": None, "scaler": LossScaler()}
    for path in sorted((folder / "global_step7").glob("*_states.pt")):
        if path.name.endswith("_model_states.pt"):
            damaged(path, lambda state: state["module"].update(others))
        elif stage is None:
            path.unlink()
    checkpoint = stockpot.open(folder)
    assert checkpoint.keys() | {"head"} == expected.keys()
    shown = r"_extra_state, n\xe4me, nothing, scaler"
    assert checkpoint.notes[1:] == (f"left out, not tensors: {shown}",)
    if stage is None:
        damaged(folder / "global_step7" / MODEL, lambda state: state.update(module=others))
        with pytest.raises(CheckpointFormatError, match="names no parameters"):
            stockpot.open(folder)


def test_empty_placeholders_are_never_taken_for_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", tensors(0), stage=3)
    file = folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    with pytest.raises(CheckpointFormatError, match="placeholders"):
        stockpot.open(file)


def test_a_latest_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    saved(tmp_path / "other", tensors(1), stage=2)
    folder = saved(tmp_path / "run", tensors(0), stage=2)
    (folder / "latest").write_text("../other/global_step7")
    assert torch.equal(stockpot.open(folder).read("embed"), tensors(0)["embed"])
    (folder / "latest").write_text("\0" * 10)
    assert torch.equal(stockpot.open(folder).read("embed"), tensors(0)["embed"])
