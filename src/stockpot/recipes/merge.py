"""Merges by a configuration in YAML: mergekit's methods, as mixtures of the one engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from stockpot._types import StrPath
from stockpot.analysis.geometry import inner_products
from stockpot.errors import RecipeError
from stockpot.formats.assembled import Assembled
from stockpot.formats.base import Checkpoint
from stockpot.formats.opening import open as open_checkpoint
from stockpot.mixing import Coefficients
from stockpot.mixing.ingredients import Ingredients
from stockpot.mixing.reconcile import Reconcile
from stockpot.mixing.rules.base import Rule
from stockpot.mixing.rules.breadcrumbs import Breadcrumbs
from stockpot.mixing.rules.by_tensor import ByTensor
from stockpot.mixing.rules.dare import Dare
from stockpot.mixing.rules.della import Della
from stockpot.mixing.rules.sce import Sce
from stockpot.mixing.rules.ties import Ties
from stockpot.recipes.base import Recipe, Solution
from stockpot.recipes.context import RecipeContext
from stockpot.recipes.karcher import karcher_coefficients
from stockpot.recipes.merge_config import REQUIRED, MergeConfig, Place, layout
from stockpot.recipes.slerp import spherical_coefficients
from stockpot.tensors.spec import DType

_F64 = npt.NDArray[np.float64]
_THREADS = 2


@final
@dataclass(frozen=True, kw_only=True)
class Merge(Recipe):
    """The merge that a mergekit configuration describes, computed exactly and rounded once.

    Methods are mergekit's 0.1.5, with its defaults. Where it rounds intermediate values to `dtype`,
    nothing is rounded here before the end. Where it draws at random, entries are others of the same
    distribution (`seed`). Merged vocabularies, adapters and modules are refused.

    Attributes:
        config: the configuration, as plain values.
        folder: where relative paths in it are looked for, after the current one.
        seed: of methods that draw at random.
    """

    name = "merge"
    title = "Merge"
    summary = "Merge models by a mergekit configuration."

    config: Mapping[str, Any]
    folder: str = "."
    seed: int = 0

    @classmethod
    def read(cls, path: StrPath, *, seed: int = 0) -> Merge:
        """The merge of a YAML file.

        Raises:
            RecipeError: see `MergeConfig.read`.
        """
        from stockpot.io.yaml_files import read_yaml

        MergeConfig.read(path)  # says what is wrong with it, by the name of the file
        return cls(config=read_yaml(path), folder=str(Path(path).parent), seed=seed)

    @property
    def chooses(self) -> bool:
        """It never does."""
        return False

    @cached_property
    def parsed(self) -> MergeConfig:
        """The configuration.

        Raises:
            RecipeError: see `MergeConfig.from_json`.
        """
        return MergeConfig.from_json(dict(self.config))

    def ingredients(self, *, dtype: DType | str | None = None) -> Ingredients:
        """The models of the configuration, of slices the layers put together; the base is last.

        Args:
            dtype: of the output; None for that of the configuration.

        Raises:
            RecipeError: a model is not found.
            MismatchError: they do not fit.
        """
        config = self.parsed
        sources = [s for one in config.slices for s in one.sources] or config.models
        names = dict.fromkeys([*(s.model for s in sources),
                               *([config.base_model] if config.base_model else [])])  # fmt: skip
        opened = {name: open_checkpoint(config.model_path(name, self.folder)) for name in names}
        if config.slices:
            models, base = _stacks(config, opened)
        else:
            models = [opened[s.model] for s in config.models if s.model != config.base_model]
            base = opened[config.base_model] if config.base_model else None
        every = [*models, *([] if base is None else [base])]
        form = Reconcile(dtype=dtype or config.out_dtype or config.dtype)
        return Ingredients(every, base=base, reconcile=form)

    def solve(self, context: RecipeContext) -> Solution:
        """Evaluate the parameters of every tensor, and measure where the method goes by angles.

        Raises:
            RecipeError: a method or a number of models that cannot be merged.
        """
        config = self.parsed
        method = _METHODS.get(config.merge_method)
        if method is None:
            raise RecipeError(
                f"the merge method {config.merge_method!r} is not known; expected one of "
                f"{', '.join(_METHODS)}"
            )
        given = context.ingredients
        first = given[0]
        names = list(first.sources[0] if isinstance(first, Assembled) else given.specs)
        places, _ = layout(config, names)
        tensors = [_Tensor(place, config.base_model, given, self.seed) for place in places
                   if place.name in given.averaged]  # fmt: skip
        with ThreadPoolExecutor(_THREADS) as pool:
            made = list(pool.map(method, tensors))
        vectors = {t.place.name: vector for t, (vector, _) in zip(tensors, made, strict=True)}
        rules = {t.place.name: rule for t, (_, rule) in zip(tensors, made, strict=True)
                 if rule is not None}  # fmt: skip
        used = {i for vector in vectors.values() for i, c in enumerate(vector) if c != 0}
        return Solution(
            mixture=context.mixed(
                Coefficients.per_group(vectors, group_of={n: n for n in vectors}, any_sum=True),
                ByTensor.made(rules) if rules else None,
            ),
            selected=list(dict.fromkeys(context.paths[i] for i in sorted(used))),
        )


def _stacks(
    config: MergeConfig, opened: Mapping[str, Checkpoint]
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The layers of each place among the models of slices, put together, and those of the base."""
    distinct = list(opened)
    places, layers = layout(config, list(opened[config.slices[0].sources[0].model]))
    n_models = max(len(_tuned(place, config.base_model)) for place in places)

    def stack(which: Callable[[Place], int]) -> Assembled:
        stored = {
            p.name: (distinct.index(p.sources[i].model), p.names[i])
            for p in places for i in [which(p)]
        }  # fmt: skip
        return Assembled([opened[name] for name in distinct], stored, layers=layers)

    def of_model(n: int) -> Callable[[Place], int]:
        # Where a slice has fewer models, another stands in, and has no share.
        return lambda place: (_tuned(place, config.base_model) or [0])[
            min(n, max(0, len(_tuned(place, config.base_model)) - 1))
        ]

    models: list[Checkpoint] = [stack(of_model(n)) for n in range(n_models)]
    if config.base_model is None:
        return models, None
    return models, stack(lambda place: _base(place, config.base_model))


