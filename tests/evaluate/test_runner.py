from __future__ import annotations

import pytest
import torch

from stockpot.evaluate.runner import is_out_of_memory, to_device


def test_to_device_keeps_structure():
    moved = to_device({"a": [torch.ones(1), "text"], "b": (torch.zeros(1),)}, "cpu")
    assert moved["a"][1] == "text"
    assert isinstance(moved["b"], tuple)


def test_memory_that_is_not_there_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
