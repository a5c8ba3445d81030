"""Checkpoints as training leaves them, each kind by its library, taken from their folders.

DeepSpeed, timm, torchvision and flax are in no development install: the first is built where it is
installed, torchvision (which timm needs) imports beside no torch but its own, and flax brings JAX.
Their tests run where they are found; test_deepspeed.py, test_toolkits.py and test_flax.py have the
same layouts by hand.
"""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.formats.souped import MEET, PART, aligned, copied, in_ranks, mean, moved, souped

import stockpot
from stockpot.cli import main
from stockpot.formats.runs import RunChoice, find_runs

pytestmark = pytest.mark.extras


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def needed(name: str) -> Any:
    """A library that may be missing, or not fit the torch that is there (torchvision)."""
    try:
        return pytest.importorskip(name)
    except RuntimeError as error:
        return pytest.skip(f"{name} does not import: {error}")


def named(paths: Sequence[str]) -> list[str]:
    return [Path(path).name for path in paths]


# transformers, accelerate, diffusers


def test_the_folder_of_a_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**config, intermediate_size=24, vocab_size=40)
    )
    words = [{"input_ids": torch.tensor([i, 3, 1]), "labels": i % 2} for i in range(8)]
    given = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=3, save_steps=1, per_device_train_batch_size=4,
        learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True, save_total_limit=5,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = transformers.Trainer(model, given, train_dataset=words)
        trainer.train()
        trainer.save_model()
    found = find_runs([tmp_path / "out"])
    assert named(found.paths) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "out"]
    paths = [tmp_path / "out" / f"checkpoint-{i}" for i in (1, 2, 3)]
    kind = transformers.BertForSequenceClassification
    states = [copied(kind.from_pretrained(path).state_dict()) for path in paths]
    # The model beside them is the last of them, and counts once.
    soup = stockpot.average([tmp_path / "out"])
    soup.save(tmp_path / "soup")
    assert stockpot.verify(tmp_path / "soup") == []
    loaded = kind.from_pretrained(tmp_path / "soup").state_dict()
    assert all(torch.equal(value, mean(states)[name]) for name, value in loaded.items())
    files = {path.name for path in (tmp_path / "soup").iterdir()}
    assert not files & {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


def test_states_of_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    states = []
    for i in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            accelerator = accelerate.Accelerator(cpu=True)
            net = moved(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), i)
            model, optimiser = accelerator.prepare(net, torch.optim.Adam(net.parameters()))
            model(torch.randn(8, 3)).sum().backward()
            optimiser.step()
            accelerator.save_state(str(tmp_path / "runs" / f"step_{i}"))
        states.append(copied(net.state_dict()))
    found = find_runs([tmp_path / "runs"])
    assert named(found.paths) == ["step_0", "step_1", "step_2"]
    out = souped([Path(path) for path in found.paths], tmp_path / "soup")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerate.load_checkpoint_in_model(net, str(out))
    expected = mean(states)
    assert all(torch.equal(v, expected[n]) for n, v in net.state_dict().items())


def test_averages_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    states, paths = [], []
    for i in range(3):
        torch.manual_seed(0)
        unet = moved(diffusers.UNet2DModel(sample_size=8, **sizes, **blocks), i)
        average = diffusers.training_utils.EMAModel(
            unet.parameters(), model_cls=diffusers.UNet2DModel, model_config=unet.config
        )
        average.step(moved(unet, 10 + i).parameters())
        average.save_pretrained(tmp_path / f"run{i}" / "unet_ema")
        paths.append(tmp_path / f"run{i}" / "unet_ema")
        states.append(diffusers.UNet2DModel.from_pretrained(paths[i]).state_dict())
    out = souped(paths, tmp_path / "soup")
    loaded = aligned(diffusers.UNet2DModel.from_pretrained(out)).state_dict()
    assert all(torch.equal(value, mean(states)[name]) for name, value in loaded.items())


# Lightning


def _trainer(lightning: Any, folder: Path, *callbacks: Any) -> Any:
    return lightning.Trainer(
        default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, max_epochs=4, callbacks=[*callbacks],
    )  # fmt: skip


