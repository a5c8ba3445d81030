"""Merge configurations in YAML, as mergekit reads them: models or slices, and their parameters.

Only what the format means stands here; `recipes/merge.py` says what the methods do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stockpot._records import parse
from stockpot._types import StrPath
from stockpot.errors import RecipeError
from stockpot.io.yaml_files import YamlError, read_yaml

Settings = Mapping[str, Any]
"""Parameter → a value, a list of values along the layers, or a list of {filter, value}."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One model of a slice.

    Attributes:
        model: a path, or a name elsewhere such as `hf:org/name`.
        layer_range: its first layer, and the one after its last; None for all.
        parameters: of this model.
    """

    model: str
    layer_range: tuple[int, int] | None = None
    parameters: Settings | None = None


@dataclass(frozen=True, kw_only=True)
class SliceConfig:
    """Consecutive layers of the output, and the models that they are made of."""

    sources: list[SourceConfig]
    parameters: Settings | None = None


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """A merge: exactly one of `models` and `slices`.

    Attributes:
        merge_method: its name.
        models: of which all layers are merged.
        slices: what each run of layers is made of.
        base_model: what task vectors start from.
        parameters: of the whole merge.
        dtype: in which mergekit computes; here the type of the output, if `out_dtype` is not given.
        out_dtype: type of the output.
        tokenizer_source: `"base"` or nothing: the vocabulary stays as it is.
    """

    merge_method: str
    models: list[SourceConfig] = field(default_factory=list)
    slices: list[SliceConfig] = field(default_factory=list)
    base_model: str | None = None
    parameters: Settings | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None

    def __post_init__(self) -> None:
        if bool(self.models) == bool(self.slices):
            raise ValueError("expected either models or slices")
        if self.tokenizer_source not in (None, "base"):
            raise ValueError(
                f"tokenizer_source is {self.tokenizer_source!r}: vocabularies are not merged here; "
                "expected models of one vocabulary, and base or nothing"
            )
        for one in self.slices:
            lengths = {_length(source) for source in one.sources}
            if len(lengths) != 1:
                raise ValueError("the sources of a slice have different numbers of layers")

    @classmethod
    def read(cls, path: StrPath) -> MergeConfig:
        """The configuration in a YAML file.

        Raises:
            RecipeError: it is none, or holds what is not supported; names the place.
        """
        try:
            data = read_yaml(path)
        except YamlError as error:
            line = f", line {error.line}" if error.line else ""
            raise RecipeError(f"{path}{line}: {error}") from error
        return cls.from_json(data, name=str(path))

    @classmethod
    def from_json(cls, data: Any, *, name: str = "the configuration") -> MergeConfig:
        """The configuration of plain values.

        Raises:
            RecipeError: see `read`.
        """
        if not isinstance(data, dict):
            raise RecipeError(f"{name} holds no merge: expected merge_method, and models or slices")
        known = {item.name for item in fields(cls)}
        other = [key for key, value in data.items() if key not in known and value is not None]
        if other:
            raise RecipeError(
                f"{name}: {', '.join(map(str, other))} cannot be done here; expected "
                f"{', '.join(sorted(known))}"
            )
        given = {key: value for key, value in data.items() if value is not None}
        try:
            return parse(cls, given, error=RecipeError)
        except RecipeError as error:
            raise RecipeError(f"{name}: {error}") from None

    def model_path(self, name: str, folder: StrPath) -> str:
        """Where the model `name` lies: as it is, or beside the configuration.

        Raises:
            RecipeError: it names an adapter, or nothing that there is.
        """
        if re.match(r"[a-z0-9]{2,}:", name):
            return name
        beside = Path(folder) / name
        found = next((str(path) for path in (Path(name), beside) if path.exists()), None)
        if found is None:
            raise RecipeError(
                f"there is no model {name!r}; expected a path, or hf:{name} for the hub (adapters "
                "after a + are merged into their model first)"
            )
        return found


@dataclass(frozen=True)
class Place:
    """One tensor of the output: its name, how far along the slice it lies, and who makes it.

    Attributes:
        name: of the tensor.
        along: 0 at the first layer of the slice, 1 at the last; 0 outside of layers.
        sources: the models of its slice.
        names: of the tensor in each of them.
        scopes: settings of the slice and of the whole, the nearest first.
    """

    name: str
    along: float
    sources: Sequence[SourceConfig]
    names: Sequence[str]
    scopes: Sequence[Settings | None]

    def shared(self, parameter: str, default: Any) -> Any:
        """A parameter of the tensor."""
        return _first(self.scopes, parameter, self.name, self.along, default)

    def own(self, i: int, parameter: str, default: Any) -> Any:
        """A parameter of source `i`.

        Raises:
            RecipeError: it is nowhere given, and `default` is `REQUIRED`.
        """
        scopes = [self.sources[i].parameters, *self.scopes]
        found = _first(scopes, parameter, self.names[i], self.along, default)
        if found is REQUIRED:
            raise RecipeError(
                f"{self.sources[i].model} has no {parameter} for {self.name}; expected "
                f"parameters: {{{parameter}: …}} beside the model, or for all"
            )
        return found


REQUIRED = object()
"""The default of a parameter that has none."""

_LAYER = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")


def layer_number(name: str) -> int | None:
    """The layer that tensor `name` lies in: the first number of its path.

    >>> layer_number("model.layers.11.mlp.up.weight"), layer_number("model.norm.weight")
    (11, None)
    """
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def in_layer(name: str, number: int) -> str:
    """The name of the same tensor in another layer."""
    return _LAYER.sub(str(number), name, count=1)


def layout(config: MergeConfig, names: Sequence[str]) -> tuple[list[Place], tuple[int, ...] | None]:
    """Every tensor of the output, and the layer that the first source gives to each layer.

    Tensors before the layers belong to the first slice and those after them to the last.

    Args:
        config: the merge.
        names: tensors of a model, all of one architecture.
    """
    n_layers = 1 + max((n for name in names if (n := layer_number(name)) is not None), default=-1)
    slices = config.slices or [SliceConfig(sources=config.models)]
    outside = [name for name in names if layer_number(name) is None]
    last = [name for name in outside if not re.search(r"emb|wte|wpe|shared", name)]
    places = [_outside(config, slices[0], n) for n in outside if n not in last]
    order: list[int] = []
    for one in slices:
        first = [0 if s.layer_range is None else s.layer_range[0] for s in one.sources]
        length = _length(one.sources[0])
        n = n_layers if length is None else length
        if any(start + n > n_layers for start in first):
            raise RecipeError(f"a slice asks for layers beyond the {n_layers} that there are")
        for i in range(n):
            inside = [name for name in names if layer_number(name) == first[0] + i]
            places += [
                Place(
                    in_layer(name, len(order)),
                    i / (n - 1) if n > 1 else 1.0,
                    one.sources,
                    [in_layer(name, start + i) for start in first],
                    [one.parameters, config.parameters],
                )
                for name in inside
            ]
            order.append(first[0] + i)
    places += [_outside(config, slices[-1], name) for name in last]
    return places, tuple(order) if config.slices else None


def _outside(config: MergeConfig, one: SliceConfig, name: str) -> Place:
    same = [name] * len(one.sources)
    return Place(name, 0.0, one.sources, same, [one.parameters, config.parameters])


def _length(source: SourceConfig) -> int | None:
    return None if source.layer_range is None else source.layer_range[1] - source.layer_range[0]


def _first(
    scopes: Iterable[Settings | None], parameter: str, name: str, along: float, default: Any
) -> Any:
    for scope in scopes:
        if scope is not None and parameter in scope:
            found = evaluate(scope[parameter], name, along)
            if found is not None:
                return found
    return default


def evaluate(setting: Any, name: str, along: float) -> Any:
    """The value of a setting for a tensor; None where no filter lets it through.

    A filter is a part of the tensor's name; the first that fits counts, and one of `*` or without a
    filter fits all. Numbers in a list are spread evenly along the layers and interpolated between.

    >>> evaluate([0, 1, 0.5], "w", 0.75), evaluate([{"filter": "mlp", "value": 2}, {"value": 1}],
    ...          "a.mlp.w", 0)
    (0.75, 2)

    Raises:
        RecipeError: it is no setting.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if isinstance(setting, str | int | float):
        return setting
    if not isinstance(setting, list) or not setting:
        raise RecipeError(f"{setting!r:.60} is no setting: expected a value or a list")
    if all(isinstance(one, dict) for one in setting):
        for one in setting:
            if one.get("filter") in (None, "*") or str(one["filter"]) in name:
                return evaluate(one.get("value"), name, along)
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in setting):
        raise RecipeError(f"{setting!r:.60} is no gradient: expected numbers alone")
    at = along * (len(setting) - 1)
    low = int(at)
    high = min(low + 1, len(setting) - 1)
    return (1 - (at - low)) * setting[low] + (at - low) * setting[high]