def _tuned(place: Place, base: str | None) -> list[int]:
    return [i for i, source in enumerate(place.sources) if source.model != base]


def _base(place: Place, base: str | None) -> int:
    found = [i for i, source in enumerate(place.sources) if source.model == base]
    if not found:
        raise RecipeError(f"a slice has no layers of the base model {base}; expected it among them")
    return found[0]


_Made = tuple[list[float], Rule | None]


@dataclass(frozen=True)
class _Tensor:
    """One tensor, with what methods ask of it.

    Attributes:
        place: where it lies, and its parameters.
        base: name of the base model; None without one.
        given: the models in the order of the coefficients, the base last.
        seed: of what is drawn at random.
    """

    place: Place
    base: str | None
    given: Ingredients
    seed: int

    @cached_property
    def tuned(self) -> list[int]:
        """Positions of the models other than the base among the sources."""
        return _tuned(self.place, self.base)

    def vector(self, shares: Sequence[float], base: float = 0.0) -> list[float]:
        """Coefficients: those of the tuned models, of places that are not taken 0, of the base."""
        free = len(self.given) - (self.base is not None) - len(shares)
        return [*shares, *[0.0] * free, *([] if self.base is None else [base])]

    def weights(self) -> list[float]:
        """`weight` of each tuned model."""
        return [self.number(i, "weight", REQUIRED) for i in self.tuned]

    def number(self, i: int, parameter: str, default: Any) -> float:
        """A number of source `i`."""
        return _number(self.place.own(i, parameter, default), parameter)

    def shared(self, parameter: str, default: Any) -> Any:
        """A parameter of all sources."""
        return self.place.shared(parameter, default)

    def gram(self, *, about_base: bool) -> _F64:
        """Inner products of the tuned models, or of all (the base last), about the base or 0."""
        name = self.place.name
        if not self.given.specs[name].dtype.mixable:
            return np.eye(len(self.given))
        models = [self.given[i] for i in range(len(self.tuned))]
        base = self.given[-1] if self.base is not None else None
        if about_base or base is None:
            return inner_products(name, models, origin=base if about_base else None)
        return inner_products(name, [*models, base])

    def need(self, n: int, *, base: bool, method: str) -> None:
        """Refuse another number of models, or a missing base."""
        if len(self.tuned) != n or (base and self.base is None):
            what = f"{n} model{'s' * (n != 1)}{' and a base_model' if base else ''}"
            raise RecipeError(f"{method} merges {what}; found {len(self.tuned)} beside the base")


