"""Nothing assumes CUDA: other accelerators go by torch's own names for what they can do."""

from __future__ import annotations

import types

import pytest
import torch

from stockpot.evaluate.runner import resolve_device
from stockpot.tensors import _devices_torch as devices

MPS = torch.device("mps")


class Module(types.SimpleNamespace):
    """Stands for `torch.mps`, `torch.xpu`: remembers what was called."""

    def __init__(self, **functions: object) -> None:
        super().__init__(called=[], **functions)

    def empty_cache(self) -> None:
        self.called.append("empty_cache")

    def synchronize(self) -> None:
        self.called.append("synchronize")


def test_only_mps_has_no_float64() -> None:
    types_of = {name: devices.widest(torch.device(name)) for name in ("cpu", "cuda", "xpu", "mps")}
    assert types_of.pop("mps") is torch.float32
    assert set(types_of.values()) == {torch.float64}


def test_each_accelerator_is_asked_through_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module(get_rng_state=lambda: torch.tensor([7]), set_rng_state=lambda state: None)
    monkeypatch.setattr(torch, "mps", module)
    devices.release_memory(MPS)
    devices.wait_for(MPS)
    devices.release_memory(torch.device("cpu"))
    assert module.called == ["empty_cache", "synchronize"]
    assert devices.device_name(MPS) == "mps"
    assert devices.random_states(MPS)[0].item() == 7
    devices.set_random_states(MPS, devices.random_states(MPS))


def test_states_of_all_devices_of_a_type_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[object] = []
    module = Module(get_rng_state_all=lambda: [1, 2], set_rng_state_all=put.extend)
    monkeypatch.setattr(torch, "xpu", module, raising=False)
    xpu = torch.device("xpu")
    devices.set_random_states(xpu, devices.random_states(xpu))
    assert put == [1, 2]
    assert devices.random_states(None) == []


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_here", lambda: None)
    assert resolve_device("auto") == torch.device("cpu")


def test_auto_takes_what_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    here = types.SimpleNamespace(current_accelerator=lambda: MPS, is_available=lambda: True)
    monkeypatch.setattr(torch, "accelerator", here, raising=False)
    assert resolve_device("auto") == MPS
    here.is_available = lambda: False  # a build for it on a machine without it
    assert resolve_device("auto") == torch.device("cpu")


def test_auto_asks_each_type_before_torch_2_6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "accelerator", raising=False)
    available = types.SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(torch, "cuda", types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(torch, "xpu", available, raising=False)
    assert resolve_device("auto") == torch.device("xpu")


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [("x86_64", "AVX2", True), ("AMD64", "AVX512", False), ("arm64", "DEFAULT", False)],
)
def test_bfloat16_is_made_up_by_processors_of_x86_without_avx512(
    machine: str, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert devices.makes_up_bfloat16(torch.device("cpu")) is slow
    assert not devices.makes_up_bfloat16(MPS)
