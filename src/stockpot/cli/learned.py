"""`stockpot learned`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stockpot.cli import _options as options
from stockpot.cli._cooking import cooks
from stockpot.cli._render import table
from stockpot.cli._scoring import score_table

if TYPE_CHECKING:
    from stockpot.recipes.base import Recipe


def _patterns(given: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (pattern, _, name) in zip(given, pairs, strict=True)
             if not pattern or not name]  # fmt: skip
    if wrong:
        raise typer.BadParameter(
            f"{', '.join(map(repr, wrong))}: write PATTERN=NAME, for example '*.attn.*=attention'",
            param_hint="--groups",
        )
    return tuple((pattern, name) for pattern, _, name in pairs)


def _groups_table(coefficients: dict[str, Any]) -> list[str]:
    """Of each ingredient the mean over groups and the range; what one vector is, saving shows."""
    if not all(isinstance(value, dict) for value in coefficients.values()):
        return []
    by_path: dict[str, list[float]] = {}
    for group in coefficients.values():
        for path, value in group.items():
            by_path.setdefault(path, []).append(value)
    rows = [
        [path, f"{sum(v) / len(v):.3f}", f"{min(v):.3f} to {max(v):.3f}"]
        for path, v in by_path.items()
    ]
    header = ["ingredient", "mean coefficient", f"range over {len(coefficients)} groups"]
    return [table(header, rows)]


def _parts_table(told: dict[str, Any]) -> str:
    columns = [part for part in ("fitting", "deciding") if part in told["parts"]["learned"]]
    rows = [
        [name + (" (taken)" if name == told["taken"] else ""), *(f"{part[c]:.4f}" for c in columns)]
        for name, part in told["parts"].items()
    ]
    counts = {c: told[f"n_{c}"] for c in columns}
    header = [c if counts[c] is None else f"{c} ({counts[c]})" for c in columns]
    return table(["soup", *header], rows)


def _show(told: dict[str, Any]) -> str:
    return "\n\n".join(
        [
            *_groups_table(told["coefficients"]),
            _parts_table(told),
            score_table({told["taken"]: told["scores"]}),
        ]
    )


def _draw(told: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The heat map that --figure asks for, of the learned soup whether or not it was taken."""
    if given["figure"] is None:
        return {}
    from stockpot.report.heatmap import save_coefficients_map

    save_coefficients_map(told["learned_coefficients"], given["figure"], force=given["force"])
    return {"figure": given["figure"]}


@cooks(_show, decides=True, also=_draw)
def learned(
    seed: int,
    force: bool,
    by: Annotated[
        Literal["model", "layer", "tensor"],
        typer.Option("--by", help="What has coefficients of its own."),
    ] = "model",
    groups: Annotated[
        list[str] | None,
        typer.Option("--groups", metavar="PATTERN=NAME", help="Tensors that form a group."),
    ] = None,
    constraint: Annotated[
        Literal["softmax", "free", "hyperplane"],
        typer.Option("--constraint", help="Positive and summing to 1; any; any that sum to 1."),
    ] = "softmax",
    optimiser: Annotated[
        Literal["lbfgs", "adamw"], typer.Option("--optimiser", help="How the loss is minimised.")
    ] = "lbfgs",
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="Most iterations, or passes over the data.")
    ] = 30,
    steps_of: Annotated[
        int | None,
        typer.Option("--step-size", min=1, help="Examples of one AdamW step; default: all."),
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate of AdamW.")] = None,
    deciding: Annotated[
        float, typer.Option("--deciding", help="Share of the held-out data that decides.")
    ] = 0.5,
    decide_on: Annotated[
        str | None,
        typer.Option("--decide-on", metavar="SPLIT", help="Held-out split that decides instead."),
    ] = None,
    patience: Annotated[
        int,
        typer.Option("--patience", min=1, help="Epochs without a lower loss on what decides."),
    ] = 5,
    budget: Annotated[
        int, typer.Option("--budget", min=1, help="With --eval: evaluations of the search.")
    ] = 200,
    eval_deciding: options.EvalDeciding = None,
    max_memory: options.MaxMemory = None,
    figure: Annotated[
        str | None,
        typer.Option(
            "--figure", metavar="FILE", help="Heat map of what was learned: .svg, .png or .pdf."
        ),
    ] = None,
) -> Recipe:
    """Learned soup: fit the mixing coefficients on held-out data.

    One part of the held-out split fits; the other decides whether the result is better than the
    uniform and the greedy soup, and the best of the three is written. Ingredients stay on disk:
    memory is that of the model and its gradient. A killed command continues where it was.

    With --eval there are no gradients: CMA-ES searches for coefficients within --budget runs of the
    program, beside those that the greedy soup takes (two for each ingredient). Give a second
    program with other data to decide.

    \b
    stockpot learned runs/ --task handwriting -o soup.safetensors
    stockpot learned runs/ --task my_task.py:task -o soup.safetensors --by layer --max-memory 8GB
    stockpot learned runs/ --eval "score {checkpoint} fit.csv" -o soup.safetensors \\
        --eval-deciding "score {checkpoint} decide.csv"
    """
    memory = options.size(max_memory, "--max-memory")
    patterns = _patterns(groups or [])
    if figure is not None:
        from stockpot.report.heatmap import check_figure

        check_figure(figure, force=force)
    from stockpot.recipes.learned import Learned

    return Learned(
        by=by,
        groups=patterns,
        constraint=constraint,
        optimiser=optimiser,
        n_epochs=epochs,
        batch_size=steps_of,
        lr=lr,
        deciding=deciding,
        decide_on=decide_on if eval_deciding is None else "deciding",
        patience=patience,
        budget=budget,
        max_memory=memory,
        seed=seed,
    )
