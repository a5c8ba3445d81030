from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.train.tasks import Net, TinyTask, start_weights
from torch.nn import functional

from stockpot.errors import MismatchError, OutputExistsError, TrainingError
from stockpot.train import _isolation, step
from stockpot.train.config import TrainConfig
from stockpot.train.loop import fine_tune

CONFIG = TrainConfig(lr=5e-3, epochs=3, warmup_steps=2, weight_decay=0.01)
RICH = TrainConfig(
    lr=5e-3, epochs=4, warmup_fraction=0.1, label_smoothing=0.1, mixup=0.4, cutmix=0.5,
    shift_pixels=1, rotate_degrees=10, ema_decays=(0.5, 0.99), swa_start_epoch=1, keep="best",
)  # fmt: skip

HELD = TrainConfig(
    lr=5e-3, epochs=4, loss="sigmoid", label_smoothing=0.1, mixup=0.4, min_crop=0.4,
    pull_to_start=0.05, distill_from_start=0.3,
)  # fmt: skip


class Killed(Exception):
    pass


def kill_at(step: int):
    def progress(done: int, total: int | None, what: str) -> None:
        if done == step:
            raise Killed

    return progress


def train(out: Path, config: TrainConfig = CONFIG, **options):
    return fine_tune(TinyTask(), start_weights(), config, out=out, device="cpu", **options)


def test_training_learns_the_task(tmp_path: Path) -> None:
    config = TrainConfig(lr=1e-2, epochs=8)
    result = train(tmp_path / "run.safetensors", config)
    first, last = result.epochs[0].scores["val"], result.epochs[-1].scores["val"]
    assert last > 0.9 > first or last == 1.0
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert [record.epoch for record in result.epochs] == list(range(8))


def without_dropout() -> torch.nn.Module:
    model = Net()
    model.drop.p = 0.0
    return model


def spied() -> tuple[TinyTask, list[list[int]]]:
    """A task whose model draws nothing, and the orders in which its examples are asked for."""
    orders: list[list[int]] = []

    class Spy(TinyTask):
        def batches(self, dataset, indices=None, *, batch_size=None):
            if indices is not None:
                orders.append(list(indices))
                indices = orders[-1]
            return super().batches(dataset, indices, batch_size=batch_size)

    task = Spy()
    object.__setattr__(task, "build", without_dropout)
    return task, orders


def test_the_loop_equals_a_hand_written_one(tmp_path: Path) -> None:
    """Same order of examples, same AdamW, same clipping: the same weights bit for bit."""
    task, orders = spied()
    config = TrainConfig(lr=1e-2, epochs=2, weight_decay=0.1, schedule="linear")
    out = tmp_path / "run.safetensors"
    fine_tune(task, start_weights(), config, out=out, device="cpu")

    model = without_dropout()
    model.load_state_dict(start_weights())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    step = 0
    for order in orders:
        for x, y in TinyTask.batches(task, task.train_set, order, batch_size=16):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 12)
            functional.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    assert step == 12
    for name, value in load_file(out).items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_pull_and_the_distillation_are_those_of_a_hand_written_loop(tmp_path: Path) -> None:
    """λ/2·‖θ − θ₀‖² in the loss, and the divergence from the start in its place of evaluation."""
    task, orders = spied()
    config = TrainConfig(
        lr=0.1, epochs=2, optimizer="sgd", momentum=0.0, schedule="constant", clip_norm=None,
        pull_to_start=0.7, distill_from_start=0.4,
    )  # fmt: skip
    out = tmp_path / "run.safetensors"
    fine_tune(task, start_weights(), config, out=out, device="cpu")

    model, start = without_dropout(), without_dropout().eval()
    model.load_state_dict(start_weights())
    start.load_state_dict(start_weights())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for order in orders:
        for x, y in TinyTask.batches(task, task.train_set, order, batch_size=16):
            given = model(x)
            with torch.no_grad():
                taught = start(x)
            divergence = (taught.softmax(1) * (taught.log_softmax(1) - given.log_softmax(1))).sum(1)
            pairs = zip(model.parameters(), start.parameters(), strict=True)
            distance = sum(((p - q.detach()) ** 2).sum() for p, q in pairs)
            loss = 0.6 * functional.cross_entropy(given, y) + 0.4 * divergence.mean()
            (loss + 0.35 * distance).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, value in load_file(out).items():
        assert torch.allclose(value.double(), model.state_dict()[name].double(), atol=1e-6), name


