"""The experiment on adapters, in two steps with a tiny encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.experiments import standins

from experiments import adapters

pytest.importorskip("peft")
