"""A file is there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from hopaas_p2p.core.names import valid_key, valid_name
from hopaas_p2p.runtime.atomic import is_mostly_holes, replace_atomically


def test_a_file_that_is_written_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    with replace_atomically(path, private=True, sync=True) as draft:
        draft.write_text("after")
        assert path.read_text() == "before"

    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    with pytest.raises(ValueError, match="half"), replace_atomically(path) as draft:
        draft.write_text("half")
        raise ValueError("half")

    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_its_draft(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"

    with pytest.raises(FileNotFoundError) as caught, replace_atomically(path) as draft:
        draft.write_text("x")

    assert caught.value.filename == str(path)


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"

    with pytest.raises(OSError, match="No space left") as caught, replace_atomically(path):
        Path("/dev/full").write_text("x")

    assert caught.value.filename == str(path)


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)  # as /dev/stdout is
    for path in (pipe, link):
        with pytest.raises(OSError, match="is not a regular file") as caught, replace_atomically(path) as draft:
            draft.write_text("x")
        assert caught.value.filename == str(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()


@pytest.mark.parametrize("text", ["", "..", "a b", "a.b", "a/", "/a", "a//b", "x\n", "é"])
def test_what_could_lead_elsewhere_is_neither_a_name_nor_a_key(text: str) -> None:
    assert not valid_name(text)
    assert not valid_key(text)


def test_a_key_is_names_and_slashes() -> None:
    assert valid_key("study/a-b_C/file/1")
    assert not valid_name("a/b")
    assert valid_name("a" * 64)
    assert not valid_name("a" * 65)


def test_a_file_whose_blocks_are_not_counted_yet_is_not_taken_for_one_of_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZFS and Lustre count them seconds after it was written."""
    written, hollow, size = tmp_path / "written", tmp_path / "hollow", 17 << 20
    written.write_bytes(b"x" * size)
    hollow.touch()
    os.truncate(hollow, size)
    monkeypatch.setattr(Path, "lstat", lambda _: SimpleNamespace(st_size=size, st_blocks=0))
    assert [is_mostly_holes(one) for one in (written, hollow, tmp_path / "none")] == [False, True, False]
