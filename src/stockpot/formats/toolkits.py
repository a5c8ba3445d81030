"""What a toolkit's file holds beside the weights, kept when weights are written back into one.

fairseq, timm, Lightning, torchvision's references and others save a dictionary: the state dict
under `model` or `state_dict`, and beside it the configuration that their loaders ask for. Plain
values are kept, and objects of a few classes that hold nothing else. What belongs to one moment of
the training (optimiser, scheduler, random state) and every other tensor is left out: it is not that
of the new weights. So is everything of other classes, whose code a loader would run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stockpot.formats.pickle_values import Placeholder

TRAINING_STATE = frozenset({
    "optimizer", "optimizers", "optim", "opt", "optimizer_states", "optimizer_state_dict",
    "optimizer_state", "optim_state_dict", "last_optimizer_state", "optimizer_history",
    "scheduler", "schedulers", "lr_scheduler", "lr_schedulers", "scheduler_state_dict",
    "lr_scheduler_state_dict", "scaler", "grad_scaler", "amp", "amp_scaler", "callbacks", "loops",
    "rng_state", "rng_states", "random_state", "native_amp_scaling_state", "MixedPrecisionPlugin",
})  # fmt: skip
"""Names of what is of one moment of a training run."""

_HOLDERS = frozenset({
    "argparse.Namespace", "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
})  # fmt: skip
_MAX_DEPTH = 24
_MAX_VALUES = 200_000
_MAX_TEXT_BYTES = 32_000_000
"""A text that a pickle holds once and refers to many times is written out at every place."""
_MAX_PLACE = 200


@dataclass(frozen=True, slots=True)
class Weights:
    """Stands in `Surroundings.root` where the state dict goes, or a part of it.

    Attributes:
        prefix: of the names that go there, which they lose.
    """

    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of one of the classes that only hold values.

    Attributes:
        origin: module and name of its class, dotted.
        items: of a dictionary's subclass.
        state: its attributes.
    """

    origin: str
    items: Mapping[Any, Any]
    state: Mapping[Any, Any]


@dataclass(frozen=True)
class Surroundings:
    """A file's dictionary with a place for the weights.

    Attributes:
        root: plain values, `Instance`s, and `Weights` once.
        left_out: dotted places of what is not in it.
    """

    root: Any
    left_out: tuple[str, ...]


class _NotPlainError(Exception):
    """A value that is not kept."""


@dataclass
class _Copying:
    """Copies values under a budget; it has state because it counts them.

    Attributes:
        sections: where the weights go: the dictionaries by what stands before their names.
        left: values that may still be copied.
        text_left: bytes that the texts among them may still take.
    """

    sections: Mapping[str, object]
    left: int = _MAX_VALUES
    text_left: int = field(default_factory=lambda: _MAX_TEXT_BYTES)
    found: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)

    def value(self, value: object, place: str, depth: int) -> Any:
        for prefix, section in self.sections.items():
            if value is section and prefix not in self.found:
                self.found.add(prefix)
                return Weights(prefix)
        self.left -= 1
        if self.left < 0 or depth > _MAX_DEPTH:
            raise _NotPlainError
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and -(2**1000) < value < 2**1000:
            return value
        if isinstance(value, dict):
            return self.mapping(value, place, depth)
        if isinstance(value, list | tuple):
            copied = [self.value(item, f"{place}[]", depth + 1) for item in value]
            return tuple(copied) if isinstance(value, tuple) else copied
        if isinstance(value, Placeholder) and value.origin in _HOLDERS:
            return self.instance(value, place, depth)
        raise _NotPlainError

    def text(self, value: str) -> str:
        # Encoding it only to count would take as long as writing it.
        self.text_left -= len(value) * (1 if value.isascii() else 4)
        if self.text_left < 0:
            raise _NotPlainError
        return value

    def mapping(self, given: Mapping[Any, Any], place: str, depth: int) -> dict[Any, Any]:
        copied: dict[Any, Any] = {}
        n_left_out = len(self.left_out)
        for key, value in given.items():
            # A long key can stand in many dictionaries, and a stand-in for one can hold anything.
            shown = str(key)[:_MAX_PLACE] if _is_key(key) else "?"
            here = f"{place}.{shown}"[:_MAX_PLACE] if place else shown
            if key in TRAINING_STATE and not any(value is one for one in self.sections.values()):
                self.left_out.append(here)
                continue
            text_left = self.text_left
            try:
                if not _is_key(key):
                    raise _NotPlainError
                name = self.text(key) if isinstance(key, str) else key
                copied[name] = self.value(value, here, depth + 1)
            except _NotPlainError:
                self.left_out.append(here)
                self.text_left = text_left  # what is left out takes nothing
        if given and not copied and place:
            del self.left_out[n_left_out:]  # named once, as a whole
            raise _NotPlainError
        return copied

    def instance(self, value: Placeholder, place: str, depth: int) -> Instance:
        arguments, *rest = value.parts
        if arguments not in ((), []):
            raise _NotPlainError
        state = rest.pop() if len(rest) % 2 else {}
        items = {key: item for key, item in zip(rest[::2], rest[1::2], strict=True) if _is_key(key)}
        if not isinstance(state, dict):
            raise _NotPlainError
        return Instance(
            value.origin,
            self.mapping(items, place, depth + 1),
            self.mapping(state, place, depth + 1),
        )


def _is_key(key: object) -> bool:
    return isinstance(key, str | int | None)


def surroundings_of(root: object, sections: Mapping[str, Mapping[str, Any]]) -> Surroundings | None:
    """What lies around the weights within `root`; None where they are all there is.

    Also None where a section lies within what is not kept, so that it has no place.

    Args:
        root: the value of the file.
        sections: the dictionaries with the weights, by what stands before the names of each.
    """
    if not isinstance(root, dict) or any(root is section for section in sections.values()):
        return None
    copying = _Copying(sections)
    try:
        copied = copying.value(root, "", 0)
    except _NotPlainError:
        return None
    whole = copying.found == set(sections)
    return Surroundings(copied, tuple(copying.left_out)) if whole else None
