"""A LocalPeer as JSON over HTTP, on loopback and with a key.

    POST /v1/ask     {"study": "digits"}                                  -> {"ok": true, "trial": 7, "params": {…}}
    POST /v1/report  {"study": "digits", "trial": 7, "value": 0.3, "step": 1} -> {"ok": true, "prune": false, …}
    POST /v1/log     {"study": "digits", "trial": 7, "metrics": {"auc": 0.9}, "step": 1} -> {"ok": true}
    POST /v1/tell    {"study": "digits", "trial": 7, "values": [0.3]}     -> {"ok": true}
    POST /v1/VERB for the others: see `LocalPeer.answer`.

An error is {"ok": false, "error": "…", "code": N} with the exit code of the command line. Requests carry the key as
`Authorization: Bearer KEY`. Below /api/, the server has the REST interface of Hopaas; see `hopaas_rest`.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from hopaas_p2p.net.listening import STRANGERS_IDLE, FewStrangers, listening_on
from hopaas_p2p.ports.hopaas_rest import HopaasRest
from hopaas_p2p.ports.local import LocalPeer
from hopaas_p2p.ports.verbs import answered

_LARGEST_BODY: Final = 1 << 20
_IDLE: Final = 60.0  # seconds for which a connection may be silent between two requests
_DEADLINE: Final = 20.0  # seconds from the first byte of a request to its last, and for the client to read the answer
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_STATUS: Final = {2: 400, 3: 409, 11: 409, 69: 503, 77: 403}
"""Status by exit code; others are 500."""


class LocalServer(FewStrangers, ThreadingHTTPServer):
    """Serves a LocalPeer until `shutdown`.

    Args:
        peer: answers the requests.
        address: (host, port) on loopback.
        key: the key that requests must carry.

    Raises:
        ConfigurationError: the address is in use, or cannot be used.

    """

    daemon_threads = True
    request_queue_size = 128  # with 5, silent connections would make others wait for seconds

    def __init__(self, peer: LocalPeer, address: tuple[str, int], key: str) -> None:
        self.peer, self.key = peer, key
        self.rest = HopaasRest(peer)
        self.due: dict[socket.socket, float] = {}
        """Connection -> the deadline for reading its request, which bytes that keep arriving do not extend."""
        with listening_on(*address):
            super().__init__(address, _Handler)

    def service_actions(self) -> None:
        """Close connections whose requests take too long; called by `serve_forever` twice a second."""
        for connection, until in list(self.due.items()):
            if time.monotonic() > until and self.due.pop(connection, None) is not None:
                with contextlib.suppress(OSError):  # its own thread closes it
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        """The URL at which clients reach this server."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # sends an answer in one piece, as a second piece would wait 40 ms for the client's acknowledgement
    server_version, sys_version = "hopaas-p2p", ""

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.connection.settimeout(STRANGERS_IDLE if self.connection in self.server.strangers else _IDLE)
        with contextlib.suppress(OSError):  # it was silent for too long, or closed
            if self.rfile.peek(1):  # type: ignore[attr-defined]  # it is a BufferedReader
                self.server.due[self.connection] = time.monotonic() + _DEADLINE
                super().handle_one_request()
        self.server.due.pop(self.connection, None)

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > _LARGEST_BODY:
            self.close_connection = True
            self._answer(413, b"", "text/plain")
            return
        self._serve(self.rfile.read(int(length)))

    def _serve(self, body: bytes) -> None:
        if self.server.due.pop(self.connection, None) is None:
            return  # closed, so the body may be incomplete
        # so that a page in a browser cannot use this server
        if self.headers.get("Origin") is not None or self.headers.get("Host", "").rpartition(":")[0] not in _LOOPBACK:
            self._answer(403, b"this server answers programs on this machine only\n", "text/plain")
        elif self.path.startswith("/api/"):
            self._answer(*self.server.rest.answer(self.command, self.path, body, self._key_matches))
        elif not self._key_matches(self.headers.get("Authorization", "").removeprefix("Bearer ")):
            self._answer(401, b"send the key: Authorization: Bearer KEY\n", "text/plain")
        else:
            reply = answered(body, lambda said: self.server.peer.answer(self.path.removeprefix("/v1/"), said))
            status = 200 if reply["ok"] else _STATUS.get(reply["code"], 500)
            self._answer(status, json.dumps(reply).encode(), "application/json")

    def _key_matches(self, given: str) -> bool:
        matches = hmac.compare_digest(given.encode(), self.server.key.encode())
        if matches:
            self.server.strangers.pop(self.connection, None)
        return matches

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.connection.settimeout(_DEADLINE)
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response(HTTPStatus(status))
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Log nothing, because paths of the Hopaas interface contain the key."""
