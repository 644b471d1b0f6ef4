"""What `hopaas-p2p doctor` looks at on the way through a gateway, up to its answer to our token."""

from __future__ import annotations

import datetime
from collections.abc import Generator

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores import way_checks
from hopaas_p2p.stores.findings import AGAIN, Finding
from hopaas_p2p.stores.postgres.connect import Address
from hopaas_p2p.stores.way_checks import Way
from hopaas_p2p.tunnel import client, dial, proxies
from hopaas_p2p.tunnel.dial import Gateway
from hopaas_p2p.tunnel.dialect import gateways_of


def way(address: Address) -> Generator[Finding, None, bool]:
    """Whether one of the gateways lets us in. All are looked at: each may be the next to be needed."""
    gateways = gateways_of(address.sqlalchemy_url)
    entered = False
    for gateway in gateways:
        try:
            there = Way(gateway.host, gateway.port, dial.trust(), proxies.proxy_for(gateway.host, gateway.port))
        except HopaasError as error:
            yield Finding("settings", passed=False, detail=str(error), cure=AGAIN)
            return False
        if (yield from way_checks.checks(there)):
            finding = _greeted(address, gateway)
            yield finding
            entered = entered or finding.passed
    return entered


def _greeted(address: Address, gateway: Gateway) -> Finding:
    """What the gateway says to our token."""
    user, secret = address.credentials()
    try:
        role, password = client.login(user, secret.reveal() if secret is not None else None)
        line = dial.dial(gateway, Secret(f"{role}:{password.reveal()}"))
    except HopaasError as error:
        cure = "the gateway's administrator finds the reason in its log" if error.retry else AGAIN
        return Finding("gateway", passed=False, detail=str(error), cure=cure)
    line.socket.close()
    return Finding("gateway", passed=True, detail=f"{gateway} lets in {line.role or role}{_until(line.expires)}")


def _until(expires: str | None) -> str:
    if not expires:
        return ""
    ends = datetime.datetime.fromisoformat(expires)
    days = (ends - datetime.datetime.now(tz=datetime.UTC)).total_seconds() / 86400
    return f", whose token ends in {days:.1f} days"
