"""The command merge: models merged by a configuration in YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stockpot._options import option
from stockpot.cli.groups import Saving, Show
from stockpot.cli.recipes import soup_parts


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is merged, and how."""

    heading: ClassVar[str] = "Merge"

    config: str = option(positional=True, metavar="CONFIG.yml", help="As mergekit reads it.")
    seed: int = option(0, help="Of methods that draw at random (dare, della).")


def merge(configuration: Configuration, saving: Saving, show: Show) -> None:
    """Merge models by a mergekit configuration.

    Reads merge_method, models or slices, base_model, parameters with filters and gradients, dtype
    and out_dtype. Methods: linear, slerp, nuslerp, task_arithmetic, ties, dare_linear, dare_ties,
    della, della_linear, breadcrumbs, breadcrumbs_ties, model_stock, karcher, sce, passthrough.
    Relative paths are looked for here, and then beside the configuration.

    \b
    stockpot merge config.yml -o merged/
    stockpot merge config.yml -o merged/ --max-shard-size 5GB --dry-run
    """
    from stockpot.recipes.merge import Merge

    saving.check()
    recipe = Merge.read(configuration.config, seed=configuration.seed)
    given = recipe.ingredients(dtype=saving.dtype)
    soup = recipe.cook(given, dtype=saving.dtype)
    data, text = saving.save(soup)
    show.emit({**soup.to_json(), **data}, "\n\n".join([*soup_parts(soup), text]))
