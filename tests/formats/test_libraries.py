"""Checkpoints as libraries write them: inspected, averaged, verified, and loaded there again.

Every kind has three inputs. The soup, loaded by the library, gives the outputs of a model whose
weights are the mean by hand: in float64, rounded once.

| kind | who made the inputs |
|---|---|
| folders of BERT, T5, Llama and ViT, with a head and without | transformers |
| folders with added tokens and their tokenizers | transformers |
| folder with Transformer, Pooling and Dense | sentence-transformers |
| pipeline of a UNet and a scheduler | diffusers |
| `.ckpt` | Lightning |
| folder of a sharded strategy of Lightning | torch.distributed.checkpoint, `meta.pt` by hand: the strategy asks for a GPU |
| folder of 4 ranks, tensors sharded by rows | torch.distributed.checkpoint, 4 processes (gloo) |
| `EMA` wrapper | ema-pytorch |
| `AveragedModel` | torch |
| fairseq's dictionary; timm's dictionary; two dictionaries in one file | by hand, torch.save: neither imports beside this torch |
| `.keras`, `.weights.h5` | keras |
| `.npz` | NumPy |
| flax's msgpack | tests/formats/test_flax.py, by hand with msgpack; by flax once, in another environment |
| `.nemo`; DeepSpeed ZeRO 1, 2, 3 | tests/formats/test_nemo.py, test_deepspeed.py: by hand, as their writers lay them out |
"""  # noqa: E501

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.formats.souped import MEET, PART, State, aligned, copied, in_ranks, mean, moved, souped

import stockpot
from stockpot.mixing import Reconcile

pytestmark = pytest.mark.extras


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


# transformers

_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_TINY, "intermediate_size": 24, "vocab_size": 40}
_T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_IMAGE = {**_TINY, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
_WORDS = {"input_ids": torch.tensor([[3, 7, 1, 5]])}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = {
    "BertModel": ("BertConfig", _TEXT, _WORDS),
    "BertForSequenceClassification": ("BertConfig", _TEXT, _WORDS),
    "T5EncoderModel": ("T5Config", _T5, _WORDS),
    "T5ForConditionalGeneration": (
        "T5Config", _T5, {**_WORDS, "decoder_input_ids": torch.tensor([[0, 2]])},
    ),
    "LlamaModel": ("LlamaConfig", _TEXT, _WORDS),
    "LlamaForCausalLM": ("LlamaConfig", {**_TEXT, "tie_word_embeddings": True}, _WORDS),
    "ViTModel": ("ViTConfig", _IMAGE, {"pixel_values": torch.ones(1, 3, 8, 8)}),
    "ViTForImageClassification": ("ViTConfig", _IMAGE, {"pixel_values": torch.ones(1, 3, 8, 8)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folders_of_transformers_and_the_code_of_their_card(
    name: str, transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_name, options, inputs = ARCHITECTURES[name]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    start = kind(getattr(transformers, config_name)(**options))
    state = copied(start.state_dict())
    states, paths = [], []
    for i in range(3):
        start.load_state_dict(state)
        moved(start, i).save_pretrained(tmp_path / f"run{i}")
        states.append(copied(start.state_dict()))
        paths.append(tmp_path / f"run{i}")
    out = souped(paths, tmp_path / "soup")
    start.load_state_dict(mean(states))
    card = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "&id" not in card
    assert "base_model" not in card
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    model = aligned(found["model"])
    assert type(model) is kind
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], start(**inputs)[0])


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM"])
@pytest.mark.parametrize("how", ["common", "union"])
def test_models_with_added_tokens(how: Any, name: str, transformers: Any, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 40)}}
    config_name = "LlamaConfig" if name.startswith("Llama") else "BertConfig"

    def made() -> Any:
        # It takes the new number of rows from a model that is resized.
        config = getattr(transformers, config_name)(**_TEXT, tie_word_embeddings=True)
        return getattr(transformers, name)(config)

    torch.manual_seed(0)
    start = copied(made().state_dict())
    added, tables, paths = [[], ["<sku>"], ["<sku>", "<url>"]], [], []
    for i, tokens in enumerate(added):
        model = made()
        model.load_state_dict(start)
        own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own)
        tokenizer.add_tokens(tokens)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        moved(model, i)
        model.save_pretrained(tmp_path / f"run{i}")
        tokenizer.save_pretrained(tmp_path / f"run{i}")
        tables.append(model.get_input_embeddings().weight.detach().double().clone())
        paths.append(tmp_path / f"run{i}")
    out = souped(paths, tmp_path / "soup", reconcile=Reconcile(vocabulary=how))
    soup = getattr(transformers, name).from_pretrained(out)
    found = soup.get_input_embeddings().weight
    n = 40 if how == "common" else 42
    assert found.shape[0] == soup.get_output_embeddings().weight.shape[0] == n
    assert len(transformers.AutoTokenizer.from_pretrained(out)) == n
    assert torch.equal(found[:40], torch.stack([t[:40] for t in tables]).mean(0).float())
    if how == "union":
        assert torch.equal(found[40], torch.stack([t[40] for t in tables[1:]]).mean(0).float())
        assert torch.equal(found[41], tables[2][41].float())


