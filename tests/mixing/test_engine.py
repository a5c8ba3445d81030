from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import stockpot
from stockpot import Coefficients, Ingredients, Mixture
from stockpot.errors import CheckpointError, NonFiniteError, OutputExistsError
from stockpot.mixing.mask import Mask
from stockpot.tensors.rounding import narrow

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKPOT_CACHE", str(tmp_path / "cache"))


def written(path: Path, arrays: Arrays) -> str:
    """Arrays in a file, by way of the engine itself: a mixture of one is a copy."""
    Mixture(Ingredients([arrays])).save(path)
    return str(path)


def many_small(n: int, value: float) -> Arrays:
    return {f"layer.{i}.bias": np.full(3, value + i, np.float32) for i in range(n)}


def test_thousands_of_tiny_tensors_are_mixed(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{v}.safetensors", many_small(3000, v)) for v in (0.0, 1.0)]
    saved = Mixture(Ingredients(paths)).save(tmp_path / "soup.safetensors")
    soup = stockpot.open(tmp_path / "soup.safetensors")
    assert soup.read("layer.2999.bias").tolist() == [2999.5] * 3
    assert saved.seconds < 20


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_tensor_and_the_first_file_at_fault_are_named(
    tmp_path: Path, threads: int
) -> None:
    arrays = [{name: np.ones(400_000, np.float32) for name in "abcd"} for _ in range(4)]
    arrays[1]["d"][0] = np.nan
    arrays[3]["b"][399_999] = np.inf
    arrays[2]["b"][399_998] = np.nan
    mixture = Mixture(Ingredients(arrays))
    with pytest.raises(NonFiniteError) as caught:
        mixture.save(tmp_path / "soup.safetensors", threads=threads)
    assert (caught.value.tensor, caught.value.path) == ("b", "<memory 2>")
    assert not (tmp_path / "soup.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    arrays = [{"w": np.ones(5_000_000, np.float32)} for _ in range(2)]
    Mixture(Ingredients(arrays)).save(
        tmp_path / "soup.safetensors", progress=lambda *args: told.append(args)
    )
    done = [entry[0] for entry in told]
    assert done == sorted(done)
    assert len(done) > 3
    assert told[-1] == (60_000_000, 60_000_000, "bytes")


def test_the_plan_says_what_will_be_read_and_written(tmp_path: Path) -> None:
    arrays = [{"w": np.ones(1000, np.float32), "n": np.arange(3)} for _ in range(3)]
    mixture = Mixture(Ingredients(arrays), Coefficients.per_model([0.5, 0.0, 0.5]))
    path = tmp_path / "soup.safetensors"
    plan = mixture.plan(path)
    assert plan.bytes_to_read == 2 * (4000 + 24)
    assert not path.exists()
    saved = mixture.save(path)
    assert path.stat().st_size == plan.bytes_to_write == saved.bytes_written
    assert saved.bytes_read == plan.bytes_to_read


def test_an_output_is_not_overwritten_without_force(tmp_path: Path) -> None:
    mixture = Mixture(Ingredients([{"w": np.ones(3)}]))
    mixture.save(tmp_path / "soup.safetensors")
    with pytest.raises(OutputExistsError):
        mixture.save(tmp_path / "soup.safetensors")
    mixture.save(tmp_path / "soup.safetensors", force=True)


def test_fingerprints_are_made_in_the_pass_and_remembered(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{i}.safetensors", {"w": np.full(700_000, i, np.float32)})
        for i in range(3)
    ]
    from stockpot.formats.fingerprint import cached_fingerprint, fingerprint

    opened = [stockpot.open(path) for path in paths]
    assert [cached_fingerprint(c) for c in opened] == [None] * 3
    mixture = Mixture(Ingredients(opened), Coefficients.per_model([0.5, 0.5, 0.0]))
    saved = mixture.save(tmp_path / "soup.safetensors")
    assert tuple(cached_fingerprint(c) for c in opened) == saved.fingerprints
    elsewhere = tmp_path / "other-cache"
    assert [fingerprint(c, cache=elsewhere) for c in opened] == list(saved.fingerprints)


def test_the_same_checkpoint_twice_is_hashed_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"w": np.arange(600_000, dtype=np.float32)})
    one = stockpot.open(path)
    saved = Mixture(Ingredients([one, one, one])).save(tmp_path / "soup.safetensors")
    assert saved.fingerprint == saved.fingerprints[0] == one.fingerprint


