"""Zero-shot classification with CLIP-like models: class names become a head (docs/clip.md)."""

from __future__ import annotations

from stockpot.tasks.clip.classifier import HEAD, ImageTextClassifier, build_classifier
from stockpot.tasks.clip.groups import ClassGroups
from stockpot.tasks.clip.task import CLIPTask, image_data
from stockpot.tasks.clip.templates import IMAGENET_TEMPLATES, read_classes, read_templates
from stockpot.tasks.clip.zero_shot import (
    ZeroShot,
    load_model,
    make_zero_shot,
    text_head,
    zero_shot_classifier,
)

__all__ = [
    "HEAD",
    "IMAGENET_TEMPLATES",
    "CLIPTask",
    "ClassGroups",
    "ImageTextClassifier",
    "ZeroShot",
    "build_classifier",
    "image_data",
    "load_model",
    "make_zero_shot",
    "read_classes",
    "read_templates",
    "text_head",
    "zero_shot_classifier",
]
