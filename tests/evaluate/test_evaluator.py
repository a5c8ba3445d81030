from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch.utils.data import TensorDataset

from stockpot.errors import EvaluationError, SplitRoleError
from stockpot.evaluate.compare import scores_to_json
from stockpot.evaluate.runner import ModelRunner
from stockpot.evaluate.splits import dataset_fingerprint, split_to_choose_on
from stockpot.evaluate.task import Split
from stockpot.evaluate.task_evaluator import TaskEvaluator
from stockpot.formats.memory import from_state_dict
from stockpot.mixing import Ingredients, Mixture
from stockpot.tasks.classification import ClassificationTask

torch.manual_seed(0)
X = torch.randn(50, 4)
Y = torch.randint(0, 3, (50,))


def build():
    return torch.nn.Linear(4, 3)


def build_bn():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def task(build=build, **options):
    splits = {
        "val": Split(TensorDataset(X, Y)),
        "test": Split(TensorDataset(X.flip(0), Y.flip(0)), role="test"),
        "noise": Split(TensorDataset(X + 1, Y), role="shift"),
        "blur": Split(TensorDataset(X * 2, Y), role="shift"),
    }
    return ClassificationTask(build=build, splits=splits, batch_size=16, **options)


def weights(build=build):
    return from_state_dict(build().state_dict())


def test_score_is_the_metric_with_its_exact_interval():
    model = build()
    score = TaskEvaluator(task()).score(from_state_dict(model.state_dict()), "val")
    right = int((model(X).argmax(-1) == Y).sum())
    interval = binomtest(right, 50).proportion_ci(method="exact")
    assert (score.value, score.n, score.metric) == (right / 50, 50, "accuracy")
    assert (score.low, score.high) == pytest.approx((interval.low, interval.high))


def test_nothing_is_scored_twice_even_by_another_evaluator(tmp_path):
    given = weights()
    first, second = (TaskEvaluator(task(), cache=tmp_path) for _ in range(2))
    assert first.score(given, "val") == second.score(from_state_dict(given.state_dict()), "val")
    assert (first.counters.examples, second.counters.examples) == (50, 0)


def test_a_partly_known_split_is_completed_with_the_plain_batches():
    given = weights()
    plain, resumed = TaskEvaluator(task()), TaskEvaluator(task())
    resumed.run(given, "val", [17, 3])
    a, b = plain.predictions(given, "val"), resumed.predictions(given, "val")
    assert np.array_equal(a.outputs, b.outputs)
    assert resumed.counters.examples == 52


def test_other_weights_code_metric_or_precision_is_scored_again(tmp_path):
    given = weights()
    TaskEvaluator(task(), cache=tmp_path).score(given, "val")
    others = [
        TaskEvaluator(task(version="other"), cache=tmp_path),
        TaskEvaluator(task(metric="cross-entropy"), cache=tmp_path),
        TaskEvaluator(task(), cache=tmp_path, precision="bf16"),
    ]
    for evaluator in others:
        evaluator.score(given, "val")
        assert evaluator.counters.examples == 50


def test_scores_hold_every_split_and_the_average_over_shifts():
    scores = TaskEvaluator(task()).scores(weights())
    assert list(scores) == ["val", "test", "noise", "blur", "shift_average"]
    mean = (scores["noise"].value + scores["blur"].value) / 2
    assert scores["shift_average"].value == pytest.approx(mean)
    assert scores["shift_average"].low < mean < scores["shift_average"].high
    assert set(scores_to_json(scores)["val"]) == {"value", "low", "high", "n", "metric"}
    assert scores_to_json({"x": None}) == {"x": None}


def test_a_score_that_is_not_a_number_is_refused_by_name():
    given = from_state_dict({k: v * float("nan") for k, v in build().state_dict().items()})
    with pytest.raises(EvaluationError, match="cross-entropy of <memory> on val is nan"):
        TaskEvaluator(task(metric="cross-entropy")).score(given, "val")


def test_metrics_that_are_no_means_have_bootstrap_intervals():
    score = TaskEvaluator(task(metric="f1-macro")).score(weights(), "val")
    assert score.low < score.value < score.high


@pytest.mark.parametrize("n_models", [1, 2])
def test_every_batchnorm_model_is_recalibrated_where_there_is_a_training_set(n_models):
    evaluator = TaskEvaluator(task(build_bn, train_set=TensorDataset(X * 3, Y)))
    evaluator.load(Mixture(Ingredients([weights(build_bn) for _ in range(n_models)])))
    assert evaluator.counters.calibration == 48
    assert evaluator.runner.model[1].num_batches_tracked == 3
    evaluator.load(weights(build_bn))
    assert evaluator.counters.calibration == 96


def test_a_single_model_has_its_own_statistics_where_they_are_averaged():
    given = weights(build_bn)
    evaluator = TaskEvaluator(
        task(build_bn, train_set=TensorDataset(X * 3, Y)), batchnorm="averaged"
    )
    evaluator.load(given)
    assert (evaluator.counters.calibration, evaluator.calibration_size()) == (0, 0)
    assert torch.equal(evaluator.statistics(given)["1.running_var"], given.read("1.running_var"))


