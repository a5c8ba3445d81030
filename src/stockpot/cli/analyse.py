"""Commands that score and explain: evaluate, diagnose, report, journal, clip-head."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import click

from stockpot._options import option
from stockpot._types import format_bytes
from stockpot.cli.groups import (
    Checkpoints,
    Inputs,
    Scores,
    SharedRunning,
    Show,
    TaskScores,
)
from stockpot.cli.output import figure_text, progress_bar, table
from stockpot.io.paths import short_names

if TYPE_CHECKING:
    from stockpot.diagnosis.result import Diagnosis
    from stockpot.evaluate.journal import Journal

_IMAGENET = "imagenet"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is scored beside the checkpoints."""

    heading: ClassVar[str] = "Comparison"

    base: str | None = option(
        None, metavar="CKPT", help="The model that adapters among them were trained on."
    )
    ensemble: bool = option(False, help="Also the mean of the logits of all.")
    metric: tuple[str, ...] = option(
        (), metavar="NAME", help="Also by this metric, of the same outputs; and the Pareto front."
    )
    pairs: bool = option(False, help="Show the differences of all pairs, and not to the best only.")


def evaluate(
    inputs: Checkpoints,
    scores: Scores,
    options: EvaluateOptions,
    running: SharedRunning,
    show: Show,
) -> None:
    """Score checkpoints on every split and compare each two.

    Scores come with 95 % intervals. Pairs are compared on the same examples: exact McNemar for
    accuracy, sign flips otherwise. Shown are the differences to the best on held-out data, and with
    --pairs all of them; --json always holds all.

    \b
    stockpot evaluate soup.safetensors runs/ --task handwriting
    stockpot evaluate a.pt b.pt --task my_task.py:task --ensemble --json
    stockpot evaluate runs/ --task task.yaml --metric loss --metric "accuracy by worst"
    """
    scores.require()
    from stockpot.mixing.ingredients import open_base, open_sources
    from stockpot.recipes.ensembles import compare_models

    base = None if options.base is None else open_base(options.base, key=inputs.key)
    models = open_sources(inputs.checkpoints, key=inputs.key, base=base)
    with running.evaluator(scores, inputs.checkpoints) as evaluator:
        found = compare_models(
            evaluator, models, with_ensemble=options.ensemble, metrics=options.metric
        )
    tables = found.tables(short_names(found.scores), every_pair=options.pairs)
    show.emit(found.to_json(), "\n\n".join(map(figure_text, tables)))


def _two(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"{text!r} names no line; write two models as A,B")
    return parts[0], parts[1]


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """What is measured, and where the page goes."""

    heading: ClassVar[str] = "Diagnosis"

    output: str | None = option(
        None, flags=("-o", "--output"), metavar="DIR",
        help="Folder for report.html and report.json.",
    )  # fmt: skip
    budget: int | None = option(
        None, minimum=1, metavar="N",
        help="Most evaluations, of one model on one split; default: as many as it takes.",
    )  # fmt: skip
    line: tuple[tuple[str, str], ...] = option(
        (), metavar="A,B", parse=_two, many=tuple,
        help="Also the line from A to B: checkpoints, the base, uniform or greedy. Repeatable.",
    )  # fmt: skip
    dry_run: bool = option(False, help="Say what would be evaluated; evaluate nothing.")
    force: bool = option(False, help="Overwrite the output.")

    def check(self) -> None:
        """Refuse a page that exists."""
        from stockpot.report.model import PAGE_NAME, RECORD_NAME
        from stockpot.report.page import refuse_output

        for name in (PAGE_NAME, RECORD_NAME) if self.output is not None else ():
            refuse_output(Path(str(self.output)) / name, force=self.force)