# sentence-transformers and diffusers


def test_folders_of_sentence_transformers(transformers: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules as models

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "soup", "is", "good"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    bert = transformers.BertModel(transformers.BertConfig(**_TEXT))
    (tmp_path / "bert").mkdir()
    bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    runs, paths = [], []
    for i in range(3):
        torch.manual_seed(0)
        word = models.Transformer(str(tmp_path / "bert"))
        dense = models.Dense(16, 6)
        modules = [word, models.Pooling(16), dense]
        run = moved(library.SentenceTransformer(modules=modules, device="cpu"), i)
        run.save(str(tmp_path / f"run{i}"))
        runs.append(run)
        paths.append(tmp_path / f"run{i}")
    out = souped(paths, tmp_path / "soup")
    soup = aligned(library.SentenceTransformer(str(out), device="cpu"))
    assert len(soup) == 3
    runs[0].load_state_dict(mean([copied(run.state_dict()) for run in runs]))
    text = ["soup is good"]
    assert np.array_equal(soup.encode(text), runs[0].encode(text))


def test_pipelines_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    states, paths = [], []
    for i in range(3):
        torch.manual_seed(0)
        unet = moved(diffusers.UNet2DModel(sample_size=8, **sizes, **blocks), i)
        pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=10))
        pipe.save_pretrained(tmp_path / f"run{i}")
        states.append(copied(unet.state_dict()))
        paths.append(tmp_path / f"run{i}")
    out = souped(paths, tmp_path / "soup")
    soup = diffusers.DDPMPipeline.from_pretrained(out)
    assert soup.scheduler.config.num_train_timesteps == 10
    unet.load_state_dict(mean(states))
    noise = torch.randn(1, 3, 8, 8)
    aligned(soup.unet)
    with torch.no_grad():
        assert torch.equal(soup.unet(noise, 3).sample, unet(noise, 3).sample)


# Lightning, torch's own averages, ema-pytorch


def test_checkpoints_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 5) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.layer(batch[0]).square().mean()

    data = torch.utils.data.TensorDataset(torch.randn(8, 7))
    paths = []
    for i in range(3):
        lightning.seed_everything(i, verbose=False)
        options: dict[str, Any] = {
            "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
            "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1,
        }  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(**options)
            trainer.fit(Net(7), torch.utils.data.DataLoader(data, batch_size=4))
        trainer.save_checkpoint(tmp_path / f"epoch={i}.ckpt")
        paths.append(tmp_path / f"epoch={i}.ckpt")
    out = souped(paths, tmp_path / "soup.ckpt")
    soup = Net.load_from_checkpoint(out, weights_only=True)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    assert soup.hparams.width == 7
    expected = mean(states)
    assert all(torch.equal(value, expected[name]) for name, value in soup.state_dict().items())


def test_files_of_averaged_models(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    states, paths = [], []
    for i in range(3):
        model = AveragedModel(moved(torch.nn.Linear(3, 2), i))
        model.update_parameters(moved(torch.nn.Linear(3, 2), i + 10))
        torch.save(model.state_dict(), tmp_path / f"{i}.pt")
        states.append(copied(model.state_dict()))
        paths.append(tmp_path / f"{i}.pt")
    soup = torch.load(souped(paths, tmp_path / "soup.pt"), weights_only=True)
    model.load_state_dict(soup)
    expected = mean(states)
    assert torch.equal(model.state_dict()["module.weight"], expected["module.weight"])


def test_files_of_ema_pytorch(tmp_path: Path) -> None:
    library = pytest.importorskip("ema_pytorch")
    states, paths = [], []
    for i in range(3):
        net = moved(torch.nn.Linear(3, 2), i)
        ema = library.EMA(net, beta=0.5, update_after_step=0, update_every=1)
        for step in range(i + 2):
            moved(net, 20 + step)
            ema.update()
        torch.save(ema.state_dict(), tmp_path / f"{i}.pt")
        states.append(copied(ema.state_dict()))
        paths.append(tmp_path / f"{i}.pt")
    soup = torch.load(souped(paths, tmp_path / "soup.pt"), weights_only=True)
    ema.load_state_dict(soup)
    expected = mean(states)
    for part in ("ema_model.weight", "online_model.weight"):
        if part in expected:
            assert torch.equal(ema.state_dict()[part], expected[part])
    assert int(ema.step) == max(int(one["step"]) for one in states)


# torch.distributed.checkpoint

_RANK = (
    MEET
    + """
try:
    from torch.distributed.tensor import Shard, distribute_tensor
except ImportError:  # torch 2.4
    from torch.distributed._tensor import Shard, distribute_tensor
for i, folder in enumerate(folders):
    state = torch.load(f"{folder}.pt", weights_only=True)
    state = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in state.items()}
    # Lightning's FSDP strategy keeps the model under a key.
    dcp.save({"model": state} if i else state, checkpoint_id=folder)
"""
    + PART
)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_folders_of_four_ranks_and_of_lightnings_sharded_strategy(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    paths = [tmp_path / f"step{i}" for i in range(3)]
    states = []
    for i, folder in enumerate(paths):
        model = moved(torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 2)), i)
        states.append(copied(model.state_dict()))
        torch.save(states[i], f"{folder}.pt")
    in_ranks(_RANK, 4, str(tmp_path / "meeting"), *map(str, paths))
    for folder in paths[1:]:
        torch.save({"epoch": 1, "loops": {}}, folder / "meta.pt")
    soup = stockpot.open(souped(paths, tmp_path / "soup.safetensors")).state_dict()
    expected = mean(states)
    assert all(torch.equal(soup[name], value) for name, value in expected.items())
    loaded = {name: torch.zeros_like(value) for name, value in expected.items()}
    # torch 2.4 has no such argument, and warns that it is on its own.
    alone = {"no_dist": True} if "no_dist" in inspect.signature(dcp.load).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(loaded, checkpoint_id=str(paths[0]), **alone)
    ours = stockpot.open(paths[0]).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in loaded.items())


