"""Documents for language models: packed into blocks, scored by the likelihood of every token."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from stockpot.errors import TaskError
from stockpot.evaluate.metrics import MeanMetric, WholeMetric
from stockpot.evaluate.task import Metric


class PackedData(Dataset[torch.Tensor]):
    """Documents one behind the other, cut into blocks of `length` tokens; the rest is left out.

    Behind each document stands the token `end`. A block may begin within a document, whose
    beginning is then not seen. All blocks have one length, so that the mean over blocks is the mean
    over tokens. Tokens are made on first use.

    Args:
        documents: their texts.
        encode: texts → token ids of each.
        end: token behind each document; None for none.
        length: tokens of a block.
    """

    categories: None = None

    def __init__(
        self,
        documents: Sequence[str],
        encode: Callable[[list[str]], list[list[int]]],
        *,
        end: int | None,
        length: int,
    ) -> None:
        self.documents, self.encode, self.end, self.length = list(documents), encode, end, length

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.blocks[index]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "blocks"}

    @functools.cached_property
    def blocks(self) -> torch.Tensor:
        """Token ids (n, length), int64.

        Raises:
            TaskError: the documents have fewer tokens than one block.
        """
        last = [] if self.end is None else [self.end]
        ids = [token for one in self.encode(self.documents) for token in (*one, *last)]
        n = len(ids) // self.length
        if n == 0:
            raise TaskError(
                f"{len(self.documents)} documents have {len(ids)} tokens together, fewer than one "
                f"block of {self.length}: give more, or a smaller max_length"
            )
        return torch.tensor(ids[: n * self.length]).reshape(n, self.length)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the documents; how they are packed is part of the task's version."""
        digest = hashlib.blake2b(digest_size=16)
        for content in self.example_digests():
            digest.update(content)
        return digest.hexdigest()

    def example_digests(self) -> list[bytes]:
        """One digest per document, of its words however they are spaced."""
        return [
            hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
            for text in self.documents
        ]

    def subset(self, kept: Sequence[int]) -> PackedData:
        """The documents at `kept` only, packed anew."""
        documents = [self.documents[i] for i in kept]
        return PackedData(documents, self.encode, end=self.end, length=self.length)


def block_losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of each block of −log p(token | those before it in the block): (N,).

    The first token of a block has nothing before it and is not counted. Computed in float32.
    """
    mask = torch.ones_like(batch)  # without one, transformers warns of padding in every batch
    found = model(input_ids=batch, attention_mask=mask, use_cache=False)
    logits = found.logits[:, :-1].float()
    targets = batch[:, 1:]
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.reshape(targets.shape).mean(1)


def no_targets(batch: torch.Tensor) -> torch.Tensor:
    """What is to be predicted is the batch itself: zeros (N,), floating, which are no classes."""
    return torch.zeros(len(batch))


def mean_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of losses that the outputs are; differentiable."""
    return outputs.mean()


def _losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.double()


def _perplexity(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return math.exp(math.fsum(outputs.double().tolist()) / outputs.numel())


def token_loss() -> MeanMetric:
    """Nats per token of outputs that are such; lower is better, and nothing is below 0."""
    return MeanMetric(_losses, "loss", higher_is_better=False, low=0.0)


def language_metric(name: str) -> Metric:
    """The metric of language models of this name: loss, or perplexity (e to the loss).

    >>> language_metric("perplexity").compute(torch.log(torch.tensor([2.0, 8.0])), torch.zeros(2))
    4.0...

    Raises:
        TaskError: it is neither.
    """
    made: Mapping[str, Callable[[], Metric]] = {
        "loss": token_loss,
        "perplexity": lambda: WholeMetric(_perplexity, "perplexity", higher_is_better=False),
    }
    if name not in made:
        raise TaskError(
            f"metric is {name!r}; language models are scored by loss (nats per token) or perplexity"
        )
    return made[name]()
