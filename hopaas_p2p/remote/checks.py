"""The checks of `hopaas-p2p doctor` on the route to a store that is served, up to the server's answer to our token."""

from __future__ import annotations

import time
from collections.abc import Generator

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net import trust
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.net.proxies import proxy_for
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.stores.directory.checks import file_system


def way(store: RemoteStore) -> Generator[Finding, None, bool]:
    """The findings about all servers, since any may be needed next; returns whether one accepts our token."""
    if isinstance(store.connections, Box):
        return (yield from _through(store, store.connections))
    admitted, address = False, store.connections.address
    for server in address.servers:
        if not (yield from net_checks.checks(server, trust.client_context(), proxy_for(server))):
            continue
        try:
            facts = RemoteStore(str(address._replace(servers=(server,)))).facts()
        except HopaasError as error:
            cure = "ask the server's administrator to look for the reason in its log" if error.retry else AGAIN
            yield Finding("server", str(error), passed=False, cure=cure)
            continue
        days = None if facts.expires is None else (facts.expires - time.time()) / 86400
        left = "" if days is None else f", whose token expires in {days:.1f} days"
        yield Finding("server", f"{server} accepts {facts.token}{left}")
        admitted = True
    return admitted


def _through(store: RemoteStore, box: Box) -> Generator[Finding, None, bool]:
    """The findings about a folder; returns whether a server answers through it."""
    yield file_system(box.objects)
    try:
        facts, why = store.facts(), ""
    except StoreUnreachable as error:
        facts, why = None, str(error)
    count = len(box.requests())
    waiting = {0: "nothing waits", 1: "1 request waits"}.get(count, f"{count} requests wait")
    cure = (
        f"start one on a node that reaches the store: hopaas-p2p serve folder {box.path} {box.leads_to}; if it runs, "
        f"read its messages, and run there: hopaas-p2p doctor {box.leads_to}"
    )
    said = f"{facts.token} answers through {box.path}" if facts is not None else f"{why}; {waiting} there"
    yield Finding("server", said, passed=facts is not None, cure=cure)
    if facts is not None:
        yield Finding("requests", waiting)
    return facts is not None
