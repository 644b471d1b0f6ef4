"""What `hopaas-p2p doctor` looks at in a bucket: the way, the condition that all rests on, a race, the clock.

The start-up probe shows that the server knows `If-None-Match: *`. The race shows that it also keeps it when several
come at the same moment: a server that looks first and writes then has two winners, and loses a commit.
"""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores import way_checks
from hopaas_p2p.stores.findings import AGAIN, Finding
from hopaas_p2p.stores.s3 import http as s3_http
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.objects import ObjectStore
from hopaas_p2p.stores.s3.store import META, S3Store
from hopaas_p2p.stores.way_checks import Way
from hopaas_p2p.tunnel.proxies import Proxy

RACERS: Final = 8
ROUNDS: Final = 5
_CLOCKS_AGREE: Final = 60.0  # seconds; S3 itself refuses more than 15 minutes, but we sign with the server's time
_GETS: Final = 5
_PATIENCE: Final = 30.0  # seconds for one round
_CURE: Final = "commits would be lost; use a server that keeps the condition: MinIO, SeaweedFS, Ceph, AWS, R2"


def way(store: S3Store) -> Generator[Finding, None, bool]:
    """Whether the endpoint can be reached."""
    parts = urlsplit(parse(store.url).endpoint)
    tls = parts.scheme == "https"
    try:
        proxy = _proxy(parts.geturl())
        trust = way_checks.trust_in(s3_http.certificates()) if tls else None
    except HopaasError as error:
        yield Finding("settings", passed=False, detail=str(error), cure=AGAIN)
        return False
    if proxy is not None and proxy.scheme == "https":
        yield Finding(
            "proxy", passed=True, detail=f"{proxy} is itself spoken to in TLS; the way is not looked at closer"
        )
        return True
    host = parts.hostname or ""
    return (yield from way_checks.checks(Way(host, parts.port or (443 if tls else 80), trust, proxy)))


def _proxy(url: str) -> Proxy | None:
    found = s3_http.proxy_for(url)
    if found is None:
        return None
    parts = urlsplit(found[0])
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Proxy(parts.scheme, parts.hostname or "", port, Secret(found[1]) if found[1] else None)


def checks(store: S3Store) -> Iterator[Finding]:
    """The findings about the bucket."""
    store.prove()
    yield Finding("condition", passed=True, detail="a second PUT with If-None-Match: * was refused, or none is allowed")
    yield _round_trip(store.objects)
    yield _clock(store.objects)
    yield race(store.objects)


def _round_trip(objects: ObjectStore) -> Finding:
    taken = []
    for _ in range(_GETS):
        began = time.monotonic()
        objects.get(META, limit=4096)
        taken.append(time.monotonic() - began)
    return Finding(
        "round trip", passed=True, detail=f"{statistics.median(taken) * 1000:.1f} ms for a GET in the median"
    )


def _clock(objects: ObjectStore) -> Finding:
    theirs = objects.server_now()
    if theirs is None:
        return Finding("clock", passed=True, detail="the server does not tell its own")
    apart = theirs - time.time()
    well = abs(apart) < _CLOCKS_AGREE
    cure = (
        "" if well else "requests are signed with the server's time, so it works; but times are shown wrongly: run NTP"
    )
    said = "as ours, to the second" if abs(apart) < 1.5 else f"{apart:+.0f} s from ours"  # it tells whole seconds
    return Finding("clock", passed=well, detail=f"the server's is {said}", cure=cure)


def race(objects: ObjectStore, *, racers: int = RACERS, rounds: int = ROUNDS) -> Finding:
    """Many create one key at the same moment, several times: exactly one may succeed, and find its bytes there."""
    folder = f"study/doctor-{secrets.token_hex(12)}/snapshot/"  # where a worker's key may write and remove
    keys = [f"{folder}{number:020d}" for number in range(rounds)]
    try:
        flaws = [flaw for key in keys if (flaw := _run(objects, key, racers))]
    finally:
        objects.delete(keys)
    if flaws:
        return Finding("race", passed=False, detail=f"{flaws[0]} ({len(flaws)} of {rounds} races)", cure=_CURE)
    return Finding("race", passed=True, detail=f"{racers} writers at once, {rounds} times: exactly one winner each")


def _run(objects: ObjectStore, key: str, racers: int) -> str | None:
    """One race; what was wrong with it."""
    barrier = threading.Barrier(racers)

    def take_part(mine: bytes) -> bool | None:
        """Whether it won; None if it does not know."""
        barrier.wait(_PATIENCE)
        try:
            return objects.create(key, mine)
        except StoreUnreachable:
            return None

    names = [b"racer %d" % number for number in range(racers)]
    with ThreadPoolExecutor(racers) as threads:
        won = dict(zip(names, threads.map(take_part, names), strict=True))
    winners = [name for name, result in won.items() if result]
    found = objects.get(key, limit=64)
    if len(winners) > 1:
        return f"{len(winners)} writers were told that they won"
    if found is None:
        return "nothing is there after the race"
    if found.data not in (winners or [name for name, result in won.items() if result is None]):
        return "what is there is not what the winner wrote"
    return None
