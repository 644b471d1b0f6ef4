"""Packs: 256 commits in one regular file, so that no folder ever holds thousands of small files.

The commits of a range, lsns 1 to 256, 257 to 512 and so on, begin as single objects in a folder of that range. The
writer of the last commit also writes the pack; minutes later the whole folder is removed. So a range is always open (a
folder), packed (both) or closed (a pack). A reader that finds no folder looks for the pack, and a writer looks for the
pack before it creates a missing folder, so correctness does not depend on when a folder is removed.

A frame of a pack is a commit's length in 8 hex digits, a space, its bytes, and a newline. Bytes that were not a commit
when they were packed have an exclamation mark in place of the space; any other frame whose checksum fails is damaged.
"""

from __future__ import annotations

import re
from typing import Final

from hopaas_p2p.core import codec
from hopaas_p2p.stores.objects.contract import LARGEST
from hopaas_p2p.stores.objects.log import SPAN

_HEAD: Final = 9
LARGEST_PACK: Final = SPAN * (LARGEST + _HEAD + 1)  # bytes of a pack


def first_of(lsn: int) -> int:
    """The first lsn of this lsn's range."""
    return (lsn - 1) // SPAN * SPAN + 1


def frame(payload: bytes) -> bytes:
    """A commit in the form that a pack holds."""
    return b"%08x%b%b\n" % (len(payload), b" " if codec.intact(payload) else b"!", payload)


def frames(data: bytes, position: int = 0, *, sound: bool = True) -> tuple[list[bytes], int]:
    """The commits in these bytes up to the first incomplete (or, if `sound`, damaged) frame, and where that one
    begins.
    """
    found: list[bytes] = []
    while (end := _end(data, position, sound=sound)) is not None:
        found.append(data[position + _HEAD : end - 1])
        position = end
    return found, position


def salvaged(data: bytes) -> dict[int, bytes]:
    """Place -> bytes of the frames before the first gap in a pack and after the last, whose places count from its end.

    The bytes may be damaged, because only the frames' lengths are checked.
    """
    first, position = frames(data, sound=False)
    last: list[bytes] = []
    while position < len(data):
        starts = (position + match.start() + 1 for match in re.finditer(rb"(?=\n[0-9a-f]{8}[ !])", data[position:]))
        following = next((start for start in starts if _end(data, start) is not None), None)
        if following is None:
            return dict(enumerate(first))
        last, position = frames(data, following, sound=False)
    return dict(enumerate(first)) | dict(enumerate(last, SPAN - len(last)))


def _end(data: bytes, position: int, *, sound: bool = True) -> int | None:
    """Where the frame at `position` ends, if it is complete and, with `sound`, its checksum matches."""
    head = data[position : position + _HEAD]
    if len(head) < _HEAD or head[8:] not in (b" ", b"!"):
        return None
    try:
        end = position + _HEAD + int(head[:8], 16) + 1
    except ValueError:
        return None
    if end > len(data) or data[end - 1 : end] != b"\n":
        return None
    return end if not sound or head[8:] == b"!" or codec.intact(data[position + _HEAD : end - 1]) else None
