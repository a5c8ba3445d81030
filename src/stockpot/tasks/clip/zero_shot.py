"""From a CLIP-like model and class names to a classifier that has seen no example."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stockpot import formats as checkpoints
from stockpot._optional import require
from stockpot._types import JSON, Progress, StrPath, no_progress
from stockpot.errors import TaskError
from stockpot.evaluate.runner import resolve_device
from stockpot.formats import remote
from stockpot.formats.table import writes_folder
from stockpot.io import atomic as _io
from stockpot.io.scratch import scratch_folder
from stockpot.tasks.base import FROM_FOLDER
from stockpot.tasks.clip.classifier import ImageTextClassifier
from stockpot.tasks.clip.templates import (
    IMAGENET_TEMPLATES,
    class_problems,
    template_problems,
)
from stockpot.train.weights import save_weights

_PROMPTS_PER_PASS = 256


@dataclass(frozen=True)
class ZeroShot:
    """What `make_zero_shot` wrote.

    `n_features` is the width of the head; `scale` is exp(logit_scale), by which it is multiplied.
    """

    path: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    n_features: int
    scale: float

    def to_json(self) -> dict[str, JSON]:
        """The keys that scripts may rely on."""
        return {
            "output": self.path,
            "classes": list(self.classes),
            "templates": list(self.templates),
            "features": self.n_features,
            "scale": self.scale,
        }


def make_zero_shot(
    model: StrPath,
    out: StrPath,
    *,
    classes: Sequence[str],
    templates: Sequence[str] = IMAGENET_TEMPLATES,
    device: str = "auto",
    head_only: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> ZeroShot:
    """Write the zero-shot classifier of `model` over `classes`: the base of every fine-tuning.

    The text tower is used here and left out of the result, which is the image encoder and a head
    (Radford et al. 2021, arXiv 2103.00020). A folder also holds its configuration and image
    processor and is what `CLIPTask` and a `task.yaml` take as model. Weights are float32.

    Args:
        model: folder of a whole CLIP-like model with tokenizer and image processor, or
            `hf:org/name`, the only form that reaches the network.
        out: a folder, or a `.safetensors` or torch file of the same tensors.
        classes: names by index, as they are to stand in a sentence.
        templates: sentences with one `{}`.
        device: where the text is encoded.
        head_only: write `head.weight` and `head.bias` alone, for an encoder of your own; to a file.
        force: overwrite `out`.
        progress: called with prompts encoded.

    Raises:
        TaskError: the model is none of this kind or lacks weights, or classes or templates cannot
            be used.
        OutputExistsError: `out` exists and `force` is false.
    """
    _io.refuse_existing(out, force=force, folder=writes_folder(out))
    if head_only and writes_folder(out):
        raise TaskError(f"a head alone goes to a file, such as head.safetensors, and not to {out}")
    _refuse(class_problems(classes) + template_problems(templates))
    folder = remote.fetch(str(model)) if remote.is_remote(str(model)) else str(model)
    whole, tokenizer = load_model(folder)
    whole.to(resolve_device(device))
    made = zero_shot_classifier(whole, tokenizer, classes, templates, progress=progress).cpu()
    state = {n: v.contiguous() for n, v in made.state_dict().items()}
    if head_only:
        state = {name: value for name, value in state.items() if name.startswith("head.")}
    metadata = {"classes": json.dumps(list(classes)), "templates": json.dumps(list(templates))}
    with scratch_folder() as made_folder:
        side = str(made_folder)
        _write_side_files(whole, folder, side, classes)
        like = checkpoints.from_state_dict(state, path=side)
        save_weights(Path(out), state, like=like, metadata=metadata, force=force)
    whole_model: Any = whole
    scale = float(whole_model.logit_scale.detach().exp())
    return ZeroShot(str(out), tuple(classes), tuple(templates), made.head.in_features, scale)


def zero_shot_classifier(
    model: nn.Module,
    tokenizer: Any,
    classes: Sequence[str],
    templates: Sequence[str] = IMAGENET_TEMPLATES,
    *,
    progress: Progress = no_progress,
) -> ImageTextClassifier:
    """The image encoder of `model` with the head of `text_head`; shares the encoder's tensors."""
    rows = text_head(model, tokenizer, classes, templates, progress=progress)
    head = nn.Linear(rows.shape[1], rows.shape[0], device=rows.device)
    with torch.no_grad():
        head.weight.copy_(rows)
        head.bias.zero_()
    parts: Any = model
    return ImageTextClassifier(
        parts.vision_model, getattr(model, "visual_projection", None), head
    ).eval()


