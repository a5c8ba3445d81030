"""Sparse soups: exact sparsity, shared zeros, resuming, baselines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import stockpot
from stockpot import MaskMismatchError, RecipeError, SparseSoup, TaskEvaluator, TrainConfig
from stockpot.errors import OutputExistsError
from stockpot.mixing.mask import Mask
from stockpot.train.loop import fine_tune
from stockpot.train.schedule import retrain_config
from stockpot.train.sparse import jobs as _jobs
from stockpot.train.sparse.options import SparsePhase, SparseResult
from stockpot.train.sparse.selectors import Magnitude, n_zeros, phase_sparsities
from stockpot.workers import WorkerOptions

ORIGINAL = TrainConfig(lr=1e-2, epochs=6, batch_size=100, weight_decay=0.01)
NAMES = ("0.weight", "3.weight")
N_WEIGHTS = 64 * 24 + 24 * 10


def result(lab, folder: Path, sparsity: float = 0.9, **options: Any) -> SparseResult:
    running = {
        name: options.pop(name)
        for name in ("workers", "evaluator", "force", "report", "progress")
        if name in options
    }
    settings = {"n_phases": 2, "n_candidates": 2, "epochs": 2, "original": ORIGINAL, **options}
    task = settings.pop("task", lab.task)
    return SparseSoup(sparsity=sparsity, **settings).run(
        lab.paths[0], task, folder=folder, device="cpu",
        **{"evaluator": TaskEvaluator(lab.task), "report": False, **running},
    )  # fmt: skip


def soup(lab, folder: Path, sparsity: float = 0.9, **options: Any) -> stockpot.Soup:
    return result(lab, folder, sparsity, **options).soup


def masked(path: str | Path) -> Mask:
    return Mask.of_nonzero({name: load_file(path)[name] for name in NAMES})


def test_every_phase_is_as_sparse_as_its_target_and_masks_are_nested(lab, tmp_path: Path) -> None:
    found = soup(lab, tmp_path / "work", 0.9, n_phases=3)
    told: Any = found.to_json()
    previous = None
    for target, phase in zip(phase_sparsities(0.9, 3), told["phases"], strict=True):
        mask = masked(phase["soup"]["path"])
        assert mask.n_zeros == phase["zeros"] == n_zeros(target, N_WEIGHTS)
        assert phase["weights"] == N_WEIGHTS
        assert phase["target"] == target
        assert previous is None or mask <= previous
        previous = mask
    assert told["sparsity"] == n_zeros(0.9, N_WEIGHTS) / N_WEIGHTS
    out = tmp_path / "sparse.safetensors"
    found.save(out)
    assert masked(out) == previous
    for name in NAMES:
        value = load_file(out)[name]
        assert not value[value == 0].signbit().any()
    assert told["nonzero_parameters"] == sum(int((v != 0).sum()) for v in load_file(out).values())


def test_the_last_candidates_are_kept_share_their_zeros_and_rebuild_the_soup(
    lab, tmp_path: Path
) -> None:
    found = soup(lab, tmp_path / "work")
    out = tmp_path / "sparse.safetensors"
    found.save(out)
    paths = list(found.selected)
    assert [Path(path).name for path in paths] == [f"candidate-{i}.safetensors" for i in range(2)]
    assert all(masked(path) == masked(out) for path in paths)
    assert not list((tmp_path / "work" / "phase-1").glob("candidate-*"))
    assert stockpot.verify(out) == []
    assert stockpot.Soup.load(out).to_json()["phases"] == found.to_json()["phases"]


def test_one_phase_of_one_candidate_is_pruning_and_retraining_by_hand(lab, tmp_path: Path) -> None:
    found = soup(lab, tmp_path / "work", 0.8, n_phases=1, n_candidates=1)
    weights = load_file(lab.paths[0])
    mask = Magnitude().select({name: weights[name] for name in NAMES}, 0.8)
    by_hand = tmp_path / "by-hand.safetensors"
    config = retrain_config("llr", ORIGINAL, epochs=2)
    fine_tune(
        lab.task, lab.paths[0], config, out=by_hand, seed=0, pruning=mask, device="cpu",
        score=lambda _: {},
    )  # fmt: skip
    expected = load_file(by_hand)
    for name in found.mixture:
        assert torch.equal(found.mixture.read(name), expected[name])


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a kill."""


