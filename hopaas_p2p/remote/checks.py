"""What `hopaas-p2p doctor` checks on the way to a store that is served, up to the server's answer to our token."""

from __future__ import annotations

import datetime
from collections.abc import Generator

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net import trust
from hopaas_p2p.net.checks import Route
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.net.proxies import proxy_for
from hopaas_p2p.remote.client import RemoteStore


def way(store: RemoteStore) -> Generator[Finding, None, bool]:
    """Whether one of the servers lets us in. All are checked: each may be the next to be needed."""
    admitted = False
    for server in store.connections.address.servers:
        try:
            route = Route(server, trust.client_context(), proxy_for(server))
        except HopaasError as error:
            yield Finding("settings", passed=False, detail=str(error), cure=AGAIN)
            return False
        if not (yield from net_checks.checks(route)):
            continue
        try:
            facts = store.at(server).facts()
        except HopaasError as error:
            cure = "the server's administrator finds the reason in its log" if error.retry else AGAIN
            yield Finding("server", passed=False, detail=str(error), cure=cure)
            continue
        left = ""
        if facts.expires is not None:
            end = datetime.datetime.fromisoformat(facts.expires)
            days = (end - datetime.datetime.now(tz=datetime.UTC)).total_seconds() / 86400
            left = f", whose token expires in {days:.1f} days"
        yield Finding("server", passed=True, detail=f"{server} accepts {facts.token}{left}")
        admitted = True
    return admitted
