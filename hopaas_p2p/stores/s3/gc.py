"""Cleans up a bucket: removes commits that a snapshot replaces, and the remains of deleted studies.

A clean-up is optional, and never runs by itself; without it, a study can be replayed from its first commit forever. The
order of the steps makes it safe. The boundary is advanced before objects are removed, and a peer that slept checks the
boundary before it accepts a free key as the end of the log. Only objects that the server has held for a day, by its own
clock, are removed, because a peer that was awake has read them.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.catalog import RESERVED, Catalog
from hopaas_p2p.errors import Denied, InvalidInput, StoreCorrupt
from hopaas_p2p.net.backoff import persistently
from hopaas_p2p.stores.base import read_all
from hopaas_p2p.stores.objects.contract import NotRemoved, lsn_of, numbered
from hopaas_p2p.stores.objects.log import DELETED, TOMBSTONE
from hopaas_p2p.stores.s3.bucket import Listed
from hopaas_p2p.stores.s3.store import S3Store

DAY: Final = 86400.0
_AT_ONCE: Final = 1000
"""The number of objects whose removal is repeated if a request for one of them is lost."""
_BEATS: Final = 40 * DAY  # the longest silence that a peer may request is 30 days


class Removal(NamedTuple):
    """Some objects that were removed or, in a dry run, can be."""

    what: str
    study: str
    """The study's name, or its uuid if it no longer has a name."""
    objects: int
    size: int
    """Bytes."""


_Removing = Generator[Removal, None, dict[str, Denied]]


def collect(store: S3Store, *, keep: float = DAY, dry_run: bool = False) -> Iterator[Removal]:
    """Remove objects that are no longer needed; yield what was removed, log by log.

    Args:
        store: the store.
        keep: seconds for which everything is kept, by the server's clock; at least a day.
        dry_run: only report.

    Raises:
        InvalidInput: `keep` is less than a day.
        StoreCorrupt: the list of studies is incomplete, so nothing can be considered deleted.
        NotRemoved: some objects may not be removed. All others were removed, except those of a deleted study some of
            whose files stay.

    """
    if not keep >= DAY:  # with NaN, too, everything would be older
        raise InvalidInput(f"keep commits for at least a day, got {keep / 3600:.1f} hours: peers may be suspended")
    yield from _collect(store, keep, dry_run=dry_run)


def _collect(store: S3Store, keep: float, *, dry_run: bool) -> Iterator[Removal]:
    catalog = _catalog(store)
    now = store.objects.server_now()
    assert now is not None  # it has just answered
    names = {listing.uuid: listing.name for listing in catalog.by_id.values()}
    uuids = [uuid for uuid in store.objects.folders("study/") if uuid not in RESERVED]
    if uuids and not catalog.lsn:
        raise StoreCorrupt("nothing was removed: there are studies, but their list is empty; restore it from a backup")
    stay: dict[str, Denied] = {}
    for uuid in uuids:
        try:
            if uuid in names:
                stay |= yield from _compact(store, uuid, names[uuid], now - keep, dry_run=dry_run)
            else:
                stay |= yield from _clear(store, uuid, now - keep, dry_run=dry_run)
        except Denied as error:
            stay[uuid] = error
    old = [one for one in store.objects.details("beats/") if one.modified < now - max(keep, _BEATS)]
    stay |= yield from _remove(store, "heartbeats of peers that ended long ago", "", old, dry_run=dry_run)
    if stay:
        raise NotRemoved.of(stay)


def _catalog(store: S3Store) -> Catalog:
    store.prove()
    there = [lsn_of(key) or 0 for key in store.objects.listed("studies/log/")]
    catalog = Catalog()
    catalog.replay(read_all(store.catalog()))
    if max(there, default=0) > catalog.lsn:  # peers take this for the end, but here, studies would be removed
        raise StoreCorrupt(
            f"the list of studies has no commit {catalog.lsn + 1}, but has later ones, so studies after it would count "
            "as deleted; nothing was removed. Restore it from a backup, or run: hopaas-p2p doctor URL"
        )
    return catalog


def _compact(store: S3Store, uuid: str, name: str, before: float, *, dry_run: bool) -> _Removing:
    """Remove commits that all snapshots contain, if the newest of these can be read."""
    root = f"study/{uuid}/"
    snapshots = [lsn for lsn, _ in numbered(store.objects.listed(f"{root}snapshot/"))]
    try:
        found = store.log(uuid).newest_snapshot() if snapshots else None
        if found is None or snapshot.load(found[1]).lsn != found[0]:
            return {}
    except snapshot.CorruptSnapshot:
        return {}
    oldest = min(snapshots)
    old: list[Listed] = []
    last = 0
    for one in store.objects.details(f"{root}log/"):
        lsn = lsn_of(one.key)
        if lsn is None:
            continue  # not one of ours
        if lsn > oldest or one.modified >= before:
            break
        old.append(one)
        last = lsn
    if old and not dry_run:
        boundary = f"{root}boundary/{last:020d}"
        store.objects.put_new(boundary, b"commits up to this one were removed\n")
        store.objects.delete([key for key in store.objects.listed(f"{root}boundary/") if key < boundary])
    return (yield from _remove(store, "commits that snapshots contain", name, old, dry_run=dry_run))


def _clear(store: S3Store, uuid: str, before: float, *, dry_run: bool) -> _Removing:
    """Remove a study that is not listed, because it was deleted or never completely created. A marker stays."""
    root = f"study/{uuid}/"
    marker = f"{root}boundary/{DELETED}"
    found = [one for one in store.objects.details(root) if one.key != marker]
    if not found or max(one.modified for one in found) >= before:
        return {}
    if not dry_run:
        store.objects.put(marker, TOMBSTONE)
    files = store.objects.details(f"artifacts/{uuid}/")  # first, so that the rest is found after an interruption
    stay = yield from _remove(store, "files of a deleted study", uuid, files, dry_run=dry_run)
    return stay or (yield from _remove(store, "a deleted study", uuid, found, dry_run=dry_run))


def _remove(store: S3Store, what: str, study: str, found: list[Listed], *, dry_run: bool) -> _Removing:
    """Remove these objects, and report that; returns those that may not be removed, and why."""
    stay: dict[str, Denied] = {}
    for at in range(0, 0 if dry_run else len(found), _AT_ONCE):  # one of many requests may be lost
        keys = [one.key for one in found[at : at + _AT_ONCE]]
        try:
            persistently(functools.partial(store.objects.delete, keys))
        except NotRemoved as error:
            stay |= error.stay
    gone = [one for one in found if one.key not in stay]
    if gone:
        yield Removal(what, study, len(gone), sum(one.size for one in gone))
    return stay
