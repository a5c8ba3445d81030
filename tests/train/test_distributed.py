"""Two processes that share each batch, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.train.tasks import TinyTask

from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune

ROOT = Path(__file__).parents[2]


class Plain(TinyTask):
    """Without BatchNorm and dropout, whose results depend on who sees which part of a batch."""

    def build(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).double()

    def predict(self, model, batch):
        return model(batch[0].double())


def start() -> dict[str, torch.Tensor]:
    weight = torch.linspace(-0.1, 0.1, 256, dtype=torch.float64).reshape(4, 64)
    return {"1.weight": weight, "1.bias": torch.zeros(4, dtype=torch.float64)}


def run(out: Path) -> None:
    config = TrainConfig(lr=1e-2, epochs=2, ema_decays=(0.5,))
    fine_tune(Plain(), start(), config, out=out, device="cpu")


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    run(tmp_path / "one.safetensors")
    program = f"""
import sys
sys.path[:0] = [{str(ROOT / "src")!r}, {str(ROOT)!r}]
from pathlib import Path
from tests.train.test_distributed import run
run(Path({str(tmp_path / "two.safetensors")!r}))
"""
    (tmp_path / "program.py").write_text(program)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*words, str(tmp_path / "program.py")], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    for name in ("one", "averages/one-ema-0.5"):
        one = load_file(tmp_path / f"{name}.safetensors")
        two = load_file(tmp_path / f"{name.replace('one', 'two')}.safetensors")
        for key, value in one.items():
            assert torch.allclose(value, two[key], rtol=1e-9, atol=1e-11), (name, key)
    assert not list(tmp_path.glob(".*"))
