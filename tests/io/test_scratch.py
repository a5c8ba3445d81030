from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stockpot.io import atomic
from stockpot.io.scratch import scratch_folder


def test_a_scratch_folder_is_private_and_goes_with_its_block_or_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from stockpot.io.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (killed,) = tmp_path.iterdir()
    (tmp_path / "stockpot-cache-0").mkdir()
    with scratch_folder() as first, scratch_folder() as second:
        assert not killed.exists()
        assert first.is_dir()
        atomic.write_bytes(first / "output", b"x")
        assert second.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["stockpot-cache-0"]
