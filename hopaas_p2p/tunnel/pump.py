"""Copies one tunnel's bytes between libpq's Unix socket and the gateway's WebSocket.

Raw sockets and one poll, because every exchange passes here: no queue, no second thread, no event loop. Back-pressure
is by not reading: while bytes wait to be written to one side, the other is not read. If either side ends, both end.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final

from hopaas_p2p.tunnel import FRAME

if TYPE_CHECKING:
    from hopaas_p2p.tunnel.dial import GatewayConnection

_GOING_AWAY: Final = 1001
_SHUTDOWN_TIMEOUT: Final = 2.0  # seconds to send a close frame
_IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR
_WAIT: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class Pump:
    """Copies between a Unix socket and a gateway until one of them ends. Owns both connections."""

    def __init__(self, unix: socket.socket, connection: GatewayConnection) -> None:
        self._unix, self._tls, self._protocol = unix, connection.socket, connection.protocol
        self._silence = connection.silence
        self._to_gateway = b""
        self._to_libpq = b""
        self._heard = time.monotonic()
        self._open = True
        self._wanted = (0, 0)
        self._poll = select.poll()
        self.moved = 0
        """Bytes of Postgres' protocol carried so far, both ways."""
        self.gateway_failed = False
        """Whether this gateway is better avoided for now: it hangs, or is about to stop."""

    def run(self) -> None:
        """Copy until the end, and close both."""
        from websockets.frames import Opcode
        from websockets.protocol import State

        self._data, self._text, self._established = (Opcode.BINARY, Opcode.CONT), Opcode.TEXT, State.OPEN
        self._unix.setblocking(False)
        self._tls.setblocking(False)
        try:
            with contextlib.suppress(OSError, EOFError):  # either connection broke
                self._collect()  # a ping may have come along with the answer to the handshake
                while self._open:
                    unix, tls = self._wait()
                    if tls or (self._tls.pending() and not self._to_libpq):
                        self._gateway_is_ready()
                    if unix:
                        self._libpq_is_ready()
                    if not unix and not tls and self._is_silent():
                        self.gateway_failed = True
                        break
                close = self._protocol.close_rcvd
                if close is not None:
                    self.gateway_failed = close.code == _GOING_AWAY
        finally:
            self._end()

    def _wait(self) -> tuple[bool, bool]:
        """Wait until libpq or the gateway is ready, or there has been silence for too long; returns which are.

        A side from which nothing is wanted is left out: poll would report its end at once.
        """
        unix = (0 if self._to_gateway else _IN) | (select.POLLOUT if self._to_libpq else 0)
        tls = (0 if self._to_libpq else _IN) | (select.POLLOUT if self._to_gateway else 0)
        if (unix, tls) != self._wanted:
            self._wanted, self._poll = (unix, tls), select.poll()
            for connection, events in ((self._unix, unix), (self._tls, tls)):
                if events:
                    self._poll.register(connection, events)
        ready = [descriptor for descriptor, _ in self._poll.poll(self._timeout())]
        return self._unix.fileno() in ready, self._tls.fileno() in ready

    def _timeout(self) -> float | None:
        """Milliseconds until silence has to be checked; None while libpq is slow, for then the gateway is not read."""
        if self._to_libpq:
            return None
        if self._tls.pending():
            return 0
        return max(0.0, self._heard + self._silence - time.monotonic()) * 1000.0 + 1.0

    def _is_silent(self) -> bool:
        return not self._to_libpq and time.monotonic() - self._heard > self._silence

    def _libpq_is_ready(self) -> None:
        if self._to_libpq:
            self._flush_libpq()
            if not self._to_libpq:
                self._heard = time.monotonic()
        if self._to_gateway or not self._open:
            return
        try:
            data = self._unix.recv(FRAME)
        except BlockingIOError:
            return
        if not data:
            self._open = False
            return
        self.moved += len(data)
        self._protocol.send_binary(data)
        self._collect()
        self._flush_gateway()

    def _gateway_is_ready(self) -> None:
        if self._to_gateway:
            self._flush_gateway()
        while self._open and not self._to_libpq:
            try:
                data = self._tls.recv(FRAME)
            except _WAIT:
                return
            self._heard = time.monotonic()
            if not data:
                self._open = False
                return
            self._protocol.receive_data(data)
            self._collect()
            if len(data) < FRAME and not self._tls.pending():
                return

    def _collect(self) -> None:
        """Take what the protocol has for libpq, and for the gateway."""
        events = self._protocol.events_received()
        if events:
            parts = [event.data for event in events if event.opcode in self._data]  # type: ignore[union-attr]
            if parts:
                data = b"".join(parts)
                self.moved += len(data)
                self._to_libpq += data
                self._flush_libpq()
            if any(event.opcode is self._text for event in events):  # type: ignore[union-attr]
                self._open = False
        outgoing = self._protocol.data_to_send()
        if outgoing:
            self._to_gateway += b"".join(outgoing)
            self._flush_gateway()
        if self._protocol.state is not self._established:  # a close frame, or bytes that are not frames
            self._open = False

    def _flush_libpq(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = self._unix.send(self._to_libpq)
            self._to_libpq = self._to_libpq[sent:]

    def _flush_gateway(self) -> None:
        if not self._to_gateway:
            return
        with contextlib.suppress(*_WAIT):
            sent = self._tls.send(self._to_gateway)
            self._to_gateway = self._to_gateway[sent:]

    def _end(self) -> None:
        """Give libpq what came before the end, tell the gateway, and close both."""
        with contextlib.suppress(OSError):
            self._unix.settimeout(_SHUTDOWN_TIMEOUT)
            if self._to_libpq:
                self._unix.sendall(self._to_libpq)
        self._unix.close()
        with contextlib.suppress(Exception):
            self._protocol.send_close(1000)
            self._tls.settimeout(_SHUTDOWN_TIMEOUT)
            self._tls.sendall(self._to_gateway + b"".join(self._protocol.data_to_send()))
        self._tls.close()