def _net(lightning: Any) -> Any:
    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(7, 2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.1)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = self.layer(batch[0]).square().mean()
            self.log("loss", loss, on_epoch=True, on_step=False)
            return loss

    return Net()


def _fit(lightning: Any, trainer: Any) -> Any:
    lightning.seed_everything(0, verbose=False)
    data = torch.utils.data.TensorDataset(torch.randn(8, 7))
    net = _net(lightning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=4))
    return net


def test_the_folder_of_lightnings_checkpoints(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    saving = lightning.callbacks.ModelCheckpoint(
        tmp_path / "runs", "{epoch}-{loss:.4f}", monitor="loss", save_top_k=3, save_last="link"
    )
    net = _fit(lightning, _trainer(lightning, tmp_path, saving))
    found = find_runs([tmp_path / "runs"])
    assert len(found.paths) == 3  # and `last.ckpt`, a link to one of them
    assert any("last.ckpt" in note for note in found.notes)
    best = find_runs([tmp_path / "runs"], RunChoice(best=2, by="loss"))
    kept = sorted(saving.best_k_models, key=lambda path: float(saving.best_k_models[path]))[:2]
    assert sorted(named(best.paths)) == sorted(named(kept))
    out = souped([Path(path) for path in best.paths], tmp_path / "soup.ckpt")
    states = [torch.load(path, weights_only=True)["state_dict"] for path in kept]
    soup = type(net).load_from_checkpoint(out, weights_only=True).state_dict()
    assert all(torch.equal(value, mean(states)[name]) for name, value in soup.items())


def test_checkpoints_with_an_average_of_lightnings(tmp_path: Path) -> None:
    """Its files hold the average as `state_dict`, and what is trained beside it."""
    lightning = pytest.importorskip("lightning.pytorch")
    paths, states = [], []
    for i in range(3):
        callback = getattr(lightning.callbacks, "EMAWeightAveraging", None)
        if callback is None:
            pytest.skip("this Lightning has no averages of weights")
        trainer = _trainer(lightning, tmp_path, callback(decay=0.5 + i / 10))
        net = _fit(lightning, trainer)
        trainer.save_checkpoint(tmp_path / f"{i}.ckpt")
        paths.append(tmp_path / f"{i}.ckpt")
        states.append(torch.load(paths[i], weights_only=True)["state_dict"])
    opened = stockpot.open(paths[0])
    assert opened.section == "state_dict"
    out = souped(paths, tmp_path / "soup.ckpt")
    soup = type(net).load_from_checkpoint(out, weights_only=True).state_dict()
    assert all(torch.equal(value, mean(states)[name]) for name, value in soup.items())


# FSDP, through torch

_RANK = (
    MEET
    + """
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
for i, folder in enumerate(folders):
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    net.load_state_dict(torch.load(f"{folder}.pt", weights_only=True))
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    net(torch.ones(2, 5)).sum().backward()
    optimiser.step()
    state = {"model": get_model_state_dict(net), "step": torch.tensor(1)}
    if i:
        state["optimizer"] = get_optimizer_state_dict(net, optimiser)
    dcp.save(state, checkpoint_id=folder)
    full = {name: value.full_tensor() for name, value in net.state_dict().items()}
    if int(rank) == 0:
        torch.save(full, f"{folder}.pt")
"""
    + PART
)


def test_folders_of_fully_sharded_models(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed.fsdp", reason="needs torch.distributed")
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard in that place")
    paths = [tmp_path / f"step{i}" for i in range(3)]
    for i, folder in enumerate(paths):
        net = moved(torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)), i)
        torch.save(net.state_dict(), f"{folder}.pt")
    in_ranks(_RANK, 2, str(tmp_path / "meeting"), *map(str, paths))
    states = [torch.load(f"{folder}.pt", weights_only=True) for folder in paths]
    out = souped(paths, tmp_path / "soup.pt")
    net.load_state_dict(torch.load(out, weights_only=True))
    assert all(torch.equal(v, mean(states)[name]) for name, v in net.state_dict().items())


# DeepSpeed

