"""What every test and doctest may rely on: own caches, one thread, and no network."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before numpy and torch are loaded: the suite runs many small models in several processes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

# What other systems lack, taken away before anything of ours is imported: tests/elsewhere.
if os.environ.get("STOCKPOT_TESTS_AS"):
    _elsewhere = str(Path(__file__).parent / "tests" / "elsewhere")
    sys.path.insert(0, _elsewhere)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [_elsewhere, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    import simulated

    if not hasattr(sys, "stockpot_simulates"):  # not yet by sitecustomize
        simulated.become(os.environ["STOCKPOT_TESTS_AS"])


collect_ignore = ["tests/elsewhere"]  # programs of tests, imported by the names above


def pytest_configure() -> None:
    """Let property tests take their time."""
    try:
        from hypothesis import settings
    except ModuleNotFoundError:  # a run without the development packages
        return
    # A shared machine stalls now and then; a deadline would then fail a correct test.
    settings.register_profile("stockpot", deadline=None, print_blob=True)
    settings.load_profile("stockpot")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Journals and fingerprints of the tests never mix with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("STOCKPOT_CACHE", str(cache / "stockpot"))
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


def _leaves_the_machine(address: Any) -> bool:
    if not isinstance(address, tuple):  # a Unix socket's path
        return False
    host = str(address[0])
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return True


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A test that tries to leave this machine fails, with the address in its message."""
    real = socket.socket.connect

    def guarded(self: socket.socket, address: Any, /) -> None:
        if self.family != socket.AF_UNIX and _leaves_the_machine(address):
            raise AssertionError(f"a test tried to connect to {address!r}")
        real(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return Path(__file__).parent
