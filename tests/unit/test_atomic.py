"""A file is there whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hopaas_p2p.core.names import valid_key, valid_name
from hopaas_p2p.runtime.atomic import replace_atomically


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


@pytest.mark.parametrize("text", ["", "..", "a b", "a.b", "a/", "/a", "a//b", "x\n", "é"])
def test_what_could_lead_elsewhere_is_neither_a_name_nor_a_key(text: str) -> None:
    assert not valid_name(text)
    assert not valid_key(text)


def test_a_key_is_names_and_slashes() -> None:
    assert valid_key("study/a-b_C/file/1")
    assert not valid_name("a/b")
    assert valid_name("a" * 64)
    assert not valid_name("a" * 65)