_ZERO = """
import os, sys, torch, deepspeed
rank, folder, stage, precision, seed = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
deepspeed.init_distributed("gloo")
torch.manual_seed(seed)
net = torch.nn.Sequential(
    torch.nn.Embedding(11, 6), torch.nn.Linear(6, 7), torch.nn.LayerNorm(7),
    torch.nn.Linear(7, 7).requires_grad_(False), torch.nn.Linear(7, 11),
)
net.register_buffer("counts", torch.arange(3))
trained = [p for p in net.parameters() if p.requires_grad]
groups = [
    {"params": [p for p in trained if p.dim() > 1]},
    {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
]
config = {
    "train_micro_batch_size_per_gpu": 4, "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False, "bf16": {"enabled": precision == 16},
    "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
}
engine, *_ = deepspeed.initialize(
    model=net, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=config
)
loss = engine(torch.arange(4) + rank).float().square().mean()
engine.backward(loss)
engine.step()
engine.save_checkpoint(folder)
"""


@pytest.mark.parametrize(("stage", "precision"), [(0, 16), (1, 16), (2, 32), (2, 16), (3, 16)])
def test_folders_of_deepspeed(
    stage: int, precision: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    paths = [tmp_path / f"run{seed}" for seed in range(3)]
    for seed, folder in enumerate(paths):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        in_ranks(
            _ZERO, 2, str(folder), str(stage), str(precision), str(seed), WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo",
            DS_ACCELERATOR="cpu", LOCAL_RANK="0",
        )  # fmt: skip
    assert stockpot.expand_paths([tmp_path]) == [str(path) for path in paths]
    found = [stockpot.open(path).state_dict() for path in paths]
    if stage > 0:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        for path, state in zip(paths, found, strict=True):
            theirs = get_fp32_state_dict_from_zero_checkpoint(str(path))
            # Before ZeRO 2 their script leaves out what is not trained.
            assert set(state) - set(theirs) <= ({"3.weight", "3.bias"} if stage == 1 else set())
            assert all(torch.equal(state[name], value) for name, value in theirs.items())
    soup = stockpot.open(souped(paths, tmp_path / "soup.pt")).state_dict()
    assert len(soup) == 10
    assert all(torch.equal(soup[name], value) for name, value in mean(found).items())


# timm, torchvision


def test_the_folder_of_timms_training(tmp_path: Path) -> None:
    needed("torchvision")
    timm = needed("timm")
    from timm.utils import CheckpointSaver, ModelEmaV2, update_summary

    torch.manual_seed(0)
    build = {"pretrained": False, "num_classes": 3, "img_size": 32}
    net = timm.create_model("test_vit", **build)
    average = ModelEmaV2(net, decay=0.5)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    (tmp_path / "run").mkdir()
    saver = CheckpointSaver(
        net, optimiser, model_ema=average, checkpoint_dir=str(tmp_path / "run"), max_history=3
    )
    states, averages = [], []
    for epoch, metric in enumerate((70.0, 72.0, 71.0)):
        average.update(moved(net, epoch))
        states.append(copied(net.state_dict()))
        averages.append(copied(average.module.state_dict()))
        saver.save_checkpoint(epoch, metric)
        update_summary(
            epoch, {"loss": 1.0}, {"top1": metric}, str(tmp_path / "run" / "summary.csv"),
            write_header=epoch == 0,
        )  # fmt: skip
    names = [f"checkpoint-{i}.pth.tar" for i in range(3)]
    paths = [tmp_path / "run" / name for name in names]
    found = find_runs([tmp_path / "run"])
    assert named(found.paths) == names  # `last` and `model_best` are copies of them
    best = find_runs([tmp_path / "run"], RunChoice(best=2, by="eval_top1"))
    assert named(best.paths) == names[1:]
    with pytest.raises(stockpot.StockpotError, match="'state_dict', 'state_dict_ema'"):
        stockpot.open(paths[0])
    for key, expected in (("state_dict", mean(states)), ("state_dict_ema", mean(averages))):
        out = tmp_path / f"{key}.pth.tar"
        stockpot.average(stockpot.Ingredients(paths, key=key)).save(out)
        assert stockpot.verify(out) == []
        other = timm.create_model("test_vit", **build)
        timm.models.load_checkpoint(other, str(out), use_ema=key == "state_dict_ema")
        assert all(torch.equal(v, expected[n]) for n, v in other.state_dict().items())


def test_a_headless_backbone_of_timm_is_the_base_of_models_with_a_head(tmp_path: Path) -> None:
    needed("torchvision")
    timm = needed("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    build = {"pretrained": False, "img_size": 32}
    start = timm.create_model("test_vit", num_classes=0, **build).state_dict()
    save_file(start, tmp_path / "base.safetensors")
    states, paths = [], []
    for i in range(3):
        net = timm.create_model("test_vit", num_classes=3, **build)
        net.load_state_dict(start, strict=False)
        with torch.no_grad():  # in proportion: some of its weights begin at a millionth
            for value in net.parameters():
                value.mul_(1 + 0.05 * torch.randn_like(value))
        states.append(copied(net.state_dict()))
        save_file(states[i], tmp_path / f"{i}.safetensors")
        paths.append(tmp_path / f"{i}.safetensors")
    base, out = tmp_path / "base.safetensors", tmp_path / "soup.safetensors"
    given = ["interpolate", str(base), str(paths[0]), "--alpha", "0.5", "--keep-head"]
    assert main([*given, "-o", str(out)]) == 0
    state = stockpot.open(base).state_dict()
    by_hand = {n: mean([state, states[0]])[n] if n in state else states[0][n] for n in states[0]}
    net.load_state_dict(stockpot.open(out).state_dict())
    assert all(torch.equal(v, by_hand[name]) for name, v in net.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_files_of_torchvisions_references(name: str, tmp_path: Path) -> None:
    torchvision = needed("torchvision")
    import argparse

    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=3)
    states, paths = [], []
    for i in range(3):
        moved(net, i)
        states.append(copied(net.state_dict()))
        content = {
            "model": states[i], "optimizer": torch.optim.SGD(net.parameters(), 0.1).state_dict(),
            "lr_scheduler": {"last_epoch": i}, "epoch": i, "args": argparse.Namespace(model=name),
        }  # fmt: skip
        torch.save(content, tmp_path / f"model_{i}.pth")
        paths.append(tmp_path / f"model_{i}.pth")
    soup = torch.load(souped(paths, tmp_path / "soup.pth"), weights_only=False)
    net.load_state_dict(soup["model"])
    assert soup["args"].model == name
    assert all(torch.equal(v, mean(states)[n]) for n, v in net.state_dict().items())


# flax


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cut", ["", "shards", "state"])
def test_files_of_flax(cut: str, tmp_path: Path) -> None:
    flax, jax = needed("flax"), needed("jax")
    import flax.linen as nn
    from flax.serialization import from_bytes, to_bytes
    from flax.traverse_util import flatten_dict, unflatten_dict

    layers = [nn.Dense(6), nn.LayerNorm(), nn.Dense(3)]
    net = nn.Sequential(layers)
    inputs = jax.numpy.ones((1, 4))
    trees, paths = [], []
    for i in range(3):
        trees.append(net.init(jax.random.PRNGKey(i), inputs))
        paths.append(tmp_path / (f"run{i}" if cut == "shards" else f"{i}.msgpack"))
        if cut != "shards":
            state = {**trees[i], "step": i, "opt_state": trees[i]} if cut else trees[i]
            paths[i].write_bytes(to_bytes(state))
            continue
        flat = flatten_dict(trees[i], sep="/")
        index = {}
        paths[i].mkdir()
        for number, some in enumerate((sorted(flat)[:3], sorted(flat)[3:])):
            file = f"flax_model-{number + 1:05}-of-00002.msgpack"
            tree = unflatten_dict({name: flat[name] for name in some}, sep="/")
            (paths[i] / file).write_bytes(to_bytes(tree))
            index |= dict.fromkeys(some, file)
        text = json.dumps({"weight_map": index})
        (paths[i] / "flax_model.msgpack.index.json").write_text(text)
    out = souped(paths, tmp_path / ("soup" if cut == "shards" else "soup.msgpack"))
    data = (out / "flax_model.msgpack" if out.is_dir() else out).read_bytes()
    soup = from_bytes(trees[0], data)
    by_hand = jax.tree.map(
        lambda *a: np.mean([np.float64(v) for v in a], axis=0).astype("f4"), *trees
    )
    assert flax.__version__
    assert np.array_equal(net.apply(soup, inputs), net.apply(by_hand, inputs))