def test_a_mixed_batch_is_smoothed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice would cost time, and change the last bits of what earlier versions trained."""
    smoothed = []
    once = step.smoothed_loss
    monkeypatch.setattr(step, "smoothed_loss", lambda *given: smoothed.append(1) or once(*given))
    result = train(tmp_path / "run.safetensors", TrainConfig(mixup=0.4, label_smoothing=0.1))
    assert len(smoothed) == result.n_steps


@pytest.mark.parametrize("config", [CONFIG, RICH, HELD], ids=["plain", "rich", "held"])
@pytest.mark.parametrize("kills", [(4,), (1, 6, 7, 13)])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path, config, kills) -> None:
    whole = train(tmp_path / "whole.safetensors", config, seed=3)
    out = tmp_path / "killed.safetensors"
    for killed in kills:
        with pytest.raises(Killed):
            train(out, config, seed=3, progress=kill_at(killed), save_every_steps=2)
        assert not out.exists()
    result = train(out, config, seed=3)
    assert result.resumed_at_step is not None
    assert out.read_bytes() == Path(whole.path).read_bytes()
    assert result.epochs == whole.epochs
    assert result.averages.keys() == whole.averages.keys()
    for kind, path in result.averages.items():
        ours, theirs = load_file(path), load_file(whole.averages[kind])
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(tmp_path.glob(".*")), "the state of a finished run is removed"


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(out, progress=kill_at(8))
    with pytest.raises(TrainingError, match=r"lr was 0\.005 and is now 0\.5"):
        train(out, TrainConfig(lr=0.5, epochs=3, warmup_steps=2, weight_decay=0.01))
    assert train(out, TrainConfig(lr=0.5), resume=False).resumed_at_step is None


def test_a_state_of_a_setting_that_is_now_left_out_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(out, TrainConfig(epochs=3, pull_to_start=0.1), progress=kill_at(8))
    with pytest.raises(TrainingError, match=r"pull_to_start was 0\.1 and is now None"):
        train(out, TrainConfig(epochs=3))


def test_seeds_change_the_result_and_nothing_else_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(tmp_path / "a.safetensors", RICH, seed=1)
    torch.manual_seed(2)
    again = train(tmp_path / "b.safetensors", RICH, seed=1)
    other = train(tmp_path / "c.safetensors", RICH, seed=2)
    same, differs = (Path(r.path).read_bytes() for r in (again, other))
    assert Path(first.path).read_bytes() == same != differs


def test_nothing_global_is_changed(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState, PartialState

    _isolation.seed_everything(5)
    expected = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    _isolation.seed_everything(5)
    states = [dict(AcceleratorState._shared_state), dict(PartialState._shared_state)]
    train(tmp_path / "run.safetensors", RICH)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected  # noqa: NPY002
    assert [AcceleratorState._shared_state, PartialState._shared_state] == states


def test_tuples_and_dicts_train_alike(tmp_path: Path) -> None:
    results = []
    for as_dicts in (False, True):
        out = tmp_path / f"{as_dicts}.safetensors"
        fine_tune(TinyTask(as_dicts=as_dicts), start_weights(), RICH, out=out, device="cpu")
        results.append(out.read_bytes())
    assert results[0] == results[1]


def test_frozen_parameters_keep_their_values(tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    train(out, TrainConfig(lr=0.1, weight_decay=0.5, frozen=("conv.*", "norm.weight")))
    tuned, start = load_file(out), start_weights()
    changed = {name for name in start if not torch.equal(tuned[name], start[name])}
    assert {"conv.weight", "conv.bias", "norm.weight"}.isdisjoint(changed)
    assert {"norm.bias", "head.weight", "head.bias"} <= changed


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"frozen pattern 'body\.\*'.*conv\.weight"):
        train(tmp_path / "run.safetensors", TrainConfig(frozen=("body.*",)))


def test_linear_probing_trains_the_head_first(tmp_path: Path) -> None:
    seen = []

    def score(model: torch.nn.Module) -> dict[str, float]:
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return {"val": 0.0}

    config = TrainConfig(lr=1e-2, epochs=1, probe_epochs=2, probe_lr=0.1, head=("head.*",))
    result = train(tmp_path / "run.safetensors", config, score=score)
    start = start_weights()
    after_probe, after_all = seen[1], seen[2]
    assert torch.equal(after_probe["conv.weight"], start["conv.weight"])
    assert not torch.equal(after_probe["head.weight"], start["head.weight"])
    assert not torch.equal(after_all["conv.weight"], start["conv.weight"])
    assert [record.lr for record in result.epochs[:2]] == [0.1, 0.1]


def test_best_keeps_the_epoch_with_the_best_score(tmp_path: Path) -> None:
    scores = iter([0.2, 0.9, 0.9, 0.1])
    kept = []

    def score(model: torch.nn.Module) -> dict[str, float]:
        kept.append({n: v.clone() for n, v in model.state_dict().items()})
        return {"val": next(scores)}

    out = tmp_path / "run.safetensors"
    result = train(out, TrainConfig(lr=1e-2, epochs=4, keep="best"), score=score)
    assert result.kept_epoch == 2
    assert all(torch.equal(value, kept[2][name]) for name, value in load_file(out).items())


def test_only_held_out_splits_are_scored(tmp_path: Path) -> None:
    result = train(tmp_path / "run.safetensors")
    assert all(record.scores.keys() == {"val"} for record in result.epochs)


def test_averages_lie_beside_the_raw_weights(tmp_path: Path) -> None:
    """With decay 0 the EMA is the last weights; SWA over the last epoch alone as well."""
    config = TrainConfig(lr=1e-2, epochs=2, ema_decays=(0.0, 0.9), swa_start_epoch=1)
    result = train(tmp_path / "run-00.safetensors", config)
    raw = load_file(result.path)
    assert result.averages["ema-0.9"].endswith("averages/run-00-ema-0.9.safetensors")
    for kind in ("ema-0.0", "swa"):
        average = load_file(result.averages[kind])
        assert all(
            torch.equal(average[n], raw[n]) for n in raw if "norm.r" not in n and "num_" not in n
        )
    slow = load_file(result.averages["ema-0.9"])
    assert not torch.equal(slow["head.weight"], raw["head.weight"])


def test_averages_have_batchnorm_statistics_of_their_own(tmp_path: Path) -> None:
    from stockpot.evaluate.batchnorm import recalibrate

    config = TrainConfig(lr=1e-2, epochs=3, swa_start_epoch=0, swa_lr=1e-2)
    result = train(tmp_path / "run.safetensors", config, seed=4)
    average = load_file(result.averages["swa"])
    model = Net()
    model.load_state_dict(average)
    model.norm.reset_running_stats()
    recalibrate(model, TinyTask(), seed=4)
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.allclose(average[name], model.state_dict()[name])
    raw = load_file(result.path)
    assert not torch.allclose(raw["norm.running_mean"], average["norm.running_mean"])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("too many"), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_missing_memory_splits_the_batch_into_parts(error: Exception, tmp_path: Path) -> None:
    """The parts' gradients add up to the whole batch's (without BatchNorm to see the parts)."""

    class Hungry(TinyTask):
        limit = 64

        def build(self):
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
            return model.double()

        def predict(self, model, batch):
            if len(batch[0]) > self.limit and torch.is_grad_enabled():
                raise error
            return model(batch[0].double())

    start = Hungry().build().state_dict()
    weights = []
    for limit in (64, 4):
        task = Hungry()
        object.__setattr__(task, "limit", limit)
        out = tmp_path / f"{limit}.safetensors"
        config = TrainConfig(lr=1e-2, mixup=0.3)
        result = fine_tune(task, start, config, out=out, device="cpu")
        assert result.micro_batches > 1 if limit == 4 else result.micro_batches == 1
        weights.append(load_file(out)["1.weight"])
    assert torch.allclose(weights[0], weights[1], rtol=1e-9, atol=1e-12)


def test_bfloat16_autocast_keeps_float32_weights(tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    result = train(out, TrainConfig(lr=1e-2, epochs=2, precision="bf16"))
    assert load_file(out)["head.weight"].dtype == torch.float32
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_the_checkpoint_has_the_dtypes_of_the_start(tmp_path: Path) -> None:
    start = {n: v.bfloat16() if v.is_floating_point() else v for n, v in start_weights().items()}
    out = tmp_path / "run.safetensors"
    fine_tune(TinyTask(), start, CONFIG, out=out, device="cpu")
    assert {n: v.dtype for n, v in load_file(out).items()} == {n: v.dtype for n, v in start.items()}


def test_a_start_without_the_head_is_refused(tmp_path: Path) -> None:
    start = {n: v for n, v in start_weights().items() if not n.startswith("head")}
    start["extra"] = torch.zeros(1)
    with pytest.raises(MismatchError, match="same weights") as caught:
        fine_tune(TinyTask(), start, CONFIG, out=tmp_path / "run.safetensors", device="cpu")
    assert {p.tensor for p in caught.value.problems} == {"head.weight", "head.bias", "extra"}


def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        train(out)
    assert out.read_bytes() == b"precious"
    train(out, force=True)
    assert "head.weight" in load_file(out)


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    class Diverging(TinyTask):
        def loss(self, outputs, targets):
            return super().loss(outputs, targets) * float("nan")

    with pytest.raises(TrainingError, match="loss of epoch 0 is nan; lower lr"):
        fine_tune(Diverging(), start_weights(), CONFIG, out=tmp_path / "r.safetensors")


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        (TinyTask(train_set=None), CONFIG, "no train_set"),
        (TinyTask(), TrainConfig(warmup_steps=500), "500 warm-up steps do not fit in a run of 6"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, task, config, message) -> None:
    with pytest.raises(TrainingError, match=message):
        fine_tune(task, start_weights(), config, out=tmp_path / "run.safetensors")


def test_the_task_may_augment_its_batches(tmp_path: Path) -> None:
    draws = []

    class Augmenting(TinyTask):
        def augment(self, batch, generator):
            draws.append(float(torch.rand((), generator=generator)))
            return batch

    fine_tune(Augmenting(), start_weights(), CONFIG, out=tmp_path / "r.safetensors", device="cpu")
    assert len(draws) == 18
    assert len(set(draws)) == 18
