"""What `hopaas-p2p doctor` looks at on the way to a server: its name, the site's proxy, the certificate.

Everything is tried as a store would try it, with the same trust and no way around it, but step by step, so that the
first step that fails is named. A certificate that ends soon is a failure while there is still time to renew it.
"""

from __future__ import annotations

import datetime
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.findings import Finding
from hopaas_p2p.tunnel import proxies
from hopaas_p2p.tunnel.proxies import Proxy

SOON: Final = 21
"""Days before a certificate's end from which on it is a failure."""
_TIMEOUT: Final = 10.0  # seconds for each step


class Way(NamedTuple):
    """How a server is reached."""

    host: str
    port: int
    trust: ssl.SSLContext | None = None
    """Whom to believe; None where there is no TLS."""
    proxy: Proxy | None = None
    wants_tls: Callable[[socket.socket], bool] | None = None
    """Asks a server that begins in the clear for TLS; whether it has it."""


class _Failed(Exception):
    """A step did not work; the rest cannot be tried."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


def trust_in(ca_file: str | None) -> ssl.SSLContext:
    """A context that verifies a server by the authorities in this file; None: the system's."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def checks(way: Way) -> Generator[Finding, None, bool]:
    """The findings about a way, step by step; returns whether it leads to the server."""
    connection: socket.socket | None = None
    try:
        yield _name(way)
        connection, finding = _connected(way)
        yield finding
        if way.trust is not None:
            connection, finding = _secured(way, connection)
            yield finding
        return True
    except _Failed as failed:
        yield failed.finding
        return False
    finally:
        if connection is not None:
            connection.close()


# --- the name ----------------------------------------------------------------------------------------------------


def _name(way: Way) -> Finding:
    """Whether the host that is connected to first, which may be the proxy's, has an address."""
    host = way.proxy.host if way.proxy else way.host
    whose = f"{host} (the proxy)" if way.proxy else host
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        cure = "check the spelling, and that this node may ask a name server; compute nodes often may not"
        detail = f"{whose} has no address: {_plainly(error)}"
        raise _Failed(Finding("name", passed=False, detail=detail, cure=cure)) from None
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in found}))
    return Finding("name", passed=True, detail=whose if addresses == host else f"{whose} is {addresses}")


# --- the connection ----------------------------------------------------------------------------------------------


def _connected(way: Way) -> tuple[socket.socket, Finding]:
    began = time.monotonic()
    check = "proxy" if way.proxy else "connect"
    try:
        connection = proxies.through(way.proxy, way.host, way.port, timeout=_TIMEOUT)
    except HopaasError as error:
        cure = "see that the server is up, and that this node may connect to it"
        if way.proxy:
            cure = "mend HTTPS_PROXY, or have the site's proxy mended; it must let us through to the server"
        cure += "; where only a login node may: hopaas-p2p relay"
        raise _Failed(Finding(check, passed=False, detail=str(error), cure=cure)) from None
    taken = (time.monotonic() - began) * 1000
    server = f"{proxies.bracketed(way.host)}:{way.port}"
    if way.proxy is None:
        return connection, Finding(check, passed=True, detail=f"{server} answers in {taken:.1f} ms")
    login = ", with a login" if way.proxy.login else ""
    return connection, Finding(check, passed=True, detail=f"{way.proxy} lets us through to {server}{login}")


# --- TLS ---------------------------------------------------------------------------------------------------------


def _secured(way: Way, connection: socket.socket) -> tuple[socket.socket, Finding]:
    assert way.trust is not None
    if way.wants_tls is not None and not way.wants_tls(connection):
        detail = "the server speaks no TLS, so that anybody on the way could read and change everything"
        raise _Failed(
            Finding(
                "tls",
                passed=False,
                detail=detail,
                cure="switch TLS on there; or if that is a gateway, write postgresql+https://",
            )
        )
    try:
        secured = way.trust.wrap_socket(connection, server_hostname=way.host)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise _Failed(_untrusted(way, error)) from None
    except OSError as error:
        connection.close()
        cure = "something else listens on that port, or hangs, or a firewall takes part in the conversation"
        detail = f"no TLS with {way.host}:{way.port}: {_plainly(error)}"
        raise _Failed(Finding("tls", passed=False, detail=detail, cure=cure)) from None
    return secured, lifetime(secured.getpeercert() or {}, str(secured.version()))


def _untrusted(way: Way, error: ssl.SSLCertVerificationError) -> Finding:
    why = error.verify_message
    if "expired" in why or "not yet valid" in why:
        cure = "the server's administrator renews the certificate; is this node's own clock right?"
    elif "match" in why:
        cure = "use the name that the certificate is for, or have one issued for this name"
    else:
        cure = "if it is your site's own authority, set HOPAAS_CA_FILE to its certificate; else somebody listens in"
    return Finding("tls", passed=False, detail=f"the certificate of {way.host} is refused: {why}", cure=cure)


def lifetime(certificate: Any, version: str = "TLS") -> Finding:
    """Whether a verified certificate, as `getpeercert` shows it, is good for some time yet."""
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends - time.time()) / 86400
    until = datetime.datetime.fromtimestamp(ends, tz=datetime.UTC).date()
    detail = f"{version}, issued by {_issuer(certificate)}, verified, {days:.0f} days left (until {until})"
    if days >= SOON:
        return Finding("tls", passed=True, detail=detail)
    return Finding(
        "tls",
        passed=False,
        detail=f"THE CERTIFICATE ENDS IN {days:.0f} DAYS: {detail}",
        cure="renew it now: on that day every peer stops, and people begin to look for ways around TLS",
    )


def _issuer(certificate: Any) -> str:
    names = {key: value for part in certificate.get("issuer", ()) for key, value in part}
    return str(names.get("commonName") or names.get("organizationName") or "an authority without a name")


def _plainly(error: Exception) -> str:
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__
    return re.sub(r"^_ssl\.c:\d+: ", "", str(said))
