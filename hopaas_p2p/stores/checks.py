"""What `hopaas-p2p doctor` looks at: checks that every store must pass, and where a store's own ones are found.

A store of a package `stores.x` may have a module `stores.x.checks`. Its `way(store)`, if there is one, yields findings
about the way to the server and returns whether it leads there; if not, nothing else is tried. Its `checks(store)` come
next, then the common ones.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import secrets
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from hopaas_p2p.core import catalog_snapshot, codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.records import FORMAT, Commit, Stamp, StudyDefine
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import Denied, HopaasError
from hopaas_p2p.stores.base import Beat, Crowded, Entry, Log, Outgoing, Store
from hopaas_p2p.stores.findings import AGAIN, Finding

_EXCHANGES: Final = 5
_SLOW: Final = 5.0  # seconds for an exchange: ask and tell would be felt


def examine(store: Store) -> Iterator[Finding]:
    """All findings about a store that could be opened. Writes a scratch log, and removes it.

    What cannot be reached is said once: after a way that leads nowhere, or a store that does not answer, it ends.
    """
    own = _own_checks(store)
    for name, check in own.items():
        if not (yield from _guarded(name, check, store)):
            return
    if not (yield from _guarded("reach", _reach, store)):
        return
    yield from _guarded("write and read", _write_and_read, store)
    yield from _guarded("beat", _beat, store)
    yield from _guarded("studies", _studies, store)


Check = Callable[[Any], Any]
"""Store -> an iterator of findings, which may return False: nothing else needs to be tried."""


def _own_checks(store: Store) -> dict[str, Check]:
    """What this kind of store is to be looked at for, in order."""
    package, _, where = type(store).__module__.rpartition(".")
    if where != "store" or importlib.util.find_spec(f"{package}.checks") is None:
        return {}
    module = importlib.import_module(f"{package}.checks")
    parts = {"way": "way", "store": "checks"}
    return {shown: getattr(module, part) for shown, part in parts.items() if hasattr(module, part)}


def _guarded(name: str, check: Check, store: Store) -> Generator[Finding, None, bool]:
    """The findings of a check, its own failure being one; returns whether it came to its end, and did not say False."""
    try:
        return (yield from check(store)) is not False
    except Denied as error:
        cure = "who may only look cannot take part; ask an owner for a grant, or for a key that may write"
        yield Finding(name, passed=False, detail=str(error), cure=cure)
    except HopaasError as error:
        cure = "try again when the store can be reached" if error.retry else AGAIN
        yield Finding(name, passed=False, detail=str(error), cure=cure)
    except Exception as error:  # noqa: BLE001  # a doctor that stumbles says so and goes on
        detail = f"{type(error).__name__}: {error}"
        yield Finding(name, passed=False, detail=detail, cure="please report this, with the output of --debug")
        return True
    return False


def _reach(store: Store) -> Iterator[Finding]:
    began = time.monotonic()
    count = sum(1 for _ in _entries(store.catalog()))
    taken = time.monotonic() - began
    yield Finding("reach", passed=True, detail=f"{store.url} answers in {taken * 1000:.0f} ms; {count} catalog commits")


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
        there = [entry.lsn for entry in _entries(log)]
    finally:
        try:
            log.destroy()
        except Denied:  # a worker's key adds, and removes nothing
            left = "; it may not be removed with these rights, and stays"
    if there != list(range(1, _EXCHANGES + 1)):
        yield Finding("write and read", passed=False, detail=f"wrote 5 commits, read {there}", cure="use another store")
        return
    done = f"{_EXCHANGES} commits written and read back" + (left or ", and removed")
    yield Finding("write and read", passed=True, detail=done)
    median = statistics.median(seconds)
    yield Finding(
        "exchange",
        passed=median < _SLOW,
        detail=f"{median * 1000:.1f} ms in the median, {max(seconds) * 1000:.1f} ms at most",
        cure="" if median < _SLOW else "every ask and tell waits so long; use a store that is nearer",
    )


def _beat(store: Store) -> Iterator[Finding]:
    peer, value = secrets.token_urlsafe(12), secrets.token_hex(8)
    store.beat(Beat(peer, value))
    found = store.beats([peer]).get(peer)
    store.beat(Beat(peer, "gone"))
    passed = found == value
    cure = "" if passed else "peers would take each other for dead; use another store"
    yield Finding("beat", passed=passed, detail="a sign of life is seen" if passed else f"read {found!r}", cure=cure)


def _studies(store: Store) -> Iterator[Finding]:
    catalog, log = Catalog(), store.catalog()
    found = log.newest_snapshot() if isinstance(log, Crowded) else None
    for entry in _entries(log):
        catalog.apply(entry.lsn, codec.decode(entry.payload), Stamp(entry.author, entry.role, entry.at))
        if found is not None and entry.lsn == found[0]:
            yield _snapshot("studies, snapshot", found, same=catalog_snapshot.dump(catalog) == found[1])
    if not catalog.by_name:
        yield Finding("studies", passed=True, detail=f"none yet; log format {FORMAT}")
    for listing in catalog.by_name.values():
        name = f"study {listing.name}"
        yield from _guarded(name, functools.partial(_study, uuid=listing.uuid, name=name), store)


def _study(store: Store, *, uuid: str, name: str) -> Iterator[Finding]:
    """Replay the whole log; the newest snapshot must say the same as the commits up to it."""
    log = store.log(uuid)
    state, unreadable, said = State(), 0, None
    try:
        found = log.newest_snapshot()
        for entry in _entries(log):
            commit = codec.decode(entry.payload)
            unreadable += isinstance(commit, codec.Garbage)
            apply(state, entry.lsn, commit, Stamp(entry.author, entry.role, entry.at))
            if found is not None and entry.lsn == found[0]:
                said = snapshot.digest(state)
    except Denied:
        yield Finding(name, passed=True, detail="not shared with this user")
        return
    refused = ", ".join(f"{count} {why}" for why, count in state.refusals.items()) or "nothing"
    detail = f"{state.lsn} commits, {len(state.trials)} trials; refused: {refused}"
    cure = "" if not unreadable else "somebody wrote bytes that are no commit; they are passed over, nothing is lost"
    yield Finding(name, passed=not unreadable, detail=detail, cure=cure)
    if found is not None:
        try:
            same = snapshot.digest(snapshot.load(found[1])) == said
        except snapshot.CorruptSnapshot:
            cure = "it is passed over: joining takes longer until the next one is written"
            detail = f"the one at commit {found[0]} cannot be read"
            yield Finding(f"{name}, snapshot", passed=False, detail=detail, cure=cure)
        else:
            yield _snapshot(f"{name}, snapshot", found, same=same)


def _snapshot(name: str, found: tuple[int, bytes], *, same: bool) -> Finding:
    lsn, data = found
    cure = "delete it: peers that join from it see something else than those who replay the log"
    detail = f"at commit {lsn}, {len(data):,} bytes, " + ("equal to replay" if same else "differs from replay")
    return Finding(name, passed=same, detail=detail, cure="" if same else cure)


def _entries(log: Log) -> Iterator[Entry]:
    since, more = 0, True
    while more:
        receipt = log.exchange(None, since)
        yield from receipt.entries
        if receipt.entries:
            since = receipt.entries[-1].lsn
        more = receipt.more
