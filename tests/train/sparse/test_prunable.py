"""Which weights are prunable, and the groups that structured pruning finds."""

from __future__ import annotations

import pytest
from torch import nn

from stockpot import RecipeError
from stockpot.train.sparse.prunable import Groups, Part, find_groups, prunable_names


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 8), nn.LayerNorm(8),
        nn.Linear(8, 3),
    )  # fmt: skip


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.again.weight = self.body.weight


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = 2
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self = Attention()
        self.output = nn.ModuleDict({"dense": nn.Linear(8, 8)})
        self.classifier = nn.Linear(8, 3)


def test_convolutions_and_linear_layers_are_prunable_head_included_norms_and_biases_not() -> None:
    assert prunable_names(network()) == ("0.weight", "3.weight", "5.weight")


def test_patterns_add_and_take_away_and_exclusion_wins() -> None:
    assert prunable_names(network(), exclude=["5.*"]) == ("0.weight", "3.weight")
    assert prunable_names(network(), include=["4.weight"], exclude=["0.*", "3.*"]) == (
        "4.weight",
        "5.weight",
    )


def test_patterns_that_name_nothing_are_all_listed() -> None:
    with pytest.raises(RecipeError, match=r"include pattern 'x'; exclude pattern 'head\.\*'"):
        prunable_names(network(), include=["x"], exclude=["head.*"])


def test_nothing_left_to_prune_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no weight is left"):
        prunable_names(network(), exclude=["*"])


def test_what_an_embedding_shares_stays_dense_and_shared_layers_count_once() -> None:
    assert prunable_names(Tied()) == ("body.weight",)


def test_torchs_own_attention_is_prunable() -> None:
    names = prunable_names(nn.MultiheadAttention(8, 2))
    assert names == ("in_proj_weight", "out_proj.weight")


def test_groups_are_filters_and_neurons_and_never_the_rows_of_the_head() -> None:
    model = network()
    assert find_groups(model, prunable_names(model)) == (
        Groups(4, (Part("0.weight", 0),)),
        Groups(8, (Part("3.weight", 0),)),
    )


def test_attention_heads_are_rows_of_query_key_value_and_columns_of_what_reads_them() -> None:
    model = Block()
    (heads,) = find_groups(model, prunable_names(model))
    assert heads == Groups(
        2,
        (
            Part("self.query.weight", 0, 0, 4),
            Part("self.key.weight", 0, 0, 4),
            Part("self.value.weight", 0, 0, 4),
            Part("output.dense.weight", 1, 0, 4),
        ),
    )


def test_heads_of_a_fused_projection_have_a_slice_in_each_third() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 3))
    heads, *_ = find_groups(model, prunable_names(model))
    assert heads.parts == (
        Part("0.in_proj_weight", 0, 0, 4),
        Part("0.in_proj_weight", 0, 8, 4),
        Part("0.in_proj_weight", 0, 16, 4),
        Part("0.out_proj.weight", 1, 0, 4),
    )


def test_heads_of_attention_that_is_not_square_share_its_rows_and_not_its_inputs() -> None:
    model = Block()
    model.self.query, model.self.key, model.self.value = (nn.Linear(6, 8) for _ in range(3))
    model.output = nn.ModuleDict({"dense": nn.Linear(8, 6)})
    (heads,) = find_groups(model, prunable_names(model))
    assert heads == Groups(
        2,
        (
            Part("self.query.weight", 0, 0, 4),
            Part("self.key.weight", 0, 0, 4),
            Part("self.value.weight", 0, 0, 4),
            Part("output.dense.weight", 1, 0, 4),
        ),
    )


@pytest.mark.parametrize("n_rows", [4, 3])
def test_keys_that_heads_share_leave_no_heads_but_rows(n_rows: int) -> None:
    """Of 4 heads over fewer keys; rows of the keys may or may not divide by the heads."""
    model = Block()
    model.self.num_attention_heads = 4
    model.self.key, model.self.value = nn.Linear(8, n_rows), nn.Linear(8, n_rows)
    assert find_groups(model, prunable_names(model)) == (
        Groups(8, (Part("self.query.weight", 0),)),
        Groups(n_rows, (Part("self.key.weight", 0),)),
        Groups(n_rows, (Part("self.value.weight", 0),)),
        Groups(8, (Part("output.dense.weight", 0),)),
    )


def test_filters_of_transposed_convolutions_lie_along_the_second_dimension() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.Flatten(), nn.Linear(6, 2))
    assert find_groups(model, prunable_names(model)) == (Groups(6, (Part("0.weight", 1),)),)
