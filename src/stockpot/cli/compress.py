"""`stockpot compress` and `stockpot expand`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot._types import format_bytes
from stockpot.cli import _options as options
from stockpot.cli._render import emit, note, progress_bar

if TYPE_CHECKING:
    from stockpot.formats.compressing import Stored


_Checkpoint = Annotated[
    str, typer.Argument(metavar="CKPT", help="A file or a model folder with exact zeros.")
]
_Compressed = Annotated[
    str, typer.Argument(metavar="CKPT", help="A file or a model folder that was compressed.")
]
_CompressedOutput = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="A .safetensors file; a name without a suffix becomes a model folder.",
    ),
]


def compress(
    checkpoint: _Checkpoint,
    output: _CompressedOutput,
    key: options.Key = None,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
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
            checkpoint,
            output,
            force=force,
            key=key,
            config_from=config_from,
            max_shard_bytes=options.size(max_shard_size, "--max-shard-size"),
            progress=progress,
        )
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
    emit(_data(stored), text, as_json=json)


def expand(
    checkpoint: _Compressed,
    output: options.Output,
    config_from: options.ConfigFrom = None,
    max_shard_size: options.MaxShardSize = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Store a compressed checkpoint dense again.

    For programs that do not read the layout.

    \b
    stockpot expand small.safetensors -o dense.safetensors
    stockpot expand small-llama/ -o dense-llama/
    """
    from stockpot.formats.compressing import expand as expand_checkpoint

    with progress_bar() as progress:
        stored = expand_checkpoint(
            checkpoint,
            output,
            force=force,
            config_from=config_from,
            max_shard_bytes=options.size(max_shard_size, "--max-shard-size"),
            progress=progress,
        )
    text = (
        f"{stored.path}: {format_bytes(stored.bytes)}; {stored.n_sparse} of {stored.n_tensors} "
        f"tensors were stored sparse, {100 * stored.sparsity:.2f} % of their values are zero"
    )
    emit(_data(stored), text, as_json=json)


def _data(stored: Stored) -> dict[str, Any]:
    return {
        "output": stored.path,
        "bytes": stored.bytes,
        "dense_bytes": stored.dense_bytes,
        "sparsity": stored.sparsity,
        "sparse_tensors": stored.n_sparse,
        "tensors": stored.n_tensors,
        "left_dense": list(stored.left_dense),
        "seconds": stored.seconds,
    }
