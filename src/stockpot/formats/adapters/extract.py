"""An adapter of a full fine-tune: the best low-rank update of each matrix that it changed."""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.errors import CheckpointError, MismatchError, NonFiniteError, Problem
from stockpot.formats import remote
from stockpot.formats.adapters.layout import CONFIG
from stockpot.formats.adapters.reading import is_adapter
from stockpot.formats.adapters.sum import truncated_dense
from stockpot.formats.adapters.update import F64, Rows, matrix_shape
from stockpot.formats.base import Checkpoint
from stockpot.formats.hub import HubName
from stockpot.formats.opening import open as open_checkpoint
from stockpot.formats.output import OutputRequest, open_output
from stockpot.formats.placement import plan_output
from stockpot.formats.table import writes_folder
from stockpot.io.atomic import dump_json
from stockpot.tensors.rounding import Array, finite, narrow
from stockpot.tensors.spec import DType, TensorSpec

_PREFIX = "base_model.model."
_TABLE = re.compile(r"(^|[._])emb|embed|(^|\.)(wte|wpe|shared)$", re.IGNORECASE)
"""Names of modules that hold tables: their rows are looked up, which PEFT stores in another way."""


@dataclass(frozen=True, slots=True)
class ModuleError:
    """What an update lacks: Frobenius norms of it and of what its rank cut off."""

    norm: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What extracting an adapter did.

    Attributes:
        path: the output.
        rank: most that an update has.
        bytes: of the adapter.
        tuned_bytes: of the fine-tuned model.
        norm: ‖ΔW‖ of all matrices together.
        error: ‖ΔW − s·B·A‖ of all of them.
        modules: the same of each.
        whole: tensors that changed and are no matrices: they are kept whole.
        unchanged: how many tensors are the base's.
    """

    path: str
    rank: int
    bytes: int
    tuned_bytes: int
    norm: float
    error: float
    modules: dict[str, ModuleError]
    whole: tuple[str, ...]
    unchanged: int

    def to_json(self) -> dict[str, JSON]:
        """The attributes as keys."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How an adapter is extracted.

    Attributes:
        rank: most of each update; less where a matrix has less.
        dtype: of the factors.
        is_transposed: whether linear layers are stored as (in, out), as in GPT-2.
        exclude: shell patterns of tensors that stay the base's.
    """

    rank: int
    dtype: DType = DType.F32
    is_transposed: bool = False
    exclude: tuple[str, ...] = ()


def extract(
    base: StrPath | Checkpoint,
    tuned: StrPath | Checkpoint,
    path: StrPath,
    options: ExtractOptions,
    *,
    force: bool = False,
    progress: Progress = no_progress,
) -> Extracted:
    """Write the adapter that comes nearest to `tuned` on `base`, as PEFT does.

    Matrices become updates of `options.rank`, the best there are (Eckart and Young 1936). What else
    changed (norms, biases) is kept whole, as `modules_to_save`. One matrix is in memory at a time.

    Args:
        base: what it was fine-tuned from.
        tuned: a full model with the same tensors.
        path: a folder.
        options: rank and what goes with it.
        force: overwrite an older output.
        progress: called with the tensors done.

    Raises:
        MismatchError: names or shapes differ.
        CheckpointError: one of the two is an adapter, nothing changed, or `path` is no folder.
        NonFiniteError: NaN or infinity.
    """
    start, end = (
        one if isinstance(one, Checkpoint) else open_checkpoint(one) for one in (base, tuned)
    )
    _check(start, end, path, options)
    changed = [n for n in end.distinct if not np.array_equal(start.raw(n), end.raw(n))]
    changed = [n for n in changed if not any(fnmatch.fnmatchcase(n, p) for p in options.exclude)]
    if not changed:
        raise CheckpointError(f"{end.path} holds nothing that {start.path} does not: no adapter")
    places = _placed(end, changed, options)
    specs: dict[str, TensorSpec] = {}
    for name in places.matrices:
        specs |= {one.name: one for one in _factor_specs(end[name], options)}
    for name, stored in places.whole.items():
        specs[stored] = TensorSpec(stored, end[name].dtype, end[name].shape)
    request = OutputRequest(
        path=path,
        specs=specs,
        like=end,
        inputs=(start, end),
        stem="adapter_model",
        max_shard_bytes=1 << 62,
        rewritten={CONFIG: dump_json(_config(start, end, places, options))},
    )
    plan = plan_output(request)
    modules: dict[str, ModuleError] = {}
    with open_output(plan, force=force) as output:
        for number, name in enumerate(places.matrices, 1):
            values, modules[_module(name)] = _factors(start, end, name, options)
            for spec, value in zip(_factor_specs(end[name], options), values, strict=True):
                output.write(spec.name, 0, _rounded(value, spec, end.path).data)
            progress(number, len(places.matrices), "matrices")
        for name, stored in places.whole.items():
            output.write(stored, 0, np.ascontiguousarray(end.raw(name)).data)
    return Extracted(
        path=os.fspath(path),
        rank=options.rank,
        bytes=sum(spec.nbytes for spec in specs.values()),
        tuned_bytes=end.n_bytes,
        norm=math.hypot(*(one.norm for one in modules.values())),
        error=math.hypot(*(one.error for one in modules.values())),
        modules=modules,
        whole=tuple(places.whole),
        unchanged=len(end) - len(changed),
    )


def _check(start: Checkpoint, end: Checkpoint, path: StrPath, options: ExtractOptions) -> None:
    if not writes_folder(path):
        raise CheckpointError(f"{os.fspath(path)}: an adapter of PEFT is a folder: name one")
    for one in (start, end):
        if is_adapter(one):
            raise CheckpointError(f"{one.path} is an adapter already; give two full models")
    if options.rank < 1:
        raise CheckpointError(f"rank is {options.rank}; expected at least 1")
    problems = [
        Problem(end.path, name, str(end.get(name)), str(start.get(name)))
        for name in dict.fromkeys((*start, *end))
        if name not in start or name not in end or start[name].shape != end[name].shape
    ]
    if problems:
        shown = [f"  {p.tensor}: {p.found}, expected {p.expected}" for p in problems[:10]]
        head = f"{end.path} is no fine-tune of {start.path}: {len(problems)} tensors differ in form"
        raise MismatchError("\n".join([f"{head}:", *shown]), problems)


@dataclass(frozen=True)
class _Places:
    """What becomes of tensors that changed.

    Attributes:
        matrices: get factors.
        whole: tensor → its name in the adapter.
        modules: are saved whole.
        has_biases: whether biases of updated modules are among `whole`.
    """

    matrices: tuple[str, ...]
    whole: dict[str, str]
    modules: tuple[str, ...]
    has_biases: bool


def _placed(end: Checkpoint, changed: Sequence[str], options: ExtractOptions) -> _Places:
    """Factors for matrices; biases beside them; everything else in modules that are saved whole."""
    matrices = [n for n in changed if n.endswith(".weight") and _rank(end[n], options.rank)]
    updated = {_module(name) for name in matrices}
    rest = [n for n in changed if n not in matrices]
    biases = [n for n in rest if n.endswith(".bias") and n.removesuffix(".bias") in updated]
    modules = sorted({n.rpartition(".")[0] for n in rest if n not in biases})
    whole = {n: f"{_PREFIX}{n.removesuffix('.bias')}.base_layer.bias" for n in biases}
    problems = []
    for module in modules:
        below = [n for n in end if n.startswith(f"{module}.")]
        if not module or any(_module(n) in updated for n in below):
            own = [n for n in rest if n.rpartition(".")[0] == module]
            problems += [
                Problem(end.path, n, "changed", "no weight of its own module") for n in own
            ]
        whole |= {n: _PREFIX + n for n in below}
    if problems:
        names = ", ".join(str(problem.tensor) for problem in problems[:5])
        raise MismatchError(
            f"{len(problems)} tensors changed that an adapter of PEFT has no place for, since "
            f"their modules hold others that are updated: {names}. Leave them as in the base: "
            "exclude=… (--exclude PATTERN)",
            problems,
        )
    return _Places(tuple(matrices), whole, tuple(modules), bool(biases))


def _rank(spec: TensorSpec, rank: int) -> int:
    """The rank of an update of this tensor; 0 where it is no matrix, or a full copy is smaller."""
    if len(spec.shape) < 2 or not spec.dtype.mixable or spec.numel == 0:
        return 0
    rows, columns = matrix_shape(spec)
    rank = min(rank, rows, columns)
    return rank if rank * (rows + columns) < rows * columns else 0


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _is_table(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and bool(_TABLE.search(_module(spec.name)))


def _factor_specs(spec: TensorSpec, options: ExtractOptions) -> tuple[TensorSpec, TensorSpec]:
    """A and B of a tensor, as PEFT calls and shapes them."""
    rank, stem = _rank(spec, options.rank), _PREFIX + _module(spec.name)
    names = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
    if _is_table(spec):
        names = f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"
    out, *inner = spec.shape
    if _is_flipped(spec, options):
        out, inner = spec.shape[1], [spec.shape[0]]
    ones = (1,) * (len(spec.shape) - 2)
    return (
        TensorSpec(names[0], options.dtype, (rank, *inner)),
        TensorSpec(names[1], options.dtype, (out, rank, *ones)),
    )


def _is_flipped(spec: TensorSpec, options: ExtractOptions) -> bool:
    return _is_table(spec) or (options.is_transposed and len(spec.shape) == 2)


def _factors(
    start: Checkpoint, end: Checkpoint, name: str, options: ExtractOptions
) -> tuple[tuple[F64, F64], ModuleError]:
    """A and B, and what they lack."""
    spec = end[name]
    rows, _ = matrix_shape(spec)
    change = Rows(end, name)(0, rows) - Rows(start, name)(0, rows)
    if not np.isfinite(change).all():
        raise NonFiniteError(
            f"tensor {name} holds NaN or infinity in {start.path} or {end.path}; expected numbers",
            path=end.path,
            tensor=name,
        )
    change = change.T if _is_flipped(spec, options) else change
    up, down, norm, error = truncated_dense(change, _rank(spec, options.rank))
    return (down, up), ModuleError(norm, error)


def _rounded(value: F64, spec: TensorSpec, path: str) -> Array:
    stored = narrow(np.ascontiguousarray(value).reshape(-1), spec.dtype.value)
    if not finite(stored, spec.dtype.value):
        raise NonFiniteError(
            f"{spec.name} does not fit {spec.dtype.value}; choose f32 or bf16",
            path=path,
            tensor=spec.name,
        )
    return stored


def _config(
    start: Checkpoint, end: Checkpoint, places: _Places, options: ExtractOptions
) -> dict[str, JSON]:
    ranks = {_module(name): _rank(end[name], options.rank) for name in places.matrices}
    rank = max(ranks.values(), default=1)
    others = {module: r for module, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": _loadable_name(start.path),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": dict(others),
        "alpha_pattern": dict(others),
        "fan_in_fan_out": options.is_transposed,
        "bias": "lora_only" if places.has_biases else "none",
        "target_modules": list[JSON](sorted(ranks)),
        "modules_to_save": list[JSON](places.modules) or None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _loadable_name(path: str) -> str:
    """The name of a base as PEFT looks for it: on the hub by its repository, else where it lies.

    >>> _loadable_name("hf:org/name@v2"), _loadable_name("s3://b/model")
    ('org/name', 's3://b/model')
    """
    if remote.is_remote(path):
        return HubName.parse(path).repository
    return path if remote.has_scheme(path) else str(Path(path).absolute())
