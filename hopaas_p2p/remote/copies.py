"""Copies of logs, from which a server of a folder answers when the store itself does not.

A copy is a cache: one file per log, with one entry after another, each preceded by its length and checksum. An entry
that is damaged, or does not follow the one before it, is dropped with all later ones, and read again from the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from hopaas_p2p.core.codec import following
from hopaas_p2p.errors import BehindRetention, StoreUnreachable
from hopaas_p2p.runtime.atomic import locked, state_folder
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.stores.base import Entry, ExchangeResult

_HEAD: Final = 8  # bytes before each entry
_AT_ONCE: Final = 8 << 20  # bytes that one exchange returns
_MOST: Final = 16  # servers of one box on one machine

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Entry).decode


@contextlib.contextmanager
def folder_of_copies(box: str) -> Iterator[Path]:
    """A folder for the copies of a server of this box, exclusive to this process, and kept for the next server.

    If no such folder is free or can be created, it is a temporary one.
    """
    name = hashlib.blake2b(box.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    with contextlib.ExitStack() as stack:
        for number in range(_MOST):
            with contextlib.suppress(OSError, RuntimeError):
                folder = stack.enter_context(own_folder(state_folder(), "boxes", name, str(number)))
                stack.enter_context(locked(folder / ".lock", patience=0.0))
                break
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hopaas-")))
        yield folder


class Copy:
    """Commits `base + 1` to `head` of one log, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._ends = array("Q", [0])
        """The offsets at which the entries end in the file; the first number is where they begin."""
        self.base = self.head = 0
        self._sum: int | None = None
        """The sum of the log up to `head`."""
        for entry, end in _entries(file.read_bytes() if file.exists() else b""):
            if self.head != self.base and entry.lsn != self.head + 1:
                break
            self._follow(entry, end)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(file, self._ends[-1])
        self.begun = self.head > 0
        """Whether this server, or an earlier one, has read this log from the store."""

    def _follow(self, entry: Entry, end: int) -> None:
        if self.head == self.base:
            self.base = entry.lsn - 1
        self.head = entry.lsn
        self._sum = None if entry.before is None else following(entry.before, entry.payload)
        self._ends.append(end)

    def after(self, since: int) -> ExchangeResult:
        """The commits after `since`, in the form of an exchange.

        Raises:
            BehindRetention: the copy begins later.
            StoreUnreachable: the file is damaged; the copy is emptied, and will be read again.

        """
        if since < self.base:
            raise BehindRetention
        if since >= self.head:
            return ExchangeResult([])
        begin = since - self.base
        first = self._ends[begin]
        last = max(bisect_right(self._ends, first + _AT_ONCE) - 1, begin + 1)
        with self.file.open("rb") as file:
            file.seek(first)
            entries = [entry for entry, _ in _entries(file.read(self._ends[last] - first))]
        if not entries:
            self.drop()
            raise StoreUnreachable(f"{self.file} is damaged, and will be rebuilt")
        return ExchangeResult(entries, more=since + len(entries) < self.head)

    def keep(self, entries: Iterable[Entry]) -> bool:
        """Add the commits that continue the copy. If they belong to another history, drop the copy and return False.

        Raises:
            OSError: the file cannot be written, such as on a full disk.

        """
        new = [entry for entry in entries if entry.lsn > self.head]
        if not new or (self.head and new[0].lsn != self.head + 1):
            return True
        if self._sum is not None and new[0].before not in (None, self._sum):
            self.drop()
            return False
        with self.file.open("ab") as file:
            for entry in new:
                body = _encode(entry)
                file.write(len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body)
                self._follow(entry, self._ends[-1] + _HEAD + len(body))
        return True

    def drop(self, base: int = 0) -> None:
        """Empty the copy, which then begins after the commit `base`."""
        self.file.unlink(missing_ok=True)
        self._ends, self.base, self.head, self._sum, self.begun = array("Q", [0]), base, base, None, False


def _entries(data: bytes) -> Iterator[tuple[Entry, int]]:
    """The entries in these bytes up to the first incomplete or damaged one, and where each ends."""
    position = 0
    while position + _HEAD <= len(data):
        end = position + _HEAD + int.from_bytes(data[position : position + 4], "big")
        body = data[position + _HEAD : end]
        if end > len(data) or zlib.crc32(body) != int.from_bytes(data[position + 4 : position + 8], "big"):
            return
        try:
            entry = _decode(body)
        except msgspec.MsgspecError:
            return
        yield entry, end
        position = end