def test_names_of_policies_of_0_1_are_understood_and_others_refused():
    data = TensorDataset(X, Y)
    assert (
        TaskEvaluator(task(build_bn, train_set=data), batchnorm="average").batchnorm == "averaged"
    )
    assert (
        TaskEvaluator(task(build_bn, train_set=data), batchnorm="recalibrate").batchnorm == "clean"
    )
    with pytest.raises(EvaluationError, match="averaged, recalibrated, clean"):
        TaskEvaluator(task(build_bn), batchnorm="frozen")


def test_a_policy_without_data_is_refused_where_it_was_asked_for():
    evaluator = TaskEvaluator(task(build_bn), batchnorm="recalibrated")
    with pytest.raises(EvaluationError, match="no training set"):
        evaluator.score(weights(build_bn), "val")
    TaskEvaluator(task(), batchnorm="recalibrated").score(weights(), "val")  # no BatchNorm in it


def test_the_journal_of_0_1_answers_for_soups_recalibrated_without_augmentation():
    data = TensorDataset(X * 3, Y)
    mixture = Mixture(Ingredients([weights(build_bn), weights(build_bn)]))
    made = task(build_bn, train_set=data, augment=lambda batch, generator: batch)
    old = f"recalibrated {dataset_fingerprint(data).value} seed 0 batch 16"
    assert TaskEvaluator(made, batchnorm="clean").key(mixture, "val").batchnorm == old
    augmented = TaskEvaluator(made, batchnorm="recalibrated").key(mixture, "val").batchnorm
    assert augmented.startswith(f"{old} augment ")
    averaged = TaskEvaluator(made, batchnorm="averaged")
    assert averaged.key(mixture, "val").batchnorm == "averaged"
    assert averaged.key(weights(build_bn), "val").batchnorm == ""


def test_statistics_belong_to_the_policy_under_which_a_model_was_loaded():
    evaluator = TaskEvaluator(task(build_bn, train_set=TensorDataset(X * 3, Y)))
    given = weights(build_bn)
    recalibrated = evaluator.predictions(given, "val").outputs
    averaged = evaluator.with_batchnorm("averaged").predictions(given, "val").outputs
    assert not np.array_equal(averaged, recalibrated)
    assert np.array_equal(evaluator.predictions(given, "val").outputs, recalibrated)
    assert evaluator.with_default_batchnorm("averaged").batchnorm == "averaged"
    settled = evaluator.with_default_batchnorm(None)
    assert settled.with_default_batchnorm("averaged").batchnorm == "recalibrated"


def test_averaged_statistics_are_used_and_said_without_calibration_data():
    evaluator = TaskEvaluator(task(build_bn))
    evaluator.score(Mixture(Ingredients([weights(build_bn), weights(build_bn)])), "val")
    assert evaluator.counters.calibration == 0
    assert "averaged" in evaluator.notes[0]


def test_out_of_memory_halves_the_batch():
    def predict(model, batch):
        if len(batch[0]) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return model(batch[0])

    runner = ModelRunner(task(predict=predict), device="cpu")
    outputs = runner.outputs(TensorDataset(X, Y), range(50))
    assert runner.batch_size == 4
    torch.testing.assert_close(torch.from_numpy(outputs), runner.model(X).detach())


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def predict(model, batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(EvaluationError, match=r"examples 0 to 2: RuntimeError: shapes differ"):
        ModelRunner(task(predict=predict), device="cpu").outputs(TensorDataset(X, Y), range(3))


@pytest.mark.parametrize("split", ["test", "noise"])
def test_choosing_on_data_that_reports_is_refused(split):
    with pytest.raises(SplitRoleError, match="choose on a held-out split"):
        split_to_choose_on(task(), split)


def test_several_held_out_splits_need_a_choice():
    two = ClassificationTask(
        build=build,
        splits={n: Split(TensorDataset(X, Y)) for n in ("a", "b")},
    )
    with pytest.raises(SplitRoleError, match="choose_on"):
        split_to_choose_on(two)
    assert split_to_choose_on(two, "b") == "b"


def test_no_held_out_split_is_refused():
    only_test = ClassificationTask(
        build=build, splits={"test": Split(TensorDataset(X, Y), role="test")}
    )
    with pytest.raises(SplitRoleError, match="no held-out"):
        split_to_choose_on(only_test)


def test_unknown_devices_splits_and_precisions_are_named():
    with pytest.raises(EvaluationError, match="no device"):
        ModelRunner(task(), device="toaster")
    with pytest.raises(EvaluationError, match=r"'cuda:99' cannot be used here \(.*auto takes"):
        ModelRunner(task(), device="cuda:99")
    with pytest.raises(EvaluationError, match="no split 'vali'"):
        TaskEvaluator(task()).score(weights(), "vali")
    with pytest.raises(EvaluationError, match="fp32, bf16 or fp16"):
        ModelRunner(task(), precision="fp8")


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_bfloat16_on_a_processor_without_it_is_pointed_out(capability, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for precision in ("bf16", "fp32"):
        evaluator = TaskEvaluator(task(), precision=precision, device="cpu")
        assert evaluator.runner is not None
        slow = any("no instructions for bfloat16" in note for note in evaluator.notes)
        assert slow == (precision == "bf16" and capability == "AVX2")
