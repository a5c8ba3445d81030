"""A small language for experiments on pre-training: documents, a tokenizer, and minimal pairs.

Documents keep to a topic, verbs agree with their subjects in number across what stands between, and
nouns prefer some verbs. All of it is drawn from a grammar; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

N_TOPICS, N_NOUNS, N_VERBS, N_ADJECTIVES = 8, 64, 40, 32
PREPOSITIONS = ("near", "behind", "with", "under")
WORDS = ("<end>", "the", "a", "some", "that", ".", "and", *PREPOSITIONS)


def _syllables(rng: np.random.Generator, n: int, ending: str) -> list[str]:
    """`n` different made-up words."""
    found: dict[str, None] = {}
    while len(found) < n:
        parts = [f"{rng.choice(list('bdfgklmnprst'))}{rng.choice(list('aeiou'))}" for _ in "ab"]
        found["".join(parts) + ending] = None
    return list(found)


@dataclass(frozen=True)
class Grammar:
    """The language, which is a function of `seed`."""

    seed: int = 0
    nouns: list[str] = field(init=False)
    verbs: list[str] = field(init=False)
    adjectives: list[str] = field(init=False)
    topics: Any = field(init=False)
    prefers: Any = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        made = {
            "nouns": _syllables(rng, N_NOUNS, "n"),
            "verbs": _syllables(rng, N_VERBS, "k"),
            "adjectives": _syllables(rng, N_ADJECTIVES, "l"),
            "topics": rng.dirichlet(np.full(N_NOUNS, 0.15), N_TOPICS),
            "prefers": rng.dirichlet(np.full(N_VERBS, 0.12), N_NOUNS),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def vocabulary(self) -> list[str]:
        """Every word, the end of a document first."""
        inflected = [w + s for w in (*self.nouns, *self.verbs) for s in ("", "s")]
        return [*WORDS, *inflected, *self.adjectives]

    def documents(self, n: int, *, seed: int) -> list[str]:
        """`n` documents of two to six sentences, different for every seed."""
        rng = np.random.default_rng([self.seed, seed])
        found = []
        for _ in range(n):
            topic = self.topics[rng.integers(N_TOPICS)]
            sentences = [self._sentence(rng, topic) for _ in range(rng.integers(2, 7))]
            found.append(" ".join(" ".join(words) for words in sentences))
        return found

    def pairs(self, n: int, *, seed: int) -> list[dict[str, Any]]:
        """Beginnings of a sentence, a verb that the subject prefers, and one of another noun.

        That noun stands between subject and verb, in the other number. Both verbs agree with the
        subject, so that knowing the subject alone decides. `label` is the place of the right one.
        """
        rng = np.random.default_rng([self.seed, 1, seed])
        found: list[dict[str, Any]] = []
        while len(found) < n:
            topic = self.topics[rng.integers(N_TOPICS)]
            before = " ".join(self._sentence(rng, topic))
            noun, plural = int(rng.choice(N_NOUNS, p=topic)), bool(rng.integers(2))
            other = int(rng.choice(N_NOUNS, p=topic))
            words = [
                *self._phrase(rng, noun, plural), str(rng.choice(PREPOSITIONS)),
                *self._phrase(rng, other, not plural),
            ]  # fmt: skip
            verb, wrong = (int(rng.choice(N_VERBS, p=self.prefers[i])) for i in (noun, other))
            if self.prefers[noun][verb] <= self.prefers[noun][wrong]:
                continue  # the subject prefers the other noun's verb
            forms = [self.verbs[i] + ("" if plural else "s") for i in (verb, wrong)]
            label = int(rng.integers(2))
            found.append(
                {
                    "text": f"{before} {' '.join(words)}",
                    "choices": forms[::-1] if label else forms,
                    "label": label,
                }
            )
        return found

    def _phrase(self, rng: np.random.Generator, noun: int, plural: bool) -> list[str]:
        first = ("some" if plural else "a") if rng.random() < 0.4 else "the"
        words = [first]
        if rng.random() < 0.4:
            words.append(self.adjectives[int(rng.integers(N_ADJECTIVES))])
        return [*words, self.nouns[noun] + ("s" if plural else "")]

    def _sentence(self, rng: np.random.Generator, topic: Any) -> list[str]:
        noun, plural = int(rng.choice(N_NOUNS, p=topic)), bool(rng.integers(2))
        words = self._phrase(rng, noun, plural)
        if rng.random() < 0.35:
            other = int(rng.choice(N_NOUNS, p=topic))
            words += [str(rng.choice(PREPOSITIONS))]
            words += self._phrase(rng, other, bool(rng.integers(2)))
        verb = self.verbs[int(rng.choice(N_VERBS, p=self.prefers[noun]))]
        words.append(verb + ("" if plural else "s"))
        if rng.random() < 0.6:
            words += self._phrase(rng, int(rng.choice(N_NOUNS, p=topic)), bool(rng.integers(2)))
        return [*words, "."]


def tokenizer(grammar: Grammar) -> Any:
    """Words as tokens, for models of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(grammar.vocabulary)}, unk_token="<end>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", bos_token="<end>", pad_token="<end>",
        model_max_length=64,
    )  # fmt: skip
