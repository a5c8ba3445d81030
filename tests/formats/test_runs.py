"""Which files of a folder are taken for runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stockpot.errors import CheckpointError
from stockpot.formats.runs import RunChoice, find_runs
from stockpot.mixing import Ingredients
from stockpot.recipes import Uniform


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)}, path)
    return path


def epochs(folder: Path, n: int = 4) -> list[Path]:
    return [write(folder / f"{i + 1}epoch.safetensors", i) for i in range(n)]


def names(folder: Path) -> list[str]:
    return [Path(path).name for path in find_runs([folder]).paths]


@pytest.mark.parametrize(
    "name", ["latest.safetensors", "best.safetensors", "valid.best.safetensors"]
)
def test_links_to_others_of_the_folder_count_once(name: str, tmp_path: Path) -> None:
    epochs(tmp_path)
    (tmp_path / name).symlink_to("3epoch.safetensors")
    found = find_runs([tmp_path])
    assert [Path(p).name for p in found.paths] == [f"{i}epoch.safetensors" for i in (1, 2, 3, 4)]
    assert any(name in note and "3epoch" in note for note in found.notes)


def test_links_to_each_other_and_out_of_the_folder_count_once(tmp_path: Path) -> None:
    store = write(tmp_path / "store" / "blob.safetensors", 9)
    folder = tmp_path / "runs-of-mine"
    epochs(folder, 1)
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).symlink_to(store)
    assert sorted(names(folder)) == ["1epoch.safetensors", "a.safetensors"]


@pytest.mark.parametrize(
    "copy", ["best.safetensors", "0-last.safetensors", "model_best.safetensors"]
)
def test_copies_with_other_names_count_once_and_the_numbered_one_stays(
    copy: str, tmp_path: Path
) -> None:
    paths = epochs(tmp_path)
    shutil.copy(paths[1], tmp_path / copy)
    given = Ingredients([tmp_path])
    assert [Path(one.path).name for one in given] == [path.name for path in paths]
    assert any(copy in note and "2epoch" in note for note in given.notes)
    # Named one by one they count as often as they are named.
    assert len(Ingredients([*paths, tmp_path / copy])) == 5


def test_earlier_soups_and_averages_are_left_out_and_named(tmp_path: Path) -> None:
    paths = epochs(tmp_path)
    Uniform().cook(paths[:2]).save(tmp_path / "mine.safetensors")
    for name in ("averaged.safetensors", "valid.acc.ave_5best.safetensors", "ckpt_avg.safetensors",
                 "swa.safetensors"):  # fmt: skip
        write(tmp_path / name, 7)
    found = find_runs([tmp_path])
    assert [Path(path).name for path in found.paths] == [path.name for path in paths]
    assert sum("left out" in note for note in found.notes) == 5
    assert any("a soup that stockpot made" in n and "mine.safetensors" in n for n in found.notes)
    # A folder of nothing else is a folder of them.
    alone = tmp_path / "only"
    write(alone / "avg_1.safetensors", 1)
    write(alone / "avg_2.safetensors", 2)
    assert len(names(alone)) == 2


def test_words_that_only_look_like_averages_stay(tmp_path: Path) -> None:
    for name in ("wave.safetensors", "savings.safetensors", "swarm.safetensors"):
        write(tmp_path / name, len(name))
    assert len(names(tmp_path)) == 3


def test_checkpoints_of_a_trainer_beside_its_model_are_taken_with_it(tmp_path: Path) -> None:
    for i, step in enumerate((500, 1000, 1500)):
        write(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors", i)
    found = names(tmp_path / "out")
    assert found == ["checkpoint-500", "checkpoint-1000", "checkpoint-1500"]
    write(tmp_path / "out" / "model.safetensors", 9)
    assert names(tmp_path / "out") == [*found, "out"]
    # The model is often that of the best checkpoint, and counts once then.
    write(tmp_path / "out" / "model.safetensors", 1)
    given = Ingredients([tmp_path / "out"])
    assert [Path(one.path).name for one in given] == [found[0], found[1], found[2]]


def test_folders_of_models_given_together_stand_for_their_models(tmp_path: Path) -> None:
    for run in ("a", "b"):
        write(tmp_path / run / "model.safetensors", ord(run))
        write(tmp_path / run / "checkpoint-10" / "model.safetensors", 1)
    assert find_runs([tmp_path / "a", tmp_path / "b"]).paths == [
        str(tmp_path / "a"), str(tmp_path / "b"),
    ]  # fmt: skip


def test_what_training_keeps_beside_the_weights_is_no_run(tmp_path: Path) -> None:
    paths = epochs(tmp_path, 2)
    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth",
                 "training_args.bin", "optimizer.bin", "random_states_0.pt"):  # fmt: skip
        (tmp_path / name).write_bytes(b"no weights")
    assert names(tmp_path) == [path.name for path in paths]


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "converter"),
        (["consolidated.00.pth", "consolidated.01.pth"], "converter"),
        (["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"], "converter"),
        (["zero_pp_rank_0_mp_rank_00.pt", "zero_pp_rank_1_mp_rank_00.pt"], "zero_to_fp32"),
        (["mp_rank_00_000/model.pt", "mp_rank_00_001/model.pt"], "converter"),
        (["model_tp0_pp0.pt", "model_tp0_pp1.pt"], "converter"),
        (["tp_rank_00_pp_rank_000/w.ckpt", "tp_rank_00_pp_rank_001/w.ckpt"], "converter"),
        (["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"], "pipeline"),
        (["model_rank0.pt", "model_rank1.pt"], "FULL_STATE_DICT"),
        (["x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"], "index"),
    ],
)
def test_parts_of_one_model_are_never_taken_for_models(
    parts: list[str], remedy: str, tmp_path: Path
) -> None:
    paths = [write(tmp_path / "model" / part, i) for i, part in enumerate(parts)]
    with pytest.raises(CheckpointError, match=f"parts of one.*{remedy}"):
        find_runs(paths)
    # One part of each of several models may be averaged, part by part.
    other = write(tmp_path / "other" / parts[0], 5)
    assert len(find_runs([paths[0], other]).paths) == 2


def test_the_last_of_many_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    epochs(tmp_path, 12)
    found = find_runs([tmp_path], RunChoice(last=3))
    assert [Path(path).name for path in found.paths] == [
        f"{i}epoch.safetensors" for i in (10, 11, 12)
    ]
    assert any("3 of 12" in note for note in found.notes)


@pytest.mark.parametrize("copy", [shutil.copy, os.link])
def test_copies_are_none_of_the_last(copy: Any, tmp_path: Path) -> None:
    paths = epochs(tmp_path, 3)
    best, last = tmp_path / "model_best.safetensors", tmp_path / "last.safetensors"
    copy(paths[1], best)
    copy(paths[2], last)
    found = find_runs([tmp_path], RunChoice(last=2))
    assert [Path(path).name for path in found.paths] == ["2epoch.safetensors", "3epoch.safetensors"]
    assert sum("holds the same" in note for note in found.notes) == 2
    # What is called last and is no copy is the last one; the best one is of any time.
    for path, seed in ((best, 8), (last, 9)):
        path.unlink()  # which may be a link
        write(path, seed)
    found = find_runs([tmp_path], RunChoice(last=2))
    assert {Path(path).name for path in found.paths} == {"3epoch.safetensors", "last.safetensors"}


def test_the_best_are_taken_by_metrics_in_names(tmp_path: Path) -> None:
    for epoch, loss in enumerate((0.5, 0.2, 0.9, 0.3)):
        write(tmp_path / f"epoch={epoch}-val_loss={loss}.safetensors", epoch)
    found = find_runs([tmp_path], RunChoice(best=2, by="val_loss"))
    assert [Path(p).name for p in found.paths] == [
        "epoch=1-val_loss=0.2.safetensors", "epoch=3-val_loss=0.3.safetensors",
    ]  # fmt: skip
    last = find_runs([tmp_path], RunChoice(best=2, by="epoch"))
    assert [Path(p).name[:7] for p in last.paths] == ["epoch=2", "epoch=3"]  # more is better


def test_the_best_are_taken_by_the_state_of_a_trainer(tmp_path: Path) -> None:
    for step, accuracy in ((10, 0.7), (20, 0.9), (30, 0.8)):
        folder = tmp_path / f"checkpoint-{step}"
        write(folder / "model.safetensors", step)
        history = [{"step": step - 1, "loss": 1.0}, {"step": step, "eval_accuracy": accuracy}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = find_runs([tmp_path], RunChoice(best=2, by="accuracy"))
    assert [Path(path).name for path in found.paths] == ["checkpoint-20", "checkpoint-30"]


def test_the_best_are_taken_by_a_list_of_runs(tmp_path: Path) -> None:
    paths = epochs(tmp_path, 3)
    lines = [{"path": path.name, "wer": wer} for path, wer in zip(paths, (9, 7, 8), strict=True)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = find_runs([tmp_path], RunChoice(best=1, by="wer"))
    assert [Path(path).name for path in found.paths] == ["2epoch.safetensors"]


def test_the_best_are_taken_by_the_summary_of_timm(tmp_path: Path) -> None:
    for epoch in range(3):
        write(tmp_path / f"checkpoint-{epoch}.safetensors", epoch)
    (tmp_path / "summary.csv").write_text("epoch,eval_top1\n0,70\n1,80\n2,75\n")
    found = find_runs([tmp_path], RunChoice(best=2, by="top1"))
    assert [Path(p).name for p in found.paths] == [
        "checkpoint-1.safetensors", "checkpoint-2.safetensors",
    ]  # fmt: skip
    for damaged in ("epoch,eval_top1\n0,\n1,x\n2\n", "\0", "", "epoch\n" * 3):
        (tmp_path / "summary.csv").write_text(damaged)
        with pytest.raises(CheckpointError, match="noted for 0 of 3"):
            find_runs([tmp_path], RunChoice(best=2, by="top1"))


def test_a_metric_that_nobody_noted_is_refused(tmp_path: Path) -> None:
    epochs(tmp_path, 2)
    with pytest.raises(CheckpointError, match="noted for 0 of 2"):
        find_runs([tmp_path], RunChoice(best=1, by="bleu"))
    with pytest.raises(CheckpointError, match="--by"):
        find_runs([tmp_path], RunChoice(best=1))


@pytest.mark.parametrize("text", ["[", "3", '{"log_history": 7}', "\x00", "[" * 100_000])
def test_damaged_notes_of_trainers_are_no_notes(text: str, tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-1" / "model.safetensors")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(text)
    with pytest.raises(CheckpointError, match="noted for 0 of 1"):
        find_runs([tmp_path], RunChoice(best=1, by="accuracy"))
