"""Which dictionary of a torch file holds the model: found, chosen by key, or asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stockpot.errors import CheckpointFormatError, UnsafeCheckpointError
from stockpot.formats.pickle_values import Global, Placeholder, StorageRef, StoredTensor
from stockpot.formats.toolkits import TRAINING_STATE

_MODEL_NAMES = frozenset({
    "state_dict", "model", "model_state_dict", "model_state", "module", "net", "network",
    "net_state_dict", "weights", "params", "params_ema", "parameters", "ema", "ema_state_dict",
    "ema_model", "model_ema", "state_dict_ema", "state_dicts", "teacher", "student", "generator",
})  # fmt: skip
_OTHER_NAMES = TRAINING_STATE | {
    "hyper_parameters", "datamodule_hyper_parameters", "metrics", "logger", "args", "config", "cfg",
}  # fmt: skip
_OF_AVERAGES = re.compile(r"ema|swa|avg|averag|polyak|shadow", re.IGNORECASE)
_OF_OPTIMISER = re.compile(r"optim|sched|scaler", re.IGNORECASE)
_REBUILDS = "torch._utils._rebuild_"
_AND = "+"
"""Between the places of several dictionaries that are one model."""
_MAX_DEPTH = 6
_MAX_SECTIONS = 1000
_MAX_KEY = 200


def choose_section(
    root: object, path: str, key: str | None
) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    """The dictionary in `root` that holds the model's tensors, and its dotted place.

    Returns:
        the section, its place, and the places of others that hold weights and were not chosen.

    Raises:
        CheckpointFormatError: there is none, several could be meant, or `key` names none.
        UnsafeCheckpointError: what is there can only be had by running code.
    """
    found = dict(sections(root))
    if key is not None and _AND in key and key not in found:
        parts = {part: _at_key(root, part, path, found) for part in key.split(_AND)}
        if len({prefix_of(part) for part in parts}) < len(parts):
            raise CheckpointFormatError(
                f"{path}: the names of several parts of key {key[:200]!r} would begin alike; "
                "choose parts that are called differently"
            )
        return Parts(parts), key, ()
    if key is not None:
        return _at_key(root, key, path, found), key, ()
    if not found:
        raise _nothing(root, path)
    candidates = {place for place in found if place == "" or not _is_other(place)}
    named = {place for place in candidates if place.rpartition(".")[2] in _MODEL_NAMES}
    # A tensor at the top beside a named section is a random state or a counter.
    meant = named or ({""} & candidates) or candidates
    if len(meant) > 1 and _are_parts(meant, found):
        return (
            Parts({place: found[place] for place in found if place in meant}),
            _AND.join(place for place in found if place in meant),
            (),
        )
    if len(meant) == 1:
        (place,) = meant
        others = (p for p in candidates - {place} if p and len(found[p]) * 2 > len(found[place]))
        return found[place], place, tuple(sorted(others))
    choices = sorted(meant or found)
    raise CheckpointFormatError(
        f"{path} holds tensors in {len(choices)} sections: "
        f"{', '.join(repr(place) for place in choices[:10])}{', ...' if choices[10:] else ''}; "
        f"choose one with key={choices[-1]!r} (--key {choices[-1]})"
    )


class Parts(dict[str, Any]):
    """Several dictionaries of one model as one: `encoder.weight` is `weight` of `encoder`.

    Attributes:
        parts: the dictionaries by their places, as they stand in the file.
    """

    def __init__(self, parts: Mapping[str, Mapping[Any, Any]]) -> None:
        self.parts = parts
        super().__init__(
            {
                f"{prefix_of(place)}{name}": value
                for place, part in parts.items()
                for name, value in part.items()
                if isinstance(name, str)
            }
        )


def prefix_of(place: str) -> str:
    """What stands before the names of a part.

    >>> prefix_of("state_dicts.encoder")
    'encoder.'
    """
    return f"{place.rpartition('.')[2]}."


def _are_parts(places: Iterable[str], found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether dictionaries side by side are parts of one model (encoder and decoder).

    They are not where one may be another's average, or where most of their tensors agree in name
    and shape, as those of a teacher and a student do.
    """
    listed = [*places]
    beside = len({place.rpartition(".")[0] for place in listed}) == 1
    if not beside or any(not place or _OF_AVERAGES.search(place) for place in listed):
        return False
    shapes = [
        {(n, v.shape) for n, v in found[place].items() if isinstance(v, StoredTensor)}
        for place in listed
    ]
    return all(
        2 * len(one & other) < min(len(one), len(other)) or min(len(one), len(other)) == 0
        for i, one in enumerate(shapes)
        for other in shapes[i + 1 :]
    )


def note_of_others(place: str, others: tuple[str, ...]) -> str:
    """One sentence about the sections that were not chosen; the averaged ones are pointed out.

    >>> print(note_of_others("model", ("model_ema",)))
    section 'model' is read; 'model_ema', an average by its name, is not: --key model_ema
    """
    averages = [other for other in others if _OF_AVERAGES.search(other)]
    named = ", ".join(repr(other[:200]) for other in (averages or others)[:5])
    what = f"{named}, an average by its name, is" if averages else f"{named} is"
    return f"section {place!r} is read; {what} not: --key {(averages or others)[0][:200]}"


