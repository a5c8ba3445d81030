"""Text as examples, and the three ways in which a transformers model puts it into classes."""

from __future__ import annotations

import functools
import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from stockpot.errors import TaskError
from stockpot.evaluate.splits import categories_at

Encoded = list[dict[str, Any]]


class TextData(Dataset[dict[str, Any]]):
    """Texts (or pairs) and class indices, as dicts of token tensors with `labels`.

    Tokens are made on first use, for all examples at once. With `padding="split"` every example
    has the length of the longest of this data set, so that no prediction depends on its neighbours;
    with `"batch"` lengths differ, and `collate` pads them. `categories` are those of the examples.
    """

    def __init__(
        self,
        texts: Sequence[tuple[str, ...]],
        labels: Sequence[int],
        encode: Callable[[Sequence[tuple[str, ...]]], Encoded],
        *,
        padding: str = "split",
        pads: Mapping[str, int] | None = None,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.texts, self.labels, self.encode = list(texts), list(labels), encode
        self.padding, self.pads, self.categories = padding, dict(pads or {}), categories

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = {name: torch.tensor(ids) for name, ids in self.encoded[index].items()}
        return {**tokens, "labels": self.labels[index]}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "encoded"}

    @functools.cached_property
    def encoded(self) -> Encoded:
        """Token ids by input name, example by example."""
        rows = self.encode(self.texts)
        if self.padding == "split":
            longest = max((len(row["input_ids"]) for row in rows), default=0)
            rows = [pad_row(row, longest, self.pads) for row in rows]
        return rows

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of texts and labels; how they are tokenised is part of the task's version."""
        digest = hashlib.blake2b(digest_size=16)
        for content, label in zip(self.example_digests(), self.labels, strict=True):
            digest.update(content + label.to_bytes(8, "little", signed=True))
        return digest.hexdigest()

    def example_digests(self) -> list[bytes]:
        """One digest per example, of its words however they are spaced."""
        return [
            hashlib.blake2b(
                "\0".join(" ".join(part.split()) for part in text).encode(), digest_size=16
            ).digest()
            for text in self.texts
        ]

    def subset(self, kept: Sequence[int]) -> TextData:
        """The same data set with the examples at `kept` only."""
        texts = [self.texts[i] for i in kept]
        labels = [self.labels[i] for i in kept]
        return TextData(
            texts, labels, self.encode, padding=self.padding, pads=self.pads,
            categories=categories_at(self.categories, kept),
        )  # fmt: skip


def pad_row(row: Mapping[str, Any], length: int, pads: Mapping[str, int]) -> dict[str, Any]:
    """Token lists of one example made `length` long on the right; 0 where `pads` names no value."""
    return {
        name: list(ids) + [pads.get(name, 0)] * (length - len(ids)) for name, ids in row.items()
    }


def collate(rows: Sequence[Mapping[str, Any]], *, pads: Mapping[str, int]) -> dict[str, Any]:
    """A batch from examples of different length, padded to the longest of them."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Any] = {"labels": torch.tensor([int(row["labels"]) for row in rows])}
    for name in rows[0]:
        if name != "labels":
            ids = [pad_row({name: row[name].tolist()}, longest, pads)[name] for row in rows]
            batch[name] = torch.tensor(ids)
    return batch


def token_pads(tokenizer: Any) -> dict[str, int]:
    """What fills up each input of this tokenizer's models; masks are filled with 0."""
    token_type = getattr(tokenizer, "pad_token_type_id", 0)
    pad = tokenizer.pad_token_id
    return {"input_ids": 0 if pad is None else pad, "token_type_ids": token_type}


def language_model_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of −log p(words of the true class | text), for outputs that are log p: (N, C)."""
    return -outputs.gather(1, targets[:, None]).mean()


def _inputs(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


@dataclass(frozen=True)
class HeadForm:
    """A classification head; it comes with the model folder, so that all runs share it."""

    tokenizer: Any
    max_length: int

    def encode(self, texts: Sequence[tuple[str, ...]]) -> Encoded:
        """Token ids of texts or pairs, cut to `max_length`."""
        first = [text[0] for text in texts]
        second = [text[1] for text in texts] if texts and len(texts[0]) == 2 else None
        found = self.tokenizer(first, second, truncation=True, max_length=self.max_length)
        return [{k: found[k][i] for k in found} for i in range(len(texts))]

    def predict(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Logits (N, C)."""
        logits: torch.Tensor = model(**_inputs(batch)).logits
        return logits


