"""Mistakes that people make: what each answers, in one table.

Every answer has an exit code (1: refused, 2: wrong usage), one line that names the cause, and a
remedy or the place to look; none shows a traceback.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

TASK = """
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from stockpot import ClassificationTask, Split

g = torch.Generator().manual_seed(0)
x, y = torch.randn(40, 4, generator=g), torch.arange(40) % 3


def data(x=x, y=y):
    return TensorDataset(x, y)


def build():
    return torch.nn.Linear(4, 3)


def make(**changes):
    given = dict(
        build=build,
        splits={
            "val": Split(data(), role="held-out"),
            "test": Split(data(x + 1), role="test"),
        },
        batch_size=16,
        metric="accuracy",
    )
    return ClassificationTask(**{**given, **changes})


class Broken(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i == 17:
            raise KeyError("image")
        return x[i], y[i]


def broken_predict(model, batch):
    return model(batch[0]).no_such_attribute


def broken_build():
    return torch.nn.Linear(4, undefined)


good = make
labels = lambda: make(splits={"val": Split(data(y=y + 1), role="held-out")})
negative = lambda: make(splits={"val": Split(data(y=y - 1), role="held-out")})
example = lambda: make(splits={"val": Split(Broken(), role="held-out")})
predict = lambda: make(predict=broken_predict)
builder = lambda: make(build=broken_build)
built = lambda: make(build=torch.nn.Linear(4, 3))
not_built = lambda: make(build="resnet")
returns_class = lambda: make(build=lambda: torch.nn.Linear)
no_split = lambda: make(splits={"val": data()})
loader = lambda: make(splits={"val": Split(DataLoader(data()), role="held-out")})
tensor = lambda: make(splits={"val": Split(5, role="held-out")})
role = lambda: make(splits={"val": Split(data(), role="heldout")})
role2 = lambda: make(splits={"val": Split(data(), role="validation")})
empty = lambda: make(splits={})
metric = lambda: make(metric="acuracy")
f1 = lambda: make(metric="f1")
own_metric = lambda: make(metric=lambda outputs, targets: 1)
batch = lambda: make(batch_size=0)
only_test = lambda: make(splits={"test": Split(data(), role="test")})
two_held_out = lambda: make(
    splits={"a": Split(data(), role="held-out"), "b": Split(data(x + 2), role="held-out")}
)
features = lambda: make(splits={"val": Split(data(x[:, :3]), role="held-out")})
wider = lambda: make(build=lambda: torch.nn.Linear(4, 5))
nothing = lambda: None
fails = lambda: 1 / 0
number = 3
"""


@dataclass(frozen=True)
class Mistake:
    """What was typed, and what has to be answered.

    `words` may name files of the folder that the fixture makes. `code` is the exit code; `cause`
    and `remedy` are parts of the answer, `cause` of its first line.
    """

    name: str
    words: str
    code: int
    cause: str
    remedy: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


def task(name: str, cause: str, remedy: str = "", code: int = 1) -> Mistake:
    words = f"evaluate a.safetensors b.safetensors --task task.py:{name} --no-journal"
    return Mistake(f"task: {name}", words, code, cause, remedy)


def yaml(name: str, text: bytes, cause: str, remedy: str = "") -> Mistake:
    words = "evaluate a.safetensors --task t.yaml --no-journal"
    return Mistake(f"yaml: {name}", words, 1, cause, remedy, {"t.yaml": text})


def space(name: str, text: bytes, cause: str, remedy: str = "") -> Mistake:
    words = "sweep --task task.py:good --base a.safetensors -o runs --space s.yaml"
    return Mistake(f"space: {name}", words, 1, cause, remedy, {"s.yaml": text})


OUT = "-o out.safetensors"
MISTAKES = [
    # commands and options
    Mistake("uniform", "uniform a b", 2, "There is no command 'uniform'", "stockpot average"),
    Mistake("soup", "soup a b", 2, "There is no command 'soup'", "stockpot greedy"),
    Mistake("wise-ft", "wise-ft a b", 2, "There is no command", "stockpot interpolate"),
    Mistake("ensemble", "ensemble a b", 2, "There is no command", "--ensemble"),
    Mistake("typo", "intepolate a b", 2, "There is no command", "stockpot interpolate"),
    Mistake("option", f"average a b {OUT} --wieghts 1,2", 2, "No such option", "--weights"),
    Mistake("no output", "average a.safetensors b.safetensors", 2, "Missing option '-o'"),
    Mistake("no inputs", f"average {OUT}", 2, "Missing argument 'CKPT...'"),
    Mistake("neither", f"greedy a.safetensors b.safetensors {OUT}", 2, "give --task, or --eval"),
    Mistake("evaluate", "evaluate a.safetensors", 2, "give --task, or --eval"),
    Mistake(
        "both",
        f"greedy a.safetensors {OUT} --task task.py:good --eval x",
        2,
        "exclude each other",
        "give one of them",
    ),
    Mistake("no alpha", f"interpolate a.safetensors b.safetensors {OUT}", 2, "give --alpha"),
    Mistake("alpha", f"interpolate a.safetensors b.safetensors {OUT} --alpha 2", 1, "expected 0"),
    Mistake("alphas", f"interpolate a b {OUT} --alphas 0:1", 2, "no grid", "0:1:0.05"),
    Mistake("weights", f"average a b {OUT} --weights x,y", 2, "no list of numbers", "1,2,3"),
    Mistake(
        "few weights",
        f"average a.safetensors b.safetensors {OUT} --weights 1",
        1,
        "1 weights for 2 ingredients",
        "one each",
    ),
    Mistake(
        "sum",
        f"average a.safetensors b.safetensors {OUT} --weights 1,1",
        1,
        "sum to 2",
        "--normalise",
    ),
    Mistake("normalise", f"average a b {OUT} --normalise", 2, "means nothing without --weights"),
    Mistake("top", f"average a b {OUT} --top 2", 2, "give --task, or --eval"),
    Mistake("no scale", f"arithmetic a b --base b {OUT} --rule ties", 2, "give --task, or --eval; "
            "with --scale there is nothing to choose"),
    Mistake("rule", f"arithmetic a b --base b {OUT} --rule ties,keep=2", 2,
            "'--rule': keep is 2.0: expected shares"),
    Mistake("dtype", f"average a b {OUT} --dtype float17", 2, "'float17' is not a dtype"),
    Mistake("memory", f"average a b {OUT} --max-memory lots", 2, "is not a size", "1GB"),
    Mistake("little", f"average a.safetensors {OUT} --max-memory 1KB", 1, "allow at least"),
    Mistake("device", "evaluate a.safetensors --task task.py:good --device gpu", 1, "no device"),
    Mistake("eval", f"greedy a.safetensors {OUT} --eval 'python s.py'", 1, "{checkpoint}"),
    Mistake("eval-test", f"greedy a {OUT} --task t --eval-test x", 2, "nothing without --eval"),
    Mistake("journal", "evaluate a --task t --no-journal --cache c", 2, "exclude each other"),
    # files
    Mistake("missing", f"average a.safetensors no.safetensors {OUT}", 1, "no.safetensors"),
    Mistake("empty folder", f"average empty {OUT}", 1, "empty"),
    Mistake("no checkpoints", f"average texts {OUT}", 1, "texts"),
    Mistake("text", f"average notes.txt {OUT}", 1, "notes.txt"),
    Mistake("truncated", f"average cut.safetensors {OUT}", 1, "cut.safetensors"),
    Mistake("zero bytes", f"average zero.pt {OUT}", 1, "zero.pt"),
    Mistake("exists", "average a.safetensors -o b.safetensors", 1, "b.safetensors", "--force"),
    Mistake("shapes", f"average a.safetensors wide.safetensors {OUT}", 1, "cannot be averaged"),
    Mistake("other model", f"average a.safetensors other.safetensors {OUT}", 1, "cannot be"),
    Mistake("suffix", "average a.safetensors -o soup.h5", 1, "soup.h5"),
    Mistake("empty output", "average a.safetensors -o ''", 2, "it is empty"),
    Mistake("in a file", "average a.safetensors -o a.safetensors/soup.pt", 1, "a.safetensors"),
    Mistake("nan", f"average a.safetensors nan.safetensors {OUT}", 1, "nan.safetensors"),
    Mistake("verify", "verify a.safetensors", 1, "a.safetensors"),
    Mistake("report", "report empty", 1, "empty"),
    Mistake("report of weights", "report a.safetensors -o p.html", 1, "a.safetensors"),
    Mistake("one for all", "interpolate a.safetensors b.safetensors c.safetensors --alpha 1 "
            "-o x.pt", 2, "need a folder"),
    Mistake("clip", "clip-head empty --classes cat,dog -o head", 1, "empty"),
    Mistake("sparsity", f"sparse a.safetensors --task task.py:good --sparsity 90 {OUT}", 1,
            "fraction"),
    Mistake("no data", "sweep --task task.py:good --base a.safetensors -o runs --runs 2", 1,
            "the task has no train_set", "--train"),
    # tasks
    task("no_such", "task.py defines no 'no_such'", "file.py:name"),
    task("metric", "acuracy", "accuracy"),
    task("f1", "f1", "macro"),
    task("own_metric", "metric is a function", "MeanMetric"),
    task("labels", "split 'val', example 2: the label is 3", "labels 0 to 2"),
    task("negative", "split 'val', example 0: the label is -1", "labels 0 to 2"),
    task("example", "split 'val', example 17: KeyError: 'image' (task.py, line "),
    task("predict", "split 'val', examples 0 to 15: AttributeError", "(task.py, line "),
    task("builder", "the task's build() fails: NameError", "(task.py, line "),
    task("built", "build is a Linear that exists already", "build=lambda"),
    task("not_built", "build is a str, expected a function"),
    task("returns_class", "expected a torch.nn.Module"),
    task("no_split", "split 'val' is a TensorDataset: say what it is for", 'role="held-out"'),
    task("loader", "a split holds a DataLoader", "give its .dataset"),
    task("tensor", "a split holds an int", "__getitem__"),
    task("role", "'heldout' is no role", "did you mean 'held-out'?"),
    task("role2", "'validation' is no role", "expected held-out (chooses), test or shift"),
    task("empty", "at least one split", "Split("),
    task("batch", "batch_size is 0"),
    task("features", "split 'val', examples 0 to 15: RuntimeError: mat1 and mat2"),
    task("wider", "a.safetensors"),
    task("nothing", "is None without"),
    task("fails", "task.py, line", "ZeroDivisionError"),
    task("number", "is an int without"),
    Mistake("only test", f"greedy a.safetensors b.safetensors --task task.py:only_test {OUT}", 1,
            "no held-out split", "role="),
    Mistake("which", f"greedy a.safetensors b.safetensors --task task.py:two_held_out {OUT}", 1,
            "held-out", "choose_on"),
    Mistake("choose on test",
            f"greedy a.safetensors b.safetensors --task task.py:good --choose-on test {OUT}", 1,
            "would use data whose role is test", "choose on a held-out split"),
    Mistake("no file", "evaluate a.safetensors --task no.py:task", 1, "no.py does not exist"),
    Mistake("no name", "evaluate a.safetensors --task task.py", 1, "'task.py' names no task",
            "task.py:make"),
    Mistake("no file, no name", "evaluate a.safetensors --task no.py", 1, "no.py does not exist"),
    Mistake("built in", "evaluate a.safetensors --task handwritting", 1, "names no task",
            "'handwriting'"),
    Mistake("syntax", "evaluate a.safetensors --task bad.py:task", 1, "bad.py, line 2"),
    Mistake("latin", "evaluate a.safetensors --task latin.py:task", 1, "latin.py"),
    # YAML
    yaml("syntax", b"kind: [", "t.yaml:1: not valid YAML"),
    yaml("latin", b"kind: x\nmodel: \xff\n", "t.yaml:2: it is not UTF-8", "save it as UTF-8"),
    yaml("control", b'kind: "\x07"', "t.yaml: not valid YAML"),
    yaml("tag", b"kind: !!python/name:os.system\nmodel: m\nsplits: {}\n", "t.yaml:1"),
    yaml("integer", b"kind: x\nmodel: m\nsplits: {}\nbatch_size: !!int abc\n", "t.yaml:"),
    yaml("anchors", b"kind: &a x\nmodel: *a\n", "t.yaml:2: anchors"),
    yaml("list", b"- a\n", "t.yaml:1: expected a mapping with kind, model and splits"),
    yaml("key", b"kindd: x\nmodel: m\nsplits: {}\n", "t.yaml:1", "did you mean 'kind'?"),
    space("syntax", b"lr: [", "s.yaml:1: not valid YAML"),
    space("latin", b"lr: \xff", "s.yaml:1: it is not UTF-8", "save it as UTF-8"),
    space("ends", b"lr: {uniform: [a, b]}\n", "uniform runs between two numbers"),
    space("law", b"lr: {unifrom: [1, 2]}\n", "is no law", "expected uniform"),
    space("empty", b"", "a search space is a mapping"),
    Mistake("space", "sweep --task task.py:good --base a.safetensors -o runs --space smal", 1,
            "neither a named space nor a file", "did you mean 'small'?"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4)).astype(np.float32)
    for name in ("a", "b", "c"):
        move = 0.1 * rng.normal(size=(3, 4)).astype(np.float32)
        save_file(
            {"weight": start + move, "bias": np.zeros(3, np.float32)},
            tmp_path / f"{name}.safetensors",
        )
    save_file({"weight": np.zeros((5, 4), np.float32)}, tmp_path / "wide.safetensors")
    save_file({"conv": np.zeros((5, 4), np.float32)}, tmp_path / "other.safetensors")
    nan = np.full((3, 4), np.nan, np.float32)
    save_file({"weight": nan, "bias": np.zeros(3, np.float32)}, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:60])
    (tmp_path / "zero.pt").touch()
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("notes")
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "bad.py").write_text("import torch\ntask = (\n")
    (tmp_path / "latin.py").write_bytes(b"# \xff\ntask = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_answered_with_its_cause_and_what_to_do(run, folder, mistake) -> None:
    for name, data in mistake.files.items():
        (folder / name).write_bytes(data)
    result = run(*shlex.split(mistake.words))
    assert result.code == mistake.code, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    first = next(line for line in lines if line.startswith("Error: "))
    assert mistake.cause in first, result.err
    assert mistake.remedy in " ".join(result.err.split()), result.err
    assert not (folder / "out.safetensors").exists()


def test_a_class_is_a_builder(run, folder) -> None:
    code = TASK + "\nclass Net(torch.nn.Linear):\n    def __init__(self):\n"
    code += "        super().__init__(4, 3)\n\nnet = lambda: make(build=Net)\n"
    (folder / "task.py").write_text(code)
    words = ["evaluate", "a.safetensors", "--task", "task.py:net", "--no-journal"]
    assert run(*words).code == 0


def test_the_table_holds_as_many_as_it_promises() -> None:
    assert len(MISTAKES) >= 60
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
