"""Dial a gateway: TCP, verified TLS, and a WebSocket that the gateway grants to a token.

No scheme, option or redirect leads around TLS.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.net import proxies, trust
from hopaas_p2p.net.proxies import ServerAddress, closed_on_error
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel import ASK_FOR_ANOTHER, FRAME, PATH, PING, SILENT, SUBPROTOCOL, decode_header, encode_header

if TYPE_CHECKING:
    import ssl

    from websockets.client import ClientProtocol
    from websockets.http11 import Response

TIMEOUT: Final = 10.0
"""Seconds for TCP, proxy, TLS and the gateway's answer together."""
_SILENCE: Final = 2.25  # missed pings of the gateway after which the connection is dead, and a margin
_LONGEST_REST: Final = 60.0  # seconds
_HINT: Final = ". Is a gateway there, and well? hopaas-p2p doctor checks step by step"


class GatewayBusy(StoreUnreachable):
    """The gateway asks to come again later."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class GatewayConnection(NamedTuple):
    """An open WebSocket to a gateway that has let us in."""

    gateway: ServerAddress
    socket: ssl.SSLSocket
    protocol: ClientProtocol
    silence: float
    """Seconds of silence after which this connection is dead."""
    role: str | None
    """The login that the gateway knows our token as."""
    expires: str | None
    """When the token expires, in ISO 8601; None for never."""


def dial(gateway: ServerAddress, token: Secret, *, timeout: float = TIMEOUT) -> GatewayConnection:
    """Connect to a gateway and be let in. Costs a round trip each for TCP, TLS and the WebSocket.

    Raises:
        Denied: the token is wrong, expired or revoked, or may not come in here.
        ConfigurationError: this is not a gateway to trust, or no gateway at all; the message says what to change.
        StoreUnreachable: not now.

    """
    deadline = time.monotonic() + timeout
    plain = proxies.connect(gateway, timeout=timeout)
    with closed_on_error(plain):
        secured = trust.secure(plain, gateway.host, deadline=deadline, hint=_HINT)
    with closed_on_error(secured):
        return _open_websocket(secured, gateway, token, deadline)


def _open_websocket(
    secured: ssl.SSLSocket, gateway: ServerAddress, token: Secret, deadline: float
) -> GatewayConnection:
    from websockets.client import ClientProtocol
    from websockets.typing import Subprotocol
    from websockets.uri import parse_uri

    protocol = ClientProtocol(
        parse_uri(f"wss://{gateway}{PATH}"),
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        max_size=2 * FRAME,
        logger=SILENT,
    )
    request = protocol.connect()
    request.headers["Authorization"] = f"Bearer {encode_header(token.reveal())}"
    protocol.send_request(request)
    try:
        response = _response(secured, protocol, deadline)
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreUnreachable(f"the gateway {gateway} did not answer: {why}") from None
    if response.status_code != 101:
        raise _refusal(gateway, response)
    if protocol.handshake_exc is not None or protocol.subprotocol != SUBPROTOCOL:
        raise ConfigurationError(f"{gateway} answers, but is not a hopaas-p2p gateway: {protocol.handshake_exc}")
    headers = response.headers
    with contextlib.suppress(ValueError):
        return GatewayConnection(
            gateway,
            secured,
            protocol,
            silence=_SILENCE * min(max(float(headers.get("Hopaas-Ping", PING)), 0.1), 120.0),
            role=decode_header(headers.get("Hopaas-Role", "")) or None,
            expires=headers.get("Hopaas-Expires"),
        )
    raise ConfigurationError(f"{gateway} sent an invalid answer; is it a hopaas-p2p gateway?")


def _response(secured: ssl.SSLSocket, protocol: ClientProtocol, deadline: float) -> Response:
    """Send the request, and read until the response is complete."""
    from websockets.http11 import Response

    for data in protocol.data_to_send():
        secured.sendall(data)
    while True:
        secured.settimeout(proxies.remaining(deadline))
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


def _refusal(gateway: ServerAddress, response: Response) -> HopaasError:
    status = response.status_code
    answered = f"the gateway {gateway} answered {status} {response.reason_phrase}"
    if status == 401:
        return Denied(f"{answered}: the token is wrong, expired or revoked. {ASK_FOR_ANOTHER}")
    if status == 403:
        return Denied(f"{answered}: this token is not accepted here")
    if status in (429, 500, 502, 503, 504):
        return GatewayBusy(
            f"{answered}: it cannot accept connections now", _retry_after(response.headers.get("Retry-After"))
        )
    if 300 <= status < 400:
        return ConfigurationError(f"{answered}. Redirects are not followed; write the gateway's own address")
    return ConfigurationError(f"{answered}: that is not a hopaas-p2p gateway. Check the address")


def _retry_after(text: str | None) -> float:
    try:
        return min(max(float(text or 1), 0.0), _LONGEST_REST)
    except ValueError:
        return 1.0
