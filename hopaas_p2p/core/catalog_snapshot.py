"""Catalog <-> bytes, for stores in which a commit is dear to read: where a bucket holds thousands of studies, nobody
reads one object for each that ever was.

Framed as a study's snapshot is; canonical, and no pickle. What `Catalog.apply` would refuse is refused here too.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.catalog import UUID, Catalog, Listing, flaw
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import LastCommit, Verdict

VERSION: Final = 1
_MAGIC: Final = b"hopaas-catalog\n"


class _Catalog(msgspec.Struct, array_like=True):
    version: int
    lsn: int
    ids: int
    listings: list[tuple[int, str, str]]
    gone: list[str]
    writers: dict[str, tuple[int, int, list[tuple[bool, int | None, str | None]]]]
    refusals: dict[str, int]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Catalog).decode


def dump(catalog: Catalog) -> bytes:
    """The snapshot of this catalog."""
    listings = [(one.study_id, one.uuid, one.name) for one in catalog.by_id.values()]
    gone = sorted(catalog.uuids - {one.uuid for one in catalog.by_id.values()})
    writers = {
        writer: (last.seq, last.lsn, [(v.accepted, v.number, v.refusal) for v in last.verdicts])
        for writer, last in catalog.writers.items()
    }
    body = _Catalog(VERSION, catalog.lsn, catalog.ids, listings, gone, writers, catalog.refusals)
    return snapshot.seal(_MAGIC, _encode(body))


def load(data: bytes) -> Catalog:
    """The catalog of a snapshot.

    Raises:
        CorruptSnapshot: damaged, or of a version this code does not read.

    """
    try:
        found = _decode(snapshot.unseal(_MAGIC, data))
    except msgspec.MsgspecError:
        raise CorruptSnapshot from None
    if found.version != VERSION:
        raise CorruptSnapshot
    catalog = Catalog()
    catalog.lsn, catalog.ids, catalog.refusals = found.lsn, found.ids, found.refusals
    catalog.writers = {
        writer: LastCommit(seq, lsn, tuple([Verdict(*verdict) for verdict in verdicts]))
        for writer, (seq, lsn, verdicts) in found.writers.items()
    }
    for listing in [Listing(*one) for one in found.listings]:
        catalog.by_id[listing.study_id] = catalog.by_name[listing.name] = listing
    catalog.uuids = {uuid for _, uuid, _ in found.listings}.union(found.gone)
    sound = (
        len(catalog.by_id) == len(catalog.by_name) == len(found.listings)
        and len(catalog.uuids) == len(found.listings) + len(found.gone) == found.ids
        and all(0 <= study_id < found.ids for study_id in catalog.by_id)
        and all(UUID.fullmatch(uuid) for uuid in catalog.uuids)
        and not any(flaw(name) for name in catalog.by_name)
    )
    if not sound:
        raise CorruptSnapshot
    return catalog
