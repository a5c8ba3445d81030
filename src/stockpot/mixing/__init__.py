"""Mixtures of checkpoints, and the engine that writes them. No torch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockpot._lazy import lazy_exports

if TYPE_CHECKING:
    from stockpot.mixing.coefficients import Coefficients as Coefficients
    from stockpot.mixing.engine import MixPlan as MixPlan
    from stockpot.mixing.engine import Saved as Saved
    from stockpot.mixing.ingredients import Ingredients as Ingredients
    from stockpot.mixing.ingredients import LeftOut as LeftOut
    from stockpot.mixing.mask import Mask as Mask
    from stockpot.mixing.mask import NonzeroMask as NonzeroMask
    from stockpot.mixing.mixture import Mixture as Mixture
    from stockpot.mixing.reconcile import Reconcile as Reconcile
    from stockpot.mixing.rules.base import BufferPolicy as BufferPolicy
    from stockpot.mixing.rules.base import Rule as Rule
    from stockpot.mixing.rules.base import TensorPlan as TensorPlan
    from stockpot.mixing.rules.table import register_rule as register_rule
    from stockpot.mixing.sparse import SharedMask as SharedMask
    from stockpot.mixing.sparse import shared_mask as shared_mask

__getattr__, __dir__ = lazy_exports(__name__, __file__)
