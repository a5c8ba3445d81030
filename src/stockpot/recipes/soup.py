"""A finished soup: what was decided and why, and the weights that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot._types import JSON, StrPath
from stockpot.evaluate.batchnorm import is_statistic
from stockpot.mixing import Mixture
from stockpot.recipes.card import model_card
from stockpot.recipes.record import SoupRecord, record_of
from stockpot.recipes.result import SoupSummary

if TYPE_CHECKING:
    from stockpot.mixing import Saved


@dataclass(frozen=True, kw_only=True)
class Soup(SoupSummary):
    """Recipe, mixture, and everything that was measured on the way.

    Nothing is computed or written until `save`; the mixture can be scored or read as it is.

    Attributes:
        mixture: what was decided: coefficients over all ingredients, zeros included.
    """

    mixture: Mixture

    @property
    def scored_as(self) -> Mixture:
        """The mixture as it was scored: without the statistics that scoring made for it."""
        if self.mixture.overrides is None:
            return self.mixture
        given = self.mixture.overrides
        decided = {n: given.read(n) for n in given if not is_statistic(n)}
        return self.mixture.with_overrides(decided)

    def record(self, saved: Saved | None = None) -> dict[str, JSON]:
        """What rebuilds and verifies the file: it is written beside it."""
        return record_of(self.mixture, self.to_json(), saved).to_json()

    def save(self, path: StrPath, **options: Any) -> Saved:
        """Write the checkpoint and its record beside it; a kill leaves the old pair or the new.

        A folder also gets a model card, `README.md`.

        Args:
            path: `.safetensors`, `.pt`, or a folder.
            options: those of `Mixture.save` (`force`, `threads`, `max_memory`, `progress`, …).

        Raises:
            OutputExistsError: `path` exists and `force` is not given.
        """
        card = partial(model_card, name=Path(path).absolute().name)
        return self.mixture.save(path, record=self.record, card=card, **options)

    @classmethod
    def load(cls, path: StrPath, *, search: Iterable[StrPath] = ()) -> Soup:
        """The soup whose checkpoint is at `path`, from the record beside it.

        Ingredients that moved are found by fingerprint among `search`: files, or folders that are
        walked. BatchNorm statistics that were made from data come from the checkpoint itself.

        Raises:
            VerificationError: there is no record, or ingredients are not found; all are listed.
        """
        record = SoupRecord.read(path)
        return cls(mixture=record.rebuild(path, search=search), **vars(record.summary))
