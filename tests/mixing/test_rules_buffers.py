from __future__ import annotations

import numpy as np
import pytest

from stockpot.errors import MismatchError
from stockpot.formats.base import Checkpoint
from stockpot.mixing import BufferPolicy
from stockpot.mixing.rules.base import Buffers, TensorPlan
from stockpot.tensors.spec import DType, TensorSpec


def raw(values: list[int], dtype: str) -> np.ndarray:
    return np.array(values, dtype).view(np.uint8)


def spec(name: str, dtype: DType) -> TensorSpec:
    return TensorSpec(name, dtype, (2,))


COUNTER = spec("bn.num_batches_tracked", DType.I64)
IDS = spec("position_ids", DType.I64)


class Held(Checkpoint):
    """One tensor, given by its bytes."""

    def __init__(self, spec: TensorSpec, data: np.ndarray, path: str) -> None:
        super().__init__(path, {spec.name: spec})
        self.data = data

    def raw(self, name: str) -> np.ndarray:
        return self.data


def combined(spec: TensorSpec, blocks: list[np.ndarray], policy: BufferPolicy) -> np.ndarray:
    """What becomes of `blocks`, as bytes."""
    sources = tuple(Held(spec, block, f"model-{i}") for i, block in enumerate(blocks))
    plan = TensorPlan(spec, spec, Buffers(policy), sources, tuple(range(len(blocks))))
    out = np.empty_like(blocks[0])
    plan.make(blocks, out, None)
    return out


def test_num_batches_tracked_that_differ_become_the_largest() -> None:
    blocks = [raw([1, 700], "<i8"), raw([300, -5], "<i8")]
    assert combined(COUNTER, blocks, BufferPolicy()).view("<i8").tolist() == [300, 700]


@pytest.mark.parametrize(("differing", "expected"), [("first", [4, 1]), ("maximum", [4, 9])])
def test_a_policy_chooses_between_values_that_differ(differing: str, expected: list[int]) -> None:
    policy = BufferPolicy(differing=differing)  # type: ignore[arg-type]
    found = combined(IDS, [raw([4, 1], "<i8"), raw([2, 9], "<i8")], policy)
    assert found.view("<i8").tolist() == expected


def test_without_a_policy_the_first_that_differs_is_told() -> None:
    blocks = [raw([1, 1], "<i8"), raw([1, 1], "<i8"), raw([1, 2], "<i8")]
    with pytest.raises(MismatchError, match=r"model-2 holds other values of position_ids \(I64\)"):
        combined(IDS, blocks, BufferPolicy())


def test_bool_masks_are_copied_when_equal_and_have_no_maximum() -> None:
    mask = spec("attn.bias", DType.BOOL)
    assert combined(mask, [raw([1, 0], "u1")] * 2, BufferPolicy()).tolist() == [1, 0]
    other = [raw([1, 0], "u1"), raw([1, 1], "u1")]
    with pytest.raises(MismatchError, match="model-1"):
        combined(mask, other, BufferPolicy(differing="maximum"))


def test_a_counter_of_another_type_is_no_counter() -> None:
    quantised = spec("bn.num_batches_tracked", DType.F8_E4M3)
    with pytest.raises(MismatchError, match="model-1"):
        combined(quantised, [raw([1, 0], "u1"), raw([1, 1], "u1")], BufferPolicy())


def test_other_counters_can_be_named() -> None:
    policy = BufferPolicy(counters=("steps",))
    assert policy.takes_maximum(spec("ema.steps", DType.I32))
    assert not policy.takes_maximum(COUNTER)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'refuse'"):
        BufferPolicy(differing="mean")  # type: ignore[arg-type]


def test_the_remedy_depends_on_the_type() -> None:
    assert "dequantise" in BufferPolicy().remedy(spec("w", DType.F8_E5M2))
    assert "--buffers" in BufferPolicy().remedy(IDS)