def _number(value: Any, parameter: str) -> float:
    if value is REQUIRED:
        raise RecipeError(f"{parameter} is given nowhere; expected parameters: {{{parameter}: …}}")
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise RecipeError(f"{parameter} is {value!r:.40}; expected a number")
    return found


def _normalised(weights: Sequence[float], wanted: Any) -> list[float]:
    total = math.fsum(weights)
    if not wanted or abs(total) < 1e-8:
        return list(weights)
    return [weight / total for weight in weights]


def _linear(tensor: _Tensor) -> _Made:
    weights = tensor.weights()
    base = []
    if tensor.base is not None:  # a model like any other
        base = [tensor.number(_base(tensor.place, tensor.base), "weight", REQUIRED)]
    shares = _normalised([*weights, *base], tensor.shared("normalize", True))
    return tensor.vector(shares[: len(weights)], shares[-1] if base else 0.0), None


def _task_arithmetic(tensor: _Tensor) -> _Made:
    scale = _number(tensor.shared("lambda", 1.0), "lambda")
    weights = _normalised(tensor.weights(), tensor.shared("normalize", False))
    shares = [scale * weight for weight in weights]
    return tensor.vector(shares, 1.0 - math.fsum(shares)), None


def _slerp(tensor: _Tensor) -> _Made:
    tensor.need(1, base=True, method="slerp")
    gram = tensor.gram(about_base=False)
    norm = math.sqrt(gram[0, 0] * gram[1, 1])
    cosine = float(gram[0, 1]) / norm if norm > 0 else 0.0
    t = _number(tensor.shared("t", REQUIRED), "t")
    # Antipodes, which have no way between them, are mixed linearly as well.
    first, second = spherical_coefficients(1.0 if cosine < -0.9995 else cosine, t)
    return tensor.vector([second], first), None


def _nuslerp(tensor: _Tensor) -> _Made:
    tensor.need(2, base=False, method="nuslerp")
    if not tensor.shared("nuslerp_flatten", True) or tensor.shared("nuslerp_row_wise", False):
        raise RecipeError("nuslerp by row or column cannot be done here; expected whole tensors")
    weights = tensor.weights()
    total = math.fsum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    shares = nuslerp_coefficients(tensor.gram(about_base=tensor.base is not None), t)
    return tensor.vector(shares, 1.0 - math.fsum(shares)), None


def nuslerp_coefficients(gram: _F64, t: float) -> list[float]:
    """Of two vectors with these inner products: as SLERP, linear only where they are parallel.

    >>> [round(c, 6) for c in nuslerp_coefficients(np.array([[1.0, 0], [0, 4]]), 0.5)]
    [0.707107, 0.707107]
    """
    norm = math.sqrt(gram[0, 0] * gram[1, 1])
    cosine = max(-1.0, min(1.0, float(gram[0, 1]) / norm)) if norm > 0 else 0.0
    if 1 - cosine**2 <= 1e-16:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def _model_stock(tensor: _Tensor) -> _Made:
    n = len(tensor.tuned)
    if n < 2 or tensor.base is None:
        raise RecipeError("model_stock merges at least two models and a base_model")
    if tensor.shared("filter_wise", False):
        raise RecipeError("model_stock by filter cannot be done here; expected whole tensors")
    gram = tensor.gram(about_base=True)
    norms = np.sqrt(np.diag(gram))
    cosines = np.clip(gram / np.maximum(np.outer(norms, norms), 1e-6), -1, 1)
    cosine = float(cosines[~np.eye(n, dtype=bool)].mean())
    scale = 1 + (n - 1) * cosine
    t = n * cosine / scale if abs(scale) >= 1e-6 else 0.0
    return tensor.vector([t / n] * n, 1.0 - t), None


