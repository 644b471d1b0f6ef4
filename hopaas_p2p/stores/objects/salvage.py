"""What is left of a log, damaged or not: each commit from wherever it can be had, in order, a few at a time.

In a directory a range of commits lies in a pack, in single files, or in both. In a bucket a commit lies in its own
object, and a copy of it perhaps in one of the next 32. So no more than one range, or 48 lsns, is held at a time.

Where a store has two different commits of one lsn, because it took the second over the first, both are left: first the
one that readers of the log get, then the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from hopaas_p2p.core import chain, codec
from hopaas_p2p.errors import BrokenChain, StoreUnreachable
from hopaas_p2p.stores.objects.carried import MOST, Carrier, Opened
from hopaas_p2p.stores.objects.contract import Found, NoFolder, ObjectStore, lsn_of
from hopaas_p2p.stores.objects.packs import Packs, first_of

_AT_ONCE: Final = 16  # objects that are read together
_PAGE: Final = 1000  # keys that one listing shows


def from_directory(objects: ObjectStore, root: str, packs: Packs, *, limit: int) -> Iterator[tuple[int, bytes]]:
    """Each lsn of which there is something, and what there is; several times where that is not the same everywhere."""
    singles: dict[int, list[tuple[int, str]]] = {}
    for key in objects.listed(f"{root}commits/"):
        lsn = lsn_of(key)
        if lsn is not None:
            singles.setdefault(first_of(lsn), []).append((lsn, key))
    for first in sorted({*packs.ranges(), *singles}):
        found = {lsn: [data] for lsn, data in packs.salvage(first).items()}
        for lsn, key in singles.get(first, ()):
            with contextlib.suppress(NoFolder):
                one = objects.get(key, limit=limit)
                if one is not None:
                    _add(found.setdefault(lsn, []), one.data)
        for lsn in sorted(found):
            yield from ((lsn, data) for data in found[lsn])


def from_bucket(
    objects: ObjectStore, root: str, opened: Callable[[bytes], Opened], *, limit: int
) -> Iterator[tuple[int, bytes]]:
    """As `from_directory`. A commit whose own object is gone or damaged comes from one that carries a copy of it."""
    held: dict[int, list[bytes]] = {}
    for lsn, data in _objects(objects, f"{root}log/", limit):
        there = opened(data)
        _add(held.setdefault(lsn, []), there.stored)
        with contextlib.suppress(BrokenChain):
            for place, payload, before in Carrier().copies(lsn, there):
                _add(held.setdefault(place, []), chain.attach(payload, before))
        for one in sorted(held):
            if one > lsn - MOST:  # the next object may still carry it
                break
            yield from ((one, data) for data in held.pop(one))
    for one in sorted(held):
        yield from ((one, data) for data in held[one])


def _add(there: list[bytes], data: bytes) -> None:
    """Add a commit to those of its lsn, unless it is among them; what is not intact stays only while it is alone."""
    if there and not codec.intact(there[0]):
        there[:] = [data]
    elif not there or (codec.intact(data) and not any(_same(data, one) for one in there)):
        there.append(data)


def _same(stored: bytes, other: bytes) -> bool:
    """Whether both are the same commit, as far as is known behind the same ones."""
    (payload, before), (there, known) = chain.detach(stored), chain.detach(other)
    return payload == there and (before == known or before is None or known is None)


def _objects(objects: ObjectStore, folder: str, limit: int) -> Iterator[tuple[int, bytes]]:
    """The objects of lsns in this folder, in order."""
    for keys in _listed(objects, folder):
        named = [(lsn, key) for key in keys if (lsn := lsn_of(key)) is not None]
        for place in range(0, len(named), _AT_ONCE):
            batch = named[place : place + _AT_ONCE]
            found = objects.get_many([key for _, key in batch], limit=limit)
            for (lsn, _), one in zip(batch, found, strict=True):
                if isinstance(one, StoreUnreachable):
                    raise one
                if isinstance(one, Found):
                    yield lsn, one.data


def _listed(objects: ObjectStore, folder: str) -> Iterable[list[str]]:
    last = ""
    while keys := objects.listed(folder, after=last, at_most=_PAGE):
        yield keys
        last = keys[-1]