def diagnose(
    inputs: Inputs,
    scores: TaskScores,
    options: DiagnoseOptions,
    running: SharedRunning,
    show: Show,
) -> None:
    """Say whether checkpoints will soup, and why or why not.

    Measures barriers on the lines between them, the angles of their moves, the landscape around the
    two best, soups against the ensemble, calibration, and what each checkpoint is worth. All that
    was scored is kept in a journal: a killed command continues, and nothing is scored twice. With
    -o it also writes a page with figures.

    \b
    stockpot diagnose runs/ --task handwriting --base base.safetensors -o diagnosis
    stockpot diagnose a.pt b.pt c.pt --task my_task.py:task --base base.pt --budget 100
    stockpot diagnose runs/ --task my_task.py:task --base base.pt --line base.pt,uniform --json
    """
    options.check()
    from stockpot.diagnosis.plan import planned
    from stockpot.diagnosis.study import diagnose as study
    from stockpot.train.sweep.records import recorded_hyperparameters

    given = inputs.open()
    if given.base is None:
        raise click.UsageError("Missing option '--base': what all were fine-tuned from.")
    with running.evaluator(scores, inputs.checkpoints) as evaluator, progress_bar() as progress:
        if options.dry_run:
            data = planned(given, evaluator.task, options.budget, n_asked=len(options.line))
            show.emit(data, _plan_text(data))
            return
        result = study(
            given,
            evaluator=evaluator,
            budget=options.budget,
            choose_on=scores.choose_on,
            between=options.line,
            hyperparameters=recorded_hyperparameters([one.path for one in given]),
            progress=progress,
        )
    data = result.to_json()
    text = _diagnosis_text(result)
    if options.output is not None:
        from stockpot.report import write_diagnosis

        page = str(write_diagnosis(result, options.output, force=options.force))
        data = {**data, "report": page}
        text += f"\n\n{page}"
    show.emit(data, text)


def _plan_text(data: Mapping[str, Any]) -> str:
    shares, wishes = data["budget"]["parts"], data["wishes"]
    rows = [[name, str(share), str(wishes[name])] for name, share in shares.items()]
    rows.append(["together", str(sum(shares.values())), str(sum(wishes.values()))])
    return table(["part", "evaluations at most", "without a limit"], rows)


def _diagnosis_text(found: Diagnosis) -> str:
    """The verdict first, then the tables that it rests on."""
    spent = (
        f"{found.spending.made} evaluations were made, of {found.spending.planned} that were "
        "planned at most"
    )
    verdict = "\n".join(found.verdict.sentences)
    notes = [f"note: {note}" for note in found.notes]
    return "\n\n".join([verdict, *map(figure_text, found.tables()), spent, *notes])


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the page is made of, and where it goes."""

    heading: ClassVar[str] = "Page"

    source: str = option(
        positional=True,
        metavar="DIR",
        help="What a command wrote: the demo's folder, a sweep's folder, or a soup.",
    )
    output: str | None = option(
        None,
        flags=("-o", "--output"),
        metavar="OUT",
        help="The page; a name in .md becomes a Markdown card. Default: report.html in DIR, or "
        "beside a soup.",
    )
    axes: Literal["auto", "linear", "logit"] = option("auto", help="Of the scatter.")
    data: str | None = option(
        None, metavar="DIR", help="Also write the numbers of each figure: CSV and JSON."
    )
    force: bool = option(False, help="Overwrite the output.")


def report(page: ReportOptions, show: Show) -> None:
    """Make one self-contained HTML page of what was found.

    The page needs nothing but itself: it opens from a mail attachment. It is made from the record
    that a command wrote, and nothing is scored again.

    \b
    stockpot report stockpot-demo --force
    stockpot report soup.safetensors -o page.html
    stockpot report runs/ -o sweep.md
    stockpot report stockpot-demo -o page.html --data numbers/
    """
    from stockpot.report import open_report, render, write_data

    path = render(page.source, page.output, force=page.force, axes=page.axes)
    written = (
        []
        if page.data is None
        else write_data(open_report(page.source), page.data, force=page.force)
    )
    data = {"report": str(path), "data": [str(one) for one in written]}
    show.emit(data, "\n".join(map(str, [path, *written])))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which journal is meant."""

    heading: ClassVar[str] = "Journal"

    cache: str | None = option(
        None, metavar="DIR", help="Journal of what was scored; default: the user's."
    )

    def open(self) -> Journal | None:
        """The journal; None where nothing was ever scored."""
        from stockpot.evaluate.evaluator import open_journal
        from stockpot.io.paths import cache_dir

        folder = cache_dir() if self.cache is None else Path(self.cache)
        return open_journal(folder) if folder.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class Forgotten(Kept):
    """What is forgotten."""

    model: str | None = option(None, metavar="FINGERPRINT", help="Only results of these weights.")


