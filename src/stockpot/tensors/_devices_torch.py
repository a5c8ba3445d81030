"""What an accelerator can do, asked of torch's own interface: nothing assumes CUDA."""

from __future__ import annotations

import platform
from typing import Any

import torch


def accelerator_here() -> torch.device | None:
    """The accelerator of this machine (CUDA, XPU, MPS, …); None without one."""
    if hasattr(torch, "accelerator"):
        found: torch.device | None = torch.accelerator.current_accelerator()
        # It answers by the build; there may be no such device.
        return found if found is not None and torch.accelerator.is_available() else None
    # torch before 2.6
    asked = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}
    for name, module in asked.items():
        if module is not None and module.is_available():
            return torch.device(name)
    return None


def widest(device: torch.device) -> torch.dtype:
    """float64, and float32 on MPS, which has no wider type."""
    return torch.float32 if device.type == "mps" else torch.float64


def release_memory(device: torch.device) -> None:
    """Give the device back what torch keeps for later tensors; on the CPU it keeps nothing."""
    _call(device, "empty_cache")


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given; the CPU has by then."""
    _call(device, "synchronize")


def makes_up_bfloat16(device: torch.device) -> bool:
    """Whether it is a processor of x86 without AVX-512, which computes in bfloat16 step by step."""
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")


def device_name(device: torch.device) -> str:
    """As the maker calls it, or its type where torch does not know."""
    found = _call(device, "get_device_name")
    return device.type if found is None else str(found)


def random_states(device: torch.device | None) -> list[torch.Tensor]:
    """States of the generators of all accelerators of this type."""
    module: Any = None if device is None else getattr(torch, device.type, None)
    if hasattr(module, "get_rng_state_all"):
        found: list[torch.Tensor] = module.get_rng_state_all()
        return found
    return [module.get_rng_state()] if hasattr(module, "get_rng_state") else []


def set_random_states(device: torch.device | None, states: list[torch.Tensor]) -> None:
    """Put back what `random_states` gave."""
    module: Any = None if device is None or not states else getattr(torch, device.type, None)
    if hasattr(module, "set_rng_state_all"):
        module.set_rng_state_all(states)
    elif hasattr(module, "set_rng_state"):
        module.set_rng_state(states[0])


def _call(device: torch.device, name: str) -> Any:
    """Call a function of the module of this type of device (`torch.cuda`, `torch.mps`, …)."""
    if device.type == "cpu":
        return None
    function = getattr(getattr(torch, device.type, None), name, None)
    return None if function is None else function()
