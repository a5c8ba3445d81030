"""Inspection: what is inside, whether they average, and what the moves from a base say."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stockpot.analysis.initialisation import same_initialisation
from stockpot.analysis.inspection import inspect_checkpoints
from stockpot.errors import CheckpointError, StockpotError
from stockpot.formats.memory import from_state_dict
from stockpot.mixing import Reconcile
from stockpot.recipes import Uniform

RNG = np.random.default_rng(0)
BASE = {
    "layer.0.weight": RNG.normal(size=(40, 30)),
    "layer.0.bias": np.zeros(40),
    "layer.1.weight": RNG.normal(size=(20, 40)) + 3.0,
    "norm.weight": np.ones(20),
    "steps": np.arange(3),
}


def moved(scale: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: value + scale * rng.normal(size=value.shape) if value.dtype.kind == "f" else value
        for name, value in BASE.items()
    }


def flat(state: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([v.ravel() for v in state.values() if v.dtype.kind == "f"])


def test_distances_and_angles_are_those_of_the_definition() -> None:
    runs = [moved(0.1, 1), moved(0.3, 2), moved(0.2, 3)]
    moves = inspect_checkpoints(runs, base=BASE).moves
    assert moves is not None
    assert moves.tensors == 4
    steps = [flat(run) - flat(BASE) for run in runs]
    for move, step in zip(moves.ingredients, steps, strict=True):
        want = np.linalg.norm(step) / np.linalg.norm(flat(BASE))
        assert move.distance == pytest.approx(want, rel=1e-12)
    pairs = [(0, 1), (0, 2), (1, 2)]
    for angle, (i, j) in zip(moves.angles, pairs, strict=True):
        cosine = steps[i] @ steps[j] / np.linalg.norm(steps[i]) / np.linalg.norm(steps[j])
        assert angle.degrees == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-9)


def test_distances_are_given_by_layer() -> None:
    run = {**BASE, "layer.1.weight": 1.5 * BASE["layer.1.weight"]}
    moves = inspect_checkpoints([run], base=BASE).moves
    assert moves is not None
    layers = moves.ingredients[0].layers
    assert layers == {
        "layer.0": 0.0,
        "layer.1": pytest.approx(0.5, rel=1e-12),
        "norm": 0.0,
    }


def test_values_are_read_in_blocks_and_in_any_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {name: torch.from_numpy(value).bfloat16() for name, value in BASE.items()}
    run = {name: value + (value.is_floating_point() * 0.25) for name, value in wide.items()}
    run = {name: value.to(wide[name].dtype) for name, value in run.items()}
    whole = inspect_checkpoints([run, wide], base=wide).moves
    monkeypatch.setattr("stockpot.analysis.initialisation._BLOCK_BYTES", 1)
    many = {"w": torch.randn(5000, 3), "v": torch.randn(2, 2)}
    other = {name: value * 2 for name, value in many.items()}
    blocks = inspect_checkpoints([other], base=many).moves
    assert whole is not None
    assert blocks is not None
    assert whole.ingredients[1].distance == 0.0
    assert blocks.ingredients[0].distance == pytest.approx(1.0, rel=1e-12)
    assert blocks.ingredients[0].same_initialisation.correlation == pytest.approx(1.0, rel=1e-9)


def test_a_model_that_did_not_move_has_no_angle() -> None:
    moves = inspect_checkpoints([BASE, moved(0.1, 1)], base=BASE).moves
    assert moves is not None
    assert moves.angles[0].degrees is None
    assert moves.ingredients[0].distance == 0.0


def test_another_seed_is_told_from_the_same_start_although_norms_agree() -> None:
    rng = np.random.default_rng(7)
    stranger = {
        name: rng.permutation(value.ravel()).reshape(value.shape) for name, value in BASE.items()
    }
    found = inspect_checkpoints([moved(0.1, 1), stranger], base=BASE).moves
    assert found is not None
    verdicts = [move.same_initialisation.verdict for move in found.ingredients]
    assert verdicts == ["shared", "different"]
    texts = [move.same_initialisation.text for move in found.ingredients]
    assert all("evidence, never proof" in text for text in texts)
    # The large mean of one tensor would make an uncentred correlation high.
    correlation = found.ingredients[1].same_initialisation.correlation
    assert correlation is not None
    assert abs(correlation) < 0.1


def test_the_quick_check_agrees_with_the_whole_one() -> None:
    one, other = from_state_dict(BASE), from_state_dict(moved(0.1, 1))
    whole, quick = same_initialisation(one, other), same_initialisation(one, other, max_elements=99)
    assert whole.verdict == quick.verdict == "shared"
    assert whole.correlation != quick.correlation
    moves = inspect_checkpoints([other], base=one).moves
    assert moves is not None
    assert moves.ingredients[0].same_initialisation == whole
    assert whole.n_tensors > 1
    assert same_initialisation(one, other, max_tensors=1).n_tensors == 1


def test_nothing_to_compare_is_unclear_and_not_an_error() -> None:
    moves = inspect_checkpoints([{"b": np.ones(3)}], base={"b": np.ones(3)}).moves
    assert moves is not None
    assert moves.ingredients[0].same_initialisation.correlation is None
    assert moves.ingredients[0].same_initialisation.verdict == "unclear"
    zero = inspect_checkpoints([{"b": np.ones(3)}], base={"b": np.zeros(3)}).moves
    assert zero is not None
    assert zero.ingredients[0].distance is None


def test_values_that_are_not_finite_are_a_problem_and_take_no_part() -> None:
    broken = moved(0.1, 1)
    broken["layer.1.weight"][3, 3] = np.nan
    found = inspect_checkpoints([broken, moved(0.1, 2)], base=BASE)
    assert found.compatible is False
    assert [(p.ingredient, p.tensor) for p in found.problems] == [("<memory 0>", "layer.1.weight")]
    assert "NaN or infinity" in found.message
    assert found.moves is not None
    assert all(move.distance is not None for move in found.moves.ingredients)


def test_tied_tensors_count_once() -> None:
    shared = BASE["layer.0.weight"]
    tied = {"a": shared, "b": shared}
    moves = inspect_checkpoints([tied], base=tied).moves
    assert moves is not None
    assert moves.tensors == 1


def test_every_problem_is_listed_at_once_and_one_alone_is_neither() -> None:
    other = {name: value for name, value in BASE.items() if name != "norm.weight"}
    third = {**BASE, "layer.0.bias": np.zeros(41)}
    found = inspect_checkpoints([BASE, dict(BASE), other, third])
    assert found.compatible is False
    assert {p.tensor for p in found.problems} == {"norm.weight", "layer.0.bias"}
    assert found.message.startswith("2 of 4 ingredients cannot be averaged with <memory 0>:")
    assert found.moves is None
    assert inspect_checkpoints([BASE]).compatible is None
    assert inspect_checkpoints([BASE, dict(BASE)]).compatible is True


def test_a_summary_says_what_is_inside_and_only_a_known_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(3, 2), "h": torch.ones(4).half(), "x": torch.ones(1)}, path)
    (summary,) = inspect_checkpoints([path]).checkpoints
    assert (summary.path, summary.format) == (str(path), "safetensors")
    assert (summary.tensors, summary.parameters, summary.bytes) == (3, 11, 36)
    assert summary.dtypes == {"F32": 2, "F16": 1}
    assert summary.fingerprint is None
    made = inspect_checkpoints([path], fingerprints=True).checkpoints[0].fingerprint
    assert made is not None
    assert inspect_checkpoints([path]).checkpoints[0].fingerprint == made


def test_the_result_is_json_once_asdict_took_it_apart() -> None:
    found = inspect_checkpoints([BASE, moved(0.1, 1)], base=BASE)
    fields = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    keys = {"checkpoints", "compatible", "problems", "message", "moves", "starts", "exchanged"}
    keys |= {"adapters"}
    assert set(fields) == keys


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"did you mean .*model\.safetensors"):
        inspect_checkpoints([tmp_path / "modell.safetensors"])


def test_neither_torch_nor_scipy_is_imported(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "m.pt")
    save_file({"w": torch.ones(2, 2)}, tmp_path / "n.safetensors")
    code = (
        "import sys; from stockpot.analysis.inspection import inspect_checkpoints as i\n"
        "i(sys.argv[1:], base=sys.argv[1], fingerprints=True)\n"
        "bad = {'torch', 'scipy', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "print(*bad)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.pt"), str(tmp_path / "n.safetensors")]
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


RUNNING = {
    "layer.0.bn.running_mean": np.zeros(40),
    "layer.0.bn.running_var": np.ones(40),
    "layer.0.bn.num_batches_tracked": np.array(3.0),
    "attn.masked_bias": np.array(-1e4),
}


@pytest.mark.parametrize("seed", range(5))
def test_running_statistics_enter_no_distance_no_angle_and_no_evidence(seed: int) -> None:
    """They follow the data: by 100 here, while the weights move by less than 1."""
    rng = np.random.default_rng(seed)
    runs = [moved(0.1, 10 * seed + i) for i in range(3)]
    plain = inspect_checkpoints(runs, base=BASE).moves
    with_statistics = inspect_checkpoints(
        [{**run, **{n: np.asarray(v + 100 * rng.normal(size=v.shape)) for n, v in RUNNING.items()}}
         for run in runs],
        base={**BASE, **RUNNING},
    ).moves  # fmt: skip
    assert with_statistics == dataclasses.replace(plain, base=with_statistics.base)


def test_a_small_move_is_not_hidden_by_statistics_worked_by_hand() -> None:
    """Moves (3, 0) and (0, 4) from (6, 8): 0.3 and 0.4 of the norm, at right angles."""
    base = {"w": np.array([[6.0, 8.0]]), "bn.running_var": np.array([1.0])}
    runs = [
        {"w": np.array([[9.0, 8.0]]), "bn.running_var": np.array([101.0])},
        {"w": np.array([[6.0, 12.0]]), "bn.running_var": np.array([99.0])},
    ]
    moves = inspect_checkpoints(runs, base=base).moves
    assert [move.distance for move in moves.ingredients] == pytest.approx([0.3, 0.4])
    assert moves.angles[0].degrees == 90.0
    assert moves.tensors == 1
    assert set(moves.ingredients[0].layers) == {"w"}


def test_a_run_of_another_precision_is_compared_with_the_base() -> None:
    run = {name: torch.from_numpy(value).bfloat16() for name, value in moved(0.1, 1).items()}
    one, other = (inspect_checkpoints([r], base=BASE).moves for r in (moved(0.1, 1), run))
    assert other.tensors == one.tensors == 4
    assert other.ingredients[0].distance == pytest.approx(one.ingredients[0].distance, rel=1e-2)


FORMS: dict[str, tuple[dict[str, torch.Tensor], Reconcile | None]] = {
    "other precision": ({"w": torch.ones(3, 3, dtype=torch.bfloat16)}, None),
    "other precision, dtype": ({"w": torch.ones(3, 3).half()}, Reconcile(dtype="f32")),
    "prefix": ({"module.w": torch.ones(3, 3)}, None),
    "ids": ({"w": torch.ones(3, 3), "ids": torch.arange(3)}, None),
    "ids that differ": ({"w": torch.ones(3, 3), "ids": torch.ones(3).long()}, None),
    "ids, policy": ({"w": torch.ones(3, 3), "ids": torch.ones(3).long()},
                    Reconcile(buffers="first")),
    "quantised": ({"w": torch.ones(3, 3), "q": torch.ones(4, dtype=torch.uint8)}, None),
    "counter": ({"w": torch.ones(3, 3), "n_averaged": torch.tensor(7)}, None),
    "left out": ({"w": torch.ones(3, 3), "head": torch.ones(7)}, Reconcile(exclude=("head",))),
    "adapter": ({"w.lora_A.weight": torch.ones(2, 3), "w.lora_B.weight": torch.ones(3, 2)}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_they_fit_exactly_where_averaging_with_the_same_options_succeeds(
    kind: str, tmp_path: Path
) -> None:
    other, reconcile = FORMS[kind]
    first = {"w": torch.zeros(3, 3)}
    for name, value in other.items():
        if name not in ("w", "module.w", "head") and "lora" not in name:
            first[name] = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape)
    found = inspect_checkpoints([first, other], reconcile=reconcile)
    refused = ""
    try:
        Uniform().cook([first, other], reconcile=reconcile).save(tmp_path / "soup.safetensors")
    except StockpotError as error:
        refused = str(error)
    assert found.message == refused
    assert found.compatible is (refused == "")


def test_a_base_that_was_exchanged_with_a_run_is_noticed() -> None:
    runs = [moved(0.1, seed) for seed in (1, 2, 3)]
    right = inspect_checkpoints(runs, base=BASE)
    assert right.exchanged == ""
    wrong = inspect_checkpoints([BASE, *runs[1:]], base=runs[0])
    assert "are the two exchanged?" in wrong.exchanged
    assert wrong.exchanged in wrong.verdict
    soup = Uniform().cook([BASE, *runs[1:]], base=runs[0])
    assert any("are the two exchanged?" in note for note in soup.notes)


def test_neither_a_small_move_nor_the_middle_of_a_run_is_taken_for_the_base() -> None:
    small = [moved(0.1, 1), moved(0.02, 2), moved(0.1, 3)]
    assert inspect_checkpoints(small, base=BASE).exchanged == ""
    # Checkpoints of one run: the second lies between the base and the third.
    along, state = [], BASE
    for seed in (1, 2, 3):
        step = moved(0.05, seed)
        state = {name: state[name] + step[name] - BASE[name] for name in BASE}
        along.append(state)
    assert inspect_checkpoints(along, base=BASE).exchanged == ""


def test_models_that_fit_and_moved_as_far_as_the_base_is_long_are_pointed_out() -> None:
    far = inspect_checkpoints([moved(0.1, 1), moved(8.0, 2)], base=BASE)
    assert far.compatible
    assert "moved as far from" in far.verdict
    assert "moved as far" not in inspect_checkpoints([moved(0.1, 1)], base=BASE).verdict


def test_runs_that_moved_much_farther_than_the_median_are_named_before_anything_is_scored() -> None:
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(20, 20))}
    runs = [
        {"w": base["w"] + scale * rng.normal(size=(20, 20))} for scale in (0.01, 0.01, 0.01, 0.09)
    ]
    found = inspect_checkpoints(runs, base=base)
    assert "uniform average will probably collapse: 1 of 4 moved 9 times" in found.verdict
    assert "collapse" not in inspect_checkpoints(runs[:3], base=base).verdict
