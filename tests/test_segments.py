"""A directory log goes on in a new file after 256 commits, whoever wrote the last of the old one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudySet
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Outgoing
from hopaas_p2p.stores.directory.log import DirectoryLog
from hopaas_p2p.stores.directory.store import DirectoryStore


def _append(log: DirectoryLog, since: int, *, writer: str = "w") -> int:
    """Append one commit; the lsn that the log is read up to."""
    commit = Commit(writer, since + 1, writer, 0, (StudySet(user={"n": str(since)}),))
    return log.exchange(Outgoing(f"{writer}:{since}", codec.encode(commit)), since).entries[-1].lsn


@pytest.mark.parametrize("next_writer", ["the same", "another"])
def test_the_commit_after_a_full_segment_begins_a_new_file(tmp_path: Path, next_writer: str) -> None:
    first = DirectoryStore(tmp_path / "store").log("a")
    second = DirectoryStore(tmp_path / "store").log("a")
    for since in range(SNAPSHOT_EVERY):
        _append(first, since)
    second.exchange(None, 0)

    _append(second if next_writer == "another" else first, SNAPSHOT_EVERY)

    for log in (first, second, DirectoryStore(tmp_path / "store").log("a")):
        assert [entry.lsn for entry in log.exchange(None, SNAPSHOT_EVERY).entries] == [SNAPSHOT_EVERY + 1]
    new_file = tmp_path / "store/v1/study/a/log" / f"{SNAPSHOT_EVERY + 1:020d}"
    assert new_file.read_bytes()[8:9] == b" "