# dictionaries of toolkits, by hand


def _fairseq(state: State, i: int) -> dict[str, Any]:
    return {
        "cfg": {"model": {"_name": "transformer", "dropout": 0.1}},
        "args": None,
        "model": state,
        "optimizer_history": [{"num_updates": i}],
        "extra_state": {"epoch": i, "train_iterator": {"epoch": i}},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }


def _timm(state: State, i: int) -> dict[str, Any]:
    return {
        "epoch": i,
        "arch": "vit_tiny_patch16_224",
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": []},
        "version": 2,
        "args": argparse.Namespace(lr=0.1, model="vit_tiny"),
        "metric": 70.0 + i,
    }


@pytest.mark.parametrize("wrap", [_fairseq, _timm])
def test_dictionaries_of_toolkits(
    wrap: Callable[[State, int], dict[str, Any]], tmp_path: Path
) -> None:
    states, paths = [], []
    for i in range(3):
        states.append(moved(torch.nn.Linear(3, 2), i).state_dict())
        torch.save(wrap(states[i], i), tmp_path / f"{i}.pth.tar")
        paths.append(tmp_path / f"{i}.pth.tar")
    out = souped(paths, tmp_path / "soup.pth.tar")
    soup = torch.load(out, weights_only=False)
    kept = wrap(states[0], 0)
    key = "model" if "model" in kept else "state_dict"
    assert all(torch.equal(value, mean(states)[name]) for name, value in soup[key].items())
    same = set(kept) - {key, "optimizer", "optimizer_history", "last_optimizer_state"}
    assert same <= set(soup)
    model = torch.nn.Linear(3, 2)
    model.load_state_dict(soup[key])


def test_two_dictionaries_of_one_model_in_one_file(tmp_path: Path) -> None:
    states, paths = [], []
    for i in range(3):
        both = {
            "encoder": moved(torch.nn.Linear(3, 2), i).state_dict(),
            "decoder": moved(torch.nn.Linear(2, 4), i).state_dict(),
            "epoch": i,
        }
        torch.save(both, tmp_path / f"{i}.pt")
        states.append(both)
        paths.append(tmp_path / f"{i}.pt")
    soup = torch.load(souped(paths, tmp_path / "soup.pt"), weights_only=True)
    for part, model in (("encoder", torch.nn.Linear(3, 2)), ("decoder", torch.nn.Linear(2, 4))):
        model.load_state_dict(soup[part])
        expected = mean([one[part] for one in states])
        assert all(torch.equal(value, expected[n]) for n, value in model.state_dict().items())


# keras


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_files_of_keras(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("h5py")
    keras = pytest.importorskip("keras")

    def network() -> Any:
        layers = keras.layers
        stack = [layers.Dense(6, activation="relu"), layers.BatchNormalization(), layers.Dense(2)]
        return keras.Sequential([keras.Input((4,)), *stack])

    keras.utils.set_random_seed(0)
    start = network()
    weights, values, paths = start.get_weights(), [], []
    for i in range(3):
        rng = np.random.default_rng(i)
        values.append([w + rng.normal(0, 0.05, w.shape).astype(w.dtype) for w in weights])
        start.set_weights(values[i])
        path = tmp_path / f"{i}{ending}"
        start.save(path) if ending == ".keras" else start.save_weights(path)
        paths.append(path)
    out = souped(paths, tmp_path / f"soup{ending}")
    start.set_weights([np.mean([np.float64(v) for v in w], 0) for w in zip(*values, strict=True)])
    if ending == ".keras":
        soup = keras.saving.load_model(out)
    else:
        soup = network()
        soup.load_weights(out)
    inputs = np.random.default_rng(9).normal(size=(5, 4)).astype("f4")
    assert np.array_equal(soup.predict(inputs, verbose=0), start.predict(inputs, verbose=0))
