"""Packs: 256 commits in one ordinary file, so that no folder ever holds thousands of small ones.

The commits of a range, lsns 1 to 256, 257 to 512 and so on, begin as single objects in a folder of that range. The
writer of the last one also writes the pack; minutes later the folder is removed as a whole. So a range is open (a
folder), packed (both) or closed (a pack), and never anything else: a reader whose folder is gone looks for the pack,
and a writer that would have to make a folder anew looks for the pack first. No clock decides about that.

A frame of a pack is a commit's length in 8 hex digits, a space, its bytes, and a newline. Bytes that were no commit
when they were packed have an exclamation mark in place of the space; any other frame whose checksum fails is damage.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Final

from hopaas_p2p.core import codec
from hopaas_p2p.errors import StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.base import SNAPSHOT_EVERY
from hopaas_p2p.stores.objects.contract import Folders, NoFolder, lsn_of

SPAN: Final = SNAPSHOT_EVERY  # the commits after a snapshot begin with a range of their own
TIDY_EVERY: Final = 64  # commits between two looks for folders that may go
_KEPT: Final = 300.0  # seconds for which a folder stays beside its pack, by the file system's clock
_HEAD: Final = 9
LARGEST: Final = codec.MAX_BYTES + (64 << 10)  # bytes of an object: the largest commit, in the frame of a bridge
LARGEST_PACK: Final = SPAN * (LARGEST + _HEAD + 1)  # bytes of a pack
_REMEMBERED: Final = 8 << 20  # bytes of commits kept in memory for the pack; beyond, they are read again


def first_of(lsn: int) -> int:
    """The lsn with which the range of this one begins."""
    return (lsn - 1) // SPAN * SPAN + 1


class Packs:
    """The packs of one log, and the folders that they replace.

    Args:
        objects: where they are.
        root: the log's, ending with a slash.

    """

    def __init__(self, objects: Folders, root: str) -> None:
        self._objects = objects
        self._root = root
        self._writes = False
        self._recent: list[bytes] = []
        self._size = 0
        self._begin = 0

    def key(self, lsn: int) -> str:
        """Where a commit is while its range is open."""
        return f"{self._root}commits/{(lsn - 1) // SPAN * SPAN + 1:020d}/{lsn:020d}"

    def pack(self, lsn: int) -> str:
        """Where the pack is that holds this lsn, if there is one."""
        return f"{self._root}packs/{first_of(lsn):020d}"

    # --- reading ---

    def after(self, since: int) -> Iterator[bytes]:
        """The commits after `since` that are in packs, as far as these go without a gap."""
        while frames := self._frames(since + 1):
            yield from frames
            since += len(frames)

    def _frames(self, lsn: int) -> list[bytes]:
        """The commits of this lsn's range in its pack, beginning with it."""
        key = self.pack(lsn)
        with contextlib.suppress(NoFolder):
            found = self._objects.get(key, limit=LARGEST_PACK)
            if found is not None:
                payloads, end = frames(found.data)
                if len(payloads) < SPAN:
                    raise StoreCorrupt(
                        f"{key} is damaged after byte {end}. Nothing was changed: restore the file from a backup, or "
                        "copy what can be read into a new study: hopaas-p2p doctor STORE --rescue"
                    )
                return payloads[lsn - first_of(lsn) :]
        return []

    def ranges(self) -> set[int]:
        """The first lsn of every pack."""
        keys = self._objects.listed(f"{self._root}packs/")
        return {first for key in keys if (first := lsn_of(key)) is not None}

    def salvage(self, first: int) -> dict[int, bytes]:
        """The commits in the packs that begin with this lsn, as far as their own is certain, damaged ones included."""
        with contextlib.suppress(NoFolder):
            found = self._objects.get(self.pack(first), limit=LARGEST_PACK)
            if found is not None:
                return {first + place: payload for place, payload in _salvaged(found.data).items()}
        return {}

    def holds(self, lsn: int) -> bool:
        """Whether there is a pack for this lsn's range."""
        try:
            return self._objects.get(self.pack(lsn), limit=0) is not None
        except NoFolder:
            return False

    # --- writing ---

    def saw(self, lsn: int, payload: bytes) -> None:
        """A commit was read or written; a process that writes remembers those of the present range for its pack."""
        if not self._writes:
            return
        if lsn % SPAN == 1:
            self._begin, self._size = lsn, 0
            self._recent.clear()
        if lsn == self._begin + len(self._recent) and self._size < _REMEMBERED:
            self._recent.append(payload)
            self._size += len(payload)

    def wrote(self, lsn: int, payload: bytes, unless: Sequence[str]) -> None:
        """This process appended that commit.

        Packs its range if it was the last one, and makes the folder of the next unless there is an object of a key in
        `unless`: where not even a folder exists, a look for the next commit takes many calls. Sometimes tidies up.
        """
        self._writes = True
        self.saw(lsn, payload)
        if lsn % TIDY_EVERY:
            return
        with contextlib.suppress(StoreUnreachable):  # the next writer does it
            if lsn % SPAN == 0:
                self._write(first_of(lsn))
                self._objects.make_folder(self.key(lsn + 1).rpartition("/")[0], (self.pack(lsn + 1), *unless))
            self._tidy(lsn)

    def _write(self, first: int) -> None:
        payloads = self._recent if self._begin == first else []
        if len(payloads) < SPAN:
            keys = [self.key(lsn) for lsn in range(first, first + SPAN)]
            found = self._objects.get_run(keys, limit=LARGEST)
            payloads = [one.data for one in found if one is not None and not isinstance(one, StoreUnreachable)]
        if len(payloads) == SPAN:
            self._objects.put_same(self.pack(first), b"".join(map(frame, payloads)))

    def _tidy(self, lsn: int) -> None:
        """Remove folders whose packs are some minutes old; pack those that nobody has packed."""
        firsts = map(lsn_of, self._objects.folders(f"{self._root}commits/"))
        older = [first for first in firsts if first is not None and first < first_of(lsn)]
        now = self._objects.modified(self.key(lsn)) if older else None
        for first in older:
            packed = self._objects.modified(self.pack(first))
            if packed is None:
                with contextlib.suppress(NoFolder):
                    self._write(first)
            elif now is not None and now - packed >= _KEPT:
                self._objects.remove_folder(f"{self._root}commits/{first:020d}")

    def remove(self) -> None:
        """Remove everything that the log held."""
        for folder in ("commits", "packs"):
            self._objects.remove_folder(f"{self._root}{folder}")

    def erase(self) -> None:
        """Remove the log's folder."""
        self._objects.remove_folder(self._root.rstrip("/"))


