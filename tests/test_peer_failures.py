"""What users of other tools met, and must not meet here: one test for each, named after it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import TensorDataset

import stockpot
from stockpot.cli import main
from stockpot.recipes import BestSingle, Greedy

SOURCE = str(Path(stockpot.__file__).parents[1])


def weights(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "body.weight": scale * torch.randn(8, 4, generator=generator),
        "body.bias": scale * torch.randn(8, generator=generator),
    }


def two(tmp_path: Path, **tensors: list[torch.Tensor]) -> list[str]:
    """Two safetensors files with equal bodies that differ in `tensors`."""
    paths = []
    for i in range(2):
        path = tmp_path / f"run-{i}.safetensors"
        save_file({**weights(i), **{name: pair[i] for name, pair in tensors.items()}}, path)
        paths.append(str(path))
    return paths


def average(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    code = main(["average", *map(str, arguments), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == ("error" in data)
    return data


def test_shared_embeddings_counted_twice(tmp_path: Path, capsys) -> None:
    for i in range(2):
        shared = torch.full((4, 2), float(i))
        state = {"embed.weight": shared, "head.weight": shared, **weights(i)}
        torch.save(state, tmp_path / f"run-{i}.pt")
    opened = stockpot.open(tmp_path / "run-0.pt")
    assert opened.tied == (("embed.weight", "head.weight"),)
    assert opened.n_parameters == 8 + 32 + 8
    data = average(capsys, tmp_path / "run-0.pt", tmp_path / "run-1.pt", "-o", tmp_path / "x.pt")
    assert "error" not in data
    soup = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(soup["embed.weight"], torch.full((4, 2), 0.5))
    assert soup["embed.weight"].data_ptr() == soup["head.weight"].data_ptr(), "tied stay tied"
    average(capsys, tmp_path / "run-0.pt", tmp_path / "run-1.pt", "-o", tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["head.weight"], soup["head.weight"])


def test_num_batches_tracked_differing_refused_or_averaged_as_float(tmp_path, capsys) -> None:
    paths = two(tmp_path, **{"bn.num_batches_tracked": [torch.tensor(10), torch.tensor(21)]})
    assert "error" not in average(capsys, *paths, "-o", tmp_path / "x.safetensors")
    counter = load_file(tmp_path / "x.safetensors")["bn.num_batches_tracked"]
    assert (counter.dtype, counter.item()) == (torch.int64, 21)


def test_bool_masks_cast_to_fp16(tmp_path: Path, capsys) -> None:
    mask = torch.tensor([True, False])
    paths = two(tmp_path, mask=[mask, mask])
    assert "error" not in average(
        capsys, *paths, "-o", tmp_path / "x.safetensors", "--dtype", "f16"
    )
    soup = load_file(tmp_path / "x.safetensors")
    assert torch.equal(soup["mask"], mask)
    assert soup["body.weight"].dtype == torch.float16


def test_bool_masks_that_differ_are_refused_by_name(tmp_path: Path, capsys) -> None:
    mask = torch.tensor([True, False])
    data = average(capsys, *two(tmp_path, mask=[mask, ~mask]), "-o", tmp_path / "x.safetensors")
    assert data["error"]["type"] == "MismatchError"
    assert "mask" in data["error"]["message"]
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("normalise", [[], ["--normalise"]])
def test_weights_1_and_minus_1_inf_written_with_exit_0(tmp_path, capsys, normalise) -> None:
    arguments = [*two(tmp_path), "--weights", "1,-1", "-o", tmp_path / "x.safetensors", *normalise]
    data = average(capsys, *arguments)
    assert data["error"]["type"] == "RecipeError"
    assert "sum to 0" in data["error"]["message"]
    assert not (tmp_path / "x.safetensors").exists()


def test_1e5_into_fp16_inf(tmp_path: Path, capsys) -> None:
    paths = two(tmp_path, large=[torch.tensor([1e5]), torch.tensor([1e5])])
    data = average(capsys, *paths, "-o", tmp_path / "x.safetensors", "--dtype", "fp16")
    assert data["error"]["type"] == "NonFiniteError"
    assert "large" in data["error"]["message"]
    assert sorted(os.listdir(tmp_path)) == ["run-0.safetensors", "run-1.safetensors"]


def test_lightning_ckpt_not_readable(tmp_path: Path, capsys) -> None:
    """With what Lightning puts beside the weights: objects of unknown classes, paths."""
    for i in range(2):
        checkpoint = {
            "epoch": 3,
            "pytorch-lightning_version": "2.6.0",
            "hyper_parameters": argparse.Namespace(root=Path("/data"), lr=1e-3),
            "callbacks": {"ModelCheckpoint": {"best_model_path": Path("a.ckpt")}},
            "state_dict": {f"model.{name}": value for name, value in weights(i).items()},
        }
        torch.save(checkpoint, tmp_path / f"run-{i}.ckpt")
    data = average(
        capsys, tmp_path / "run-0.ckpt", tmp_path / "run-1.ckpt", "-o", tmp_path / "x.pt"
    )
    assert "error" not in data
    soup = torch.load(tmp_path / "x.pt", weights_only=False)
    expected = (weights(0)["body.bias"].double() + weights(1)["body.bias"].double()) / 2
    assert torch.equal(soup["state_dict"]["model.body.bias"], expected.float())
    assert soup["hyper_parameters"] == argparse.Namespace(lr=1e-3), "no object of another class"


def test_nested_dict_not_readable(tmp_path: Path, capsys) -> None:
    for i in range(2):
        nested = {"model": weights(i), "ema": weights(i + 5), "optimizer": {"lr": 0.1}}
        torch.save(nested, tmp_path / f"run-{i}.pt")
    paths = [tmp_path / "run-0.pt", tmp_path / "run-1.pt"]
    data = average(capsys, *paths, "--key", "ema", "-o", tmp_path / "x.pt")
    assert "error" not in data
    soup = torch.load(tmp_path / "x.pt", weights_only=True)
    expected = (weights(5)["body.bias"].double() + weights(6)["body.bias"].double()) / 2
    assert torch.equal(soup["ema"]["body.bias"], expected.float())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_module_and_orig_mod_prefixes(tmp_path: Path, capsys, prefix: str) -> None:
    torch.save(weights(0), tmp_path / "run-0.pt")
    torch.save({prefix + k: v for k, v in weights(1).items()}, tmp_path / "run-1.pt")
    paths = [tmp_path / "run-0.pt", tmp_path / "run-1.pt"]
    assert "error" not in average(capsys, *paths, "-o", tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {"body.weight", "body.bias"}


def test_output_bytes_depending_on_the_hash_seed(tmp_path: Path) -> None:
    paths = two(tmp_path, extra=[torch.ones(3), torch.zeros(3)])
    found = set()
    for seed in ("1", "2"):
        out = tmp_path / f"soup-{seed}.safetensors"
        subprocess.run(
            [sys.executable, "-m", "stockpot", "average", *paths, "-o", str(out)],
            env={**os.environ, "PYTHONPATH": SOURCE, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        found.add(out.read_bytes())
    assert len(found) == 1


def folders(tmp_path: Path, n_tensors: int = 6) -> list[str]:
    paths = []
    for i in range(2):
        folder = tmp_path / f"model-{i}"
        folder.mkdir()
        tensors = {f"layers.{j}.w": torch.full((1000,), float(i + j)) for j in range(n_tensors)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model": i}))
        paths.append(str(folder))
    return paths


def test_a_killed_run_leaving_shards_without_index(tmp_path: Path) -> None:
    """Killed as soon as anything shows up in the folder of the output: the target is not there."""
    paths, out = folders(tmp_path, n_tensors=40), tmp_path / "out" / "soup"
    out.parent.mkdir()
    arguments = ["average", *paths, "-o", str(out), "--max-shard-size", "20KB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "stockpot", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not any(out.parent.iterdir()) and process.poll() is None:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if out.exists():
        assert set(stockpot.open(out)) == {f"layers.{j}.w" for j in range(40)}
    assert main([*arguments, "--force"]) == 0
    assert os.listdir(out.parent) == ["soup"]


def test_a_rerun_leaving_stale_shards_beside_the_good_file(tmp_path: Path, capsys) -> None:
    paths, out = folders(tmp_path), tmp_path / "soup"
    average(capsys, *paths, "-o", out, "--max-shard-size", "4KB")
    assert len(list(out.glob("*.safetensors"))) == 6
    average(capsys, *paths, "-o", out, "--force")
    weights_files = sorted(file.name for file in out.iterdir() if "safetensors" in file.name)
    assert weights_files == ["model.safetensors"]


def test_a_local_short_path_looked_up_on_the_network(tmp_path: Path, capsys, monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    paths = folders(tmp_path)
    Path("org").mkdir()
    shutil.move(paths[0], "org/name")
    assert "error" not in average(capsys, "org/name", paths[1], "-o", "x.safetensors")
    missing = average(capsys, "org/other", paths[1], "-o", "y.safetensors")
    assert missing["error"]["type"] == "CheckpointError"
    assert "org/other" in missing["error"]["message"]
    assert "hf:org/other" in missing["error"]["message"]


def test_coefficient_0_dropped(tmp_path: Path, capsys) -> None:
    paths = two(tmp_path, **{"bn.num_batches_tracked": [torch.tensor(9), torch.tensor(4)]})
    data = average(capsys, *paths, "--weights", "0,1", "-o", tmp_path / "x.safetensors")
    found = [(one["path"], one["coefficient"]) for one in data["ingredients"]]
    assert found == [(paths[0], 0.0), (paths[1], 1.0)]
    soup, second = load_file(tmp_path / "x.safetensors"), load_file(paths[1])
    assert all(torch.equal(soup[name], second[name]) for name in second)


def test_the_config_donor_chosen_at_random(tmp_path: Path, capsys) -> None:
    paths = folders(tmp_path)

    def donor(*arguments: object) -> int:
        average(capsys, *arguments, "-o", tmp_path / "soup", "--force")
        return json.loads((tmp_path / "soup" / "config.json").read_text())["model"]

    assert donor(*paths) == 0, "the first ingredient's"
    assert donor(*reversed(paths)) == 1
    assert donor(*paths, "--base", paths[1]) == 1, "the base's, if there is one"
    assert donor(*paths, "--config-from", paths[1]) == 1
    main(["average", *paths, "-o", str(tmp_path / "soup"), "--force"])
    assert "config.json" in capsys.readouterr().err, "and that they differ is said"


def test_averaging_models_that_share_no_initialisation_without_a_word(tmp_path, capsys) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        save_file({"w": torch.randn(64, 64, generator=generator)}, tmp_path / f"{i}.safetensors")
    paths = [str(tmp_path / "0.safetensors"), str(tmp_path / "1.safetensors")]
    assert main(["average", *paths, "-o", str(tmp_path / "x.safetensors")]) == 0
    said = capsys.readouterr().err
    assert "1.safetensors does not seem to share the initialisation of" in said


def test_models_that_share_their_initialisation_are_averaged_without_a_warning(
    tmp_path: Path, capsys
) -> None:
    start = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        save_file({"w": start * (1 + 0.01 * i)}, tmp_path / f"{i}.safetensors")
    paths = [str(tmp_path / "0.safetensors"), str(tmp_path / "1.safetensors")]
    assert main(["average", *paths, "-o", str(tmp_path / "x.safetensors")]) == 0
    assert capsys.readouterr().err == ""


def scored(tmp_path: Path, biases: list[float]) -> tuple[stockpot.ClassificationTask, list[str]]:
    """A task scored by cross-entropy, on which ingredient i puts `biases[i]` on the right class."""
    inputs, targets = torch.zeros(20, 2), torch.zeros(20, dtype=torch.long)
    task = stockpot.ClassificationTask(
        build=lambda: torch.nn.Linear(2, 3),
        splits={"val": stockpot.Split(TensorDataset(inputs, targets), role="held-out")},
        batch_size=20,
        metric="cross-entropy",
    )
    paths = []
    for i, bias in enumerate(biases):
        tensors = {"weight": torch.ones(3, 2), "bias": torch.tensor([bias, 0.0, 0.0])}
        paths.append(str(tmp_path / f"run-{i}.safetensors"))
        save_file(tensors, paths[-1])
    return task, paths


def test_lower_is_better_metrics_ranked_upside_down(tmp_path: Path) -> None:
    task, paths = scored(tmp_path, [-1.0, 3.0, 0.5])
    soup = Greedy().cook(paths, task)
    assert soup.steps[0].candidate == paths[1], "the lowest loss comes first"
    assert soup.selected == (paths[1],), "and what raises it is not kept"
    assert BestSingle().cook(paths, task).selected == (paths[1],)


def test_a_nan_score_sorted_first(tmp_path: Path) -> None:
    task, paths = scored(tmp_path, [0.0, float("nan"), 1.0])
    with pytest.raises((stockpot.EvaluationError, stockpot.NonFiniteError), match=r"run-1\."):
        Greedy().cook(paths, task)
