"""The folder through which a store is served: who on the node may read and write there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hopaas_p2p.remote.box import Box
from tests.support.processes import as_nobody


def test_a_folder_that_a_server_makes_is_its_users_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        Box.make(tmp_path / "box", "file:///far")
    finally:
        os.umask(before)

    assert (tmp_path / "box").stat().st_mode & 0o777 == 0o700
    assert caplog.text == ""


@pytest.mark.parametrize(("mode", "who"), [(0o770, "its group"), (0o755, "every user"), (0o700, None)])
def test_of_a_folder_that_others_may_enter_the_server_warns(
    mode: int, who: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box").chmod(mode)

    Box.make(tmp_path / "box", "file:///far")

    assert (f"is open to {who}" in caplog.text) if who else (caplog.text == "")
    assert (tmp_path / "box").stat().st_mode & 0o777 == mode  # it is the user's choice


def test_somebody_who_may_only_read_there_is_told_so_at_once(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    (tmp_path / "box").mkdir()
    box = Box.make(tmp_path / "box", "file:///far")

    said = as_nobody(
        """
        import sys
        from hopaas_p2p.errors import Denied
        from hopaas_p2p.open import open_store
        try:
            open_store(sys.argv[1]).catalog().exchange(None, 0)
        except Denied as error:
            print(error)
        """,
        box.url,
    )

    assert said.startswith("you may not write to ")


def test_no_link_in_the_folder_leads_a_server_or_a_peer_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    box = Box.make(tmp_path / "box", "file:///far")
    for folder in ("requests", "answers", "files"):
        (tmp_path / "box" / folder).mkdir()
        (tmp_path / "box" / folder / "name").symlink_to(tmp_path / "secret")

    assert b"hunter2" not in (box.request("name") or b"")
    assert not box.objects.download("files/name", tmp_path / "got")
    box.answer("name", b"x")
    assert (tmp_path / "secret").read_text() == "hunter2"