def frame(payload: bytes) -> bytes:
    """A commit as it stands in a pack."""
    return b"%08x%b%b\n" % (len(payload), b" " if codec.intact(payload) else b"!", payload)


def frames(data: bytes) -> tuple[list[bytes], int]:
    """The commits in these bytes, up to the first that is not whole and sound, and where that one begins."""
    found: list[bytes] = []
    position = 0
    while (end := _frame_end(data, position)) is not None:
        found.append(data[position + _HEAD : end - 1])
        position = end
    return found, position


def _salvaged(data: bytes) -> dict[int, bytes]:
    """Place -> bytes of the frames in a damaged pack: from its beginning, and back from its end."""
    runs: list[list[bytes]] = [[]]
    position = 0
    while position < len(data):
        end = _length(data, position)
        if end is not None:
            runs[-1].append(data[position + _HEAD : end - 1])
            position = end
            continue
        starts = (position + match.start() + 1 for match in re.finditer(rb"(?=\n[0-9a-f]{8}[ !])", data[position:]))
        following = next((start for start in starts if _frame_end(data, start) is not None), None)
        if following is None:
            break
        runs.append([])
        position = following
    found = dict(enumerate(runs[0]))
    if len(runs) > 1 and position == len(data):
        found |= dict(enumerate(runs[-1], SPAN - len(runs[-1])))
    return found


def _length(data: bytes, position: int) -> int | None:
    """Where the frame at `position` ends, if all of it is there."""
    head = data[position : position + _HEAD]
    if len(head) < _HEAD or head[8:] not in (b" ", b"!"):
        return None
    try:
        end = position + _HEAD + int(head[:8], 16) + 1
    except ValueError:
        return None
    return end if end <= len(data) and data[end - 1 : end] == b"\n" else None


def _frame_end(data: bytes, position: int) -> int | None:
    """The same, if its checksum holds."""
    end = _length(data, position)
    if end is None or data[position + 8 : position + _HEAD] == b"!":
        return end
    return end if codec.intact(data[position + _HEAD : end - 1]) else None
