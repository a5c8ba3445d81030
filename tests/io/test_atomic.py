from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stockpot.errors import CheckpointError, OutputExistsError
from stockpot.io import atomic as _io
from stockpot.io import locks

MODEL = "model.safetensors"


def left_in(folder: Path) -> list[str]:
    """What is in it beside the locks of systems that lock no file itself."""
    return [name for name in sorted(os.listdir(folder)) if not name.endswith(".lock")]


def fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / MODEL).write_text(text)


def test_a_file_appears_on_a_clean_exit_only(tmp_path: Path) -> None:
    with _io.staged_file(tmp_path / "sub" / "x") as staged:
        os.write(staged.fd, b"new")
        assert not (tmp_path / "sub" / "x").exists()
    assert (tmp_path / "sub" / "x").read_bytes() == b"new"
    with pytest.raises(KeyboardInterrupt), _io.staged_file(tmp_path / "y") as staged:
        os.write(staged.fd, b"half")
        raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path)) == ["sub"]


def test_a_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    _io.write_bytes(tmp_path / "x", b"")
    (tmp_path / "y").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "y").stat().st_mode
    )


def test_a_file_written_through_a_link_leaves_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("old")
    (tmp_path / "x").symlink_to(tmp_path / "real" / "x")
    _io.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "new"


def test_a_very_long_name_still_has_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    _io.write_bytes(path, b"1")
    assert path.read_bytes() == b"1"


def test_a_rival_that_finished_first_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError), _io.staged_file(tmp_path / "x") as staged:
        os.write(staged.fd, b"mine")
        (tmp_path / "x").write_text("theirs")
    assert (tmp_path / "x").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_an_older_one(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(_io, "_exchange", lambda one, other: False)
    fill(tmp_path / "x", "old")
    with _io.staged_folder(tmp_path / "x", force=True) as staged:
        (staged.path / MODEL).write_text("new")
        assert (tmp_path / "x" / MODEL).read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]
    assert os.listdir(tmp_path / "x") == [MODEL]
    assert (tmp_path / "x" / MODEL).read_text() == "new"


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with _io.staged_folder(tmp_path / "x") as staged:
        (staged.path / MODEL).write_text("new")
    assert (tmp_path / "x" / MODEL).read_text() == "new"


def test_exchange_is_one_step_here(tmp_path: Path) -> None:
    fill(tmp_path / "a", "a")
    fill(tmp_path / "b", "b")
    if not _io._exchange(tmp_path / "a", tmp_path / "b"):
        assert os.uname().sysname != "Linux" or "STOCKPOT_TESTS_AS" in os.environ
        return
    assert (tmp_path / "a" / MODEL).read_text() == "b"


def test_a_folder_that_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    """What a process leaves that dies between the two renames of a file system without exchange."""
    fill(tmp_path / ".x.stockpot-00ff.old", "old")
    fill(tmp_path / ".x.stockpot-00ff.tmp", "new")
    _io.clear_stale(tmp_path / "x")
    assert (tmp_path / "x" / MODEL).read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_leftovers_of_the_same_target_are_removed_and_others_kept(tmp_path: Path) -> None:
    (tmp_path / ".x.stockpot-1.tmp").write_text("dead")
    fill(tmp_path / ".x.stockpot-2.tmp", "dead")
    (tmp_path / ".xy.stockpot-3.tmp").write_text("another target")
    (tmp_path / ".x.other").write_text("not ours")
    _io.write_bytes(tmp_path / "x", b"new")
    assert sorted(os.listdir(tmp_path)) == [".x.other", ".xy.stockpot-3.tmp", "x"]


