"""Model folders small enough to make in a test, with real configurations and tokenizers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tokenizers
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
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )


def tokenizer() -> Any:
    """Lower-casing WordPiece over `WORDS`."""
    with tempfile.TemporaryDirectory() as folder:  # the one way in of transformers 4 and 5 alike
        Path(folder, "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
        return transformers.BertTokenizerFast.from_pretrained(folder)


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


def t5_folder(folder: Path, *, seed: int = 0) -> Path:
    """A complete folder of a small T5 with a word-level tokenizer over the same words."""
    config = transformers.T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def vit_folder(folder: Path, *, labels: tuple[str, ...], seed: int = 0) -> Path:
    """A complete folder of a small ViT for images of 16 pixels, with its processor."""
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.ViTForImageClassification(config)
    model.save_pretrained(folder)
    # transformers 4 has one name fewer: its plain class is the one that needs no torchvision.
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    processor = kind(size={"height": 16, "width": 16})
    processor.save_pretrained(folder)
    return folder


def gpt_folder(folder: Path, *, seed: int = 0, n_positions: int = 64) -> Path:
    """A complete folder of a small GPT-2 whose tokens are the words of `WORDS`."""
    config = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_positions=n_positions,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="[PAD]", bos_token="[PAD]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return folder
