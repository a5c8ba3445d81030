"""A mixture of adapters as the file of one adapter, in the layout that came in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stockpot._types import JSON, StrPath
from stockpot.errors import CheckpointError
from stockpot.formats.adapters.beside import Beside, held
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.layout import CONFIG
from stockpot.formats.adapters.sum import AdapterSum
from stockpot.formats.adapters.update import Raw, matrix_shape
from stockpot.formats.base import Checkpoint, agreed_metadata
from stockpot.formats.output import OutputRequest
from stockpot.formats.table import writes_folder
from stockpot.io.atomic import dump_json
from stockpot.tensors.rounding import narrow
from stockpot.tensors.spec import DType, TensorSpec

_WEIGHTS = "adapter_model"
_OF_ONE_FILE = ("lora_adapter_metadata", "ss_network_dim", "ss_network_alpha", "total_size")
"""Metadata that describe the ranks of one file, and not those of the mixture."""


@dataclass(frozen=True)
class _Made:
    """What a tensor of the file is: a factor of a weight, its α, or something of the model."""

    name: str
    kind: str


class AdapterFile(Checkpoint):
    """The tensors of the file: factors, and what takes the place of tensors of the base.

    Args:
        mixed: the mixture, with the form of its factors.

    Raises:
        CheckpointError: adapters of several layouts.
        RecipeError: no adapter of the base can hold it; see `AdapterSum.factors`.
    """

    format = "adapter"
    computed = True

    def __init__(self, mixed: AdapterSum) -> None:
        self.mixed = mixed
        styles = sorted({one.layout.style for one in mixed.adapters})
        if len(styles) > 1:
            raise CheckpointError(
                f"adapters of the layouts {' and '.join(styles)} have no common one: write the "
                "full model instead, merge=True (--merge)"
            )
        self.style = styles[0]
        self._made: dict[str, _Made] = {}
        specs: dict[str, TensorSpec] = {}
        if mixed.plain is None:
            for name in mixed.updated:
                mixed.require_adapter(name)
                specs.update(self._factor_specs(name))
            specs.update(self._other_specs())
        else:
            specs = dict(mixed.plain.source)
        adapters = [one.source for one in mixed.adapters]
        metadata = agreed_metadata(adapters)
        if mixed.plain is None:
            metadata = {k: v for k, v in metadata.items() if k not in _OF_ONE_FILE}
        super().__init__(mixed.path, specs, metadata=metadata)

    def _rank(self, name: str) -> int:
        """The rank of an update, known without computing it."""
        mixed = self.mixed
        assert mixed.form is not None
        rows, columns = matrix_shape(mixed[name])
        limit = mixed.form.rank
        used = [one.factors for one in mixed.updates_of(name)]
        if any(one.magnitude is not None for one in used):
            return min(limit or 0, rows, columns)
        total = sum(one.rank for one in used)
        return total if limit is None or total <= limit else min(limit, total, rows, columns)

    def _factor_specs(self, name: str) -> dict[str, TensorSpec]:
        one, rank = self.mixed.update_of(name), self._rank(name)
        up, down = one.source[one.factors.up], one.source[one.factors.down]
        dtype = self.mixed.stored_dtype(name)
        found = {
            one.factors.down: TensorSpec(one.factors.down, dtype, (rank, *down.shape[1:])),
            one.factors.up: TensorSpec(one.factors.up, dtype, (up.shape[0], rank, *up.shape[2:])),
        }
        self._made[one.factors.down] = _Made(name, "down")
        self._made[one.factors.up] = _Made(name, "up")
        if self.style == "kohya":
            alpha = f"{one.factors.module}.alpha"
            found[alpha] = TensorSpec(alpha, DType.F32, ())
            self._made[alpha] = _Made(name, "alpha")
        return found

    def _other_specs(self) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for adapter in self.mixed.adapters:
            for name, stored in adapter.whole.items():
                if name in self.mixed and not self._has(name):
                    found[stored] = replace(self.mixed[name], name=stored)
                    self._made[stored] = _Made(name, "whole")
        for name, positions in self.positions.items():
            stored = next(one.rows[name][0] for one in self.mixed.adapters if name in one.rows)
            spec = self.mixed[name]
            found[stored] = TensorSpec(stored, spec.dtype, (len(positions), *spec.shape[1:]))
            self._made[stored] = _Made(name, "rows")
        return found

    def _has(self, name: str) -> bool:
        return any(made.name == name for made in self._made.values())

    @cached_property
    def positions(self) -> dict[str, list[int]]:
        """Tables of which some rows are replaced → which, by any of the adapters."""
        found: dict[str, set[int]] = {}
        for adapter in self.mixed.adapters:
            for name, (_, positions) in adapter.rows.items():
                found.setdefault(name, set()).update(positions)
        return {name: sorted(positions) for name, positions in found.items()}

    def scattered(self, name: str) -> bool:
        """Whether it is made part by part, from factors that lie beside each other."""
        return self._beside(name) is not None

    def writes(self, name: str) -> bool:
        """Whether it is made part by part."""
        return self.scattered(name)

    def part(self, name: str, start: int, stop: int) -> Raw:
        """Bytes `start` to `stop` of tensor `name`, made now."""
        if not self.scattered(name):
            return self.raw(name)[start:stop]
        made: Raw = np.empty(stop - start, np.uint8)
        self.write_into(name, made, start)
        return made

    def write_into(self, name: str, out: Raw, start: int = 0) -> None:
        """Make bytes of tensor `name`, from `start` on, right into `out`.

        Raises:
            NonFiniteError: a factor holds NaN or infinity, or does not fit its type.
        """
        beside = self._beside(name)
        if beside is None:
            super().write_into(name, out, start)
        elif self._made[name].kind == "up":
            beside.up(out, start)
        else:
            beside.down(out, start)

    def _beside(self, name: str) -> Beside | None:
        made = self._made.get(name)
        if made is None or made.kind not in ("up", "down"):
            return None
        known = self._known
        if made.name not in known:
            known[made.name] = self.mixed.beside(made.name)
        return known[made.name]

    @cached_property
    def _known(self) -> dict[str, Beside | None]:
        # They are made now, and so are their files mapped, until nothing holds this any longer.
        self._held = held(one.source for one in self.mixed.adapters)
        return {}

    def raw(self, name: str) -> Raw:
        """The bytes of tensor `name`, made now."""
        spec = self[name]
        if self.mixed.plain is not None:
            return self.mixed.plain.source.raw(name)
        made = self._made[name]
        if made.kind in ("up", "down"):
            factors = self.mixed.factors(made.name)
            found = factors.up if made.kind == "up" else factors.down
            return np.ascontiguousarray(found).reshape(-1).view(np.uint8)
        if made.kind == "alpha":
            factors = self.mixed.factors(made.name)
            alpha = np.array([factors.scale * factors.down.shape[0]])
            return narrow(alpha, spec.dtype.value).view(np.uint8)
        if made.kind == "whole":
            return self.mixed.raw(made.name)
        width = spec.nbytes // max(1, spec.shape[0])
        rows = [self.mixed.part(made.name, at * width, (at + 1) * width)
                for at in self.positions[made.name]]  # fmt: skip
        return np.concatenate(rows)

    def config(self) -> dict[str, JSON]:
        """`adapter_config.json`: that of the first adapter, with the ranks and scales of this."""
        first = self.mixed.adapters[0]
        if self.mixed.plain is not None:
            return dict(first.layout.config)
        ranks = {
            self.mixed.update_of(n).factors.module: (self._rank(n), self.mixed.stored_scale(n))
            for n in self.mixed.updated
        }
        rank = max((r for r, _ in ranks.values()), default=1)
        alphas = {module: r * scale for module, (r, scale) in ranks.items()}
        given = [one.layout.config for one in self.mixed.adapters]
        return {
            **first.layout.config,
            **_targets(self.mixed.adapters, list(ranks)),
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": {m: r for m, (r, _) in ranks.items() if r != rank},
            "alpha_pattern": {m: _plain(a) for m, a in alphas.items() if a != rank},
            "use_rslora": False,
            "use_dora": False,
            "init_lora_weights": True,
            "bias": max((str(one.get("bias", "none")) for one in given), key=_BIASES.index),
            "modules_to_save": _union(given, "modules_to_save"),
            "trainable_token_indices": _token_indices(self.positions, self.mixed.adapters),
        }

    def request(self, request: OutputRequest) -> OutputRequest:
        """The output: one file, with the configuration where PEFT wants one."""
        first = self.mixed.adapters[0].source
        asked = replace(
            request,
            specs=dict(self),
            tied=(),
            metadata=self.metadata,
            like=first,
            inputs=(*self.mixed.adapters, *request.inputs),
        )
        if self.style != "peft":
            return replace(asked, stem="pytorch_lora_weights")
        config = dump_json(self.config())
        return replace(asked, stem=_WEIGHTS, rewritten={CONFIG: config}, max_shard_bytes=1 << 62)


_BIASES = ("none", "lora_only", "all")


def _plain(value: float) -> JSON:
    return int(value) if value == int(value) else value


def _union(configs: Sequence[Mapping[str, JSON]], key: str) -> JSON:
    names = {str(n) for one in configs for n in (one.get(key) or [])}  # type: ignore[union-attr]
    return sorted(names) or None  # type: ignore[return-value]


def _targets(adapters: Sequence[Adapter], modules: list[str]) -> dict[str, JSON]:
    """What says which modules are updated: as in all adapters, or by the whole names of all."""
    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    said = {
        json.dumps([_sorted(one.layout.config.get(k)) for k in keys], sort_keys=True)
        for one in adapters
    }
    if len(said) == 1 and all(len(one.updates) == len(modules) for one in adapters):
        return {}
    return {**dict.fromkeys(keys), "target_modules": sorted(modules)}  # type: ignore[dict-item]


def _sorted(value: JSON) -> JSON:
    return sorted(map(str, value)) if isinstance(value, list) else value  # type: ignore[return-value]


def _token_indices(positions: Mapping[str, list[int]], adapters: Sequence[Adapter]) -> JSON:
    if not positions:
        return None
    found: dict[str, JSON] = {}
    for name, rows in positions.items():
        stored = next(one.rows[name][0] for one in adapters if name in one.rows)
        module = stored.removeprefix("base_model.model.")
        found[module.removesuffix(".token_adapter.trainable_tokens_delta")] = list(rows)
    return found


def adapter_file(mixed: AdapterSum, path: StrPath) -> AdapterFile:
    """The adapter that an output at `path` holds.

    Raises:
        CheckpointError: the layout of the adapters has no such output.
    """
    found = AdapterFile(mixed)
    if found.style == "peft" and not writes_folder(path):
        raise CheckpointError(
            f"{os.fspath(path)}: an adapter of PEFT is a folder: give a name without a suffix; or "
            "write the full model, merge=True (--merge)"
        )
    return found
