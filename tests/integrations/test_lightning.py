"""With the real Lightning `Trainer`."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.tasks import Net, images
from torch.nn import functional
from torch.utils.data import DataLoader

from stockpot.errors import TrainingError
from stockpot.evaluate.task import Split
from stockpot.recipes import Soup
from stockpot.tasks.classification import ClassificationTask

pytestmark = pytest.mark.extras
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    lightning = pytest.importorskip("lightning.pytorch")
    from stockpot.integrations.lightning import SoupCallback


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Net()
        self.net.drop.p = 0.0

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Recorder(lightning.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append({n: v.double() for n, v in pl_module.net.state_dict().items()})


def fit(folder: Path, callbacks, *, epochs: int = 2, resume: str | None = None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, not ours to fix
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=callbacks, logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            num_sanity_val_steps=1, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(
            Module(), DataLoader(images(64, 0), 16), DataLoader(images(32, 1), 32), ckpt_path=resume
        )
    return trainer


def test_averages_are_those_of_the_steps(tmp_path: Path) -> None:
    recorder = Recorder()
    callback = SoupCallback(tmp_path / "soups", prefix="net.", ema_decays=(), every_steps=2)
    fit(tmp_path, [recorder, callback])
    taken = recorder.seen[1::2]
    assert len(taken) == 4
    found = load_file(callback.files.uniform)
    assert set(found) == set(Net().state_dict())
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), sum(s[name] for s in taken) / 4, atol=1e-6)


def test_the_best_candidates_become_a_greedy_soup(tmp_path: Path) -> None:
    splits = {"val": Split(images(64, 1), role="held-out")}
    task = ClassificationTask(build=Net, splits=splits, train_set=images(64, 0), version="1")
    callback = SoupCallback(tmp_path / "soups", prefix="net", top_k=2, task=task)
    fit(tmp_path, [callback], epochs=4)
    assert len(callback.files.candidates) == 2
    assert set(Soup.load(callback.files.greedy).selected) <= set(callback.files.candidates)


def test_a_resumed_training_ends_with_the_same_averages(tmp_path: Path) -> None:
    whole = SoupCallback(tmp_path / "whole", ema_decays=(0.9,))
    fit(tmp_path / "a", [whole], epochs=2)
    first = fit(tmp_path / "b", [SoupCallback(tmp_path / "parts", ema_decays=(0.9,))], epochs=1)
    second = SoupCallback(tmp_path / "parts", ema_decays=(0.9,), force=True)
    fit(tmp_path / "b", [second], epochs=2, resume=first.checkpoint_callback.best_model_path)
    ours, theirs = load_file(second.files.ema[0.9]), load_file(whole.files.ema[0.9])
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-7) for n in theirs)
    assert all(name.startswith("net.") for name in ours)


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    callback = SoupCallback(tmp_path / "soups", monitor="val_f1", top_k=1)
    with pytest.raises(TrainingError, match=r"nothing was logged as 'val_f1'.*val_loss"):
        fit(tmp_path, [callback], epochs=1)
