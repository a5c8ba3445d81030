"""The experiment on adapters, in two steps with a tiny encoder."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments import standins
from tests.tasks.transformers import tiny

from experiments import adapters

peft = pytest.importorskip("peft")
if not hasattr(torch, "float8_e8m0fnu"):
    pytest.skip("PEFT asks torch for a type that came with 2.7", allow_module_level=True)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> adapters.Sweep:
    data = standins.text_folder(tmp_path_factory.mktemp("data"))
    encoder = tiny.bert_folder(tmp_path_factory.mktemp("bert"), "BertModel")
    made = adapters.Sweep(3, data, tmp_path_factory.mktemp("out"), n_steps=2, folder=encoder)
    adapters.train(made)
    return made


def test_eight_adapters_of_four_ranks_and_two_rates_start_from_one_base(
    sweep: adapters.Sweep,
) -> None:
    assert [(run.rank, run.rate) for run in sweep.runs] == [
        (rank, rate) for rank in (4, 8, 16, 8) for rate in adapters.RATES
    ]
    for run in sweep.runs:
        config = peft.PeftConfig.from_pretrained(run.path)
        assert (config.r, config.lora_alpha) == (run.rank, 2 * run.rank)
    weights = adapters.zero_shot(sweep).state_dict()
    stored = load_file(sweep.base)
    assert all(torch.equal(stored[name], value) for name, value in weights.items())


def test_each_adapter_is_another_function_than_the_base(sweep: adapters.Sweep) -> None:
    batch = next(adapters.batches(sweep.task().train_set, seed=0))
    batch.pop("labels")
    with torch.inference_mode():
        base = adapters.zero_shot(sweep).eval()(**batch)
        for run in sweep.runs[:2]:
            model = peft.PeftModel.from_pretrained(adapters.zero_shot(sweep), run.path).eval()
            assert not torch.allclose(model(**batch), base, atol=1e-5)


def test_what_is_there_is_kept(sweep: adapters.Sweep) -> None:
    before = {run.path: (run.path / "adapter_model.safetensors").stat() for run in sweep.runs}
    adapters.train(sweep)
    for path, stat in before.items():
        assert (path / "adapter_model.safetensors").stat().st_mtime_ns == stat.st_mtime_ns


def test_every_model_stands_in_the_table_and_gains_are_paired(sweep: adapters.Sweep) -> None:
    rows = adapters.score(sweep, n_scored=None)
    value = {row["model"]: row["scores"]["held-out"]["value"] for row in rows}
    assert set(value) == {
        "base", "best single", "uniform", "uniform, rank 8", "greedy",
        "greedy, rank 8", "learned", "learned, rank 8", "uniform of rank 8", "PEFT cat", "PEFT svd",
        "PEFT svd, rank 8", "PEFT linear of rank 8",
    }  # fmt: skip
    # The two exact ways agree, and so do the two best approximations of one rank.
    assert value["uniform"] == value["PEFT cat"]
    assert value["uniform, rank 8"] == value["PEFT svd, rank 8"]
    assert value["greedy"] >= value["best single"]
    distance = adapters.errors(sweep)
    text = adapters.markdown([[{**row, "error": distance.get(row["model"])} for row in rows]] * 2)
    assert text.count("| uniform |") == 3
    assert text.count("| best single |") == 1


def test_what_is_exact_is_no_rounding_away_from_the_mean(sweep: adapters.Sweep) -> None:
    found = adapters.errors(sweep)
    for name in ("uniform", "uniform of rank 8", "PEFT cat"):
        assert found[name] < 1e-4  # of float32, as the merged weights are
    assert found["uniform, rank 8"] == pytest.approx(found["PEFT svd, rank 8"], rel=1e-3)
    assert found["PEFT svd"] <= found["PEFT svd, rank 8"]
    assert found["PEFT linear of rank 8"] > 0.1


def test_cat_is_the_mean_of_what_adapters_do_and_linear_is_not(sweep: adapters.Sweep) -> None:
    singles = [adapters.merged(sweep, run.path) for run in sweep.runs]
    cat = adapters.combined(sweep, sweep.runs, "cat")
    of_rank_8 = [run for run in sweep.runs if run.rank == 8]
    linear = adapters.combined(sweep, of_rank_8, "linear")
    name = next(name for name in singles[0] if name.endswith("query.weight"))
    mean = torch.stack([one[name].double() for one in singles]).mean(0)
    assert torch.allclose(cat[name].double(), mean, atol=1e-6)
    some = torch.stack([one[name].double() for run, one in zip(sweep.runs, singles, strict=True)
                        if run.rank == 8]).mean(0)  # fmt: skip
    base = load_file(sweep.base)[name].double()
    assert (linear[name].double() - some).norm() > 0.1 * (some - base).norm()


class Numbered:
    """Examples that are their own number, of which every third is long."""

    def __init__(self, n: int) -> None:
        mask = torch.ones(n, 9, dtype=torch.long)
        mask[torch.arange(n) % 3 > 0, 4:] = 0
        self.encoded = {"attention_mask": mask, "number": torch.arange(n)}

    def __len__(self) -> int:
        return len(self.encoded["number"])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {name: values[indices] for name, values in self.encoded.items()}


def test_a_pass_holds_every_example_once_in_batches_of_about_one_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapters, "BATCH", 3)
    stream = adapters.batches(Numbered(24), seed=1)
    passed = [next(stream) for _ in range(8)]
    numbers = [number for batch in passed for number in batch["number"].tolist()]
    assert sorted(numbers) == list(range(24))
    lengths = [set(batch["attention_mask"].sum(1).tolist()) for batch in passed]
    assert sum(len(found) > 1 for found in lengths) <= 1
    again = [number for _ in range(8) for number in next(stream)["number"].tolist()]
    assert sorted(again) == list(range(24))
    assert again != numbers
