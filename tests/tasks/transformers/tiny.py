"""Model folders small enough to make in a test, with real configurations and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "the", "it", "was", "is", "not",
    "film", "dog", "one", "slept", "good", "great", "fine", "bad", "awful", "dull", "sentence",
    "second", "first", "yes", "no", "does", "from", "follow", "this", ".", ",", "!", "?", "number",
)  # fmt: skip


def bert_config(**options: Any) -> transformers.BertConfig:
    """A BERT of 16 dimensions and one layer."""
    return transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
        **options,
    )


def tokenizer() -> Any:
    """Lower-casing WordPiece over `WORDS`."""
    return transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})


def bert_folder(
    folder: Path, kind: str = "BertForSequenceClassification", *, seed: int = 0, **options: Any
) -> Path:
    """A complete folder of a small BERT: config, weights drawn from `seed`, tokenizer."""
    config = bert_config(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
