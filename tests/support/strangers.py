"""Servers of strangers: they ask for secrets, and note what they were told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


class Stranger:
    """A Postgres that is none: it asks whoever comes for the password in clear."""

    def __init__(self, listener: socket.socket) -> None:
        self.port = int(listener.getsockname()[1])
        self.visits = 0
        self.users: list[str] = []
        """Whom each said to be that came as far as that."""
        self.heard = b""
        """All bytes after the first packet: a secret, if somebody told one."""
        self._listener = listener

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, contextlib.suppress(OSError, struct.error):  # who only looks whether somebody is there
                    client.settimeout(5)
                    self.visits += 1
                    self._ask(client)

    def _ask(self, client: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("!I", client.recv(4, socket.MSG_WAITALL))
            packet = client.recv(length - 4, socket.MSG_WAITALL)
            if struct.unpack("!I", packet[:4])[0] not in (_SSL_REQUEST, _GSS_REQUEST):
                break
            client.sendall(b"N")
        words = packet[4:].split(b"\0")
        self.users.append(words[words.index(b"user") + 1].decode())
        client.sendall(b"R" + struct.pack("!II", 8, 3))
        while data := client.recv(4096):
            self.heard += data


@contextlib.contextmanager
def stranger() -> Iterator[Stranger]:
    """A stranger that listens on a port of loopback, as any user of the node may."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Stranger(listener)
        thread = threading.Thread(target=made.serve, daemon=True)
        thread.start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
