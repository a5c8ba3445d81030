"""With the real `transformers.Trainer`."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stockpot import Adapter
from stockpot.errors import TrainingError
from stockpot.evaluate.task import Split
from stockpot.recipes import Soup
from stockpot.tasks.classification import ClassificationTask

pytestmark = pytest.mark.extras
transformers = pytest.importorskip("transformers")

from stockpot.integrations.running import RunningSoup  # noqa: E402
from stockpot.integrations.transformers import SoupCallback  # noqa: E402


def config():
    return transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, num_labels=2,
    )  # fmt: skip


def build() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config())


class Data(torch.utils.data.Dataset):
    """Sequences whose label says whether the first token is large."""

    def __init__(self, n: int, seed: int) -> None:
        self.ids = torch.randint(0, 20, (n, 6), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int):
        return {"input_ids": self.ids[i], "labels": (self.ids[i, 0] >= 10).long()}


class Recorder(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append({n: v.detach().double() for n, v in model.state_dict().items()})


def train(folder: Path, callbacks, *, epochs: int = 2, resume: bool = False) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=8,
        learning_rate=1e-2, eval_strategy="epoch", save_strategy="epoch", report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and accelerate, not ours to fix
        trainer = transformers.Trainer(
            build(), arguments, train_dataset=Data(32, 0), eval_dataset=Data(32, 1),
            callbacks=callbacks,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)


def assert_close(path: str, expected: dict[str, torch.Tensor]) -> None:
    for name, value in load_file(path).items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name


def test_averages_are_those_of_the_steps(tmp_path: Path) -> None:
    recorder, callback = Recorder(), SoupCallback(tmp_path / "soups", ema_decays=(0.5,))
    train(tmp_path / "run", [recorder, callback])
    seen, files = recorder.seen, callback.files
    assert len(seen) == 8
    mean = {name: sum(s[name] for s in seen) / 8 for name in seen[0]}
    assert_close(files.uniform, mean)
    weights = [0.5 ** (7 - i) for i in range(8)]
    ema = {
        name: sum(w * s[name] for w, s in zip(weights, seen, strict=True)) / sum(weights)
        for name in seen[0]
    }
    assert_close(files.ema[0.5], ema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build().load_state_dict(load_file(files.uniform))


def test_the_best_candidates_become_a_greedy_soup(tmp_path: Path) -> None:
    task = ClassificationTask(
        build=build, splits={"val": Split(Data(64, 1), role="held-out")}, batch_size=64, version="1"
    )
    callback = SoupCallback(tmp_path / "soups", top_k=2, task=task, uniform=False, ema_decays=())
    train(tmp_path / "run", [callback], epochs=4)
    files = callback.files
    assert len(files.candidates) == 2
    assert list(files.candidates.values()) == sorted(files.candidates.values())
    assert sorted(str(p) for p in (tmp_path / "soups" / "candidates").iterdir()) == sorted(
        files.candidates
    )
    soup = Soup.load(files.greedy)
    assert set(soup.selected) <= set(files.candidates)
    assert files.uniform is None


def test_a_resumed_training_ends_with_the_same_averages(tmp_path: Path) -> None:
    try:
        transformers.utils.import_utils.check_torch_load_is_safe()
    except ValueError:
        pytest.skip("transformers reads its own training state with torch 2.6 or newer alone")
    except AttributeError:  # it asks no such question
        pass
    options = {"ema_decays": (0.9,), "top_k": 1}
    whole = SoupCallback(tmp_path / "whole-soups", **options)
    train(tmp_path / "whole", [whole], epochs=2)
    train(tmp_path / "parts", [SoupCallback(tmp_path / "soups", **options)], epochs=1)
    second = SoupCallback(tmp_path / "soups", force=True, **options)
    train(tmp_path / "parts", [second], epochs=2, resume=True)
    for ours, theirs in ((second.files.uniform, whole.files.uniform),
                         (second.files.ema[0.9], whole.files.ema[0.9])):  # fmt: skip
        ours, theirs = load_file(ours), load_file(theirs)
        assert all(torch.allclose(ours[n], theirs[n], atol=1e-7) for n in theirs)


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    callback = SoupCallback(tmp_path / "soups", metric="f1", top_k=1)
    with pytest.raises(TrainingError, match="no 'eval_f1' to rank candidates by; it has eval_loss"):
        train(tmp_path / "run", [callback])


@pytest.mark.filterwarnings("ignore")  # what PEFT says while it saves
def test_of_an_adapter_the_best_are_kept_as_adapters_and_averaged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    if not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("PEFT asks torch for a type that came with 2.7")
    build().save_pretrained(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    sort = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}
    model = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **sort))
    soups = RunningSoup(tmp_path / "soups", ema_decays=(), top_k=2)
    for step, score in enumerate((0.3, 0.1, 0.2)):
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora" in name:
                    value.add_(0.1)
        soups.step(step, model)
        soups.candidate(step, model, score)
    files = soups.finish(model)
    assert [Path(path).name for path in files.candidates] == ["step-00000001", "step-00000002"]
    assert not (tmp_path / "soups" / "candidates" / "step-00000000").exists()
    assert files.uniform is not None
    base = tmp_path / "base"
    mean, *members = (Adapter(base, path) for path in (files.uniform, *files.candidates))
    for name in mean.changed:
        expected = sum(one.read(name).double() for one in members) / 2
        torch.testing.assert_close(mean.read(name).double(), expected, rtol=0, atol=1e-6)
    with pytest.raises(TrainingError, match=r"ema_decays=\(\)"):
        RunningSoup(tmp_path / "other").step(0, model)
