"""What identifies weights that are to be scored, and what is in them."""

from __future__ import annotations

import hashlib

from stockpot.evaluate.swap import Weights, read_weights, weight_names

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def content_key(source: Weights) -> str:
    """What identifies the values of `source`: a mixture's `key`, a checkpoint's `fingerprint`.

    A plain mapping of tensors is hashed.
    """
    for attribute in ("key", "fingerprint"):
        found = getattr(source, attribute, None)
        if isinstance(found, str):
            return found
    import torch

    digest = hashlib.sha256()
    for name in sorted(weight_names(source)):
        value = read_weights(source, name).detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def n_mixed(source: Weights) -> int:
    """How many ingredients take part in `source`; 1 for anything but a mixture."""
    return int(getattr(source, "n_mixed", 1))


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name holds BatchNorm statistics.

    >>> is_statistic("layer1.0.bn1.running_mean"), is_statistic("layer1.0.bn1.weight")
    (True, False)
    """
    return name.rpartition(".")[2] in _STATISTICS


def brings_statistics(source: Weights) -> bool:
    """Whether BatchNorm statistics are among what `source` overrides: then they are kept."""
    overrides = getattr(source, "overrides", None)
    return overrides is not None and any(map(is_statistic, overrides))
