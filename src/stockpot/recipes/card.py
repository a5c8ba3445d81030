"""The model card of a soup that is a model folder: `README.md`, with the metadata of the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stockpot._markdown import escape_markdown
from stockpot._records import read_regular
from stockpot._types import JSON, StrPath
from stockpot.evaluate.task import Score
from stockpot.recipes.record import RecordedCheckpoint, SoupRecord
from stockpot.recipes.result import SoupSummary

_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
}
"""Endings of architectures in config.json, and the pipelines that serve them."""

_HUB_METRICS = {"f1-macro": "f1", "f1-micro": "f1", "matthews": "matthews_correlation"}
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


def model_card(
    data: Mapping[str, Any], folder: Path, *, name: str, summary: SoupSummary | None = None
) -> str:
    """The card of the soup that a record describes, whose files are in `folder`.

    It names the base, the ingredients with their coefficients, and every score with its interval;
    nothing in it depends on the day or the machine but the paths as they were given.

    Args:
        data: the record that is kept beside the soup.
        folder: where its config.json is, which says how the model is served.
        name: of the model.
        summary: what the record says was decided and measured, where it is known: reading it
            imports every recipe.
    """
    record, kind = SoupRecord.from_json(data), _Kind.of(folder)
    found = record.summary if summary is None else summary
    parts = [
        f"---\n{_front(record, found, kind, name)}---",
        f"# {escape_markdown(name)}",
        _about(record, found),
        _ingredients(record),
        _scores(found),
        _use(kind, name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Kind:
    """What kind of model a folder holds.

    Attributes:
        library: that loads it, as the hub calls it.
        loader: its class in that library that does; empty where the folder does not say.
        pipeline: the hub's name of what it does, where that is known.
        tokenizes: whether a tokenizer of transformers lies beside the weights.
    """

    library: str = "transformers"
    loader: str = ""
    pipeline: str | None = None
    tokenizes: bool = False

    @classmethod
    def of(cls, folder: Path) -> _Kind:
        if (folder / "modules.json").is_file():
            return cls("sentence-transformers", "SentenceTransformer", "sentence-similarity")
        if (folder / "model_index.json").is_file():
            return cls("diffusers", "DiffusionPipeline")
        try:
            config = json.loads(read_regular(folder / "config.json"))
            (architecture,) = config["architectures"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls()
        if not isinstance(architecture, str) or not architecture.isidentifier():
            return cls()
        known = (p for end, p in _PIPELINES.items() if architecture.endswith(end))
        pipeline = next(known, None)
        ours = pipeline is not None or architecture.endswith("Model")
        return cls(
            loader=architecture if ours and "auto_map" not in config else "",
            pipeline=pipeline,
            tokenizes=(folder / "tokenizer_config.json").is_file(),
        )

    def line(self, name: str) -> str:
        """The line of Python that loads the model `name`; empty where the folder does not say."""
        if not self.loader:
            return ""
        load = "" if self.loader == "SentenceTransformer" else ".from_pretrained"
        return f'{self.loader}{load}("{name}")'


def how_to_load_folder(folder: StrPath) -> str | None:
    """The line of Python that loads the model in `folder`, its head included.

    None where the folder does not name the class, or is no model folder: `AutoModel` would load
    most models without their heads.
    """
    return _Kind.of(Path(folder)).line(os.fspath(folder)) or None


def hub_name(path: str) -> str:
    """The name of a checkpoint on the hub if it came from there, else the last part of its path.

    >>> hub_name("/c/models--org--bert/snapshots/1f/"), hub_name("runs/run-03.safetensors")
    ('org/bert', 'run-03')
    """
    if path.startswith("hf:"):
        return path.removeprefix("hf:").partition("@")[0]
    cached = _CACHED.search(path)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    name = Path(path).name.removesuffix(".safetensors").removesuffix(".pt")
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "checkpoint"


def _used(record: SoupRecord) -> list[RecordedCheckpoint]:
    """Ingredients that take part; where coefficients differ by group, all of them."""
    return [one for one in record.ingredients if one.coefficient != 0]


def _front(record: SoupRecord, summary: SoupSummary, kind: _Kind, name: str) -> str:
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True  # the hub shows the text as it is

    named = [one.path for one in _used(record)]
    if record.base is not None:
        named.append(record.base.path)
    # The hub links them: names of this machine would lead to somebody else's model, or nowhere.
    on_hub = [found for path in named if "/" in (found := hub_name(path))]
    metrics = list(dict.fromkeys(_hub_metric(score) for score in _scored(summary)))
    fields: dict[str, JSON] = {}
    if on_hub:
        fields["base_model"] = list(dict.fromkeys(on_hub))
        fields["base_model_relation"] = "merge"
    fields["library_name"] = kind.library
    fields["tags"] = ["merge", "model-soup", "stockpot"]
    if kind.pipeline is not None:
        fields["pipeline_tag"] = kind.pipeline
    if metrics:
        fields["metrics"] = list[JSON](metrics)
        fields["model-index"] = [_index(summary, kind.pipeline, name)]
    return yaml.dump(fields, Dumper=Plain, sort_keys=False, allow_unicode=True, width=100)


def _index(summary: SoupSummary, pipeline: str | None, name: str) -> JSON:
    kind: dict[str, JSON] = {"type": pipeline or "other"}
    results: list[JSON] = [
        {
            "task": kind,
            "dataset": {"name": score.split, "type": score.split},
            "metrics": [{"type": _hub_metric(score), "value": score.value}],
        }
        for score in _scored(summary)
    ]
    return {"name": name, "results": results}


def _hub_metric(score: Score) -> str:
    return _HUB_METRICS.get(score.metric, score.metric)


def _scored(summary: SoupSummary) -> list[Score]:
    return [score for score in summary.scores.values() if score is not None]


def _about(record: SoupRecord, summary: SoupSummary) -> str:
    of = f"{len(_used(record))} of {len(record.ingredients)} checkpoints"
    gain = summary.gain
    first = "" if gain is None else f"**{escape_markdown(str(gain))}**\n\n"
    return (
        f"{first}A model soup: one network whose weights are a mean of {of}, at the inference cost "
        f"of one. Made by stockpot {escape_markdown(record.stockpot)} with the recipe "
        f"`{_code(summary.recipe)}`."
    )


def _ingredients(record: SoupRecord) -> str:
    lines = ["## Ingredients", "", "| checkpoint | coefficient | fingerprint |", "|---|--:|---|"]
    for one in record.ingredients:
        share = "by group" if one.coefficient is None else f"{one.coefficient:.6g}"
        lines.append(f"| {_shown(one.path)} | {share} | `{_code(one.fingerprint)}` |")
    if record.base is not None:
        fingerprint = _code(record.base.fingerprint)
        lines += ["", f"Base: {_shown(record.base.path)} (`{fingerprint}`)"]
    return "\n".join(lines)


def _shown(path: str) -> str:
    name = hub_name(path)
    if "/" not in name:
        return f"`{_code(Path(path).name)}`"
    return f"[{escape_markdown(name)}](https://huggingface.co/{quote(name)})"


def _code(text: str) -> str:
    """`text` between backticks in a cell of a table: without what would end either."""
    return re.sub(r"[^\w .,:;@#%+=/()~-]", "\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def _scores(summary: SoupSummary) -> str:
    found = _scored(summary)
    if not found:
        return ""
    lines = ["## Scores", "", "| split | metric | value | 95 % interval | examples |"]
    lines.append("|---|---|--:|--:|--:|")
    for score in found:
        known = score.low is not None and score.high is not None
        interval = f"{score.low:.4f} – {score.high:.4f}" if known else "–"
        mark = " (chose)" if score.split == summary.chosen_on else ""
        split = escape_markdown(score.split.replace("_", " ")) + mark
        cells = (split, escape_markdown(score.metric), f"{score.value:.4f}")
        lines.append(f"| {' | '.join((*cells, interval, str(score.n)))} |")
    if summary.chosen_on is not None:
        text = (
            f"{escape_markdown(summary.chosen_on)} chose the ingredients: its score is too good; "
            "the others had no part in the choice."
        )
        optimism = summary.details.selection_optimism
        if optimism is not None:
            text += f" Selection optimism (bootstrap): {optimism.value:+.4f}."
        lines += ["", text]
    return "\n".join(lines)


def _use(kind: _Kind, name: str) -> str:
    lines = ["## Use", ""]
    if kind.loader:
        module, where = kind.library.replace("-", "_"), f'"{_code(name)}"'
        names = ", ".join(["AutoTokenizer"] * kind.tokenizes + [kind.loader])
        lines += ["```python", f"from {module} import {names}", ""]
        if kind.tokenizes:
            lines.append(f"tokenizer = AutoTokenizer.from_pretrained({where})")
        lines += [f"model = {kind.line(_code(name))}", "```", ""]
    lines.append(
        "`stockpot.json` holds every decision and what rebuilds the weights: `stockpot verify "
        f"{_code(name)}` computes them again and compares bit for bit."
    )
    return "\n".join(lines)
