"""An image encoder whose unit features meet a linear head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stockpot._optional import require
from stockpot._types import StrPath
from stockpot.errors import TaskError
from stockpot.tasks.base import FROM_FOLDER

HEAD = ("head.*",)
"""Parameters of the head, as `TrainConfig.head` takes them."""


class ImageTextClassifier(nn.Module):
    """Logits (N, C) = head(z / ‖z‖) for images (N, channels, height, width).

    z is the image feature of a CLIP-like model: the pooled output of its vision tower, through its
    `visual_projection` where it has one. Tensors have the names that they have in the whole model's
    files, so that a checkpoint of this class is also one of its vision tower; `head` is added.
    """

    def __init__(self, vision_model: nn.Module, projection: nn.Module | None, head: nn.Linear):
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = nn.Identity() if projection is None else projection
        self.head = head

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D)."""
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        return functional.normalize(self.visual_projection(pooled), dim=-1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (N, C)."""
        logits: torch.Tensor = self.head(self.features(pixel_values))
        return logits


def build_classifier(folder: StrPath) -> ImageTextClassifier:
    """The architecture of a folder that `make_zero_shot` wrote; its weights do not matter."""
    transformers = require("transformers", extra="hf")
    config = read_config(folder)
    vision = transformers.AutoModel.from_config(config, trust_remote_code=False)
    vision = getattr(vision, "vision_model", vision)  # transformers 4 has a shell around the tower
    width = getattr(config, "projection_dim", None)
    projection = None if width is None else nn.Linear(config.hidden_size, width, bias=False)
    n_features = config.hidden_size if width is None else width
    return ImageTextClassifier(vision, projection, nn.Linear(n_features, config.num_labels))


def read_config(folder: StrPath) -> Any:
    """The configuration of such a folder; nothing is looked up on the network.

    Raises:
        TaskError: there is none, or it is that of another kind of model.
    """
    transformers = require("transformers", extra="hf")
    if not (Path(folder) / "config.json").is_file():
        raise TaskError(f"{folder} holds no config.json: {_REMEDY}")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), **FROM_FOLDER)
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"{folder}/config.json cannot be used: {error}") from error
    if not config.model_type.endswith("_vision_model"):
        raise TaskError(f"{folder} holds a {config.model_type} model and no head: {_REMEDY}")
    return config


_REMEDY = "make a zero-shot classifier first: stockpot clip-head MODEL --classes FILE -o DIR"
