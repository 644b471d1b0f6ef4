"""The mirror of a store that asks for a token: who on the node may read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hopaas_p2p.open import open_store
from hopaas_p2p.stores.bridge.endpoints import open_endpoints
from tests.support.processes import as_nobody


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_mirror_that_the_bridge_makes_is_its_users_alone(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = os.umask(0)
    try:
        ends = open_endpoints(f"{prefix}{tmp_path / 'near'}", str(tmp_path / "far"), open_store)
    finally:
        os.umask(before)
    ends.close()

    assert (tmp_path / "near").stat().st_mode & 0o777 == 0o700
    assert caplog.text == ""


@pytest.mark.parametrize(("mode", "who"), [(0o750, "its group"), (0o755, "every user"), (0o711, None), (0o700, None)])
def test_of_a_mirror_that_others_may_read_the_bridge_warns(
    mode: int, who: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "near").chmod(mode)

    open_endpoints(str(tmp_path / "near"), str(tmp_path / "far"), open_store).close()

    assert (f"can be read by {who}" in caplog.text) if who else (caplog.text == "")
    assert (tmp_path / "near").stat().st_mode & 0o777 == mode  # it is the user's choice


def test_another_user_reads_nothing_of_such_a_mirror(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    open_endpoints(str(tmp_path / "near"), str(tmp_path / "far"), open_store).close()

    said = as_nobody(
        """
        import os, sys
        try:
            print(os.listdir(sys.argv[1]))
        except PermissionError:
            print("refused")
        """,
        str(tmp_path / "near"),
    )

    assert said == "refused\n"