def journal_list(journal: Kept, show: Show) -> None:
    """List what has been scored and is remembered.

    \b
    stockpot journal list
    stockpot journal list --cache DIR --json
    """
    found = journal.open()
    entries = [] if found is None else found.entries()
    rows = [
        [
            entry.label or entry.key.model[:12],
            entry.key.metric,
            str(entry.n),
            format_bytes(entry.n_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created)),
        ]
        for entry in entries
    ]
    data = {"entries": [entry.to_json() for entry in entries]}
    show.emit(data, table(["what", "metric", "examples", "size", "made"], rows))


def journal_clear(journal: Forgotten, show: Show) -> None:
    """Forget what has been scored.

    It is computed again when it is needed.

    \b
    stockpot journal clear
    stockpot journal clear --model 0f3c…
    """
    found = journal.open()
    n = 0 if found is None else found.clear(model=journal.model)
    show.emit({"cleared": n}, f"{n} entries forgotten")


@dataclass(frozen=True, kw_only=True)
class ClipHead:
    """What becomes a classifier of what."""

    heading: ClassVar[str] = "Classifier"

    model: str = option(
        positional=True,
        metavar="MODEL",
        help="Folder of a CLIP or SigLIP model, or hf:org/name to download it.",
    )
    output: str = option(
        flags=("-o", "--output"),
        metavar="OUT",
        help="A model folder, which --task files take; or a .safetensors or .pt file.",
    )
    classes: str = option(metavar="FILE", help="Names, one a line; or a list: zero,one,two.")
    templates: str = option(
        _IMAGENET,
        metavar="FILE",
        help="Sentences with {} for the class, one a line; or one sentence: "
        '"a photo of a {}."; imagenet: the 80 usual ones.',
    )
    head_only: bool = option(False, help="Write the head's two tensors alone, to a file.")
    device: str = option(
        "auto", help="auto (the accelerator there is), accelerate, cpu, cuda:1, xpu, mps, …"
    )
    force: bool = option(False, help="Overwrite the output.")

    def names(self) -> tuple[str, ...]:
        """The classes in a file, or those of a list."""
        from stockpot.tasks.clip.templates import read_classes

        if "," in self.classes and not Path(self.classes).exists():
            return tuple(part.strip() for part in self.classes.split(","))
        return read_classes(self.classes)

    def sentences(self) -> tuple[str, ...]:
        """The templates that are meant: the usual ones, one as written, or those in a file."""
        from stockpot.tasks.clip.templates import IMAGENET_TEMPLATES, read_templates

        if self.templates == _IMAGENET:
            return IMAGENET_TEMPLATES
        return (self.templates,) if "{}" in self.templates else read_templates(self.templates)


def clip_head(head: ClipHead, show: Show) -> None:
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
            head.model, head.output, classes=head.names(), templates=head.sentences(),
            device=head.device, head_only=head.head_only, force=head.force, progress=progress,
        )  # fmt: skip
    shown = f"{len(made.classes)} classes, {len(made.templates)} template"
    shown += "s" if len(made.templates) != 1 else ""
    text = f"{made.path}: {shown}, {made.n_features} features, logits scaled by {made.scale:.4g}"
    show.emit(made.to_json(), text)
