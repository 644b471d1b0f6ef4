"""A site's HTTP proxy: CONNECT only, with a login."""

from __future__ import annotations

import base64
import socket

from tests.support.listening import Listening, join

_REFUSAL = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nServer: test-proxy\r\n"
    b'Proxy-Authenticate: Basic realm="site"\r\nContent-Length: 0\r\n\r\n'
)


class ConnectProxy(Listening):
    """Tunnels connections to any port of 127.0.0.1, for who knows the login."""

    def __init__(self, user: str, password: str) -> None:
        super().__init__()
        self._login = base64.b64encode(f"{user}:{password}".encode())
        self.tunnels = 0
        self.refused = 0

    def serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = client.recv(4096)
            if not more:
                return
            head += more
        if b"basic " + self._login.lower() not in head.lower():
            self.refused += 1
            client.sendall(_REFUSAL)
            return
        port = int(head.split()[1].rpartition(b":")[2])
        with socket.create_connection(("127.0.0.1", port)) as there:
            self.tunnels += 1
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            join(client, there)
