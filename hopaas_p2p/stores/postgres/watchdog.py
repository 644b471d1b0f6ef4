"""Gives up a connection on which no data has moved for too long, so that no caller waits forever.

libpq waits for a reply without a limit. A hanging server, or a route that drops packets, does not close the connection,
and the kernel does not give up either while the other machine's kernel answers. So one thread of this process checks
the connections in use, and shuts a socket down when no byte has crossed it during several checks; libpq then reports a
closed connection. The thread sends no query and changes no setting of the session, so the watchdog also works through a
pooler.

A large reply over a slow link may take any time, as long as bytes move. Linux reports the bytes that moved over TCP;
elsewhere, and on a Unix socket, only the time counts, and the limit is ten times as long.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.runtime import process

IDLE_LIMIT: Final = 30.0
"""Seconds without a byte in either direction after which a connection is given up. A wait for a lock ends after half of
this time.
"""

_LOOKS: Final = 10  # counted in checks, not by a clock, because a suspended process does not check
_BLIND_LOOKS: Final = 100
_MOVED: Final = struct.Struct("=QQ")  # tcpi_bytes_acked and tcpi_bytes_received
_MOVED_AT: Final = 120  # their place in struct tcp_info, since Linux 4.2

_lock = threading.Lock()
_in_use: set[WatchedSocket] = set()
"""The connections that the thread checks."""
_checks = False
"""Whether the thread runs."""


@contextlib.contextmanager
def watched(descriptor: int) -> Iterator[None]:
    """Shut this socket down if no byte moves for too long during the `with` block, which then fails.

    Raises:
        StoreUnreachable: in place of the block's own error.

    """
    global _checks
    one = WatchedSocket(descriptor)
    with _lock:
        _in_use.add(one)
        if not _checks:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending, and has no more threads
                threading.Thread(target=_check, name="hopaas-watchdog", daemon=True).start()
                _checks = True
    try:
        yield
    except Exception:
        if one.given_up:
            raise StoreUnreachable(
                f"the server, or the network to it, hangs: no data came for {IDLE_LIMIT:.0f} s. Nothing acknowledged "
                "is lost."
            ) from None
        raise
    finally:
        with _lock:
            _in_use.discard(one)
        one.close()


def _check() -> None:
    """The thread's main loop. It ends when a check finds no connection in use."""
    global _checks
    while True:
        time.sleep(IDLE_LIMIT / _LOOKS)
        with _lock:
            for one in [one for one in _in_use if one.look()]:
                _in_use.discard(one)
                one.give_up()
            if not _in_use:
                _checks = False
                return


def _in_child() -> None:
    """Start afresh in a forked child, because the parent's thread and callers stay with the parent."""
    global _lock, _in_use, _checks
    _lock, _in_use, _checks = threading.Lock(), set(), False


process.call_in_child(_in_child)


class WatchedSocket:
    """A connection's socket, under a descriptor of our own, because libpq may close its own and the number be
    reused.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self.close = self._socket.close
        """Closes only our descriptor; libpq ends the connection."""
        self.given_up = False
        """Whether the socket was shut down because no byte moved."""
        self._moved: int | None = None
        self._looks = 0

    def look(self) -> bool:
        """Whether no byte has moved for too long. Called at equal intervals while the connection is in use."""
        moved: int | None = None  # if the kernel does not report it
        with contextlib.suppress(OSError, AttributeError, struct.error):
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MOVED_AT + _MOVED.size)
            moved = sum(_MOVED.unpack_from(info, _MOVED_AT))
        if moved != self._moved:
            self._moved, self._looks = moved, 0
            return False
        self._looks += 1
        return self._looks >= (_BLIND_LOOKS if moved is None else _LOOKS)

    def give_up(self) -> None:
        """Shut the socket down, which wakes the caller."""
        self.given_up = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