def test_the_record_is_made_from_what_was_done(tmp_path: Path) -> None:
    mixture = Mixture(Ingredients([{"w": np.ones(3)}]))
    path = tmp_path / "soup.safetensors"
    saved = mixture.save(path, record=lambda saved: {"fingerprint": saved.fingerprint})
    text = path.with_name("soup.safetensors.stockpot.json").read_text()
    assert saved.fingerprint in text


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("out", ["f64", "f32", "f16", "bf16"])
def test_units_of_any_input_and_output_type_fit_together(
    tmp_path: Path, dtype: str, out: str
) -> None:
    """More than a unit of each pair of types, with chunks of the hashes at other places."""
    import torch

    n = 2_200_000
    values = [np.random.default_rng(i).normal(size=n) for i in range(2)]
    stored = [narrow(value, dtype) for value in values]
    kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    given = [
        {"w": torch.from_numpy(s.view(np.int16)).view(torch.bfloat16)}
        if dtype == "BF16"
        else {"w": torch.from_numpy(s).to(kind[dtype])}
        for s in stored
    ]
    mixture = Mixture(Ingredients(given), dtype=out)
    saved = mixture.save(tmp_path / "soup.safetensors", threads=3)
    soup = stockpot.open(tmp_path / "soup.safetensors")
    assert soup.raw("w").tobytes() == mixture.raw("w").tobytes()
    assert saved.fingerprint == mixture.fingerprint


class CountingMask(Mask):
    """A mask that counts how often it is unpacked."""

    asked = 0

    def kept(self, name: str) -> npt.NDArray[np.bool_]:
        self.asked += 1
        return super().kept(name)


def test_a_mask_is_unpacked_once_for_a_large_tensor(tmp_path: Path) -> None:
    n = 3_000_000
    kept = np.arange(n) % 2 == 0
    mask = CountingMask({"w": kept})
    given = [{"w": np.full(n, value, np.float32)} for value in (1.0, 2.0)]
    mixture = Mixture(Ingredients(given), mask=mask)
    mixture.save(tmp_path / "soup.safetensors", threads=1)
    assert mask.asked == 1
    soup = stockpot.open(tmp_path / "soup.safetensors").raw("w").view(np.float32)
    np.testing.assert_array_equal(soup, np.where(kept, np.float32(1.5), np.float32(0)))


WATCHED = """
import sys, threading
from stockpot import Ingredients, Mixture
from stockpot.io.memory import anonymous_bytes

mixture = Mixture(Ingredients(sys.argv[2:]))
Mixture(Ingredients(sys.argv[2:4])).save(sys.argv[1] + "0.safetensors")  # all is imported
allowed = mixture.plan(sys.argv[1], threads=2).memory
peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous_bytes())

watcher = threading.Thread(target=watch)
watcher.start()
mixture.save(sys.argv[1] + "1.safetensors", max_memory=allowed)
done.set()
watcher.join()
assert 0 < peak <= allowed, (peak, allowed)
print(peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_memory_stays_below_what_was_allowed_however_large_the_models(
    tmp_path: Path, dtype: str
) -> None:
    import torch

    kind = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16}[dtype]
    paths = []
    for i in range(8):
        values = torch.full((6_000_000,), float(i), dtype=kind)
        Mixture(Ingredients([{"w": values}])).save(tmp_path / f"{i}.safetensors")
        paths.append(str(tmp_path / f"{i}.safetensors"))
    src = Path(stockpot.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "soup"), *paths]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 90e6


def test_saving_notes_which_ingredients_count_more_than_once(tmp_path: Path) -> None:
    """For callers of the library as for the command line; what takes no part is not named."""
    a, b, c = (
        written(tmp_path / f"{name}.safetensors", many_small(3, value))
        for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0))
    )
    (note,) = Mixture(Ingredients([a, b, c])).save(tmp_path / "1.safetensors").notes
    assert note.startswith(f"warning: {b} holds the same weights as {a}, which therefore count")
    weights = Coefficients.per_model([0.5, 0.0, 0.5])
    saved = Mixture(Ingredients([a, b, c]), weights).save(tmp_path / "2.safetensors")
    assert saved.notes == ()


@pytest.mark.parametrize("change", ["truncated", "written in place", "replaced"])
def test_a_file_that_changes_while_it_is_read_leaves_no_output(tmp_path: Path, change: str) -> None:
    from stockpot.tensors import compiled

    if change == "truncated" and compiled._loaded("guard") is None:
        pytest.skip("not compiled")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for i, path in enumerate(paths):
        save_file({f"w{n}": np.full(1 << 20, float(i), np.float32) for n in range(4)}, path)

    def meddle(done: int, total: int | None, what: str) -> None:
        if change == "truncated":
            os.truncate(paths[1], 4096)
        elif change == "written in place":
            with paths[1].open("r+b") as file:
                file.seek(-4, os.SEEK_END)
                file.write(np.float32(7).tobytes())
        else:
            (tmp_path / "new").write_bytes(paths[0].read_bytes())
            (tmp_path / "new").replace(paths[1])

    soup = Mixture(Ingredients(paths))
    with pytest.raises(CheckpointError, match=r"b\.safetensors changed"):
        soup.save(tmp_path / "soup.safetensors", threads=1, progress=meddle)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "a.safetensors",
        "b.safetensors",
    ]
