"""Small servers that tests put in the way: each client gets a thread, until the block ends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self


class Listening:
    """Listens at a free port of 127.0.0.1, and gives each client to `serve`. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            self.serve(client)

    def serve(self, client: socket.socket) -> None:
        """Do what this server is for; the client is closed when this returns, or breaks."""
        raise NotImplementedError


class Answering(Listening):
    """Says the same to each client, as soon as that has said anything."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    def serve(self, client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(self._answer)


class Dripping(Listening):
    """Begins an answer to each client, and then sends a byte every 20 ms, without an end."""

    def __init__(self, begins: bytes) -> None:
        super().__init__()
        self._begins = begins

    def serve(self, client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(self._begins)
        while True:
            client.sendall(b"x")
            time.sleep(0.02)


def copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes, and then that nothing more will."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def join(one: socket.socket, other: socket.socket, copy: Callable[[socket.socket, socket.socket], None] = copy) -> None:
    """Copy between the two, in both directions, until both have ended."""
    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    copy(one, other)
    back.join()
