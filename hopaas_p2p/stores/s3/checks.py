"""What `hopaas-p2p doctor` checks in a bucket: the route, the condition on which everything depends, the clock."""

from __future__ import annotations

import time
from collections.abc import Generator

from hopaas_p2p.errors import Denied
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net.findings import Finding, clock
from hopaas_p2p.net.proxies import server_of
from hopaas_p2p.stores.objects.race import race
from hopaas_p2p.stores.s3 import http
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.store import CAUSES, SCRATCH, S3Store


def way(store: S3Store) -> Generator[Finding, None, bool]:
    """The findings about the route; returns whether the endpoint can be reached."""
    endpoint = parse(store.url).endpoint
    proxy = http.proxy_of(endpoint)
    context = http.context() if endpoint.startswith("https:") else None
    if proxy is not None and proxy.scheme == "https":
        yield Finding("proxy", f"{proxy} is itself reached through TLS; the route is not checked any further")
        return True
    return (yield from net_checks.checks(server_of(endpoint), context, proxy))


def checks(store: S3Store) -> Generator[Finding, None, bool]:
    """The findings about the bucket, and whether further checks are worthwhile."""
    try:
        store.objects.get(f"{SCRATCH}none", limit=64)
    except Denied:  # without a 404 for a free key, readers cannot find the end of a log
        store.objects.listed(SCRATCH, at_most=1)
        detail = "for a free key the server answers 403, as for a key that this user may not read"
        cure = (
            "this server ignores the policy's Condition; give the user the policy that hopaas-p2p admin s3-policy "
            "--no-condition prints"
        )
        yield Finding("free keys", detail, passed=False, cure=cure)
        return False
    yield race(store.objects, SCRATCH).finding(CAUSES)  # even if there is no store yet
    store.find()
    yield clock((store.objects.server_now() or time.time()) - time.time())
    return True
