"""Commands about the files of checkpoints: inspect, compress, expand, verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import click

from stockpot._options import option
from stockpot._types import format_bytes
from stockpot.cli.groups import Checkpoints, Output, Show
from stockpot.cli.output import note, progress_bar, table
from stockpot.formats.runs import RunChoice, find_runs
from stockpot.io.paths import short_names
from stockpot.mixing.reconcile import Reconcile

if TYPE_CHECKING:
    from stockpot.analysis.adapters import AdapterSummary
    from stockpot.analysis.geometry import Moves
    from stockpot.analysis.inspection import Inspection


@dataclass(frozen=True, kw_only=True)
class Inspected(Reconcile, RunChoice, Checkpoints):
    """What to look at."""

    base: str | None = option(
        None, metavar="CKPT", help="The checkpoint that all were fine-tuned from."
    )
    dtype: str | None = option(None, help="Type that an average shall have: it may mix others.")
    fingerprint: bool = option(False, help="Make content hashes that are not known yet.")


def inspect(inputs: Inspected, show: Show) -> None:
    """Show what checkpoints hold and whether they will average.

    Reads headers, and the first values of some tensors to see whether the checkpoints come from one
    initialisation: averaging models that do not gives a broken model. Given their base it reads
    everything once and shows how far each has moved from it.

    \b
    stockpot inspect model.safetensors
    stockpot inspect runs/*.safetensors --base base.safetensors
    stockpot inspect llama-a/ llama-b/ --json
    """
    from stockpot.analysis.inspection import inspect_checkpoints

    with progress_bar() as progress:
        found = inspect_checkpoints(
            find_runs(inputs.checkpoints, inputs), base=inputs.base, key=inputs.key,
            fingerprints=inputs.fingerprint, reconcile=inputs.form(),
            progress=progress,
        )  # fmt: skip
    show.emit(found.to_json(), _inspection_text(found))


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """What to compress."""

    heading: ClassVar[str] = "Checkpoint"

    checkpoint: str = option(
        positional=True, metavar="CKPT", help="A file or a model folder with exact zeros."
    )
    key: str | None = option(
        None, help="Section of a torch file that holds the weights, such as ema or state_dict."
    )


@dataclass(frozen=True, kw_only=True)
class CompressedOutput(Output):
    """Where a compressed checkpoint is written."""

    output: str = option(
        flags=("-o", "--output"),
        metavar="OUT",
        help="A .safetensors file; a name without a suffix becomes a model folder.",
    )


def compress(checkpoint: Sparse, output: CompressedOutput, show: Show) -> None:
    """Store a sparse checkpoint in fewer bytes.

    Each weight takes a bit, and those that are not zero their value: at 90 % sparsity a float32
    model takes about a seventh of its bytes. What is written is the
    sparse-bitmask layout of compressed-tensors; every command here reads it as if it were dense.
    Expanding it gives the same values bit for bit, but +0.0 for -0.0.

    \b
    stockpot compress sparse.safetensors -o small.safetensors
    stockpot compress sparse-llama/ -o small-llama/
    """
    from stockpot.formats.compressing import compress as compress_checkpoint

    with progress_bar() as progress:
        stored = compress_checkpoint(
            checkpoint.checkpoint, output.output, force=output.force, key=checkpoint.key,
            progress=progress, **output.layout,
        )  # fmt: skip
    if stored.left_dense:
        note(
            "left dense, because the layout holds names that end in .weight only: "
            + ", ".join(stored.left_dense)
        )
    text = (
        f"{stored.path}: {format_bytes(stored.bytes)}, {stored.bytes / stored.dense_bytes:.3f} of "
        f"the {format_bytes(stored.dense_bytes)} that its tensors take dense; "
        f"{stored.n_sparse} of {stored.n_tensors} tensors are stored sparse, "
        f"{100 * stored.sparsity:.2f} % of their values are zero"
    )
    show.emit(stored.to_json(), text)


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What to expand."""

    heading: ClassVar[str] = "Checkpoint"

    checkpoint: str = option(
        positional=True, metavar="CKPT", help="A file or a model folder that was compressed."
    )


def expand(checkpoint: Compressed, output: Output, show: Show) -> None:
    """Store a compressed checkpoint dense again.

    For programs that do not read the layout.

    \b
    stockpot expand small.safetensors -o dense.safetensors
    stockpot expand small-llama/ -o dense-llama/
    """
    from stockpot.formats.compressing import expand as expand_checkpoint

    with progress_bar() as progress:
        stored = expand_checkpoint(
            checkpoint.checkpoint, output.output, force=output.force, progress=progress,
            **output.layout,
        )  # fmt: skip
    text = (
        f"{stored.path}: {format_bytes(stored.bytes)}; {stored.n_sparse} of {stored.n_tensors} "
        f"tensors were stored sparse, {100 * stored.sparsity:.2f} % of their values are zero"
    )
    show.emit(stored.to_json(), text)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What to verify."""

    heading: ClassVar[str] = "Soup"

    soup: str = option(
        positional=True, metavar="SOUP", help="A checkpoint that stockpot wrote, with its record."
    )
    search: tuple[str, ...] = option((), metavar="DIR", help="Where ingredients that moved may be.")
    allow_remote: bool = option(
        False, help="Fetch ingredients that the record names elsewhere, such as hf:org/name."
    )


def verify(soup: Verified, show: Show) -> None:
    """Rebuild a soup from its record and compare it bit for bit.

    A difference is exit code 1. Ingredients that were moved or renamed are found by their
    fingerprints. Nothing that a record names reaches the network unless you allow it.

    \b
    stockpot verify soup.safetensors
    stockpot verify soup/ --search /archive/runs
    """
    from stockpot.recipes.record import verify as rebuild_and_compare

    differences = rebuild_and_compare(soup.soup, search=soup.search, allow_remote=soup.allow_remote)
    lines = [f"{soup.soup} differs from its record:", *(f"  {line}" for line in differences)]
    text = "\n".join(lines) if differences else f"{soup.soup} matches its record, bit for bit"
    show.emit({"verified": not differences, "differences": differences}, text)
    if differences:
        raise click.exceptions.Exit(1)


def _inspection_text(found: Inspection) -> str:
    rows = [
        [
            one.path,
            one.format,
            str(one.tensors),
            f"{one.parameters:,}",
            format_bytes(one.bytes),
            " ".join(one.dtypes),
            one.fingerprint or "",
        ]
        for one in found.checkpoints
    ]
    header = ["checkpoint", "format", "tensors", "parameters", "size", "dtypes", "fingerprint"]
    if not any(one.fingerprint for one in found.checkpoints):
        header, rows = header[:-1], [row[:-1] for row in rows]
    parts = [table(header, rows)]
    parts += [
        "\n".join(f"{one.path}: {n}" for n in one.notes) for one in found.checkpoints if one.notes
    ]
    if found.adapters:
        parts.append(_adapters(found.adapters))
    if found.moves is not None:
        parts.append(_moves(found.moves))
    if found.message:
        parts.append(found.message)
    elif found.compatible is not None:
        parts.append(found.verdict)
    return "\n\n".join(parts)


def _adapters(found: Sequence[AdapterSummary]) -> str:
    """What each adapter is, and which weights it moves most."""
    labels = short_names(one.path for one in found)
    rows = [
        [
            labels[one.path],
            one.kind,
            " ".join(one.ranks),
            " ".join(one.scales),
            " ".join(one.targets),
            _number(one.size),
            _largest(one),
        ]
        for one in found
    ]
    heads = ["adapter", "kind", "rank", "scale", "targets", "|ΔW|/|W|", "most"]
    whole = [f"{one.path} replaces {', '.join(one.whole[:5])}" for one in found if one.whole]
    return "\n".join([f"adapters of {found[0].base}:", table(heads, rows), *whole])


def _largest(one: AdapterSummary) -> str:
    sizes = {name: size for name, size in one.modules.items() if size is not None}
    name = max(sizes, key=lambda name: sizes[name], default=None)
    return "" if name is None else f"{sizes[name]:.4g} {name}"


def _moves(moves: Moves) -> str:
    """Distances from the base, the evidence on a common start, and angles between the moves."""
    # Paths in full are above; as headers of columns they would be wider than any screen.
    labels = list(short_names(one.path for one in moves.ingredients).values())
    rows = [
        [label, _number(one.distance), one.same_initialisation.text]
        for label, one in zip(labels, moves.ingredients, strict=True)
    ]
    width = max(len(label) for label in ["ingredient", *labels])
    lines = [
        f"distance from {moves.base}, relative, over {moves.tensors} tensors:",
        table(["ingredient", "distance"], [row[:2] for row in rows]),
    ]
    layers = list(moves.ingredients[0].layers) if moves.ingredients else []
    if len(layers) > 1:
        columns = [one.layers for one in moves.ingredients]
        by_layer = [[layer, *(_number(c.get(layer)) for c in columns)] for layer in layers]
        lines += ["", table(["layer", *labels], by_layer)]
    if moves.angles:
        lines += ["", "angles between moves, in degrees:", _angles(moves, labels)]
    lines += ["", *(f"{row[0]:<{width}}  {row[2]}" for row in rows)]
    return "\n".join(lines)


def _angles(moves: Moves, labels: Sequence[str]) -> str:
    """The upper triangle of the angles, which come pair by pair in order."""
    angles = iter(moves.angles)
    n = len(labels)
    rows = [
        [labels[i], *("" if j <= i else _number(next(angles).degrees) for j in range(1, n))]
        for i in range(n - 1)
    ]
    return table(["", *labels[1:]], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
