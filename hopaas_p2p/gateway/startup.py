"""The first message of each side of a Postgres session: all that the gateway looks into.

The client's must log in as the token's role. The server's answer may offer a login that is bound to its TLS channel,
SCRAM-SHA-256-PLUS; that channel ends at the gateway, so the offer is removed, or libpq would refuse to go on.

See "Start-up" and "Message Formats" in the chapter on Postgres' frontend/backend protocol.
"""

from __future__ import annotations

import struct
from typing import Final

_LONGEST: Final = 10_000  # bytes: Postgres' own limit, MAX_STARTUP_PACKET_LENGTH
_SHORTEST: Final = 9
_MAJOR: Final = 3
_NEGOTIATE: Final = b"v"  # the server knows an older minor version of the protocol; its demand follows
_SASL: Final = struct.pack("!I", 10)
_REQUESTS: Final = {
    80877102: "a cancel request, which is not supported",
    80877103: "a request for TLS, which the connection already uses",
    80877104: "a request for GSSAPI encryption, which is not supported",
}


class BadStartup(Exception):
    """The client's first message must not be passed on; the text may be shown to the client."""


class StartupParser:
    """Collects the bytes of a StartupMessage, however they are cut."""

    def __init__(self) -> None:
        self.received = b""
        """All bytes so far: the message, and what came with it."""

    def feed(self, data: bytes) -> dict[str, str] | None:
        """Take more bytes; returns the message's parameters as soon as it is complete.

        Raises:
            BadStartup: it is too long, or not a StartupMessage.

        """
        self.received += data
        if len(self.received) < 4:
            return None
        (length,) = struct.unpack_from("!I", self.received)
        if not _SHORTEST <= length <= _LONGEST:
            raise BadStartup(f"a first message of {length} bytes")
        if len(self.received) >= 8:
            (version,) = struct.unpack_from("!I", self.received, 4)
            if version >> 16 != _MAJOR:
                raise BadStartup(_REQUESTS.get(version, "a protocol other than version 3 of Postgres's"))
        return _parameters(self.received[8:length]) if len(self.received) >= length else None


def _parameters(body: bytes) -> dict[str, str]:
    """Names and values in turn, each ended by a zero byte, and one more zero byte."""
    if not body.endswith(b"\0"):
        raise BadStartup("a first message without an end")
    parts = body[:-1].split(b"\0")
    if parts.pop() != b"" or len(parts) % 2:
        raise BadStartup("a first message with a name that has no value")
    try:
        texts = [part.decode() for part in parts]
    except UnicodeDecodeError:
        raise BadStartup("a first message that is not UTF-8") from None
    names = texts[::2]
    if "" in names or len(set(names)) < len(names):
        raise BadStartup("a first message with an empty or repeated name")
    return dict(zip(names, texts[1::2], strict=True))


class AuthenticationFilter:
    """Removes the offer of a login bound to the channel from the server's first messages, however they are cut."""

    def __init__(self) -> None:
        self._bytes = b""
        self.done = False
        """Whether the server's demand for a login has passed."""

    def feed(self, data: bytes) -> bytes:
        """Take more bytes; returns those that may be passed on by now."""
        self._bytes += data
        ready = b""
        while not self.done and len(self._bytes) >= 5:
            (length,) = struct.unpack_from("!I", self._bytes, 1)
            if not 4 <= length <= _LONGEST:  # nothing that we know
                self.done = True
            elif len(self._bytes) > length:
                message, self._bytes = self._bytes[: length + 1], self._bytes[length + 1 :]
                self.done = message[:1] != _NEGOTIATE
                ready += _without_channel_binding(message)
            else:
                break
        if self.done:
            ready, self._bytes = ready + self._bytes, b""
        return ready


def _without_channel_binding(message: bytes) -> bytes:
    """An AuthenticationSASL without the mechanisms that are bound to a channel; any other message as it is."""
    if message[:1] != b"R" or message[5:9] != _SASL:
        return message
    names = [name for name in message[9:].split(b"\0") if name and not name.endswith(b"-PLUS")]
    body = _SASL + b"".join(name + b"\0" for name in names) + b"\0"
    return b"R" + struct.pack("!I", 4 + len(body)) + body


def check(parameters: dict[str, str], *, role: str, database: str) -> None:
    """Whether this session is the one that the token is for.

    Raises:
        BadStartup: another role, another database, or a session that replicates.

    """
    if parameters.get("user") != role:
        raise BadStartup("the login does not match the token")
    if parameters.get("database", parameters["user"]) != database:
        raise BadStartup("this gateway serves another database")
    if "replication" in parameters:
        raise BadStartup("replication is not supported")


def fatal(text: str, code: str = "28000") -> bytes:
    """Postgres' ErrorResponse, for libpq to show."""
    fields = b"".join(
        kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", code), (b"M", text))
    )
    return b"E" + struct.pack("!I", 4 + len(fields) + 1) + fields + b"\0"
