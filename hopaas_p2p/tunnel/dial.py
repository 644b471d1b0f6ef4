"""Dial a gateway: TCP, verified TLS, and a WebSocket that the gateway granted to a token. Step by step, for `doctor`.

TLS is never optional: no scheme, option or redirect leads around it, and there is no switch to skip verification.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p import settings
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores.postgres.errors import ASK_FOR_ANOTHER
from hopaas_p2p.tunnel import FRAME, PATH, PING, SUBPROTOCOL, proxies, unwrapped, wrapped
from hopaas_p2p.tunnel.quiet import LOGGER

if TYPE_CHECKING:
    from websockets.client import ClientProtocol
    from websockets.http11 import Response

TIMEOUT: Final = 10.0
"""Seconds for all of TCP, proxy, TLS and the gateway's answer."""
_SILENCE: Final = 2.25  # of the gateway's pings missed, and a bit: the line is dead
_LONGEST_REST: Final = 60.0  # seconds
_WHO_IS_THERE: Final = "Is a gateway there, and well? hopaas-p2p doctor looks step by step"


class Gateway(NamedTuple):
    """Where a gateway listens."""

    host: str
    port: int = 443

    def __str__(self) -> str:
        return f"{proxies.bracketed(self.host)}:{self.port}"


class Busy(StoreUnreachable):
    """The gateway asks to come again later."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class Line(NamedTuple):
    """An open WebSocket to a gateway that has let us in."""

    gateway: Gateway
    socket: ssl.SSLSocket
    protocol: ClientProtocol
    silence: float
    """Seconds of silence after which this line is dead."""
    role: str | None
    """The login that the gateway knows our token as."""
    expires: str | None
    """When the token ends, in ISO 8601; None for never."""


def dial(gateway: Gateway, token: Secret, *, timeout: float = TIMEOUT) -> Line:
    """Connect to a gateway and be let in. Costs a round trip each for TCP, TLS and the WebSocket.

    Raises:
        Denied: the token is wrong, expired or revoked, or may not come in here.
        ConfigurationError: this is not a gateway to trust, or none at all; the message says what to change.
        StoreUnreachable: not now.

    """
    deadline = time.monotonic() + timeout
    plain = proxies.reach(gateway.host, gateway.port, timeout=timeout)
    try:
        secured = secure(plain, gateway.host, deadline=deadline)
    except BaseException:
        plain.close()
        raise
    try:
        return greet(secured, gateway, token, deadline=deadline)
    except BaseException:
        secured.close()
        raise


# --- TLS ---------------------------------------------------------------------------------------------------------


def secure(plain: socket.socket, host: str, *, deadline: float) -> ssl.SSLSocket:
    """TLS over this connection, with the host's certificate verified. On an error the caller closes `plain`.

    Raises:
        ConfigurationError: not the host's certificate, of an unknown authority, or no TLS at all.
        StoreUnreachable: it has expired (its owner will notice), or the connection broke.

    """
    try:
        plain.settimeout(proxies.left(deadline))
        plain.getpeername()  # of a connection that is gone already, wrap_socket would lose the descriptor
        return trust().wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise _distrust(host, error) from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
            raise ConfigurationError(
                f"{host} does not speak TLS (1.2 or newer) on this port, and nothing is sent without. "
                "Check host and port; a gateway listens on 443"
            ) from None
        raise StoreUnreachable(f"TLS with {host} broke off: {_reason(error)}. {_WHO_IS_THERE}") from None
    except TimeoutError:
        raise StoreUnreachable(f"{host} takes the connection and then says nothing. {_WHO_IS_THERE}") from None
    except OSError as error:
        raise StoreUnreachable(f"TLS with {host} broke off: {error.strerror or error}. {_WHO_IS_THERE}") from None


def trust() -> ssl.SSLContext:
    """Whom to believe: the authorities of HOPAAS_CA_FILE, else the usual ones.

    Raises:
        ConfigurationError: the file is not there, or holds none.

    """
    return _context(_authorities())


def days_left(secured: ssl.SSLSocket) -> float:
    """Days until the certificate that was shown to us expires."""
    certificate = secured.getpeercert() or {}
    return (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400.0


def _distrust(host: str, error: ssl.SSLCertVerificationError) -> HopaasError:
    said = error.verify_message
    if "expired" in said:
        return StoreUnreachable(
            f"the certificate of {host} has expired. Its administrators have to renew it, and nothing is sent until "
            "then; results wait in the spool. If the date on this node is wrong, correct that"
        )
    if "not yet valid" in said:
        return StoreUnreachable(f"the certificate of {host} is not valid yet: is the date on this node right?")
    if "match" in said or "mismatch" in said:
        return ConfigurationError(f"{host} shows a certificate of another name. Use the name that it is made for")
    return ConfigurationError(
        f"the certificate of {host} is not one to trust: {said}. "
        "For a private authority set HOPAAS_CA_FILE=/path/ca.pem"
    )


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _authorities() -> tuple[str, int]:
    """The file of authorities to trust, and when it was changed."""
    path = settings.ca_file() or os.environ.get("SSL_CERT_FILE") or ""
    if not path:
        import certifi

        path = certifi.where()
    try:
        return path, Path(path).stat().st_mtime_ns
    except OSError:
        raise ConfigurationError(f"there is no file {path} with certificate authorities; see HOPAAS_CA_FILE") from None


@functools.lru_cache(maxsize=4)
def _context(authorities: tuple[str, int]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authorities[0])
    except (ssl.SSLError, OSError):
        raise ConfigurationError(f"{authorities[0]} holds no certificate authorities; see HOPAAS_CA_FILE") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


# --- WebSocket ---------------------------------------------------------------------------------------------------


def greet(secured: ssl.SSLSocket, gateway: Gateway, token: Secret, *, deadline: float) -> Line:
    """Ask the gateway to let us in. On an error the caller closes `secured`; raises as `dial`."""
    from websockets.client import ClientProtocol
    from websockets.typing import Subprotocol
    from websockets.uri import parse_uri

    protocol = ClientProtocol(
        parse_uri(f"wss://{gateway}{PATH}"),
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        max_size=2 * FRAME,
        logger=LOGGER,
    )
    request = protocol.connect()
    request.headers["Authorization"] = f"Bearer {wrapped(token.reveal())}"
    protocol.send_request(request)
    try:
        response = _ask(secured, protocol, deadline)
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreUnreachable(f"the gateway {gateway} did not answer: {why}") from None
    if response.status_code != 101:
        raise _refusal(gateway, response)
    if protocol.handshake_exc is not None or protocol.subprotocol != SUBPROTOCOL:
        raise ConfigurationError(f"{gateway} answers, but is no gateway of ours: {protocol.handshake_exc}")
    headers = response.headers
    with contextlib.suppress(ValueError):
        return Line(
            gateway,
            secured,
            protocol,
            silence=_SILENCE * min(max(float(headers.get("Hopaas-Ping", PING)), 0.1), 120.0),
            role=unwrapped(headers.get("Hopaas-Role", "")) or None,
            expires=headers.get("Hopaas-Expires"),
        )
    raise ConfigurationError(f"{gateway} answers nonsense; is it a gateway of ours?")


def _ask(secured: ssl.SSLSocket, protocol: ClientProtocol, deadline: float) -> Response:
    """Send what waits to be sent, and read until the response is there."""
    from websockets.http11 import Response

    for data in protocol.data_to_send():
        secured.sendall(data)
    while True:
        secured.settimeout(proxies.left(deadline))
        data = secured.recv(FRAME)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for event in protocol.events_received():
            if isinstance(event, Response):
                return event
        if not data or protocol.handshake_exc is not None:
            raise ConnectionError("it closed the connection")


def _refusal(gateway: Gateway, response: Response) -> HopaasError:
    status = response.status_code
    answered = f"the gateway {gateway} answered {status} {response.reason_phrase}"
    if status == 401:
        return Denied(f"{answered}: the token is wrong, expired or revoked. {ASK_FOR_ANOTHER}")
    if status == 403:
        return Denied(f"{answered}: this token may not come in here")
    if status in (429, 500, 502, 503, 504):
        return Busy(f"{answered}: it cannot take us now", _rest(response.headers.get("Retry-After")))
    if 300 <= status < 400:
        return ConfigurationError(f"{answered}. Redirects are not followed; write the gateway's own address")
    return ConfigurationError(f"{answered}: that is no gateway of ours. Check the address")


def _rest(text: str | None) -> float:
    try:
        return min(max(float(text or 1), 0.0), _LONGEST_REST)
    except ValueError:
        return 1.0
