"""The checks of `hopaas-p2p doctor`: first those of the store's own package, then those that every store must pass.

A store's package may have a module `checks`. Its `way(store)`, if defined, yields findings about the route to the
server and returns whether the server was reached; if not, no further check is made. Its `checks(store)` come next, and
then the common checks.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import secrets
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from hopaas_p2p.core import catalog as catalogs
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import FORMAT, Commit, StudyDefine
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import GUEST, MOUNTED_READ_ONLY, BrokenChain, Denied, HopaasError, StoreCorrupt
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.stores.base import Beat, Log, Outgoing, Store, read_all

_EXCHANGES: Final = 5
_READ_ONLY: Final = "read access is not enough to take part; ask an owner for a grant, or for a key that may write"
_NO_PERMISSION: Final = "read access is not enough to take part; ask the directory's owner for write permission"
_CURES: Final[dict[int | None, str]] = {
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: MOUNTED_READ_ONLY,
}
"""Number of a system error -> what to do."""
_SLOW: Final = 5.0  # seconds per exchange that users would notice in ask and tell


def examine(store: Store) -> Iterator[Finding]:
    """All findings about an open store. Writes a scratch log, and removes it if this user may.

    Ends after the first check that finds the server unreachable, so that the failure is reported once.
    """
    for name, check in (("way", _own(store, "way")), ("store", _own(store, "checks")), ("reach", _reach)):
        if check is not None and not (yield from _guarded(name, check, store)):
            return
    yield from _guarded("write and read", _write_and_read, store)
    yield from _guarded("beat", _beat, store)
    yield from _guarded("studies", _studies, store)


def way_to(store: Store) -> Generator[Finding, None, bool]:
    """The findings about the route to a store, from a cheap check; returns whether the store was reached."""
    return (yield from _guarded("way", _own(store, "way") or _reach, store))


Check = Callable[[Any], Any]
"""Store -> an iterator of findings, which returns False if no further check should be made."""


def _own(store: Store, part: str) -> Check | None:
    """The check of that name for this kind of store, if there is one."""
    with contextlib.suppress(ModuleNotFoundError):
        module = importlib.import_module(f"{type(store).__module__.rpartition('.')[0]}.checks")
        return getattr(module, part, None)
    return None


def _guarded(name: str, check: Check, store: Store) -> Generator[Finding, None, bool]:
    """The findings of a check, or its failure as a finding; returns whether it finished without returning False."""
    goes_on = True
    try:
        return (yield from check(store)) is not False
    except HopaasError as error:
        number = getattr(error.__cause__, "errno", None)
        said, cure = str(error), "try again when the store can be reached" if error.retry else AGAIN
        if isinstance(error, Denied):
            cure = _READ_ONLY
        elif isinstance(error, BrokenChain | StoreCorrupt):
            cure = "copy the readable part into a new study: hopaas-p2p doctor STORE --rescue"
        cure, goes_on = _CURES.get(number, cure), number in _CURES
    except OSError as error:  # a file system's error; the other checks may reveal more
        where = error.filename2 or error.filename  # for a link, its name and not its text
        said, cure = f"{where}: {error.strerror}" if where else str(error), _CURES.get(error.errno, AGAIN)
    except Exception as error:  # noqa: BLE001  # an error in one check must not keep the others from running
        said, cure = f"{type(error).__name__}: {error}", "please report this, with the output of --debug"
    yield Finding(name, said, passed=False, cure=cure)
    return goes_on


def _reach(store: Store) -> Iterator[Finding]:
    began = time.monotonic()
    count = sum(1 for _ in read_all(store.catalog()))
    taken = time.monotonic() - began
    yield Finding("reach", f"{store.url} answers in {taken * 1000:.0f} ms; {count} catalog commits")


def _write_and_read(store: Store) -> Iterator[Finding]:
    log = store.log(f"doctor-{secrets.token_hex(12)}")
    writer = secrets.token_urlsafe(12)
    seconds, left = [], ""
    try:
        for seq in range(1, _EXCHANGES + 1):
            record = StudyDefine("doctor", ("minimize",))
            payload = codec.encode(Commit(writer, seq, writer, time.time_ns() // 1000, (record,)))
            began = time.monotonic()
            log.exchange(Outgoing(f"{writer}:{seq}", payload), seq - 1)
            seconds.append(time.monotonic() - began)
        there = [entry.lsn for entry in read_all(log)]
    except Denied as error:
        if GUEST not in str(error):
            raise
        yield Finding("write and read", "not tested: this user is a guest, who may write only to one study")
        return
    finally:
        try:
            log.erase()
        except Denied:  # a worker's key may add objects, but not remove them
            left = "; the test log stays, because this user may not remove it"
    if there != list(range(1, _EXCHANGES + 1)):
        yield Finding("write and read", f"wrote 5 commits, read {there}", passed=False, cure="use another store")
        return
    yield Finding("write and read", f"{_EXCHANGES} commits written and read back" + (left or ", and removed"))
    median = statistics.median(seconds)
    detail = f"median {median * 1000:.1f} ms, maximum {max(seconds) * 1000:.1f} ms"
    cure = "every ask and tell takes that long; use a closer store"
    yield Finding("exchange", detail, passed=median < _SLOW, cure=cure)


def _beat(store: Store) -> Iterator[Finding]:
    peer, value = secrets.token_urlsafe(12), secrets.token_hex(8)
    store.beat(Beat(peer, value))
    found = store.beats([peer]).get(peer, "")
    store.beat(Beat(peer, "gone"))
    seen = found.startswith(value)  # a server adds the peer's user
    detail = "a heartbeat is seen" if seen else f"read {found!r}"
    yield Finding("beat", detail, passed=seen, cure="peers would consider each other dead; use another store")


def _studies(store: Store) -> Iterator[Finding]:
    catalog, log = Catalog(), store.catalog()
    found = log.newest_snapshot() if log.rate_limited else None
    for entry in read_all(log):
        before = catalog.sum if entry.before is None else entry.before
        catalog.replay([entry])
        catalog.sum = None if before is None else following(before, entry.payload)
        if found is not None and entry.lsn == found[0]:
            yield _snapshot("studies, snapshot", found, same=catalogs.dump(catalog) == found[1])
    if not catalog.by_name:
        yield Finding("studies", f"none yet; log format {FORMAT}")
    for listing in catalog.by_name.values():
        name = f"study {listing.name}"
        yield from _guarded(name, functools.partial(_study, uuid=listing.uuid, name=name), store)


def _study(store: Store, *, uuid: str, name: str) -> Iterator[Finding]:
    """Replay the whole log; the newest snapshot must hold the same state as the commits up to it."""
    log = store.log(uuid)
    state, unreadable, replayed = State(), 0, None
    forks = []
    newest: dict[tuple[str, str], tuple[int, bytes]] = {}
    twins: set[str] = set()
    try:
        found = log.newest_snapshot()
        for entry in read_all(log):
            before = state.sum if entry.before is None else entry.before
            if state.sum not in (None, before):  # its writer had read other commits
                forks.append(str(entry.lsn))
            commit = codec.decode(entry.payload)
            if isinstance(commit, codec.Garbage):
                unreadable += 1
            else:
                seq, payload = newest.get((commit.writer, entry.stamp.author), (0, b""))
                if commit.seq == seq and payload != entry.payload:
                    twins.add(commit.writer)
                newest[commit.writer, entry.stamp.author] = commit.seq, entry.payload
            apply(state, entry.lsn, commit, entry.stamp)
            state.sum = None if before is None else following(before, entry.payload)
            if found is not None and entry.lsn == found[0]:
                replayed = snapshot.digest(state)
    except Denied:
        yield Finding(name, "not shared with this user")
        return
    refused = ", ".join(f"{count} {why}" for why, count in state.refusals.items()) or "none"
    detail = f"commits: {state.lsn}, trials: {len(state.trials)}, refused records: {refused}"
    cure = "some bytes in the log are not commits; they are skipped, and nothing is lost"
    yield Finding(name, detail, passed=not unreadable, cure=cure)
    if forks:
        detail = f"the log has two histories: commit {', '.join(forks)} does not follow those before it"
        cure = "a backup was restored under running peers, or the store accepted two commits under one number"
        yield Finding(f"{name}, history", detail, passed=False, cure=cure)
    if twins:
        detail = f"two processes wrote as {', '.join(sorted(twins))}, and disagree"
        cure = "perhaps a machine's image was started twice; if not, a user of this store wrote under another's name"
        yield Finding(f"{name}, names", detail, passed=False, cure=cure)
    yield from _snapshots(f"{name}, snapshot", log, found, replayed)


def _snapshots(name: str, log: Log, found: tuple[int, bytes] | None, replayed: str | None) -> Iterator[Finding]:
    """The findings about the newest snapshot, and about those that other users' peers found to differ from the log."""
    if found is not None:
        try:
            yield _snapshot(name, found, same=snapshot.digest(snapshot.load(found[1])) == replayed)
        except snapshot.CorruptSnapshot:
            cure = "peers skip it; joining takes longer until the next snapshot is written"
            yield Finding(name, f"the snapshot at commit {found[0]} cannot be read", passed=False, cure=cure)
    for lsn, author, deniers in log.denied_snapshots():
        detail = f"the snapshot of {author} at commit {lsn} differs from the replay of {', '.join(deniers)}"
        cure = f"no peer uses it; if {author} has no explanation, revoke that user's grant"
        yield Finding(name, detail, passed=False, cure=cure)


def _snapshot(name: str, found: tuple[int, bytes], *, same: bool) -> Finding:
    lsn, data = found
    cure = "delete this snapshot; peers that join from it see a different state from those that replay the log"
    detail = f"at commit {lsn}, {len(data):,} bytes, " + ("equal to replay" if same else "differs from replay")
    return Finding(name, detail, passed=same, cure=cure)
