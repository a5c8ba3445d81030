"""Ingredients and coefficients: all that there is to know of a soup's weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import numpy.typing as npt
import xxhash

from stockpot._types import JSON, StrPath, no_progress
from stockpot.errors import MismatchError, Problem, RecipeError
from stockpot.formats.adapters.checkpoint import Adapter
from stockpot.formats.adapters.output import AdapterFile, adapter_file
from stockpot.formats.base import Checkpoint, agreed_metadata
from stockpot.formats.memory import from_state_dict
from stockpot.formats.output import OutputRequest
from stockpot.formats.placement import plan_output
from stockpot.io.objects import is_remote
from stockpot.mixing.coefficients import Coefficients
from stockpot.mixing.engine import (
    MixPlan,
    PlanOptions,
    Recording,
    Saved,
    SaveOptions,
    plan_tensors,
    save_tensors,
)
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.low_rank import adapter_sum
from stockpot.mixing.mask import Mask, NonzeroMask
from stockpot.mixing.nodes import Ending, Node, save_part
from stockpot.mixing.rules.base import (
    BufferPolicy,
    Buffers,
    Copy,
    Elementwise,
    Linear,
    Rule,
    TensorPlan,
    item_bytes,
)
from stockpot.mixing.rules.task_vectors import TaskVectorRule
from stockpot.tensors.blas import one_thread
from stockpot.tensors.spec import DType, TensorSpec, parse_dtype

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch


class Mixture(Checkpoint):
    """A checkpoint that is computed from others: Σ cᵢ·θᵢ for every tensor, rounded once.

    Nothing is read when it is made. `read` and `raw` compute one tensor; `save` computes all of
    them block by block in bounded memory. As a checkpoint it can itself be an ingredient, and can
    be loaded into a model wherever a file can.

    Args:
        ingredients: the aligned checkpoints.
        coefficients: how much of each; default uniform.
        rule: how averaged tensors are made of those of the ingredients; default: linearly.
        buffers: what becomes of tensors that are not averaged; default: as the ingredients were
            reconciled.
        mask: positions that are set to zero after rounding.
        overrides: tensors that take the place of computed ones, such as recalibrated BatchNorm
            statistics. They belong to the content: they are hashed and stored.
        dtype: type of all floating tensors of the output; default: that for which the ingredients
            were reconciled, else as in the ingredients.

    Attributes:
        adapters: the same sum from the factors of adapters, where all that take part are adapters
            of one base, or the base; else None.

    Raises:
        RecipeError: coefficients for another number of ingredients, or not for every tensor.
        MismatchError: overrides, or coefficients of elements, that do not fit; all are listed.
    """

    format = "mixture"
    computed = True

    def __init__(
        self,
        ingredients: Ingredients,
        coefficients: Coefficients | None = None,
        *,
        rule: Rule | None = None,
        buffers: BufferPolicy | None = None,
        mask: Mask | NonzeroMask | None = None,
        overrides: Mapping[str, Any] | Checkpoint | None = None,
        dtype: DType | str | None = None,
    ) -> None:
        self.ingredients = ingredients
        self.coefficients = (
            Coefficients.uniform(len(ingredients)) if coefficients is None else coefficients
        )
        if rule is None:
            rule = Elementwise() if self.coefficients.elements else Linear()
        self.rule = rule
        self.buffers = _policy(ingredients) if buffers is None else buffers
        self.mask = mask
        if overrides and not isinstance(overrides, Checkpoint):
            overrides = from_state_dict(overrides, path="<overrides>")
        self.overrides = overrides if isinstance(overrides, Checkpoint) else None
        self.dtype = parse_dtype(dtype) if isinstance(dtype, str) else dtype
        if self.dtype is None:
            self.dtype = ingredients.reconcile.output_dtype
        self.adapters = adapter_sum(ingredients, self.coefficients, self.rule, self.dtype)
        specs = {name: self._output_spec(spec) for name, spec in ingredients.specs.items()}
        if self.adapters is not None:
            self.adapters = self.adapters.with_specs(specs)
        super().__init__(
            "<mixture>", specs, metadata=agreed_metadata(ingredients), tied=ingredients.tied
        )
        self._validate()

    def _output_spec(self, spec: TensorSpec) -> TensorSpec:
        if self.dtype is None or not spec.dtype.mixable:
            return spec
        if self.adapters is not None and self.adapters.form is not None:
            return spec  # the type is that of the factors, and the base keeps its own
        if not self.dtype.mixable:
            raise RecipeError(
                f"weights cannot be written as {self.dtype.value}: expected bf16, f16, f32 or f64"
            )
        return TensorSpec(spec.name, self.dtype, spec.shape)

    def _validate(self) -> None:
        if self.ingredients.base is None:
            if self.rule.uses_base:
                raise RecipeError(
                    f"the mixing rule {self.rule.name} mixes what fine-tuning changed and needs "
                    "the base: give base=… (--base)"
                )
            if self.buffers.differing == "base":
                raise RecipeError("buffers of the base need a base: give base=… (--base)")
        self._refuse_low_rank()
        found = self.coefficients.n_ingredients
        if found != len(self.ingredients):
            raise RecipeError(
                f"{found} coefficients for {len(self.ingredients)} ingredients; expected one each"
            )
        problems = []
        for element in self.coefficients.elements:
            problems += _misfits(element, {n: self[n] for n in self._mixed_names()}, complete=True)
        if self.overrides is not None:
            problems += _misfits(self.overrides, self, complete=False)
        if problems:
            lines = [
                f"  {p.ingredient}: {p.tensor} {p.found}, expected {p.expected}" for p in problems
            ]
            raise MismatchError(
                "\n".join(["these tensors do not fit the mixture:", *lines]), problems
            )
        if not self.coefficients.elements:
            for name in self._mixed_names():
                self.coefficients.for_tensor(name)

    def _refuse_low_rank(self) -> None:
        """Refuse rules that would amplify what rounding leaves in the directions of no update."""
        adapter = next((one for one in self.ingredients if isinstance(one, Adapter)), None)
        if adapter is None:
            return
        for name in adapter.updates:
            rule = self.rule.of(name)
            if rule.needs_full_rank:
                raise RecipeError(
                    f"the mixing rule {rule.name} takes all directions of a matrix, and "
                    f"{adapter.path} is an adapter, which moves {name} in few: of the others only "
                    "rounding errors are left. Use another rule, such as ties, or none"
                )

    def _mixed_names(self) -> list[str]:
        """Names of tensors that are computed with coefficients, one of each tied group."""
        return [
            name
            for name in self.distinct
            if name in self.ingredients.averaged and self._override_of(name) is None
        ]

    def _override_of(self, name: str) -> str | None:
        if self.overrides is None:
            return None
        group = next((group for group in self.tied if name in group), (name,))
        return next((other for other in group if other in self.overrides), None)

    def tensor(self, name: str) -> TensorPlan:
        """How tensor `name` is made."""
        spec, leader = self[name], self.leaders.get(name, name)
        override = self._override_of(name)
        mask = self.mask if self.mask is not None and leader in self.mask else None
        if override is not None and self.overrides is not None:
            given = self.overrides
            return TensorPlan(spec, given[override], Copy(), (given,), (0,), mask=mask)
        source = self.ingredients.specs[leader]
        if leader not in self.ingredients.averaged:
            donor = self.ingredients.donor
            return TensorPlan(spec, source, Copy(), (donor,), (0,), mask=mask)
        if self.adapters is not None:
            own = self.adapters.owner(leader)
            return TensorPlan(spec, source, Copy(), (own,), (0,), mask=mask)
        return self._averaged(spec, source, mask)

    def _averaged(
        self, spec: TensorSpec, source: TensorSpec, mask: Mask | NonzeroMask | None
    ) -> TensorPlan:
        given, elements = self.ingredients, self.coefficients.elements
        if elements:
            vector: tuple[float, ...] = (1.0,) * len(given)
        else:
            vector = self.coefficients.for_tensor(source.name)
        part = [i for i in range(len(given)) if vector[i] != 0]
        if not source.dtype.mixable:
            policy = Buffers(self.buffers)
            beside = (given.base,) if policy.uses_base and given.base is not None else ()
            sources = tuple(given[i] for i in part)
            return TensorPlan(spec, source, policy, sources, tuple(part), beside=beside)
        if len(part) > 1:
            part = [i for i in given.canonical if vector[i] != 0]
        rule = self.rule.of(source.name)
        base = (given.base,) if rule.uses_base and given.base is not None else ()
        return TensorPlan(
            spec,
            source,
            rule,
            tuple(given[i] for i in part),
            tuple(part),
            coefficients=tuple(vector[i] for i in part),
            beside=(*(elements[i] for i in part if elements), *base),
            mask=mask,
        )

    @cached_property
    def _prepared(self) -> Rule:
        """The rule, with what it has to know of all tensors before the first is made."""
        if type(self.rule).prepare is Rule.prepare:
            return self.rule
        plans = [self.tensor(name) for name in self._mixed_names()]
        return self.rule.prepare([plan for plan in plans if not isinstance(plan.rule, Buffers)])

    def _ready(self, plan: TensorPlan) -> TensorPlan:
        """`plan` with the rule prepared; reads values where the rule has to."""
        name = plan.source.name
        if plan.rule is not self.rule.of(name) or self._prepared is self.rule:
            return plan
        return replace(plan, rule=self._prepared.of(name))

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of tensor `name`, computed now, in memory of their own; read-only.

        Raises:
            NonFiniteError: NaN or infinity in an ingredient, or a mean that does not fit.
            MismatchError: buffers that differ.
        """
        result = np.empty(self[name].nbytes, np.uint8)
        self._make(name, result)
        result.flags.writeable = False
        return result

    def fill(self, name: str, target: torch.Tensor) -> bool:
        """Compute tensor `name` right in the memory of `target`: no second copy of it is held.

        Nothing is done, and False returned, where `target` has another type or layout, or is not on
        the CPU.

        Raises:
            NonFiniteError: as `raw`; a part of `target` may have been written.
            MismatchError: as `raw`.
        """
        from stockpot.tensors._torch import bytes_of

        place = bytes_of(self[name], target)
        if place is not None:
            self._make(name, place)
        return place is not None

    def fill_all(self, targets: Mapping[str, torch.Tensor]) -> set[str]:
        """`fill` each of `targets`; products of factors take as many threads as torch has."""
        if self.adapters is None:
            return super().fill_all(targets)
        import torch

        with (
            one_thread() as alone,
            ThreadPoolExecutor(torch.get_num_threads() if alone else 1) as pool,
        ):
            found = pool.map(lambda item: (item[0], self.fill(*item)), targets.items())
            return {name for name, was_filled in found if was_filled}

    def _make(self, name: str, result: npt.NDArray[np.uint8]) -> None:
        plan = self._ready(self.tensor(name))
        if self.adapters is not None and plan.sources == (self.adapters,) and plan.mask is None:
            self.adapters.write_into(plan.source.name, result)
            return
        out_size, sizes = item_bytes(plan.spec), plan.item_sizes
        raws = [source.raw(plan.source.name) for source in plan.inputs]
        kept = None if plan.mask is None else plan.mask.kept(plan.source.name).reshape(-1)
        for start, stop in plan.pieces(0, plan.n_items):
            parts = [raw[start * n : stop * n] for raw, n in zip(raws, sizes, strict=True)]
            out = result[start * out_size : stop * out_size]
            plan.make(parts, out, None if kept is None else kept[start:stop], start)

    def owner(self, name: str) -> Checkpoint:
        """The base, for tensors that no adapter changes and nothing takes the place of."""
        leader = self.leaders.get(name, name)
        masked = self.mask is not None and leader in self.mask
        if self.adapters is None or masked or self._override_of(name) is not None:
            return self
        if leader not in self.ingredients.averaged or self[name] != self.ingredients.specs[leader]:
            return self
        found = self.adapters.owner(leader)
        return self if found is self.adapters else found

    @property
    def n_mixed(self) -> int:
        """How many ingredients take part, with a coefficient other than 0."""
        vectors = self.coefficients.vectors.values()
        if self.coefficients.elements or not vectors:
            return len(self.ingredients)
        return sum(any(v[i] != 0 for v in vectors) for i in range(len(self.ingredients)))

    @cached_property
    def key(self) -> str:
        """A hash of the content, made without computing it: equal keys, equal weights.

        It depends on the fingerprints of the ingredients that take part, the coefficients, the
        buffer policy, mask, overrides and dtype, and not on paths or the order of arguments. A
        mixture of one ingredient, unchanged, has that ingredient's fingerprint.
        """
        given = self.ingredients
        copied = len(given.averaged) < len(given.specs)
        plain = self.mask is None and self.overrides is None and self.dtype is None
        plain = plain and given.like is given.donor
        contents: list[tuple[str, JSON]]
        if self.coefficients.elements:
            contents = [
                (checkpoint.key, element.fingerprint)
                for checkpoint, element in zip(given, self.coefficients.elements, strict=True)
            ]
        else:
            shares = self._shares()
            whole = self.adapters is None or self.adapters.plain is not None
            if plain and not copied and self.rule.is_linear and whole:
                alone = [i for i, share in shares.items() if share == 1.0]
                if len(alone) == len(shares) == 1:
                    return given[alone[0]].key
            contents = [(given[i].key, share) for i, share in shares.items()]
        fields: dict[str, Any] = {
            "ingredients": sorted(contents, key=json.dumps),
            "buffers": self.buffers.to_json(),
            "averaged": sorted(given.averaged) if copied else None,
            "donor": given.donor.key if copied else None,
            "mask": None if self.mask is None else self.mask.fingerprint,
            "overrides": None if self.overrides is None else self.overrides.fingerprint,
            "dtype": None if self.dtype is None else self.dtype.value,
        }
        if given.reconcile.vocabulary != "error":
            fields["vocabulary"] = [given.reconcile.vocabulary, given.like.fingerprint]
        if self.adapters is not None:
            form = self.adapters.form
            fields["adapters"] = "merged" if form is None else f"rank {form.rank}"
        if not self.rule.is_linear:
            base = given.base if self.rule.uses_base else None
            fields["rule"] = [self.rule.to_json(), None if base is None else base.fingerprint]
        return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())

    def _shares(self) -> dict[int, JSON]:
        """Coefficients of the ingredients that take part: a number, or one for each tensor."""
        names = self._mixed_names()
        vectors = {name: self.coefficients.for_tensor(name) for name in names}
        shares: dict[int, JSON] = {}
        for i in range(len(self.ingredients)):
            values: dict[str, JSON] = {name: vector[i] for name, vector in vectors.items()}
            if any(value != 0 for value in values.values()):
                same = len(set(values.values())) == 1
                shares[i] = next(iter(values.values())) if same else values
        return shares

    def plan(self, path: StrPath, **options: Unpack[PlanOptions]) -> MixPlan:
        """What `save` would read, write and need, without doing it.

        Raises:
            RecipeError: `max_memory` is less than the minimum, which is named.
        """
        remote = is_remote(os.fspath(path))
        request = OutputRequest(
            path=path,
            specs=dict(self),
            tied=() if remote else self.tied,
            metadata=self.metadata,
            like=self.ingredients.like,
            config_from=options.get("config_from"),
            max_shard_bytes=options.get("max_shard_bytes"),
            inputs=tuple(self.ingredients),
        )
        written = self.written(path)
        if isinstance(written, AdapterFile):
            request = written.request(request)
            tensors = [TensorPlan(one, one, Copy(), (written,), (0,)) for one in written.values()]
        else:
            if self.ingredients.adapter_base is not None:
                request = replace(request, like=self.ingredients.adapter_base)
            # In a store, bytes are sent in their order and cannot be put into two places.
            tensors = [self.tensor(name) for name in (self if remote else self.distinct)]
        return plan_tensors(
            written,
            tensors,
            plan_output(request),
            threads=options.get("threads", 2),
            max_memory=options.get("max_memory"),
        )

    def written(self, path: StrPath) -> Checkpoint:
        """What an output at `path` holds: this, or the adapter that this is.

        Raises:
            RecipeError: it was to be an adapter, and none of the base can hold it.
        """
        if self.adapters is None or self.adapters.form is None:
            return self
        if self.mask is not None or self.overrides is not None:
            raise RecipeError(
                "a mask, or tensors such as recomputed BatchNorm statistics, have no place in an "
                "adapter: write the full model instead, merge=True (--merge)"
            )
        return adapter_file(self.adapters, path)

    def save(
        self,
        path: StrPath,
        *,
        record: Callable[[Saved], Mapping[str, JSON]] | None = None,
        card: Callable[[Mapping[str, JSON], Path], str] | None = None,
        **options: Unpack[SaveOptions],
    ) -> Saved:
        """Compute all tensors block by block and write them; see `save_tensors`.

        Args:
            path: the output; see `plan_output`.
            record: makes the record that is kept with the output, from what was done.
            card: makes the model card of a folder, from the record and the folder as it is by then.
            options: how it is written; see `SaveOptions`.
        """
        plan = options.get("plan") or self.plan(
            path,
            threads=options.get("threads", 2),
            max_memory=options.get("max_memory"),
            config_from=options.get("config_from"),
            max_shard_bytes=options.get("max_shard_bytes"),
        )
        recording = Recording(record, card)
        force, progress = options.get("force", False), options.get("progress", no_progress)
        if (node := options.get("node")) is not None:
            if self.overrides is not None or self.mask is not None or plan.result is not self:
                raise RecipeError("several nodes make plain means only: not masks and adapters")
            # Parts have no places in common: tied tensors are made once for each name.
            tensors = tuple(self._ready(self.tensor(name)) for name in self)
            identity = [
                self.coefficients.to_json(), self.rule.to_json(), self.buffers.to_json(),
                sorted(self.ingredients.averaged),
            ]  # fmt: skip
            return save_part(
                replace(plan, tensors=tensors), [*self.ingredients], Node(*node),
                identity=identity, ending=Ending(recording, force), progress=progress,
            )  # fmt: skip
        plan = replace(plan, tensors=tuple(self._ready(tensor) for tensor in plan.tensors))
        saved = save_tensors(
            plan, [*self.ingredients], recording=recording, force=force, progress=progress
        )
        return replace(saved, notes=tuple(self._repeated(saved.fingerprints)))

    def _repeated(self, fingerprints: Sequence[str]) -> Iterator[str]:
        vectors = self.coefficients.vectors.values()
        first: dict[str, str] = {}
        for i, (checkpoint, fingerprint) in enumerate(
            zip(self.ingredients, fingerprints, strict=True)
        ):
            if vectors and all(vector[i] == 0 for vector in vectors):
                continue
            earlier = first.setdefault(fingerprint, checkpoint.path)
            if earlier is not checkpoint.path:
                yield (
                    f"warning: {checkpoint.path} holds the same weights as {earlier}, which "
                    "therefore count more than once"
                )

    def with_mask(self, mask: Mask | NonzeroMask | None) -> Mixture:
        """This mixture with another mask."""
        return self._changed(mask=mask, overrides=self.overrides)

    def with_overrides(self, overrides: Mapping[str, Any] | None) -> Mixture:
        """This mixture with other overrides."""
        return self._changed(mask=self.mask, overrides=overrides)

    def with_scale(self, scale: float) -> Mixture:
        """This mixture with another λ of its rule, which need not prepare again.

        Raises:
            RecipeError: the rule is none of task vectors.
        """
        if not isinstance(self.rule, TaskVectorRule):
            raise RecipeError(f"the mixing rule {self.rule.name} merges no task vectors: no λ")
        made = self._changed(mask=self.mask, overrides=self.overrides)
        made.rule = replace(self.rule, scale=scale)
        prepared = cast("TaskVectorRule", self._prepared).for_scales()
        self.__dict__["_prepared"] = prepared  # what it keeps is for all scales
        made.__dict__["_prepared"] = replace(prepared, scale=scale)
        return made

    def _changed(
        self, *, mask: Mask | NonzeroMask | None, overrides: Mapping[str, Any] | Checkpoint | None
    ) -> Mixture:
        return Mixture(
            self.ingredients,
            self.coefficients,
            rule=self.rule,
            buffers=self.buffers,
            mask=mask,
            overrides=overrides,
            dtype=self.dtype,
        )


