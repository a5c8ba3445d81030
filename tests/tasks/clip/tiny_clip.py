"""CLIP-like folders small enough to make in a test, with real configurations and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = (
    "[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "the", "photo", "sketch", "of", "digit", "zero", "one",
    "two", "three", "many",
)  # fmt: skip
CLASSES = ("zero", "one", "two", "three")
TEMPLATES = ("a photo of the digit {}", "a sketch of {}", "the {}")
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def _image_processor(kind: str) -> Any:
    """The one without torchvision, by its name in transformers 5 or 4."""
    old = f"{kind}ImageProcessor"
    return getattr(transformers, f"{old}Pil", None) or getattr(transformers, old)


def tokenizer(length: int = 16) -> Any:
    """Whole words, with a first and a last token."""
    words = {word: i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]",
        eos_token="[EOS]", model_max_length=length,
    )  # fmt: skip


def folder(path: Path, kind: str = "clip", *, seed: int = 0) -> Path:
    """A whole model of `kind` (clip or siglip) for images of 8 pixels."""
    text = {
        **_TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 16, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    vision = {**_TOWER, "image_size": 8, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "clip":
            # The projection's width differs from the towers', and from the sub-configs' default.
            model: Any = transformers.CLIPModel(
                transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
            )
            processor: Any = _image_processor("CLIP")(
                size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8}
            )
        else:
            model = transformers.SiglipModel(
                transformers.SiglipConfig(text_config=text, vision_config=vision)
            )
            processor = _image_processor("Siglip")(size={"height": 8, "width": 8})
        # Published models have seen text and images; a fresh one tells nothing apart.
        for name, value in model.named_parameters():
            if "layer_norm" not in name and "logit" not in name:
                torch.nn.init.normal_(value, std=0.3)
        torch.nn.init.constant_(model.logit_scale, 3.0)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def images(n: int, *, seed: int) -> list[Any]:
    """Images (8, 8, 3) of random pixels, uint8."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return list(pixels.numpy())
