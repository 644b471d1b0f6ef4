"""One tunnel's bytes: a thread between libpq's Unix socket and the gateway's WebSocket.

Raw sockets and one poll, because this is the path of every exchange: no queue, no second thread, no event loop.
Back-pressure is by not reading: whoever has bytes waiting to be written is not read from at the other side. If either
side ends, both end.
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
    from hopaas_p2p.tunnel.dial import Line

_GOING_AWAY: Final = 1001
_FAREWELL: Final = 2.0  # seconds to get a close frame out
_IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR
_WAIT: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class _Poll:
    """Waits for two descriptors. One that nothing is wanted from is left out, for poll would report its end at once."""

    def __init__(self, unix: int, tls: int) -> None:
        self._descriptors = (unix, tls)
        self._poll = select.poll()
        self._watched = (0, 0)

    def wait(self, wanted: tuple[int, int], milliseconds: float | None) -> tuple[bool, bool]:
        """Which of the two is ready, after so long at most."""
        if wanted != self._watched:
            for descriptor, now, before in zip(self._descriptors, wanted, self._watched, strict=True):
                if now:
                    self._poll.register(descriptor, now)
                elif before:
                    self._poll.unregister(descriptor)
            self._watched = wanted
        ready = [descriptor for descriptor, _ in self._poll.poll(milliseconds)]
        return self._descriptors[0] in ready, self._descriptors[1] in ready


class Pump:
    """Copies between a Unix socket and a line until one of them ends. Owns both."""

    def __init__(self, unix: socket.socket, line: Line) -> None:
        self._unix, self._tls, self._protocol = unix, line.socket, line.protocol
        self._silence = line.silence
        self._to_gateway = b""
        self._to_libpq = b""
        self._heard = time.monotonic()
        self._open = True
        self.moved = 0
        """Bytes of Postgres' protocol carried so far, both ways."""
        self.deserted = False
        """Whether this gateway is better left alone for now: it hangs, or is about to stop."""

    def run(self) -> str:
        """Copy until the end, and close both. Returns why it ended, for people to read."""
        from websockets.frames import Opcode
        from websockets.protocol import State

        self._data, self._text, self._established = (Opcode.BINARY, Opcode.CONT), Opcode.TEXT, State.OPEN
        self._unix.setblocking(False)
        self._tls.setblocking(False)
        poll = _Poll(self._unix.fileno(), self._tls.fileno())
        why = "libpq closed the connection"
        try:
            self._collect()  # a ping may have come along with the answer to the handshake
            while self._open:
                unix, tls = poll.wait(self._wanted(), self._patience())
                if tls or (self._tls.pending() and not self._to_libpq):
                    self._gateway_is_ready()
                if unix:
                    self._libpq_is_ready()
                if not unix and not tls and self._is_silent():
                    self.deserted = True
                    return f"the gateway was silent for {self._silence:.0f} s"
            close = self._protocol.close_rcvd
            if close is not None:
                self.deserted = close.code == _GOING_AWAY
                why = f"the gateway closed the connection: {close.code} {close.reason}".rstrip()
            elif self._protocol.parser_exc is not None:
                why = f"the gateway said what is no WebSocket: {self._protocol.parser_exc}"
        except (OSError, EOFError) as error:
            why = f"the connection to the gateway broke ({error})"
        finally:
            self._end()
        return why

    def _wanted(self) -> tuple[int, int]:
        unix = (0 if self._to_gateway else _IN) | (select.POLLOUT if self._to_libpq else 0)
        tls = (0 if self._to_libpq else _IN) | (select.POLLOUT if self._to_gateway else 0)
        return unix, tls

    def _patience(self) -> float | None:
        """Milliseconds until silence has to be looked at. Who does not listen, because libpq is slow, hears nothing."""
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
        """What the protocol has for libpq, and for the gateway."""
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
        if self._protocol.state is not self._established:  # a close frame, or bytes that are no frames
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
            self._unix.settimeout(_FAREWELL)
            if self._to_libpq:
                self._unix.sendall(self._to_libpq)
        self._unix.close()
        with contextlib.suppress(Exception):
            self._protocol.send_close(1000)
            self._tls.settimeout(_FAREWELL)
            self._tls.sendall(self._to_gateway + b"".join(self._protocol.data_to_send()))
        self._tls.close()
