"""Two nodes test a store together: do both see the same log, is anything lost, and how soon is a commit seen?

A check by a single node proves little about a directory on a network file system, because that node sees its own cache.
So two or more nodes start `hopaas-p2p doctor STORE --meet WORD` at about the same time, write to one log for some
seconds, and compare what each of them has read.

The delay until one node sees another's commit is measured with one node's own clock. Every commit names the others'
commits that its writer has seen, so the time from a commit to the first answer is a round trip.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from hopaas_p2p.errors import InvalidInput, StoreCorrupt, StudyDeleted
from hopaas_p2p.net.backoff import persistently
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.stores.base import Entry, Outgoing, Store, append, read_all

TIMEOUT: Final = 120.0  # seconds to wait for another node
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_PAUSE: Final = 0.02  # seconds between two commits of a node
_LOOK: Final = 0.2  # seconds between checks for another node
_CURE: Final = "results would be lost; use another store, or a mount that shows the same files on both nodes"


class _MeetingMessage(msgspec.Struct, omit_defaults=True):
    """The content of a commit in a meeting's log; other writers may have written something else."""

    who: str
    number: int
    seen: dict[str, int]
    """Other node -> its newest commit that this node has seen."""
    upto: int = 0
    digest: str = ""
    """The digest of the first `upto` commits, in the node's last message but one."""
    bye: bool = False


_decode: Final = msgspec.json.Decoder(_MeetingMessage).decode


class Meeting:
    """One node's part in a meeting.

    Args:
        store: where to meet.
        word: a word that is the same on all nodes: up to 40 letters, digits, `-` and `_`.
        seconds: how long to write commits.
        timeout: seconds to wait for another node, and again for the reports of all other nodes at the end.

    Raises:
        InvalidInput: the word is empty, too long, or has other characters.

    """

    def __init__(self, store: Store, word: str, *, seconds: float = 10.0, timeout: float = TIMEOUT) -> None:
        if not _WORD.fullmatch(word):
            raise InvalidInput(f"--meet {word!r}: use up to 40 letters, digits, '-' and '_'")
        self._log = store.log(f"meet-{word}")
        self._seconds, self._timeout = seconds, timeout
        self._me = secrets.token_hex(6)
        self._entries: list[Entry] = []
        self._began = self._count = 0
        self._sent: dict[int, float] = {}
        self._mine: dict[int, bytes] = {}
        self._others: dict[str, list[_MeetingMessage]] = {}
        """The messages of each other node since this node joined."""
        self._delays: list[float] = []

    def findings(self) -> Iterator[Finding]:
        """Take part in the meeting, and report. Blocks until the others have reported, or have failed to join."""
        try:
            self._exchange()
            self._began = len(self._entries)
            self._say()
            if not self._wait(lambda: bool(self._others)):
                cure = "run the same command on another node at the same time, and with the same store"
                detail = f"no other node joined within {self._timeout:.0f} s"
                yield Finding("meeting", detail, passed=False, cure=cure)
                return
            end = time.monotonic() + self._seconds
            while time.monotonic() < end:
                self._say()
                time.sleep(_PAUSE)
            upto = len(self._entries)
            self._say(upto=upto, digest=self._digest(upto))
            everybody = self._wait(lambda: all(any(one.digest for one in said) for said in self._others.values()))
            yield from self._judge(everybody=everybody)
            self._say(bye=True)
            if everybody and all(any(one.bye for one in said) for said in self._others.values()):
                self._log.erase()
        except StudyDeleted:  # in a bucket, the tombstone of an erased log remains
            cure = "use another word, the same on all nodes"
            yield Finding("meeting", "this word was used here before", passed=False, cure=cure)
        except StoreCorrupt as error:
            yield Finding("nothing lost", str(error), passed=False, cure=_CURE)

    def _judge(self, *, everybody: bool) -> Iterator[Finding]:
        count = len(self._entries) - self._began
        detail = f"{len(self._others) + 1} nodes, {count} commits, {len(self._mine)} by this node"
        detail += "" if everybody else "; another node did not report"
        yield Finding("meeting", detail, passed=everybody, cure="check the other node, and run the test again")
        there: dict[int, bytes] = {}
        with contextlib.suppress(StoreCorrupt):  # the log as the store has it now, up to the first missing commit
            there.update((entry.lsn, entry.payload) for entry in read_all(self._log))
        lost = sum(there.get(lsn) != payload for lsn, payload in self._mine.items())
        twice = len(there) - len(set(there.values()))
        whole = not lost and not twice and list(there) == list(range(1, max(len(there), len(self._entries)) + 1))
        detail = "every commit is there exactly once" if whole else f"commits lost: {lost}, duplicated: {twice}"
        yield Finding("nothing lost", detail, passed=whole, cure=_CURE)
        reports = [one for said in self._others.values() for one in said if one.digest]
        differ = any(self._digest(one.upto) != one.digest for one in reports)
        detail = "another node read different commits from this one" if differ else "all nodes read the same commits"
        yield Finding("same log", detail, passed=not differ, cure=_CURE)
        if self._delays:
            ordered = sorted(self._delays)
            late = ordered[int(0.95 * (len(ordered) - 1))]
            detail = f"one node sees another's commit after {statistics.median(ordered):.2f} s, 95% within {late:.2f} s"
            yield Finding("delay", detail)

    def _say(self, **fields: Any) -> None:
        self._count += 1
        seen = {who: said[-1].number for who, said in self._others.items()}
        body = msgspec.json.encode(_MeetingMessage(self._me, self._count, seen, **fields))
        self._sent[self._count] = time.monotonic()
        self._exchange(Outgoing(f"{self._me}:{self._count}", zlib.crc32(body).to_bytes(4, "little") + body))

    def _exchange(self, outgoing: Outgoing | None = None) -> None:
        """Append the commit, if any, and read new ones; try again while the store cannot be reached."""
        since = len(self._entries)
        new = persistently(
            lambda: list(read_all(self._log, since)) if outgoing is None else append(self._log, outgoing, since)
        )
        for entry in new:
            self._entries.append(entry)
            if outgoing is not None and entry.payload == outgoing.payload:
                self._mine[entry.lsn] = entry.payload
            elif self._count:  # otherwise the commit is from an earlier meeting
                with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
                    said = _decode(entry.payload[4:])
                    self._others.setdefault(said.who, []).append(said)
                    if (sent := self._sent.pop(said.seen.get(self._me, 0), None)) is not None:
                        self._delays.append((time.monotonic() - sent) / 2)

    def _wait(self, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self._timeout
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK)
            self._exchange()
        return True

    def _digest(self, upto: int) -> str:
        """The digest of the first `upto` commits."""
        return hashlib.blake2b(b"".join(entry.payload for entry in self._entries[:upto]), digest_size=16).hexdigest()
