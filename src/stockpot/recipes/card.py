"""The model card of a soup that is a model folder: `README.md`, with the metadata of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot._types import JSON

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


def model_card(record: Mapping[str, Any], folder: Path, *, name: str) -> str:
    """The card of the soup that `record` describes, whose files are in `folder`.

    It names the base, the ingredients with their coefficients, and every score with its interval;
    nothing in it depends on the day or the machine but the paths as they were given.

    Args:
        record: as it is kept beside the soup.
        folder: where its config.json is, which says how the model is served.
        name: of the model.
    """
    pipeline = _pipeline(folder)
    parts = [
        f"---\n{_front(record, pipeline, name)}---",
        f"# {name}",
        _about(record),
        _ingredients(record),
        _scores(record),
        _use(pipeline, name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def hub_name(path: str) -> str:
    """The name of a checkpoint on the hub if it came from there, else the last part of its path.

    >>> hub_name("/c/models--org--bert/snapshots/1f/"), hub_name("runs/run-03.safetensors")
    ('org/bert', 'run-03')
    """
    cached = _CACHED.search(path)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    name = Path(path).name.removesuffix(".safetensors").removesuffix(".pt")
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "checkpoint"


def _used(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Ingredients that take part; where coefficients differ by group, all of them."""
    return [one for one in record["ingredients"] if one["coefficient"] != 0]


def _front(record: Mapping[str, Any], pipeline: str | None, name: str) -> str:
    import yaml

    named = [one["path"] for one in _used(record)]
    if record["base"] is not None:
        named.append(record["base"]["path"])
    metrics = list(dict.fromkeys(_HUB_METRICS.get(s["metric"], s["metric"]) for s in _rows(record)))
    fields: dict[str, JSON] = {
        "base_model": list(dict.fromkeys(map(hub_name, named))),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "model-soup", "stockpot"],
    }
    if pipeline is not None:
        fields["pipeline_tag"] = pipeline
    if metrics:
        fields["metrics"] = list[JSON](metrics)
        fields["model-index"] = [_index(record, pipeline, name)]
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)
    return text


def _index(record: Mapping[str, Any], pipeline: str | None, name: str) -> JSON:
    kind: dict[str, JSON] = {"type": pipeline or "other"}
    results: list[JSON] = [
        {
            "task": kind,
            "dataset": {"name": row["split"], "type": row["split"]},
            "metrics": [
                {"type": _HUB_METRICS.get(row["metric"], row["metric"]), "value": row["value"]}
            ],
        }
        for row in _rows(record)
    ]
    return {"name": name, "results": results}


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    scores = record["soup"]["scores"]
    return [{"split": split, **score} for split, score in scores.items() if score is not None]


def _about(record: Mapping[str, Any]) -> str:
    soup, used = record["soup"], _used(record)
    of = f"{len(used)} of {len(record['ingredients'])} checkpoints"
    return (
        f"A model soup: one network whose weights are a mean of {of}, at the inference cost of "
        f"one. Made by stockpot {record['stockpot']} with the recipe `{soup['recipe']['name']}`."
    )


def _ingredients(record: Mapping[str, Any]) -> str:
    lines = ["## Ingredients", "", "| checkpoint | coefficient | fingerprint |", "|---|--:|---|"]
    for one in record["ingredients"]:
        share = one["coefficient"]
        told = "by group" if share is None else f"{share:.6g}"
        lines.append(f"| {_shown(one['path'])} | {told} | `{one['fingerprint']}` |")
    if record["base"] is not None:
        base = record["base"]
        lines += ["", f"Base: {_shown(base['path'])} (`{base['fingerprint']}`)"]
    return "\n".join(lines)


def _shown(path: str) -> str:
    name = hub_name(path)
    return f"[{name}](https://huggingface.co/{name})" if "/" in name else f"`{Path(path).name}`"


def _scores(record: Mapping[str, Any]) -> str:
    rows, chosen_on = _rows(record), record["soup"]["chosen_on"]
    if not rows:
        return ""
    lines = ["## Scores", "", "| split | metric | value | 95 % interval | examples |"]
    lines.append("|---|---|--:|--:|--:|")
    for row in rows:
        known = row["low"] is not None and row["high"] is not None
        interval = f"{row['low']:.4f} – {row['high']:.4f}" if known else "–"
        mark = " (chose)" if row["split"] == chosen_on else ""
        cells = (row["split"].replace("_", " ") + mark, row["metric"], f"{row['value']:.4f}")
        lines.append(f"| {' | '.join((*cells, interval, str(row['n'])))} |")
    if chosen_on is not None:
        lines += ["", f"`{chosen_on}` chose the ingredients, so its score flatters; the others had "
                  "no part in the choice."]  # fmt: skip
        optimism = record["soup"].get("optimism")
        if optimism is not None:
            lines[-1] += f" Selection optimism (bootstrap): {optimism['value']:+.4f}."
    return "\n".join(lines)


def _use(pipeline: str | None, name: str) -> str:
    lines = ["## Use", ""]
    if pipeline is not None:
        lines += [
            "```python",
            "from transformers import pipeline",
            "",
            f'pipe = pipeline("{pipeline}", model="{name}")',
            "```",
            "",
        ]
    lines.append(
        "`stockpot.json` holds every decision and what rebuilds the weights: `stockpot verify "
        f"{name}` computes them again and compares bit for bit."
    )
    return "\n".join(lines)


def _pipeline(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        (architecture,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((p for end, p in _PIPELINES.items() if architecture.endswith(end)), None)
