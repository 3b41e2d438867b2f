"""Files that are written whole: through links, and never in the place of a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from unveil.errors import InputError
from unveil.io.atomic import write_text


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, nowhere = tmp_path / "there" / "file.txt", tmp_path / "link.txt", tmp_path / "new.txt"
    target.write_text("old")
    link.symlink_to(target)
    nowhere.symlink_to(tmp_path / "there" / "new.txt")
    assert write_text(link, "new") == link
    assert link.is_symlink()
    assert target.read_text() == "new"
    write_text(nowhere, "first")
    assert nowhere.is_symlink()
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["file.txt", "new.txt"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(InputError, match=rf"cannot write {path}: it is a device or a pipe.*: name a file"):
            write_text(path, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*: Is a directory"):
        write_text(tmp_path, "text")
    assert list(tmp_path.iterdir()) == []