def check_buffers(mixture: Mixture) -> None:
    """Refuse tensors that are not averaged and differ, without making those that are.

    Raises:
        MismatchError: they differ and no policy chooses; all are listed.
    """
    found: list[MismatchError] = []
    for name in mixture.distinct:
        if isinstance(mixture.tensor(name).rule, Buffers):
            try:
                mixture.raw(name)
            except MismatchError as error:
                found.append(error)
    if found:
        problems = [problem for error in found for problem in error.problems]
        raise MismatchError("\n".join(str(error) for error in found), problems)


def _policy(ingredients: Ingredients) -> BufferPolicy:
    asked = ingredients.reconcile.buffers
    return BufferPolicy(differing="refuse" if asked == "error" else asked)


def _misfits(
    found: Checkpoint, expected: Mapping[str, TensorSpec], *, complete: bool
) -> list[Problem]:
    """Why `found` cannot stand beside the tensors `expected`; `complete`: as their coefficients."""
    problems = []
    for name in expected if complete else found:
        if name not in found:
            problems.append(Problem(found.path, name, "missing", f"shape {expected[name].shape}"))
            continue
        spec, want = found[name], expected.get(name)
        if want is None:
            problems.append(Problem(found.path, name, "present", "a name of the mixture"))
        elif spec.shape != want.shape:
            problems.append(Problem(found.path, name, str(spec.shape), str(want.shape)))
        elif complete and not spec.dtype.mixable:
            problems.append(Problem(found.path, name, spec.dtype.value, "a floating dtype"))
        elif not complete and not _becomes(spec, want):
            problems.append(Problem(found.path, name, spec.dtype.value, want.dtype.value))
    return problems


def _becomes(spec: TensorSpec, want: TensorSpec) -> bool:
    """Whether a value of `spec` can be written as `want`: floating types are rounded."""
    return spec.dtype == want.dtype or (spec.dtype.mixable and want.dtype.mixable)