def test_leftovers_of_a_living_process_are_kept(tmp_path: Path) -> None:
    held = locks.make(tmp_path / ".x.stockpot-1.tmp", folder=True)
    (tmp_path / ".x.stockpot-2.tmp").mkdir()
    _io.clear_stale(tmp_path / "x")
    assert left_in(tmp_path) == [".x.stockpot-1.tmp"]
    held.release()
    _io.clear_stale(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_target_do_not_disturb_each_other(tmp_path: Path) -> None:
    with (
        _io.staged_file(tmp_path / "x", force=True) as one,
        _io.staged_file(tmp_path / "x", force=True) as two,
    ):
        os.write(one.fd, b"one")
        os.write(two.fd, b"two")
    assert (tmp_path / "x").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["x"]


def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    code = (
        "import sys, time; from stockpot.io import atomic as _io\n"
        "with _io.staged_file(sys.argv[1]) as s:\n print('ready', flush=True); time.sleep(60)"
    )
    source = os.pathsep.join([str(Path(_io.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        _io.clear_stale(tmp_path / "x")
        assert len(left_in(tmp_path)) == 1, "its owner lives"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "x").exists()
    _io.write_bytes(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("force", [True, False])
def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("")
    fill(tmp_path / "folder", "")
    with pytest.raises(OutputExistsError, match=r"is a file, and a folder would be written"):
        _io.refuse_existing(tmp_path / "file", force=force, folder=True)
    with pytest.raises(OutputExistsError, match=r"is a folder, and a file would be written"):
        _io.refuse_existing(tmp_path / "folder", force=force, folder=False)
    with pytest.raises(OutputExistsError, match="no file"):
        _io.refuse_existing("/dev/null", force=force, folder=False)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_what_else_is_in_a_folder_stays(
    tmp_path: Path, exchange: bool, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(_io, "_exchange", lambda one, other: False)
    if not links:
        monkeypatch.setattr(os, "link", _refused)
    target = tmp_path / "x"
    fill(target, "old")
    (target / "thesis.tex").write_text("years of work")
    (target / "link").symlink_to("/nowhere")
    for folder in ("checkpoint-500", "part"):
        (target / folder).mkdir()
        (target / folder / "notes").write_text("mine")
    with _io.staged_folder(target, force=True) as staged:
        (staged.path / MODEL).write_text("new")
        (staged.path / "part").mkdir()
        (staged.path / "part" / MODEL).write_text("new")
    found = sorted(p.relative_to(target).as_posix() for p in target.rglob("*"))
    assert found == [
        "checkpoint-500", "checkpoint-500/notes", "link", MODEL, "part", f"part/{MODEL}",
        "part/notes", "thesis.tex",
    ]  # fmt: skip
    assert (target / MODEL).read_text() == "new"
    assert (target / "link").readlink() == Path("/nowhere")
    assert os.listdir(tmp_path) == ["x"]


def _refused(*words: Any, **named: Any) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_what_goes_with_the_older_output_is_for_the_caller_to_say(tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")
    (tmp_path / "x" / "stale-shard").write_text("old")
    (tmp_path / "x" / "log").write_text("mine")
    with _io.staged_folder(
        tmp_path / "x", force=True, replaces=lambda name: name == "stale-shard"
    ) as staged:
        (staged.path / MODEL).write_text("new")
    assert sorted(os.listdir(tmp_path / "x")) == ["log", MODEL]


def test_folders_of_an_older_output_are_kept_after_a_death_at_the_exchange(tmp_path: Path) -> None:
    """The process died after the exchange, before it moved the folders of the older output."""
    fill(tmp_path / "x", "new")
    (tmp_path / "x" / ".stockpot-staged").touch()
    old = tmp_path / ".x.stockpot-1.tmp"
    fill(old, "old")
    (old / "checkpoint-500").mkdir()
    _io.clear_stale(tmp_path / "x")
    assert sorted(os.listdir(tmp_path / "x")) == ["checkpoint-500", MODEL]
    assert (tmp_path / "x" / MODEL).read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("exchange", [True, False])
def test_folders_beside_an_output_are_kept_after_two_deaths_in_a_row(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes died when their folder was in place, before they took its mark away."""
    if not exchange:
        monkeypatch.setattr(_io, "_exchange", lambda one, other: False)
    target, put = tmp_path / "x", _io._put_folder

    def dies(temporary: Path, target: Path) -> None:
        put(temporary, target)
        raise KeyboardInterrupt

    def write(text: str) -> None:
        with _io.staged_folder(target, force=True) as staged:
            (staged.path / MODEL).write_text(text)

    with monkeypatch.context() as dying:
        dying.setattr(_io, "_put_folder", dies)
        with pytest.raises(KeyboardInterrupt):
            write("first")
        assert left_in(target) == [".stockpot-staged", MODEL]
        (target / "checkpoint-500").mkdir()
        (target / "checkpoint-500" / "notes").write_text("mine")
        with pytest.raises(KeyboardInterrupt):
            write("second")
    write("third")
    assert left_in(target) == ["checkpoint-500", MODEL]
    assert (target / "checkpoint-500" / "notes").read_text() == "mine"
    assert (target / MODEL).read_text() == "third"
    assert left_in(tmp_path) == ["x"]


@pytest.mark.parametrize("moment", ["at the list", "between list and move", "inside"])
def test_the_process_that_made_the_exchange_may_move_the_folders_meanwhile(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new folder holds its lock by then, so that the older one looks left behind."""
    fill(tmp_path / "x", "new")
    (tmp_path / "x" / "logs").mkdir()
    old = tmp_path / ".x.stockpot-1.tmp"
    fill(old, "old")
    (old / "checkpoint-500").mkdir()
    (old / "logs" / "monday").mkdir(parents=True)
    entries = _io._entries
    at = {"at the list": old, "between list and move": old, "inside": old / "logs"}[moment]

    def meanwhile(folder: Path) -> list[os.DirEntry[str]]:
        found = entries(folder) if moment.startswith("between") else None
        if folder == at and old.exists():
            with monkeypatch.context() as alone:
                alone.setattr(_io, "_entries", entries)
                _io._move_folders(old, tmp_path / "x")
            shutil.rmtree(old)
        return entries(folder) if found is None else found

    monkeypatch.setattr(_io, "_entries", meanwhile)
    _io.clear_stale(tmp_path / "x")
    assert left_in(tmp_path / "x") == ["checkpoint-500", "logs", MODEL]
    assert os.listdir(tmp_path / "x" / "logs") == ["monday"]
    assert left_in(tmp_path) == ["x"]


def test_an_older_output_gives_nothing_to_a_file_that_has_its_name_by_now(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    old = tmp_path / ".x.stockpot-1.tmp"
    fill(old, "old")
    (old / "checkpoint-500").mkdir()
    _io.clear_stale(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "a file"
    assert os.listdir(tmp_path) == ["x"]


def test_a_staged_folder_that_was_left_behind_gives_nothing_to_the_output(tmp_path: Path) -> None:
    fill(tmp_path / "x", "old")
    staged = tmp_path / ".x.stockpot-1.tmp"
    fill(staged, "half")
    (staged / ".stockpot-staged").touch()
    (staged / "unet").mkdir()
    _io.clear_stale(tmp_path / "x")
    assert os.listdir(tmp_path / "x") == [MODEL]
    assert os.listdir(tmp_path) == ["x"]


def test_too_little_space_is_said_with_both_figures(tmp_path: Path) -> None:
    _io.require_space(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"takes 1000\.0 PB and .* has .* free"):
        _io.require_space(tmp_path, 10**18)


def test_json_is_sorted_and_refuses_what_json_lacks(tmp_path: Path) -> None:
    _io.write_json(tmp_path / "x.json", {"b": None, "a": 1, "ä": "ß"})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1,\n  "b": null,\n  "ä": "ß"\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        _io.write_json(tmp_path / "x.json", {"score": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text())["a"] == 1


@pytest.mark.parametrize("refusals", [2, 1000])
def test_on_windows_a_rename_waits_for_who_has_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    monkeypatch.setattr(locks, "ITSELF", False)
    monkeypatch.setattr(_io, "_WAITS", (0.0,) * 5)
    real, asked = Path.replace, []

    def refuses(self: Path, target: Path) -> Path:
        asked.append(target)
        if len(asked) <= refusals:
            raise PermissionError(errno.EACCES, "open elsewhere", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refuses)
    if refusals > 5:
        with pytest.raises(PermissionError):
            _io.write_bytes(tmp_path / "x", b"new")
        assert left_in(tmp_path) == []
    else:
        _io.write_bytes(tmp_path / "x", b"new")
        assert (tmp_path / "x").read_bytes() == b"new"
    assert len(asked) == min(refusals, 5) + 1


@pytest.mark.skipif(not locks.ITSELF, reason="this system locks no open file itself")
def test_where_open_files_can_be_renamed_a_refusal_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_io, "_WAITS", (0.0,) * 5)
    asked = []

    def refuses(self: Path, target: Path) -> Path:
        asked.append(target)
        raise PermissionError(errno.EACCES, "not yours", str(target))

    monkeypatch.setattr(Path, "replace", refuses)
    with pytest.raises(PermissionError):
        _io.write_bytes(tmp_path / "x", b"new")
    assert len(asked) == 1
    assert os.listdir(tmp_path) == []
