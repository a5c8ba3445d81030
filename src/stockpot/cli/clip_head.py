"""`stockpot clip-head`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stockpot.cli import _options as options
from stockpot.cli._render import emit, progress_bar

_IMAGENET = "imagenet"


def clip_head(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder of a CLIP or SigLIP model, or hf:org/name to download it."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="A model folder, which --task files take; or a .safetensors or .pt file.",
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            "--classes", metavar="FILE", help="Names, one a line; or a list: zero,one,two."
        ),
    ],
    templates: Annotated[
        str,
        typer.Option(
            "--templates",
            metavar="FILE",
            help="Sentences with {} for the class, one a line; or one sentence: "
            '"a photo of a {}."; imagenet: the 80 usual ones.',
        ),
    ] = _IMAGENET,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Write the head's two tensors alone, to a file.")
    ] = False,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Make a zero-shot classifier of a CLIP-like model.

    The names of the classes, in every template, become the head: no image is needed. The result
    is the image encoder with this head; fine-tune from it, and interpolate between the two.

    \b
    stockpot clip-head clip-vit-b32/ --classes birds.txt -o zero-shot/
    stockpot clip-head hf:openai/clip-vit-base-patch32 --classes cat,dog -o zero-shot/
    stockpot clip-head clip/ --classes digits.txt --templates "the digit {}." -o zero-shot/
    """
    from stockpot.tasks.clip import make_zero_shot

    with progress_bar() as progress:
        made = make_zero_shot(
            model,
            output,
            classes=_classes(classes),
            templates=_templates(templates),
            device=device,
            head_only=head_only,
            force=force,
            progress=progress,
        )
    data = {
        "output": made.path,
        "classes": list(made.classes),
        "templates": list(made.templates),
        "features": made.n_features,
        "scale": made.scale,
    }
    shown = f"{len(made.classes)} classes, {len(made.templates)} template"
    shown += "s" if len(made.templates) != 1 else ""
    text = f"{made.path}: {shown}, {made.n_features} features, logits scaled by {made.scale:.4g}"
    emit(data, text, as_json=json)


def _classes(text: str) -> tuple[str, ...]:
    """The names in a file, or those of a list."""
    from stockpot.tasks.clip import read_classes

    if "," in text and not Path(text).exists():
        return tuple(part.strip() for part in text.split(","))
    return read_classes(text)


def _templates(text: str) -> tuple[str, ...]:
    """The sentences that are meant: the usual ones, one as written, or those in a file."""
    from stockpot.tasks.clip import IMAGENET_TEMPLATES, read_templates

    if text == _IMAGENET:
        return IMAGENET_TEMPLATES
    return (text,) if "{}" in text else read_templates(text)
