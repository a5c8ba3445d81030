"""The models that recipes are tested on."""

from __future__ import annotations

from tests.recipes.conftest import bn_lab, lab

__all__ = ["bn_lab", "lab"]
