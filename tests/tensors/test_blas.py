"""Matrix products of one thread: the setting is the process's, and comes back."""

from __future__ import annotations

import pytest

from stockpot.tensors import blas


class Library:
    """Stands for OpenBLAS."""

    def __init__(self) -> None:
        self.threads = 5
        self.asked: list[int] = []

    def put(self, n: int) -> None:
        self.asked.append(n)
        self.threads = n


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    setting = blas._Setting(lambda: found.threads, found.put)
    monkeypatch.setattr(blas, "_setting", lambda: setting)
    return found


def test_the_last_block_that_ends_gives_the_threads_back(library: Library) -> None:
    first, second = blas.one_thread(), blas.one_thread()
    assert first.__enter__()
    assert second.__enter__()
    first.__exit__(None, None, None)
    assert library.threads == 1
    second.__exit__(None, None, None)
    assert library.asked == [1, 5]


def test_an_error_gives_them_back_too(library: Library) -> None:
    with pytest.raises(ZeroDivisionError), blas.one_thread():
        assert library.threads == 1
        _ = 1 / 0
    assert library.threads == 5


def test_another_library_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_setting", lambda: None)
    with blas.one_thread() as alone:
        assert not alone


def test_numpy_of_its_wheels_is_found() -> None:
    setting = blas._setting()
    if setting is None:
        pytest.skip("NumPy is no wheel with OpenBLAS")
    before = setting.get()
    setting.put(3)
    try:
        with blas.one_thread():
            assert setting.get() == 1
        assert setting.get() == 3
    finally:
        setting.put(before)
