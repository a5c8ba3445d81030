"""A finished soup: what was decided and why, and the weights that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot._figures import Cell, Estimate, Table
from stockpot._optional import require
from stockpot._types import JSON, StrPath
from stockpot.evaluate.batchnorm import is_statistic
from stockpot.io.paths import short_name
from stockpot.mixing import Mixture
from stockpot.recipes.card import model_card
from stockpot.recipes.interpolation_details import WiseFTDetails
from stockpot.recipes.record import SoupRecord, record_of
from stockpot.recipes.result import SoupSummary

if TYPE_CHECKING:
    import pandas
    import torch

    from stockpot.mixing import Saved


@dataclass(frozen=True, kw_only=True, repr=False)
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
        return as_scored(self.mixture)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors by name, computed now, for `module.load_state_dict`."""
        return self.mixture.state_dict()

    def load_into(self, model: torch.nn.Module) -> None:
        """Copy the weights into `model`, whose dtypes and devices stay.

        Raises:
            MismatchError: names or shapes differ; nothing was copied.
        """
        self.mixture.load_into(model)

    def __str__(self) -> str:
        """Three lines: the gain, what was kept with its scores, and where to go on."""
        return "\n".join((self.headline, self._kept(), self._next()))

    @property
    def headline(self) -> str:
        """The gain, or that nothing was measured."""
        return "UNTESTED: nothing was scored" if self.gain is None else str(self.gain)

    def _kept(self) -> str:
        n, names = len(self.selected), [short_name(path) for path in self.selected]
        listed = ", ".join(names[:5]) + (f" and {n - 5} more" if n > 5 else "")
        scores = [
            f"{split.replace('_', ' ')} {score.value:.4f}"
            + (" (chose)" if split == self.chosen_on else "")
            for split, score in self.scores.items()
            if score is not None
        ]
        measured = f"; {', '.join(scores)}" if scores else ""
        if isinstance(self.details, WiseFTDetails):
            # The base is one of the ingredients, and takes part wherever α is below 1.
            towards = f" to {listed}" if listed else ""
            return f"{self.recipe}: α = {self.details.alpha:g} from the base{towards}{measured}"
        return f"{self.recipe}: {n} of {len(self.mixture.ingredients)} ({listed}){measured}"

    def _next(self) -> str:
        return 'soup.save("soup/")  net.load_state_dict(soup.state_dict())  soup.to_frame()'

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for a notebook: the gain, and the tables."""
        tables = "".join(_html_table(table) for table in self.tables())
        return f"<p><b>{escape(self.headline)}</b></p><p>{escape(self._kept())}</p>{tables}"

    def to_frame(self) -> pandas.DataFrame:
        """A row for each model of the table of scores, a column for each split (needs pandas)."""
        pandas = require("pandas")
        rows = {
            model.name: {
                s: None if score is None else score.value for s, score in model.scores.items()
            }
            for model in self.models()
        }
        return pandas.DataFrame.from_dict(rows, orient="index")

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
        card = partial(model_card, name=Path(path).absolute().name, summary=self)
        return self.mixture.save(path, record=self.record, card=card, **options)

    @classmethod
    def load(
        cls, path: StrPath, *, search: Iterable[StrPath] = (), allow_remote: bool = False
    ) -> Soup:
        """The soup whose checkpoint is at `path`, from the record beside it.

        Ingredients that moved are found by fingerprint among `search`: files, or folders that are
        walked. BatchNorm statistics that were made from data come from the checkpoint itself.
        Nothing that the record names elsewhere, such as `hf:org/name`, is fetched without
        `allow_remote`.

        Raises:
            VerificationError: there is no record, or ingredients are not found; all are listed.
        """
        record = SoupRecord.read(path)
        mixture = record.rebuild(path, search=search, allow_remote=allow_remote)
        return cls(mixture=mixture, **vars(record.summary))


def as_scored(mixture: Mixture) -> Mixture:
    """A mixture without the BatchNorm statistics that scoring made for it."""
    given = mixture.overrides
    if given is None or not any(map(is_statistic, given)):
        return mixture
    return mixture.with_overrides({n: given.read(n) for n in given if not is_statistic(n)})


def _html_table(table: Table) -> str:
    """A table whose every text is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in (table.first, *_names(table)))
    rows = []
    for row in table.rows:
        cells = "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row.cells)
        name = f"<b>{escape(row.name)}</b>" if row.chosen else escape(row.name)
        rows.append(f"<tr><td>{name}</td>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _names(table: Table) -> list[str]:
    return [column.name.replace("_", " ") for column in table.columns]


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Estimate):
        text = f"{cell.value:.4f}"
        if cell.low is None or cell.high is None:
            return text
        return f"{text} ({cell.low:.4f} to {cell.high:.4f})"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
