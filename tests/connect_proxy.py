"""A site's HTTP proxy: CONNECT only, with a login."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading

_REFUSAL = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nServer: test-proxy\r\n"
    b'Proxy-Authenticate: Basic realm="site"\r\nContent-Length: 0\r\n\r\n'
)


class ConnectProxy:
    """Tunnels connections to any port of 127.0.0.1, for who knows the login."""

    def __init__(self, user: str, password: str) -> None:
        self._login = base64.b64encode(f"{user}:{password}".encode())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.tunnels = 0
        self.refused = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> ConnectProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
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
                back = threading.Thread(target=_copy, args=(there, client), daemon=True)
                back.start()
                _copy(client, there)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
