"""What `hopaas-p2p doctor` checks on the way through a gateway, up to the gateway's answer to our token."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Sequence

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net import trust
from hopaas_p2p.net.checks import Route
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.net.proxies import ServerAddress, proxy_for
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel import client
from hopaas_p2p.tunnel.dial import dial


def checks(
    gateways: Sequence[ServerAddress], user: str | None, secret: Secret | None
) -> Generator[Finding, None, bool]:
    """Whether one of the gateways lets us in. All are checked: each may be the next to be needed."""
    admitted = False
    for gateway in gateways:
        try:
            route = Route(gateway, trust.client_context(), proxy_for(gateway))
        except HopaasError as error:
            yield Finding("settings", passed=False, detail=str(error), cure=AGAIN)
            return False
        if (yield from net_checks.checks(route)):
            finding = _check_token(gateway, user, secret)
            yield finding
            admitted = admitted or finding.passed
    return admitted


def _check_token(gateway: ServerAddress, user: str | None, secret: Secret | None) -> Finding:
    try:
        role, password = client.login(user, secret.reveal() if secret is not None else None, [gateway])
        connection = dial(gateway, Secret(f"{role}:{password.reveal()}"))
    except HopaasError as error:
        cure = "the gateway's administrator finds the reason in its log" if error.retry else AGAIN
        return Finding("gateway", passed=False, detail=str(error), cure=cure)
    connection.socket.close()
    expiry = _expiry(connection.expires)
    return Finding("gateway", passed=True, detail=f"{gateway} accepts {connection.role or role}{expiry}")


def _expiry(expires: str | None) -> str:
    if not expires:
        return ""
    end = datetime.datetime.fromisoformat(expires)
    days = (end - datetime.datetime.now(tz=datetime.UTC)).total_seconds() / 86400
    return f", whose token expires in {days:.1f} days"