def _is_other(place: str) -> bool:
    return any(part in _OTHER_NAMES or _OF_OPTIMISER.search(part) for part in place.split("."))


def sections(root: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dictionary under `root` with a tensor directly in it, breadth first, each once."""
    level: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    n_found = 0
    for _ in range(_MAX_DEPTH):
        below: list[tuple[str, object]] = []
        for place, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, dict) and any(isinstance(v, StoredTensor) for v in value.values()):
                n_found += 1
                yield place, value
            if n_found >= _MAX_SECTIONS:
                return
            below.extend((_join(place, k), v) for k, v in _children(value))
        level = below


def _children(value: object) -> Iterator[tuple[str, object]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, child in items:
        if not isinstance(child, dict | list | tuple):
            continue
        # No name of a section is long, and long ones would be copied for every child.
        if isinstance(key, int) or (isinstance(key, str) and len(key) <= _MAX_KEY):
            yield str(key), child


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _at_key(
    root: object, key: str, path: str, found: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    value = found.get(key)
    if value is None:
        value = _walk(root, key)
    if isinstance(value, dict) and any(isinstance(v, StoredTensor) for v in value.values()):
        return value
    choices = ", ".join(repr(place) for place in sorted(found)[:10]) or "none"
    raise CheckpointFormatError(
        f"{path} has no tensors at key {key!r}; sections that hold tensors: {choices}"
    )


def _walk(root: object, key: str) -> Any:
    """What lies at the dotted `key`; keys that hold dots themselves are matched whole."""
    value = root
    while key:
        if not isinstance(value, dict):
            return None
        if key in value:
            return value[key]
        head = next(
            (k for k in value if isinstance(k, str) and k and key.startswith(k + ".")), None
        )
        if head is None:
            return None
        value, key = value[head], key[len(head) + 1 :]
    return value


def _nothing(root: object, path: str) -> CheckpointFormatError | UnsafeCheckpointError:
    if isinstance(root, Placeholder):
        return UnsafeCheckpointError(
            f"{path} holds one object of class {root.origin}, which is not loaded: that would run "
            "its code. Save its state_dict() instead: torch.save(model.state_dict(), path)"
        )
    if _tensors_inside(root, set()):
        return UnsafeCheckpointError(
            f"{path} holds tensors only inside objects that are not loaded: that would run their "
            "code. Save a state_dict() instead: torch.save(model.state_dict(), path)"
        )
    return CheckpointFormatError(f"{path} holds no dictionary of names to tensors")


def split_section(
    section: Mapping[Any, Any], path: str
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of a section, and the names of its other entries.

    Raises:
        CheckpointFormatError: an entry is a tensor whose values are not in the file, or one under
            a key that is no text.
        UnsafeCheckpointError: an entry is a tensor of a class that is not loaded.
    """
    _refuse_keys_that_are_no_text(section, path)
    tensors: dict[str, StoredTensor] = {}
    others: list[str] = []
    seen: set[int] = set()
    for name, value in section.items():
        if isinstance(value, StoredTensor) and isinstance(name, str):
            tensors[name] = value
        elif isinstance(value, Placeholder) and _tensors_inside(value, seen):
            raise UnsafeCheckpointError(
                f"{path}: tensor {str(name)[:200]!r} is a {value.origin}, which is not loaded: "
                "that would run its code. Convert it to a plain tensor before saving"
            )
        elif isinstance(value, Placeholder) and _is_rebuilt(value):
            raise CheckpointFormatError(
                f"{path}: tensor {str(name)[:200]!r} has no values in the file (made by "
                f"{value.origin[:200]}; on the meta device?): load them before saving, or leave "
                "the tensor out"
            )
        else:
            others.append(str(name)[:200] if isinstance(name, str) else "?")
    return tensors, tuple(others)


def _refuse_keys_that_are_no_text(section: Mapping[Any, Any], path: str) -> None:
    parts = section.parts.values() if isinstance(section, Parts) else [section]
    seen: set[int] = set()
    for name, value in (item for part in parts for item in part.items()):
        if isinstance(name, str):
            continue
        if isinstance(value, StoredTensor) or (
            isinstance(value, Placeholder) and (_is_rebuilt(value) or _tensors_inside(value, seen))
        ):
            # The stand-in for an unusual key can hold anything, of any length.
            key = f"key {name}" if isinstance(name, int | None) else "a tuple or another object"
            raise CheckpointFormatError(
                f"{path}: a tensor lies under {key}, expected names that are text: save it as "
                "str(key)"
            )


def _is_rebuilt(value: Placeholder) -> bool:
    """Whether it stands for a tensor, by the function that torch would make it with."""
    functions = [str(part) for part in value.parts if isinstance(part, Global)]
    return any(name.startswith(_REBUILDS) for name in (value.origin, *functions))


def _tensors_inside(root: object, seen: set[int]) -> bool:
    """Whether a tensor or storage lies anywhere under `root`, what was `seen` before left out."""
    pending: list[object] = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, StoredTensor | StorageRef):
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Placeholder):
            if value.origin.startswith("torch.Tensor "):
                return True
            pending.extend(value.parts)
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
    return False
