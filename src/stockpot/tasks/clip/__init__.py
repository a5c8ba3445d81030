"""Zero-shot classification with CLIP-like models: class names become a head (docs/clip.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.tasks.clip.classifier import HEAD as HEAD
    from stockpot.tasks.clip.groups import ClassGroups as ClassGroups
    from stockpot.tasks.clip.task import CLIPTask as CLIPTask
    from stockpot.tasks.clip.task import image_data as image_data
    from stockpot.tasks.clip.zero_shot import make_zero_shot as make_zero_shot
    from stockpot.tasks.clip.zero_shot import zero_shot_classifier as zero_shot_classifier

__getattr__, __dir__ = lazy_exports(__name__, __file__)