@dataclass(frozen=True)
class LabelWordForm:
    """A word per class read off a masked-LM head: no new parameter.

    Logit c is that of the word of class c at the mask. Reference: Schick & Schütze 2020, arXiv
    2001.07676; used for model soups of BERT in arXiv 2203.05482, §3.
    """

    tokenizer: Any
    max_length: int
    template: str
    columns: tuple[str, ...]
    word_ids: tuple[int, ...]

    @classmethod
    def make(
        cls,
        tokenizer: Any,
        *,
        max_length: int,
        template: str | None,
        columns: tuple[str, ...],
        words: Sequence[str],
    ) -> LabelWordForm:
        """The form with checked words and template.

        Raises:
            TaskError: the tokenizer has no mask, a word is several tokens or none, two classes
                share one, or the template holds the wrong fields.
        """
        if tokenizer.mask_token_id is None:
            raise TaskError("form label-words needs a tokenizer with a mask token, such as BERT's")
        problems, ids = [], []
        for word in words:
            found = tokenizer.encode(word, add_special_tokens=False)
            if len(found) != 1 or found[0] == tokenizer.unk_token_id:
                problems.append(f"the label word {word!r} is {len(found)} tokens, expected one")
            else:
                ids.append(found[0])
        if len(set(ids)) < len(ids):
            problems.append(f"two classes share a label word: {', '.join(words)}")
        template = template or " ".join(f"{{{c}}}" for c in columns) + " {mask}"
        problems += template_problems(template, columns, mask=True)
        if problems:
            raise TaskError("\n".join(problems), problems)
        return cls(tokenizer, max_length, template, columns, tuple(ids))

    def encode(self, texts: Sequence[tuple[str, ...]]) -> Encoded:
        """Token ids of the filled template; a text that is too long loses words, never the mask."""
        mask = self.tokenizer.mask_token
        return [
            _fitted(self.tokenizer, self.template, self.columns, text, self.max_length, mask=mask)
            for text in texts
        ]

    def predict(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Logits (N, C) of the label words at the mask."""
        inputs = _inputs(batch)
        logits = model(**inputs).logits
        at_mask = inputs["input_ids"] == self.tokenizer.mask_token_id
        words = torch.tensor(self.word_ids, device=logits.device)
        found: torch.Tensor = logits[at_mask][:, words]
        return found


@dataclass(frozen=True)
class TextToTextForm:
    """The words of each class as targets of an encoder–decoder such as T5: no new parameter.

    Output c is log p(words of class c | text), the sum over their tokens; the class with the
    largest is predicted. Reference: Raffel et al. 2019, arXiv 1910.10683, §2.4 (text-to-text).
    """

    tokenizer: Any
    max_length: int
    template: str
    columns: tuple[str, ...]
    targets: tuple[tuple[int, ...], ...]

    @classmethod
    def make(
        cls,
        tokenizer: Any,
        *,
        max_length: int,
        template: str | None,
        columns: tuple[str, ...],
        words: Sequence[str],
    ) -> TextToTextForm:
        """The form with checked words and template; a class may have several words.

        Raises:
            TaskError: two classes have the same tokens, words are unknown to the tokenizer, or the
                template holds the wrong fields.
        """
        found = [tuple(tokenizer(word).input_ids) for word in words]
        problems = [
            f"the tokenizer does not know all of the label words {word!r}"
            for word, ids in zip(words, found, strict=True)
            if tokenizer.unk_token_id in ids or not ids
        ]
        if len(set(found)) < len(found):
            problems.append(f"two classes have the same label words: {', '.join(words)}")
        template = template or " ".join(f"{c}: {{{c}}}" for c in columns)
        problems += template_problems(template, columns, mask=False)
        if problems:
            raise TaskError("\n".join(problems), problems)
        return cls(tokenizer, max_length, template, columns, tuple(found))

    def encode(self, texts: Sequence[tuple[str, ...]]) -> Encoded:
        """Token ids of the filled template."""
        return [
            _fitted(self.tokenizer, self.template, self.columns, text, self.max_length)
            for text in texts
        ]

    def predict(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Log-probabilities (N, C) of the words of each class; the encoder runs once."""
        inputs = _inputs(batch)
        inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        encoded: Any = model.get_encoder()(**inputs)  # type: ignore[operator]
        scores = [
            self._score(model, encoded, inputs.get("attention_mask"), ids) for ids in self.targets
        ]
        return torch.stack(scores, dim=1)

    def _score(
        self, model: nn.Module, encoded: Any, mask: torch.Tensor | None, ids: tuple[int, ...]
    ) -> torch.Tensor:
        n = encoded.last_hidden_state.shape[0]
        labels = torch.tensor(ids, device=encoded.last_hidden_state.device).repeat(n, 1)
        logits = model(
            encoder_outputs=encoded, attention_mask=mask, labels=labels, use_cache=False
        ).logits
        steps = logits.float().log_softmax(-1).gather(2, labels[..., None])
        total: torch.Tensor = steps.squeeze(-1).sum(1)
        return total


def template_problems(template: str, columns: Sequence[str], *, mask: bool) -> list[str]:
    """What is wrong with the fields of a template: unknown ones, columns or the mask missing.

    >>> template_problems("{text} It was {mask}.", ["text"], mask=True)
    []
    >>> template_problems("{txt}", ["text"], mask=False)
    ["the template has the field 'txt'; known: text", 'the template does not use text']
    """
    try:
        fields = [
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        ]
    except ValueError as error:
        return [f"the template {template!r} is not valid: {error}; write {{{{ for a brace"]
    known = [*columns, *(["mask"] if mask else [])]
    problems = [
        f"the template has the field {field!r}; known: {', '.join(known)}"
        for field in fields
        if field not in known
    ]
    problems += [f"the template does not use {name}" for name in known if name not in fields]
    if mask and fields.count("mask") > 1:
        problems.append("the template uses mask more than once")
    return problems


def _fitted(
    tokenizer: Any,
    template: str,
    columns: tuple[str, ...],
    text: tuple[str, ...],
    max_length: int,
    *,
    mask: str = "",
) -> dict[str, Any]:
    """Tokens of the filled template, words cut off the end of the longest text until they fit."""
    words = [part.split() for part in text]
    filled = dict(zip(columns, text, strict=True))
    while True:
        found = dict(tokenizer(template.format(**filled, mask=mask)))
        excess = len(found["input_ids"]) - max_length
        if excess <= 0:
            return found
        longest = max(range(len(words)), key=lambda i: len(words[i]))
        if not words[longest]:
            raise TaskError(
                f"the template alone is {len(found['input_ids'])} tokens long, more than "
                f"max_length {max_length}: shorten it"
            )
        # A word is at least a token, save where spaces were none; one at a time is always right,
        # a quarter of the excess is faster and never cuts too much.
        del words[longest][-max(1, excess // 4) :]
        filled[columns[longest]] = " ".join(words[longest])
