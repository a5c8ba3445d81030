"""The benchmark of sparse training, in a few steps."""

from __future__ import annotations

from benchmarks import sparse


def test_steps_of_both_networks_are_timed_with_a_mask_and_without() -> None:
    found = sparse.main(["step", "--quick", "--rounds", "1"])
    assert [row["network"] for row in found["rows"]] == ["handwriting", "ResNet-20"]
    for row in found["rows"]:
        assert row["ratio"] > 0
        assert row["lowest"] <= row["ratio"] <= row["highest"]
        assert row["plain_ms"] > 0


def test_the_masks_are_as_sparse_as_is_said() -> None:
    for case in sparse.CASES:
        mask = sparse.mask_of(case)
        assert mask.n_zeros == round(sparse.SPARSITY * mask.n_weights)


def test_a_phase_is_timed_on_one_worker_and_on_two() -> None:
    arguments = ["workers", "--quick", "--epochs", "2", "--candidates", "2", "--rounds", "1"]
    (row,) = sparse.main(arguments)["rows"]
    assert row["whole"] == row["whole_1"] / row["whole_2"]
    assert all(row[f"work_{n}"] < row[f"whole_{n}"] for n in (1, 2))
