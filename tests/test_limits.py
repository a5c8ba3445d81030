"""Machines that have little, or that fail: what can work does, the rest is said in a line."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stockpot
from stockpot.cli import main

SOURCE = str(Path(stockpot.__file__).parents[1])


def write(path: Path, seed: int, n: int = 1000) -> Path:
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    stockpot.Mixture(stockpot.Ingredients([{"w": values}])).save(path)
    return path


def command(
    words: Sequence[str | Path],
    *,
    before: str = "",
    limits: Mapping[int, int] | None = None,
    env: Mapping[str, str | None] | None = None,
    stdout: Any = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, with limits and what is run `before` it."""
    code = f"import sys\n{before}\nfrom stockpot.cli import main\nsys.exit(main(sys.argv[1:]))"
    given = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", **(env or {})}

    def limited() -> None:
        for which, most in (limits or {}).items():
            resource.setrlimit(which, (most, most))

    done = subprocess.run(
        [sys.executable, "-c", code, *map(os.fspath, words)],
        env={k: v for k, v in given.items() if v is not None},
        stdout=stdout, stderr=subprocess.PIPE, preexec_fn=limited, timeout=120, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


def test_a_hundred_ingredients_need_few_open_files(tmp_path: Path) -> None:
    models = [write(tmp_path / f"{i:03}.safetensors", i) for i in range(100)]
    out = tmp_path / "soup.safetensors"
    few = {resource.RLIMIT_NOFILE: 64}
    done = command(["average", *models, "-o", out], limits=few)
    assert done.returncode == 0, done.stderr
    assert command(["verify", out], limits=few).returncode == 0


def _numpy_loads(most: int) -> bool:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    alone = [sys.executable, "-c", "import numpy"]
    return subprocess.run(alone, preexec_fn=limited, capture_output=True).returncode == 0


@pytest.mark.parametrize("most", [60 << 20, 100 << 20, 130 << 20, 160 << 20])
def test_too_little_memory_is_said_and_nothing_half_written_is_left(
    tmp_path: Path, most: int
) -> None:
    models = [write(tmp_path / f"{i}.safetensors", i, 1_000_000) for i in range(3)]
    out = tmp_path / "out" / "soup.safetensors"
    try:
        done = command(["average", *models, "-o", out], limits={resource.RLIMIT_AS: most})
    except AssertionError:
        if not _numpy_loads(most):
            pytest.skip("this NumPy cannot be loaded in so little")
        raise
    files = {path.name for path in out.parent.iterdir()} if out.parent.exists() else set()
    if done.returncode == 0:
        assert files == {out.name, f"{out.name}.stockpot.json"}
    else:
        assert files == set()
        assert done.stderr.strip()


def test_without_a_home_and_a_name_of_the_user_all_works(tmp_path: Path) -> None:
    models = [write(tmp_path / f"{i}.safetensors", i) for i in range(2)]
    nobody = "import pwd\npwd.getpwuid = lambda uid: {}[uid]"
    none = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "STOCKPOT_CACHE", "USER", "LOGNAME"))
    words = ["average", *models, "-o", tmp_path / "soup.safetensors"]
    done = command(words, before=nobody, env={**none, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_names_that_are_no_utf8_work_in_an_ascii_locale(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xfe"))
    folder.mkdir()
    name = os.fsdecode(b"\xff\xe9.safetensors")
    models = [write(folder / "a.safetensors", 0), write(folder / "b.safetensors", 1)]
    models[1] = models[1].rename(folder / name)
    out = folder / os.fsdecode(b"soup\xff.safetensors")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command(["average", *models, "-o", out, "--json"], env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) >= {"output", "ingredients"}
    record = json.loads(Path(f"{out}.stockpot.json").read_text(encoding="utf-8"))
    assert record["ingredients"][1]["path"].endswith("d\\xfe/\\xff\\xe9.safetensors")
    # Text in a record is text, so that such files are found by what they hold.
    words = ["verify", out, "--search", folder]
    assert command(words, env=ascii_only).returncode == 0


def test_a_closed_or_full_output_is_no_traceback(tmp_path: Path) -> None:
    model = write(tmp_path / "a.safetensors", 0)
    closed = "import os\nfor one in (0, 1, 2):\n    os.close(one)"
    assert command(["inspect", model], before=closed).returncode == 0
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            done = command(["inspect", model], stdout=full)
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr


def test_a_picture_needs_no_backend_of_somebody_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tests.report.example import example

    from stockpot.report import save

    save(example(), tmp_path)
    done = command(["report", tmp_path], env={"MPLBACKEND": "module://of.another.program"})
    assert done.returncode == 0, done.stderr
    assert b"<svg" in (tmp_path / "report.html").read_bytes()


def test_too_little_room_is_said_before_anything_is_scored_or_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(write(tmp_path / f"{i}.safetensors", i)) for i in range(2)]
    usage = type("Usage", (), {"free": 3000, "total": 1 << 30})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    def cook(*_: object, **__: object) -> None:
        raise AssertionError("values are scored and summed")

    monkeypatch.setattr("stockpot.recipes.base.Recipe.cook", cook)
    out = tmp_path / "new" / "folder" / "soup.safetensors"
    assert main(["average", *models, "-o", str(out)]) == 1
    assert "make room" in capsys.readouterr().err
    assert not out.parent.exists()


@pytest.mark.parametrize("target", ["soup.safetensors", "soup"])
def test_a_disk_that_fails_at_any_flush_leaves_weights_and_record_of_one_soup(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [str(write(tmp_path / f"{i}.safetensors", i)) for i in range(4)]
    real = os.fsync

    def state(place: Path) -> tuple[bytes, str | None]:
        weights = place / target
        inside = weights / "model.safetensors" if weights.is_dir() else weights
        record = weights / "stockpot.json" if weights.is_dir() else f"{weights}.stockpot.json"
        if not Path(record).exists():
            return inside.read_bytes(), None
        names = [one["path"] for one in json.loads(Path(record).read_text())["ingredients"]]
        return inside.read_bytes(), names[0]

    def failing(number: int) -> Callable[[int], None]:
        left = [number]

        def fsync(fd: int) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

        return fsync

    codes = []
    for number in range(12):
        place = tmp_path / str(number)
        assert main(["average", *models[:2], "-o", str(place / target)]) == 0
        old = state(place)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing(number))
            codes.append(main(["average", *models[2:], "-o", str(place / target), "--force"]))
        found = state(place)
        # Of one writer: the record names the models that the weights are of, or there is none.
        if found != old:
            assert found[0] != old[0]
            assert found[1] in (models[2], None)
        assert main(["average", *models[2:], "-o", str(place / target), "--force"]) == 0
        assert {path.name for path in place.iterdir()} <= {target, f"{target}.stockpot.json"}
    # The first are of the weights and the record; the last run flushed less often.
    assert codes[0] == 1
    assert codes[-1] == 0
