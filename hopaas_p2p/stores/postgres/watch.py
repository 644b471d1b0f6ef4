"""Gives up a connection on which nothing has come for too long, so that nobody waits for ever.

libpq waits for a reply without a limit. A server that hangs, or a path that swallows packets, closes nothing: the
caller would sit there until the kernel gave up, which it never does while the other machine's kernel answers. So
while a connection is in use one thread of this process looks at it now and then, and when nothing has crossed it
between so many looks, shuts the socket down: libpq then reports a connection that was closed. Nothing is asked of the
server and nothing set on the session, so a pooler may stand between.

A large reply over a thin link may take its time: what counts is whether bytes move. Linux tells for TCP, and a tunnel
for what it carries; elsewhere, and on a Unix socket, only the time counts, and the limit is ten times as long.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sqlalchemy import Engine

SILENCE: Final = 30.0
"""Seconds without a byte either way after which a connection is given up. A lock is waited for half as long."""

_LOOKS: Final = 10  # a suspended process cannot look, so it is not the time of a clock that counts
_BLIND_LOOKS: Final = 100
_MOVED: Final = struct.Struct("=QQ")  # tcpi_bytes_acked and tcpi_bytes_received
_MOVED_AT: Final = 120  # their place in struct tcp_info, since Linux 4.2


class Silence:
    """Watches the connection of an engine while it is in use."""

    def __init__(self, engine: Engine) -> None:
        from sqlalchemy import event

        self._last: Watched | None = None
        event.listen(engine, "connect", self._made)
        event.listen(engine, "checkout", self._taken)
        event.listen(engine, "checkin", self._given_back)
        event.listen(engine, "close", self._closed)

    @property
    def broken(self) -> bool:
        """Whether the connection that was used last was given up for its silence."""
        return self._last is not None and self._last.given_up

    @staticmethod
    def _made(connection: Any, record: Any) -> None:
        record.info["watched"] = Watched(connection.fileno())

    def _taken(self, _connection: object, record: Any, _proxy: object) -> None:
        self._last = record.info["watched"]
        self._last.begin()

    @staticmethod
    def _given_back(connection: object, record: Any) -> None:
        if connection is not None:  # else it was closed
            record.info["watched"].end()

    @staticmethod
    def _closed(_connection: object, record: Any) -> None:
        watched = record.info.get("watched")  # none, when it was closed while it was made
        if watched is not None:
            watched.end()
            watched.close()


class Watched:
    """One connection's socket, by a descriptor of our own: libpq may close its own, and the number be used again."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._inode = os.fstat(descriptor).st_ino
        self.close = weakref.finalize(self, self._socket.close)
        """Lets go of the descriptor; the connection is libpq's to end."""
        self.close.atexit = False
        self.given_up = False
        """Whether it was shut down for its silence."""
        self._moved: int | None = None
        self._looks = 0

    def begin(self) -> None:
        """Somebody waits on it from now on."""
        self._moved, self._looks = None, 0
        _watch.begin(self)

    def end(self) -> None:
        """Nobody waits on it."""
        _watch.end(self)

    def look(self) -> bool:
        """Whether it has been silent for too long."""
        moved = self._bytes_moved()
        if moved != self._moved:
            self._moved, self._looks = moved, 0
            return False
        self._looks += 1
        return self._looks >= (_BLIND_LOOKS if moved is None else _LOOKS)

    def _bytes_moved(self) -> int | None:
        """Bytes that the other side has acknowledged, and that came from there; None where the kernel does not say."""
        with contextlib.suppress(OSError, AttributeError, struct.error):
            told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MOVED_AT + _MOVED.size)
            acknowledged, received = _MOVED.unpack_from(told, _MOVED_AT)
            return int(acknowledged + received)
        tunnels = sys.modules.get("hopaas_p2p.tunnel.client")  # not loaded, if nothing goes through a gateway
        moved: int | None = tunnels.bytes_moved(self._inode) if tunnels is not None else None
        return moved

    def give_up(self) -> None:
        """Shut it down under whoever waits."""
        self.given_up = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class _Watch:
    """The thread that looks, and what it looks at. It sleeps while no connection is in use."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a forked child: the thread is the parent's, and so are the calls."""
        self._lock = threading.Lock()
        self._in_use: set[Watched] = set()
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, watched: Watched) -> None:
        with self._lock:
            self._in_use.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hopaas-watch", daemon=True)
                self._thread.start()
            self._busy.set()

    def end(self, watched: Watched) -> None:
        with self._lock:
            self._in_use.discard(watched)

    def _run(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(SILENCE / _LOOKS)
            with self._lock:
                for watched in [one for one in self._in_use if one.look()]:
                    self._in_use.discard(watched)
                    watched.give_up()
                if not self._in_use:
                    self._busy.clear()

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()


_watch: Final = _Watch()
os.register_at_fork(
    before=_watch.before_fork,
    after_in_parent=_watch.after_fork_in_parent,
    after_in_child=_watch.reset,
)