def text_head(
    model: nn.Module,
    tokenizer: Any,
    classes: Sequence[str],
    templates: Sequence[str] = IMAGENET_TEMPLATES,
    *,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Weights (C, D) of the zero-shot head, float32.

    Row c is s · m/‖m‖ with m = mean over templates t of z(t, c)/‖z(t, c)‖, where z is the text
    feature of template t about class c and s = exp(logit_scale). With unit image features, logits
    are s times cosine similarities; a common bias, such as SigLIP's, would change no probability.

    Reference: Radford et al. 2021, arXiv 2103.00020, §3.1.4 (an ensemble in feature space).
    """
    parts: Any = model
    device = next(model.parameters()).device
    step = max(1, _PROMPTS_PER_PASS // len(templates))
    rows = []
    with torch.inference_mode():
        for first in range(0, len(classes), step):
            names = classes[first : first + step]
            prompts = [text.replace("{}", name) for name in names for text in templates]
            tokens = _tokens(model, tokenizer, prompts)
            found = parts.get_text_features(**{k: v.to(device) for k, v in tokens.items()})
            # transformers 5 returns an output object, 4 the features themselves.
            features = getattr(found, "pooler_output", found).float()
            unit = functional.normalize(features, dim=-1)
            means = unit.reshape(len(names), len(templates), -1).mean(1)
            rows.append(functional.normalize(means, dim=-1))
            progress(min(first + step, len(classes)), len(classes), "classes")
        scale: torch.Tensor = parts.logit_scale.float().exp()
        return torch.cat(rows) * scale


def load_model(folder: StrPath) -> tuple[nn.Module, Any]:
    """A whole CLIP-like model in float32, in evaluation mode, and its tokenizer.

    Raises:
        TaskError: `folder` holds none, or lacks some of its weights, which would be random.
    """
    transformers = require("transformers", extra="hf")
    local: dict[str, Any] = dict(FROM_FOLDER)
    if not (Path(folder) / "config.json").is_file():
        raise TaskError(f"{folder} is no folder of a model: it has no config.json{_hint(folder)}")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), **local)
        if config.model_type not in _KINDS:
            raise TaskError(
                f"{folder} holds a model of type {config.model_type}; expected a whole model with "
                f"an image and a text tower: {', '.join(_KINDS)}"
            )
        with _quiet(transformers):
            model, info = transformers.AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, output_loading_info=True, **local
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"no model can be loaded from {folder}: {error}") from error
    absent = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if absent:
        raise TaskError(
            f"{folder} lacks {len(absent)} tensors of its model, or has them in another shape: "
            f"{', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}; download or save it again",
            absent,
        )
    return model.eval(), tokenizer


_KINDS = ("clip", "metaclip_2", "siglip")


def _hint(folder: StrPath) -> str:
    name = str(folder)
    if Path(name).exists() or not remote.looks_like_hub_name(name):
        return ""
    return f"; a model on the hub is written hf:{name}"


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's own progress bars, which would stand between the lines of ours."""
    log = transformers.utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def _tokens(model: nn.Module, tokenizer: Any, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Inputs of the text tower; a sentence that is too long is refused rather than cut."""
    config: Any = model.config
    limit = int(config.text_config.max_position_embeddings)
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    long = [f"{p!r} is {n} tokens" for p, n in zip(prompts, lengths, strict=True) if n > limit]
    if long:
        raise TaskError(
            f"{'; '.join(long[:3])}{'; …' if len(long) > 3 else ''}; the model takes {limit}: "
            "shorten the names of the classes, or the templates",
            long,
        )
    if config.model_type == "siglip":
        # Trained with all rows at full length and no mask.
        tokens = tokenizer(
            prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        return {"input_ids": tokens["input_ids"]}
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}


def _write_side_files(model: nn.Module, source: str, folder: str, classes: Sequence[str]) -> None:
    """Configuration of the vision tower, with the classes, and the image processor."""
    transformers = require("transformers", extra="hf")
    whole: Any = model.config
    config = whole.vision_config
    if hasattr(model, "visual_projection"):
        config.projection_dim = whole.projection_dim
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    config.save_pretrained(folder)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, **FROM_FOLDER)
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"{source} holds no image processor: {error}") from error
    processor.save_pretrained(folder)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise TaskError("\n".join(problems), problems)
