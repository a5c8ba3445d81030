"""Models whose tensors have other names in memory than in their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from stockpot.errors import TaskError


def file_names(model: Any) -> dict[str, str]:
    """Name in memory → name in files written by `save_pretrained`, for every tensor of `model`.

    transformers 5 renamed the layers of several architectures (ViT, Swin, RoBERTa) but goes on
    reading and writing the names that checkpoints have always had.

    Raises:
        TaskError: the architecture also merges or splits tensors on the way, so that a tensor in
            memory is none of the file.
    """
    state: Mapping[str, Any] = model.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ModuleNotFoundError:  # transformers 4 writes the names that it computes with
        return {name: name for name in state}
    marks = {name: torch.zeros_like(value) for name, value in state.items()}
    by_identity = {id(mark): name for name, mark in marks.items()}
    stored = revert_weight_conversion(model, dict(marks))
    names = {by_identity.get(id(value)): name for name, value in stored.items()}
    if None in names or len(names) != len(state):
        raise TaskError(
            f"{type(model).__name__} computes with other tensors than its files hold (transformers "
            "merges or splits them on loading): write a task in Python whose build() returns a "
            "model with the tensors that you average"
        )
    return {str(inside): outside for inside, outside in names.items()}


class _FileNames:
    """Mixed into the class of a model: its tensors go by their names in files."""

    _file_names: Mapping[str, str]

    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)  # type: ignore[misc]
        for name in [name for name in found if name in self._file_names]:
            found[self._file_names[name]] = found.pop(name)
        return found

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        inside = {outside: name for name, outside in self._file_names.items()}
        renamed = {inside.get(name, name): value for name, value in state.items()}
        return super().load_state_dict(renamed, *args, **options)  # type: ignore[misc]

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, value in super().named_parameters(*args, **options):  # type: ignore[misc]
            yield self._file_names.get(name, name), value


def with_file_names(model: nn.Module) -> nn.Module:
    """`model` itself, its state dict and parameters named as in files; unchanged where they are.

    The class of the instance is replaced by a subclass; layers, and what they compute, stay.
    """
    names = {inside: outside for inside, outside in file_names(model).items() if inside != outside}
    if names:
        cls = type(model)
        model.__class__ = type(cls.__name__, (_FileNames, cls), {"_file_names": names})
    return model
