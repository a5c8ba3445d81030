from __future__ import annotations

from pathlib import Path

import pytest

import stockpot
from stockpot.tasks.clip.templates import IMAGENET_TEMPLATES, read_classes, read_templates


def test_there_are_80_different_templates_with_one_place_for_the_class() -> None:
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert all(text.count("{}") == 1 and "{a" not in text for text in IMAGENET_TEMPLATES)
    assert {"a photo of a {}.", "itap of my {}.", "the origami {}.", "a {} in a video game."} <= {
        *IMAGENET_TEMPLATES
    }


def test_files_hold_one_entry_a_line_and_comments(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("# birds\ngreat tit\n\n  robin  \n")
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
    assert read_classes(tmp_path / "classes.txt") == ("great tit", "robin")
    assert read_templates(tmp_path / "templates.txt") == ("a photo of a {}.",)


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a photo\n{} and {}\na {}\n")
    with pytest.raises(stockpot.TaskError) as caught:
        read_templates(file)
    assert len(caught.value.problems) == 2
    assert str(file) in str(caught.value)
    file.write_text("robin\nrobin\n")
    with pytest.raises(stockpot.TaskError, match="named twice"):
        read_classes(file)
    file.write_text("")
    with pytest.raises(stockpot.TaskError, match="0 classes"):
        read_classes(file)
    with pytest.raises(stockpot.TaskError, match="no template"):
        read_templates(file)
    with pytest.raises(stockpot.TaskError, match="cannot be read: No such file"):
        read_classes(tmp_path / "absent.txt")
