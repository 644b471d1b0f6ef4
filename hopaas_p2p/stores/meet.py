"""Two nodes try a store together: whether both see the same log, whether anything is lost, how soon commits are seen.

A check by a single node says little about a directory on a network file system, because that node sees its own cache.
So two or more nodes start `hopaas-p2p doctor STORE --meet WORD` at about the same time, write into one log for some
seconds, as fast as they can, and compare what each of them read.

The delay until one node sees another's commit is measured with one node's own clock: every commit names the commits of
the others that its writer has seen, so the time from a commit to the first answer to it is there and back.
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

from hopaas_p2p.errors import InvalidInput, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.stores.base import Entry, ExchangeResult, Outgoing, Store

SECONDS: Final = 10.0
TIMEOUT: Final = 120.0  # seconds for which the first node waits for another
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_PAUSE: Final = 0.02  # seconds between two commits of a node
_LOOK: Final = 0.2  # seconds between looks for another node
_CURE: Final = "results would be lost; use another store, or a mount that looks the same on both nodes"


class _MeetingMessage(msgspec.Struct, omit_defaults=True):
    """What a commit of a meeting says; anybody may have written something else."""

    who: str
    number: int
    seen: dict[str, int]
    """The newest commit of each other node that this one has seen."""
    upto: int = 0
    digest: str = ""
    bye: bool = False


_decode: Final = msgspec.json.Decoder(_MeetingMessage).decode


class Meeting:
    """One node's part in a meeting.

    Args:
        store: where to meet.
        word: the same on all nodes: up to 40 letters, digits, `-` and `_`.
        seconds: for how long commits are written.
        timeout: seconds to wait for others before, and again for their reports afterwards.

    Raises:
        InvalidInput: the word has other characters.

    """

    def __init__(self, store: Store, word: str, *, seconds: float = SECONDS, timeout: float = TIMEOUT) -> None:
        if not _WORD.fullmatch(word):
            raise InvalidInput(f"--meet {word!r}: use up to 40 letters, digits, '-' and '_'")
        self._log = store.log(f"meet-{word}")
        self._seconds, self._timeout = seconds, timeout
        self._me = secrets.token_hex(6)
        self._entries: list[Entry] = []
        self._began = 0
        self._count = 0
        self._sent: dict[int, float] = {}
        self._mine: dict[int, bytes] = {}
        self._seen: dict[str, int] = {}
        self._reports: dict[str, tuple[int, str]] = {}
        self._left: set[str] = set()
        self._delays: list[float] = []

    def findings(self) -> Iterator[Finding]:
        """Take part, and report. Blocks until the others have reported, or do not come."""
        try:
            yield from self._meet()
        except StoreCorrupt as error:
            yield Finding("nothing lost", str(error), passed=False, cure=_CURE)

    def _meet(self) -> Iterator[Finding]:
        try:
            self._exchange(None)
        except StudyDeleted:  # a bucket keeps the end of a log
            cure = "take another word, the same on all nodes"
            yield Finding("meeting", "this word was used here before", passed=False, cure=cure)
            return
        self._began = len(self._entries)
        self._write()
        if not self._wait(lambda: bool(self._seen)):
            cure = "run the same command on another node at the same time, and make sure that both name the same store"
            detail = f"nobody else came within {self._timeout:.0f} s"
            yield Finding("meeting", detail, passed=False, cure=cure)
            return
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            self._write()
            time.sleep(_PAUSE)
        self._exchange(None)
        upto = len(self._entries)
        self._write(upto=upto, digest=self._sum(upto))
        everybody = self._wait(lambda: set(self._seen) <= set(self._reports))
        yield from self._judge(everybody=everybody)
        self._write(bye=True)
        if everybody and set(self._seen) <= self._left:
            self._log.erase()

    def _judge(self, *, everybody: bool) -> Iterator[Finding]:
        nodes = (
            f"{len(self._seen) + 1} nodes, {len(self._entries) - self._began} commits, {len(self._mine)} of this one"
        )
        cure = "check the other node, and run the test again"
        detail = nodes if everybody else f"{nodes}; another node did not report"
        yield Finding("meeting", detail, passed=everybody, cure=cure)
        there = {entry.lsn: entry.payload for entry in self._read_again()}
        lost = sum(there.get(lsn) != payload for lsn, payload in self._mine.items())
        twice = len(there) - len(set(there.values()))
        whole = not lost and not twice and list(there) == list(range(1, max(len(there), len(self._entries)) + 1))
        detail = "every commit is there, once" if whole else f"{lost} commits lost, {twice} duplicated"
        yield Finding("nothing lost", detail, passed=whole, cure=_CURE)
        differ = [node for node, (upto, digest) in self._reports.items() if self._sum(upto) != digest]
        detail = "another node read different commits from this one" if differ else "all nodes read the same commits"
        yield Finding("same log", detail, passed=not differ, cure=_CURE)
        if self._delays:
            ordered = sorted(self._delays)
            late = ordered[int(0.95 * (len(ordered) - 1))]
            detail = f"one node sees another's commit after {statistics.median(ordered):.2f} s, 95% within {late:.2f} s"
            yield Finding("delay", detail)

    def _read_again(self) -> Iterator[Entry]:
        """The log from its beginning, as the store has it now, up to the first missing commit."""
        since, more = 0, True
        with contextlib.suppress(StoreCorrupt):
            while more:
                receipt = self._retried(None, since)
                since, more = since + len(receipt.entries), receipt.more
                yield from receipt.entries

    def _write(self, **fields: Any) -> None:
        self._count += 1
        body = msgspec.json.encode(_MeetingMessage(self._me, self._count, self._seen, **fields))
        payload = zlib.crc32(body).to_bytes(4, "little") + body
        self._sent[self._count] = time.monotonic()
        self._exchange(Outgoing(f"{self._me}:{self._count}", payload))

    def _exchange(self, outgoing: Outgoing | None) -> None:
        """Exchange until the commit is among the entries and everything was read."""
        done, more = outgoing is None, True
        while not done or more:
            receipt = self._retried(outgoing, len(self._entries))
            for entry in receipt.entries:
                self._take(entry, outgoing)
            done = done or (outgoing is not None and receipt.holds(outgoing))
            more = receipt.more

    def _retried(self, outgoing: Outgoing | None, since: int) -> ExchangeResult:
        """One exchange, repeated while the store cannot be reached, for `timeout` seconds."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._log.exchange(outgoing, since)
            except StoreUnreachable:
                if time.monotonic() > deadline:
                    raise

    def _take(self, entry: Entry, outgoing: Outgoing | None) -> None:
        self._entries.append(entry)
        if outgoing is not None and entry.payload == outgoing.payload:
            self._mine[entry.lsn] = entry.payload
            return
        if entry.lsn <= self._began or not self._count:
            return  # of an earlier meeting
        try:
            message = _decode(entry.payload[4:])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        self._seen[message.who] = message.number
        if message.digest:
            self._reports[message.who] = (message.upto, message.digest)
        if message.bye:
            self._left.add(message.who)
        answered = message.seen.get(self._me)
        if answered in self._sent:
            self._delays.append((time.monotonic() - self._sent.pop(answered)) / 2)

    def _wait(self, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self._timeout
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK)
            self._exchange(None)
        return True

    def _sum(self, upto: int) -> str:
        """A digest of the first `upto` commits."""
        digest = hashlib.blake2b(digest_size=16)
        for entry in self._entries[:upto]:
            digest.update(entry.lsn.to_bytes(8, "little") + hashlib.blake2b(entry.payload).digest())
        return digest.hexdigest()