@pytest.mark.parametrize("step", range(1, 9))
def test_killed_in_every_phase_the_result_is_the_same(
    bn_lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed at the beginning and at the end of each retraining of both phases."""
    whole = soup(bn_lab, tmp_path / "whole")
    whole.save(tmp_path / "whole.safetensors")
    true_fine_tune, calls = _jobs.fine_tune, []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append("begin")
        if len(calls) == step:
            raise Killed
        result = true_fine_tune(*args, **kwargs)
        calls.append("end")
        if len(calls) == step:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(_jobs, "fine_tune", dying)
        with pytest.raises(Killed):
            soup(bn_lab, tmp_path / "killed")
    assert len(calls) == step
    soup(bn_lab, tmp_path / "killed").save(tmp_path / "killed.safetensors")
    killed, expected = (tmp_path / f"{n}.safetensors" for n in ("killed", "whole"))
    assert killed.read_bytes() == expected.read_bytes()


def test_a_finished_soup_is_made_again_without_any_training(
    lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = soup(lab, tmp_path / "work", n_phases=3)
    monkeypatch.setattr(_jobs, "fine_tune", None)
    assert soup(lab, tmp_path / "work", n_phases=3).to_json() == first.to_json()


def test_two_workers_make_what_one_does_and_score_into_the_same_journal(
    lab, tmp_path: Path
) -> None:
    one = soup(lab, tmp_path / "one", n_phases=1)
    judge = TaskEvaluator(lab.task, cache=tmp_path / "cache")
    two = soup(
        lab, tmp_path / "two", n_phases=1, workers=WorkerOptions(n_workers=2), evaluator=judge,
        report=True, task=lambda: lab.task,
    )  # fmt: skip
    for name in one.mixture:
        assert torch.equal(one.mixture.read(name), two.mixture.read(name))
    splits = [len(split.dataset) for split in lab.task.splits.values()]
    assert judge.counters.examples == 2 * sum(splits), "only soup and dense were left to score"


def test_other_settings_are_refused_and_force_starts_over(lab, tmp_path: Path) -> None:
    soup(lab, tmp_path / "work", n_phases=1)
    with pytest.raises(
        OutputExistsError, match=r"(?s)other settings.*'epochs': 2.*'epochs': 1.*--work"
    ):
        soup(lab, tmp_path / "work", n_phases=1, epochs=1)
    again = soup(lab, tmp_path / "work", n_phases=1, epochs=1, force=True)
    fresh = soup(lab, tmp_path / "fresh", n_phases=1, epochs=1)
    assert torch.equal(again.mixture.read("0.weight"), fresh.mixture.read("0.weight"))


def test_greedy_merging_chooses_on_held_out_data(lab, tmp_path: Path) -> None:
    found = soup(lab, tmp_path / "work", 0.95, merge="greedy", n_candidates=3)
    assert found.chosen_on == "held-out"
    assert found.steps[0].accepted
    assert masked(found.selected[0]).n_zeros == n_zeros(0.95, N_WEIGHTS)


def test_batchnorm_is_recalibrated_after_averaging_and_stays_as_it_is_for_one(
    bn_lab, tmp_path: Path
) -> None:
    several = soup(bn_lab, tmp_path / "two", n_phases=1)
    assert several.mixture.overrides is not None
    one = soup(bn_lab, tmp_path / "one", n_phases=1, n_candidates=1)
    assert one.mixture.overrides is None


@pytest.mark.parametrize(
    ("vary", "key"), [("lr", "lr"), ("weight-decay", "weight_decay"), ("retrain-length", "epochs")]
)
def test_candidates_differ_in_exactly_one_thing(lab, tmp_path: Path, vary: str, key: str) -> None:
    found: Any = soup(lab, tmp_path / "work", n_phases=1, n_candidates=3, vary=vary).to_json()
    candidates = found["phases"][0]["candidates"]
    for name in ("lr", "weight_decay", "epochs", "seed"):
        values = [candidate[name] for candidate in candidates]
        assert len(set(values)) == (3 if name == key else 1), name
        assert name != key or values == sorted(values)


@pytest.mark.parametrize("network", ["lab", "bn_lab"])
def test_distances_and_angles_of_candidates_are_those_of_their_parameters(
    network: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    lab = request.getfixturevalue(network)
    found = soup(lab, tmp_path / "work", 0.8, n_phases=1)
    told: Any = found.to_json()["phases"][0]
    start = load_file(lab.paths[0])
    mask = masked(told["soup"]["path"])
    moves = []
    for path in found.selected:
        pieces = []
        for name, value in load_file(path).items():
            if "running_" in name or "num_batches" in name:
                continue
            origin = torch.from_numpy(mask.applied(name, start[name]))
            pieces.append((value.double() - origin.double()).reshape(-1))
        moves.append(torch.cat(pieces))
    for candidate, move in zip(told["candidates"], moves, strict=True):
        assert candidate["distance"] == pytest.approx(float(move.norm()), rel=1e-6)
    cosine = float(moves[0] @ moves[1] / (moves[0].norm() * moves[1].norm()))
    degrees = told["angles"][0]["degrees"]
    assert degrees == pytest.approx(float(torch.tensor(cosine).acos().rad2deg()), abs=1e-3)


def test_the_baselines_stand_in_one_table_at_equal_sparsity_with_their_costs(
    bn_lab, tmp_path: Path
) -> None:
    found = soup(bn_lab, tmp_path / "work", 0.9, baselines=True, report=True)
    rows: Any = found.to_json()["baselines"]
    assert list(rows) == [
        "dense", "soup", "best-candidate", "mean-candidate", "imp", "imp-2x", "imp-reprune",
        "ensemble",
    ]  # fmt: skip
    assert [row["epochs"] for row in rows.values()] == [0, 8, 8, 8, 4, 8, 8, 8]
    assert [row["models"] for row in rows.values()] == [1] * 7 + [2]
    assert rows["soup"]["scores"] == found.to_json()["scores"]
    candidates: Any = found.to_json()["phases"][-1]["candidates"]
    for split in ("held-out", "test", "noise", "shift_average"):
        values = [c["scores"][split]["value"] for c in candidates]
        mean = rows["mean-candidate"]["scores"][split]
        assert mean["value"] == pytest.approx(sum(values) / 2)
        assert mean["low"] <= mean["value"] <= mean["high"]
    held_out = [c["scores"]["held-out"]["value"] for c in candidates]
    assert rows["best-candidate"]["scores"]["held-out"]["value"] == max(held_out)
    for i in range(2):
        last = tmp_path / "work" / f"chain-imp-{i}" / "phase-2.safetensors"
        assert masked(last).n_zeros == n_zeros(0.9, N_WEIGHTS)


def test_the_average_of_independent_models_is_pruned_back_to_the_target(
    lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stockpot.train.sparse.baselines import Baselines

    seen: list[Any] = []
    true = Baselines._repruned
    monkeypatch.setattr(
        Baselines, "_repruned", lambda self, models: seen.append(true(self, models)) or seen[-1]
    )
    soup(lab, tmp_path / "work", 0.9, baselines=True)
    values = {name: seen[0].read(name) for name in NAMES}
    assert Mask.of_nonzero(values).n_zeros == n_zeros(0.9, N_WEIGHTS)


@pytest.mark.parametrize("during", ["gmp", "dpf", "bimp"])
def test_pruning_in_the_course_of_training_ends_in_a_soup_of_the_target(
    lab, tmp_path: Path, during: str
) -> None:
    phases = 2 if during == "bimp" else 1
    recipe = SparseSoup(
        sparsity=0.9, n_phases=phases, n_candidates=2, epochs=2, during=during, lr_max=1e-2,
        original_epochs=8, batch_size=100, schedule="llr",
    )  # fmt: skip
    found = recipe.run(lab.base, lab.task, folder=tmp_path, device="cpu", report=False)
    told: Any = found.to_json()
    assert told["phases"][-1]["zeros"] == n_zeros(0.9, N_WEIGHTS)
    assert masked(tmp_path / "trained.safetensors").n_zeros == (
        0 if during == "bimp" else n_zeros(0.9, N_WEIGHTS)
    )
    config = told["phases"][0]["candidates"][0]
    assert config["epochs"] == 2


def test_a_pattern_of_two_in_four_and_whole_neurons_hold_too(lab, tmp_path: Path) -> None:
    pattern: Any = soup(lab, tmp_path / "a", 0.5, selector="2:4", n_phases=1).to_json()
    assert pattern["sparsity"] == 0.5
    found = soup(lab, tmp_path / "b", 0.5, selector="structured", n_phases=1)
    rows = found.mixture.read("0.weight")
    alive = (rows != 0).any(1)
    assert 0 < int(alive.sum()) < 24
    assert bool((rows[alive] != 0).all())
    told: Any = found.to_json()
    assert abs(told["sparsity"] - 0.5) * N_WEIGHTS <= 64


def test_candidates_that_lost_their_zeros_are_refused_with_what_would_remain(
    lab, tmp_path: Path
) -> None:
    soup(lab, tmp_path / "work", n_phases=1)
    path = tmp_path / "work" / "phase-1" / "candidate-1.safetensors"
    weights = load_file(path)
    weights["0.weight"][weights["0.weight"] == 0] = 1.0
    save_file(weights, path)
    with pytest.raises(MaskMismatchError, match=r"sparsity of 0\.\d+ instead of 0\.8998") as caught:
        soup(lab, tmp_path / "work", n_phases=1)
    assert [problem.tensor for problem in caught.value.problems] == ["0.weight"]


def test_the_record_of_a_sweep_says_how_the_dense_model_was_trained(lab, tmp_path: Path) -> None:
    dense = tmp_path / "run-00.safetensors"
    dense.write_bytes(Path(lab.paths[0]).read_bytes())
    drawn = {"lr": 0.02, "epochs": 10, "batch_size": 50, "momentum": 0.5, "own": 1}
    (tmp_path / "run-00.json").write_text(json.dumps({"hyperparameters": drawn}))
    recipe = SparseSoup(
        sparsity=0.5, n_phases=1, n_candidates=1, schedule="lrw", epochs=2, lr_max=0.03
    )
    found = recipe.run(dense, lab.task, folder=tmp_path / "w", device="cpu", report=False)
    told = json.loads((tmp_path / "w" / "sparse.json").read_text())["original"]
    assert (told["lr"], told["epochs"], told["batch_size"]) == (0.03, 10, 50)
    assert not any("--lr-max" in note or "--train-batch-size" in note for note in found.soup.notes)


def test_without_a_record_what_a_schedule_needs_is_asked_for_and_the_rest_is_said(
    lab, tmp_path: Path
) -> None:
    recipe = SparseSoup(sparsity=0.5, n_phases=1, n_candidates=1, schedule="allr", epochs=1)
    with pytest.raises(RecipeError, match=r"--lr-max.*--original-epochs.*schedule llr"):
        recipe.run(lab.paths[0], lab.task, folder=tmp_path / "a", device="cpu")
    found = SparseSoup(sparsity=0.5, n_phases=1, n_candidates=1, epochs=1).run(
        lab.paths[0], lab.task, folder=tmp_path / "b", device="cpu", report=False
    )
    assert any("takes 0.001" in note for note in found.soup.notes)
    assert any("batches of 64" in note for note in found.soup.notes)


def test_a_dense_model_in_memory_is_kept_in_the_folder(lab, tmp_path: Path) -> None:
    recipe = SparseSoup(sparsity=0.5, n_phases=1, n_candidates=1, epochs=1, original=ORIGINAL)
    weights = load_file(lab.paths[0])
    found = recipe.run(weights, lab.task, folder=tmp_path, device="cpu", report=False)
    assert (tmp_path / "start.safetensors").exists()
    assert found.to_json()["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"sparsity": 1.0}, "fraction"),
        ({"n_phases": 0}, "at least 1"),
        ({"vary": "luck", "merge": "best"}, r"(?s)vary is 'luck'.*merge is 'best'"),
        ({"selector": "2:4"}, "makes a sparsity of 0.5"),
        ({"selector": "smallest"}, "expected one of"),
        ({"during": "gmp"}, "has one phase"),
        ({"n_candidates": 0, "epochs": 0}, r"(?s)n_candidates is 0.*epochs is 0"),
    ],
)
def test_soups_that_cannot_be_made_are_refused(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        SparseSoup(**{"sparsity": 0.9, **options})


def test_what_cannot_be_made_here_is_refused_before_any_training(lab, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a task"):
        SparseSoup(sparsity=0.9, original=ORIGINAL).run(lab.paths[0], folder=tmp_path)
    without = dataclasses.replace(lab.task, train_set=None)
    with pytest.raises(RecipeError, match="no train_set"):
        SparseSoup(sparsity=0.9, original=ORIGINAL).run(lab.paths[0], without, folder=tmp_path)
    with pytest.raises(RecipeError, match="weight decay is 0"):
        SparseSoup(
            sparsity=0.9, n_phases=1, vary="weight-decay", original=TrainConfig(epochs=2)
        ).run(lab.paths[0], lab.task, folder=tmp_path)
    with pytest.raises(RecipeError, match="leave some to train with"):
        SparseSoup(
            sparsity=0.9, n_phases=1, during="gmp", epochs=5, lr_max=0.1, original_epochs=5
        ).run(lab.paths[0], lab.task, folder=tmp_path / "during")


def test_the_settings_are_a_value_that_json_holds() -> None:
    settings = SparseSoup(sparsity=0.9, original=ORIGINAL, exclude=("head.*",))
    stored = json.loads(json.dumps(settings.to_json()))
    assert stored["name"] == "sparse"
    assert TrainConfig.from_mapping(stored["original"]) == ORIGINAL
    assert hash(settings) == hash(SparseSoup(sparsity=0.9, original=ORIGINAL, exclude=("head.*",)))


def test_a_result_says_in_fields_what_the_json_of_its_soup_holds(lab, tmp_path: Path) -> None:
    found = result(lab, tmp_path, 0.8, baselines=True)
    stored: Any = json.loads(json.dumps(found.to_json()))
    assert stored["sparsity"] == found.sparsity == found.phases[-1].sparsity
    assert [SparsePhase.from_json(phase) for phase in stored["phases"]] == list(found.phases)
    assert stored["baselines"].keys() == found.baselines.keys()
    assert stored["baselines"]["imp"]["epochs"] == found.baselines["imp"].epochs


class TiedNetwork(nn.Module):
    """Two layers with one weight (16 × 16), and a head (10 × 16) with a bias: 426 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16, bias=False)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(len(x), -1)[:, :16]
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_tied_weights_are_counted_once_and_stay_tied_in_the_file(lab, tmp_path: Path) -> None:
    task = dataclasses.replace(lab.task, build=TiedNetwork, version="tied")
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in TiedNetwork().state_dict().items()}
    save_file(state, tmp_path / "dense.safetensors")
    assert stockpot.open(tmp_path / "dense.safetensors").tied == ()
    found = SparseSoup(sparsity=0.5, n_phases=2, n_candidates=2, epochs=1, original=ORIGINAL).run(
        tmp_path / "dense.safetensors", task, folder=tmp_path / "work", device="cpu"
    )
    n_prunable = 16 * 16 + 16 * 10
    assert found.parameters == 16 * 16 + 16 * 10 + 10
    assert found.phases[-1].weights == n_prunable
    assert found.nonzero_parameters == found.parameters - n_zeros(0.5, n_prunable)
    assert found.sparsity_of_all == pytest.approx(n_zeros(0.5, n_prunable) / found.parameters)
    found.soup.save(tmp_path / "sparse.pt")
    saved = stockpot.open(tmp_path / "sparse.pt")
    assert saved.tied == (("first.weight", "second.weight"),)
    assert stockpot.verify(tmp_path / "sparse.pt") == []


