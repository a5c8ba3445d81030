"""Grouping tensors by model, layer and tensor."""

from __future__ import annotations

import pytest

from stockpot.errors import RecipeError
from stockpot.mixing.coefficients import group_names, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer1.0.conv1.weight", "layer1.0"),
        ("layer1.0.bn1.running_mean", "layer1.0"),
        ("visual.transformer.resblocks.11.mlp.c_fc.weight", "visual.transformer.resblocks.11"),
        ("bert.embeddings.word_embeddings.weight", "bert.embeddings"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings"),
        ("classifier.dense.weight", "classifier"),
        ("classifier.out_proj.bias", "classifier"),
        ("conv1.weight", "conv1"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_layer_is_the_block_or_the_module_that_a_person_would_name(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_one_group_for_the_whole_model() -> None:
    assert set(group_names(["a.w", "b.w"], "model").values()) == {"model"}


def test_every_tensor_alone() -> None:
    assert group_names(["a.w", "b.w"], "tensor") == {"a.w": "a.w", "b.w": "b.w"}


def test_tied_tensors_share_the_group_of_their_first_name() -> None:
    names = ["embed.tokens.weight", "head.weight"]
    groups = group_names(names, "layer", tied=[("embed.tokens.weight", "head.weight")])
    assert groups["head.weight"] == groups["embed.tokens.weight"] == "embed"


def test_the_first_matching_pattern_wins_and_the_rest_falls_back() -> None:
    groups = group_names(
        ["blocks.0.attn.w", "blocks.0.mlp.w", "head.w"],
        "layer",
        patterns={"*.attn.*": "attention", "blocks.*": "others"},
    )
    assert groups == {
        "blocks.0.attn.w": "attention",
        "blocks.0.mlp.w": "others",
        "head.w": "head",
    }


def test_a_pattern_that_matches_nothing_is_an_error_that_shows_real_names() -> None:
    with pytest.raises(RecipeError, match=r"'heads\.\*'.*'head\.w'"):
        group_names(["head.w"], "layer", patterns={"heads.*": "x"})


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(RecipeError, match="'block'"):
        group_names(["w"], "block")
