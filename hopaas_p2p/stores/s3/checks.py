"""What `hopaas-p2p doctor` looks at in a bucket: the way, the condition that all rests on, the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from typing import Final

from hopaas_p2p.errors import Denied, HopaasError
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net.checks import Route
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.stores.objects.store import META
from hopaas_p2p.stores.s3 import http as s3_http
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.bucket import Bucket
from hopaas_p2p.stores.s3.proof import SCRATCH
from hopaas_p2p.stores.s3.store import S3Store

_CLOCKS_AGREE: Final = 60.0  # seconds; S3 itself refuses more than 15 minutes, but we sign with the server's time
_GETS: Final = 5


def way(store: S3Store) -> Generator[Finding, None, bool]:
    """Whether the endpoint can be reached."""
    endpoint = parse(store.url).endpoint
    try:
        proxy = s3_http.proxy_of(endpoint)
        context = s3_http.context() if endpoint.startswith("https:") else None
    except HopaasError as error:
        yield Finding("settings", str(error), passed=False, cure=AGAIN)
        return False
    if proxy is not None and proxy.scheme == "https":
        yield Finding("proxy", f"{proxy} is itself reached through TLS; the route is not checked any further")
        return True
    return (yield from net_checks.checks(Route(s3_http.server_of(endpoint), context, proxy)))


def checks(store: S3Store) -> Generator[Finding, None, bool]:
    """The findings about the bucket, and whether it is worth looking on."""
    try:
        store.objects.get(f"{SCRATCH}none", limit=64)
    except Denied:  # for a free key; if this user may list, a log has no end
        store.objects.listed(SCRATCH, at_most=1)
        detail = "for a free key the server answers 403, as for a key that this user may not read"
        cure = (
            "this server ignores the policy's Condition here: give the user the policy that hopaas-p2p admin s3-policy "
            "--no-condition prints"
        )
        yield Finding("free keys", detail, passed=False, cure=cure)
        return False
    yield from store.condition.findings()  # also where there is no store yet
    store.find()
    taken = []
    for _ in range(_GETS):
        began = time.monotonic()
        store.objects.get(META, limit=4096)
        taken.append(time.monotonic() - began)
    yield Finding("round trip", f"{statistics.median(taken) * 1000:.1f} ms for a GET in the median")
    yield _clock(store.objects)
    return True


def _clock(objects: Bucket) -> Finding:
    theirs = objects.server_now()
    if theirs is None:
        return Finding("clock", "the server does not tell its own")
    apart = theirs - time.time()
    cure = "requests are signed with the server's time, so it works; but times are shown wrongly: run NTP"
    said = "as ours, to the second" if abs(apart) < 1.5 else f"{apart:+.0f} s from ours"  # it tells whole seconds
    return Finding("clock", f"the server's is {said}", passed=abs(apart) < _CLOCKS_AGREE, cure=cure)
