"""`doctor --meet`: two nodes try a store together."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hopaas_p2p.cli import main
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.stores.base import ExchangeResult, Outgoing
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.meet import Meeting
from hopaas_p2p.stores.objects.log import WriteOnceLog
from hopaas_p2p.testing.commits import append, together
from tests.support.processes import until


def meet(*stores: DirectoryStore, **options: Any) -> list[dict[str, Finding]]:
    def one(store: DirectoryStore) -> dict[str, Finding]:
        meeting = Meeting(store, "word", **{"seconds": 0.5, "timeout": 20.0, **options})
        return {finding.check: finding for finding in meeting.findings()}

    return together(*[lambda store=store: one(store) for store in stores])


def test_two_nodes_that_see_the_same_say_so_and_leave_nothing(tmp_path: Path) -> None:
    for _ in range(2):  # the same word may be used again
        for found in meet(DirectoryStore(tmp_path), DirectoryStore(tmp_path)):
            assert [one for one in found.values() if not one.passed] == []
            assert list(found) == ["meeting", "nothing lost", "same log", "delay"]
            assert found["meeting"].detail.startswith("2 nodes, ")
        assert not (tmp_path / "v1" / "study" / "meet-word").exists()


def test_three_nodes_may_meet(tmp_path: Path) -> None:
    stores = [DirectoryStore(tmp_path) for _ in range(3)]
    for found in meet(*stores):
        assert found["same log"].passed


@pytest.mark.parametrize(
    "said",
    [
        {"who": "x", "number": 1, "seen": {"me": []}},
        {"who": "x", "number": 1, "seen": []},
        {"who": "x", "number": "²", "seen": {}},
        {"who": "x", "number": 1, "seen": {}, "digest": "?", "upto": None},
        {"who": ["x"], "number": 1, "seen": {}},
        ["x"],
    ],
    ids=str,
)
def test_a_message_that_no_node_would_send_is_passed_over(tmp_path: Path, said: Any) -> None:
    def intrudes() -> None:
        log = DirectoryStore(tmp_path).log("meet-word")
        first = until(lambda: log.exchange(None, 0).entries)[0]
        body = json.dumps(said).replace('"me"', json.dumps(json.loads(first.payload[4:])["who"])).encode()
        append(log, Outgoing("x", zlib.crc32(body).to_bytes(4, "little") + body))

    def one() -> list[Finding]:
        return list(Meeting(DirectoryStore(tmp_path), "word", seconds=0.5, timeout=20.0).findings())

    for found in together(one, one, intrudes)[:2]:
        assert [finding for finding in found if not finding.passed] == []


def test_a_node_that_nobody_meets_says_what_to_do(tmp_path: Path) -> None:
    (found,) = meet(DirectoryStore(tmp_path), timeout=0.5)
    assert not found["meeting"].passed
    assert "another node" in found["meeting"].cure


def test_a_node_says_that_it_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DirectoryStore(tmp_path)
    monkeypatch.setattr(Meeting, "_wait", lambda *_: False)
    assert main.run(["doctor", str(tmp_path), "--meet", "word"]) == 1
    assert "Waiting up to 2 min for another node that runs the same command" in capsys.readouterr().err


def test_nodes_that_read_different_commits_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = WriteOnceLog.exchange
    liar = DirectoryStore(tmp_path)

    def lies(log: WriteOnceLog, *arguments: Any) -> ExchangeResult:
        receipt = exchange(log, *arguments)
        if log.objects is not liar.objects:
            return receipt
        entries = [replace(one, payload=one.payload + b" ") if one.lsn == 5 else one for one in receipt.entries]
        return ExchangeResult(entries, receipt.more)

    monkeypatch.setattr(WriteOnceLog, "exchange", lies)
    for found in meet(DirectoryStore(tmp_path), liar):
        assert not found["same log"].passed
        assert "results would be lost" in found["same log"].cure


def test_a_commit_that_was_acknowledged_and_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    meeting = Meeting(store, "word", seconds=0.2, timeout=20.0)
    meeting._mine[10**6] = b"acknowledged"
    other = Meeting(DirectoryStore(tmp_path), "word", seconds=0.2, timeout=20.0)
    found, _ = together(lambda: list(meeting.findings()), lambda: list(other.findings()))
    assert "commits lost: 1" in next(one for one in found if one.check == "nothing lost").detail


@pytest.mark.parametrize("word", ["", "a b", "../x", "x" * 41])
def test_a_word_is_a_word(tmp_path: Path, word: str) -> None:
    with pytest.raises(InvalidInput, match="letters"):
        Meeting(DirectoryStore(tmp_path), word)


def test_a_commit_that_goes_after_it_was_acknowledged_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that takes back what it has answered for: both had seen it."""
    judge = Meeting._judge

    def loses(self: Meeting, *, everybody: bool) -> Iterator[Finding]:
        for name in (tmp_path / "v1/study/meet-word/commits").rglob("*1"):
            if not name.is_dir():
                name.unlink(missing_ok=True)
        return judge(self, everybody=everybody)

    monkeypatch.setattr(Meeting, "_judge", loses)
    for found in meet(DirectoryStore(tmp_path), DirectoryStore(tmp_path)):
        assert not found["nothing lost"].passed


def test_a_word_that_was_used_before_where_logs_leave_a_trace_is_told(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).log("meet-word").destroy()
    (found,) = meet(DirectoryStore(tmp_path))
    assert not found["meeting"].passed
    assert "another word" in found["meeting"].cure