class NarrowHead(nn.Module):
    """24 inputs of the head divide by 4, the 6 of the layer before it do not."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(6, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.odd(x.reshape(len(x), -1)[:, :6])))


def test_sparsity_of_a_pattern_is_over_all_prunable_weights(lab, tmp_path: Path) -> None:
    task = dataclasses.replace(lab.task, build=NarrowHead, version="narrow")
    found = SparseSoup(
        sparsity=0.5, n_phases=1, n_candidates=1, selector="2:4", epochs=1, original=ORIGINAL,
        baselines=True,
    ).run(NarrowHead().state_dict(), task, folder=tmp_path, device="cpu")  # fmt: skip
    zeros, prunable = 24 * 10 // 2, 24 * 10 + 6 * 24
    assert (found.phases[0].zeros, found.phases[0].weights) == (zeros, prunable)
    assert found.sparsity == found.baselines["imp"].sparsity == zeros / prunable
    assert found.phases[0].rate == zeros / prunable
    assert any("do not fit" in note or "does not fit" in note for note in found.soup.notes)


@pytest.mark.parametrize(("epochs", "m", "enough"), [(1, 3, 2), (2, 5, 4)])
def test_retrainings_of_one_length_are_refused_with_epochs_that_differ(
    epochs: int, m: int, enough: int
) -> None:
    with pytest.raises(RecipeError, match=f"epochs={enough} "):
        SparseSoup(sparsity=0.9, vary="retrain-length", epochs=epochs, n_candidates=m)
    made = SparseSoup(sparsity=0.9, vary="retrain-length", epochs=enough, n_candidates=m)
    lengths = [c.epochs for c, _ in _jobs.variations(
        "retrain-length", dataclasses.replace(ORIGINAL, epochs=enough), m, seeds=range(m)
    )]  # fmt: skip
    assert len(set(lengths)) == made.n_candidates


def test_a_tensor_that_is_pruned_whole_is_pointed_out(lab, tmp_path: Path) -> None:
    weights = load_file(lab.paths[0])
    weights["0.weight"] *= 1e-3
    found = SparseSoup(
        sparsity=0.95, n_phases=1, n_candidates=1, epochs=1, original=ORIGINAL
    ).run(weights, lab.task, folder=tmp_path, device="cpu", report=False)  # fmt: skip
    assert found.phases[0].emptied == ("0.weight",)
    assert any("every weight of 0.weight was pruned" in note for note in found.soup.notes)
    assert found.to_json()["phases"][0]["emptied"] == ["0.weight"]


def test_operations_calibration_and_the_worst_class_are_reported(lab, tmp_path: Path) -> None:
    found = result(lab, tmp_path, 0.8, n_phases=1, report=True, baselines=True)
    dense, bias_free = 2 * N_WEIGHTS, found.cost.flops
    assert found.cost.dense_flops == dense
    zeros = n_zeros(0.8, N_WEIGHTS)
    assert bias_free == pytest.approx(dense - 2 * zeros)
    predictions = TaskEvaluator(lab.task).predictions(found.soup.mixture, "test")
    outputs, targets = torch.from_numpy(predictions.outputs), predictions.targets
    right = outputs.argmax(1) == targets
    shares = {int(c): float(right[targets == c].double().mean()) for c in targets.unique()}
    quality = found.quality["test"]
    assert quality.worst_class_accuracy == pytest.approx(min(shares.values()))
    assert shares[quality.worst_class] == pytest.approx(min(shares.values()))
    stored: Any = found.to_json()
    assert stored["quality"]["test"]["ece"] == quality.ece
    assert stored["cost"]["speed_up"] == pytest.approx(dense / (dense - 2 * zeros))
    assert found.baselines["soup"].quality == found.quality
    assert found.baselines["dense"].quality.keys() == set(lab.task.splits)
    assert found.baselines["mean-candidate"].quality == {}


@pytest.mark.parametrize("policy", ["averaged", "recalibrated"])
def test_every_row_is_scored_under_the_batchnorm_policy_of_the_evaluator(
    bn_lab, tmp_path: Path, policy: str
) -> None:
    evaluator = TaskEvaluator(bn_lab.task, batchnorm=policy)
    found = result(
        bn_lab, tmp_path, 0.8, n_phases=1, report=True, baselines=True, evaluator=evaluator
    )
    made = {
        "dense": bn_lab.paths[0],
        "imp": str(tmp_path / "chain-imp-0" / "phase-1.safetensors"),
        "imp-2x": str(tmp_path / "chain-imp-long" / "phase-1.safetensors"),
    }
    for row, path in made.items():
        expected = TaskEvaluator(bn_lab.task, batchnorm=policy).scores(stockpot.open(path))
        for split, score in expected.items():
            assert found.baselines[row].scores[split]["value"] == score.value, (row, split)
    statistics = [name for name in found.soup.mixture if name.endswith("running_mean")]
    overrides = found.soup.mixture.overrides
    assert statistics
    assert (overrides is not None) is (policy == "recalibrated")