def _karcher(tensor: _Tensor) -> _Made:
    gram = tensor.gram(about_base=False)
    found = karcher_coefficients(
        gram,
        max_iterations=int(_number(tensor.shared("max_iter", 10), "max_iter")),
        tolerance=_number(tensor.shared("tol", 1e-5), "tol"),
    )
    n = len(tensor.tuned)
    return tensor.vector(found[:n], found[-1] if len(found) > n else 0.0), None


def _passthrough(tensor: _Tensor) -> _Made:
    if len(tensor.place.sources) != 1:
        raise RecipeError("passthrough takes one model for each slice")
    scale = tensor.place.own(0, "scale", None)
    share = 1.0 if scale is None else _number(scale, "scale")
    return (tensor.vector([share]) if tensor.tuned else tensor.vector([], share)), None


def _sce(tensor: _Tensor) -> _Made:
    keep = _number(tensor.shared("select_topk", 1.0), "select_topk")
    n = len(tensor.tuned)
    return tensor.vector([1.0] * n), Sce(keep=min(1.0, max(0.0, keep)), floor=1e-6)


@dataclass(frozen=True)
class _Trimmed:
    """A method of task vectors with a rule of trimming.

    Attributes:
        rule: the class of the rule.
        elected: whether entries of the other sign are left out.
        normalise: the default of `normalize`.
        rescale: the default of `rescale`.
    """

    rule: Any
    elected: bool
    normalise: bool
    rescale: bool

    def __call__(self, tensor: _Tensor) -> _Made:
        """The weights and the rule of one tensor."""
        options: dict[str, Any] = {
            "keep": tensor.vector([self._share(tensor, i, "density", 1.0) for i in tensor.tuned]),
            "signs": "elected" if self.elected else "all",
            "normalise": bool(tensor.shared("normalize", self.normalise)),
            "rescale": "l1" if tensor.shared("rescale", self.rescale) else "none",
            "scale": _number(tensor.shared("lambda", 1.0), "lambda"),
        }
        if self.rule is Ties:
            options["per"] = "tensor"
        if self.rule is Breadcrumbs:
            drops = [self._share(tensor, i, "gamma", 0.01) for i in tensor.tuned]
            options["drop"] = tuple(tensor.vector(drops))
        if self.rule is Della:
            spreads = [tensor.number(i, "epsilon", 0.15) for i in tensor.tuned]
            options["spread"] = tuple(tensor.vector(spreads))
        if self.rule in (Dare, Della):
            options["seed"] = tensor.seed
        options["keep"] = tuple(options["keep"])
        return tensor.vector(tensor.weights()), self.rule(**options)

    def _share(self, tensor: _Tensor, i: int, parameter: str, default: float) -> float:
        return min(1.0, max(0.0, tensor.number(i, parameter, default)))


_METHODS: Mapping[str, Callable[[_Tensor], _Made]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _Trimmed(Ties, elected=True, normalise=True, rescale=False),
    "dare_linear": _Trimmed(Dare, elected=False, normalise=False, rescale=True),
    "dare_ties": _Trimmed(Dare, elected=True, normalise=False, rescale=True),
    "della": _Trimmed(Della, elected=True, normalise=True, rescale=True),
    "della_linear": _Trimmed(Della, elected=False, normalise=False, rescale=True),
    "breadcrumbs": _Trimmed(Breadcrumbs, elected=False, normalise=False, rescale=False),
    "breadcrumbs_ties": _Trimmed(Breadcrumbs, elected=True, normalise=False, rescale=False),
    "model_stock": _model_stock,
    "karcher": _karcher,
    "sce": _sce,
    "passthrough": _passthrough,
}
