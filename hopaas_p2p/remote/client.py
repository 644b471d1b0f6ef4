"""A store that is reached through a server: over HTTPS, or through a folder that both sides share (see `box`).

    https://gateway.example.org/tuning        https://one.example.org,two.example.org:8443/tuning
    folder:///shared/box

Over HTTPS every call is one request on a connection that stays open. Several servers of one store may be named; the one
that worked last is tried first. Connections use the environment's proxy and verify the certificate, and no scheme,
option or redirect bypasses TLS. A connection that ended while idle is replaced silently, because every request may be
sent twice.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import random
import re
import socket
import ssl
import struct
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from hopaas_p2p.core.names import checked_key, valid_name
from hopaas_p2p.errors import (
    ASK_FOR_ANOTHER,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    StoreCorrupt,
    StoreUnreachable,
)
from hopaas_p2p.net import proxies, trust
from hopaas_p2p.net.answers import AnswerBytes
from hopaas_p2p.net.backoff import persistently
from hopaas_p2p.net.proxies import ServerAddress, closed_on_error
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.protocol import CATALOG, FILE, LARGEST, LONGEST_WAIT, PATH, Facts, StoreRequest
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Artifacts, Beat, Doubtful, ExchangeResult, Log, Outgoing, Progress, Store

DIAL: Final = 10.0
"""Seconds for TCP, proxy and TLS together."""
_ANSWER: Final = 30.0  # seconds of silence after which a connection is given up
_AVOIDED_FOR: Final = 60.0  # seconds
_LONGEST_REST: Final = 60.0
_FRESHNESS: Final = 1.0  # seconds, because a look is a round trip
_PIECE: Final = 1 << 18  # bytes
_SILENT: Final = (TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""The errors of reading and writing when no byte has moved for too long."""
_PATH: Final = re.compile(r"[A-Za-z0-9._~/-]*")
_HINT: Final = ". To find out why: hopaas-p2p doctor URL"

_busy_until: Final[dict[ServerAddress, float]] = {}
"""Servers that asked clients to retry later."""
_avoided_until: Final[dict[ServerAddress, float]] = {}
"""Servers that are tried last, because a hanging one costs the whole time-out."""


class RemoteAddress(NamedTuple):
    """The URL of a store that is served, parsed and checked. Contains no secret."""

    servers: tuple[ServerAddress, ...]
    path: str
    user: str | None = None

    @classmethod
    def parse(cls, url: str) -> RemoteAddress:
        """The address in a URL.

        Raises:
            ConfigurationError: the URL cannot be used; the message says what to change.

        """
        scheme, _, rest = url.partition("://")
        place, slash, path = rest.partition("/")
        login, _, hosts = place.rpartition("@")
        path = (slash + path).rstrip("/")
        if scheme.lower() != "https":
            raise ConfigurationError(f"{scheme}://… is not encrypted; write https://host/path")
        if ":" in login:
            raise ConfigurationError("the URL must not contain a password; put it into the file of HOPAAS_TOKEN_FILE")
        if not _PATH.fullmatch(path) or ".." in path:
            raise ConfigurationError(f"https://{hosts}/…: the path may hold letters, digits and ._~/-, and no options")
        servers = tuple(ServerAddress.parse(one) for one in hosts.split(",") if one)
        if not servers:
            raise ConfigurationError("name a server, as in https://gateway.example.org/tuning")
        return cls(servers, path, login or None)

    def __str__(self) -> str:
        shown = [str(one).removesuffix(":443") for one in self.servers]
        return f"https://{f'{self.user}@' if self.user else ''}{','.join(shown)}{self.path}"

    def token(self) -> Secret | None:
        """The login, `name:secret`; None if there is no token.

        Raises:
            ConfigurationError: the token may not go to one of these servers, or cannot be read.

        """
        role, secret = credentials.login(self.user, self.servers)
        return None if secret is None else Secret(f"{role or self.user or ''}:{secret.reveal()}")


class _Line:
    """One connection to one server, used by one thread at a time."""

    def __init__(self, server: ServerAddress, path: str) -> None:
        self.server = server
        self._path = path
        plain = proxies.connect(server, timeout=DIAL)
        with closed_on_error(plain):
            deadline = time.monotonic() + DIAL
            self._socket: ssl.SSLSocket = trust.secure(plain, server.host, deadline=deadline, hint=_HINT)
        self.close = weakref.finalize(self, self._socket.close)
        """Closes the connection, as garbage collection does, too."""
        self.close.atexit = False
        # The kernel watches for silence: with Python's own time-out, reading releases the interpreter's lock three
        # times instead of once, and each release costs 5 ms beside a busy thread. Python is told that the socket does
        # not block; otherwise it would retry forever.
        self._socket.setblocking(False)
        os.set_blocking(self._socket.fileno(), True)
        limit = struct.pack("@ll", int(_ANSWER), int(_ANSWER % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
        self.used = False
        """Whether a request was answered on this connection."""

    def ask(self, method: str, path: str, token: Secret | None, body: bytes | Path) -> http.client.HTTPResponse:
        """Send a request; returns the answer, with its body still unread. Raises OSError and HTTPException."""
        with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            lines = [f"{method} {self._path}{path} HTTP/1.1", f"Host: {self.server}", f"Content-Length: {size}"]
            if token is not None:
                lines.append(f"Authorization: Bearer {protocol.encode_header(token.reveal())}")
            self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + source.read(_PIECE))
            while piece := source.read(_PIECE):
                self._socket.sendall(piece)
        coming = AnswerBytes(self._socket.recv_into, _ANSWER)
        answer = http.client.HTTPResponse(coming, method=method)  # type: ignore[arg-type]
        try:
            answer.begin()
            coming.room = answer.length or 0
        except BaseException:
            answer.close()
            raise
        self.used = True
        return answer

    def shut(self) -> None:
        """Abort another thread's request on this connection."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not through TLS, whose state that thread uses

    def abandon(self) -> None:
        """In a forked child, close our copy of the socket, and send nothing."""
        self.close.detach()
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())


class Connections:
    """Connections to the servers of one store. Any thread may make requests; each uses one connection alone."""

    def __init__(self, address: RemoteAddress) -> None:
        self.address, self.url = address, str(address)
        self._idle: deque[_Line] = deque()
        self._held: set[_Line] = set()
        """Connections whose request a server holds until there is news."""
        self._preferred: ServerAddress | None = None
        self._token: Secret | None = None
        """The token as last read; it is read again when a server refuses it."""

    def ask(self, call: str, *arguments: Any, place: str = "", held: bool = False) -> Any:
        """The result of a request, which the server may hold if `held`.

        Raises the server's error, InvalidInput if the request is too large, and like `send`.
        """
        body = protocol.encode(StoreRequest(call, place, arguments))
        if len(body) > LARGEST:
            raise InvalidInput(f"{len(body)} bytes are too many for one request; at most {LARGEST} are sent")
        with self.send("POST", PATH, body, held=held) as answer:
            data = answer.read(LARGEST + 1)
        try:
            return protocol.result_of(call, data)
        except (HopaasError, KeyError) as error:
            if isinstance(error, Denied):
                self._token = None  # the next request may find a new one
            raise error.with_traceback(None) from None  # the frames would keep the answer for as long as the error
        finally:
            del data

    def put(self, key: str, source: Path) -> None:
        """Store a copy of this file."""
        with self.send("PUT", f"{PATH}/files/{key}", source) as answer:
            protocol.result_of("put", answer.read(LARGEST))

    def get(self, key: str, target: Path, progress: Progress | None) -> None:
        """Write the data stored under the key to this file; raises KeyError if there are none."""
        with target.open("wb") as file, contextlib.closing(self._pieces(key)) as pieces:
            for data in pieces:
                file.write(data)
                if progress is not None:
                    progress(len(data))

    def _pieces(self, key: str) -> Generator[bytes, None, None]:
        """The bytes of a file as they arrive, so that an error of this machine's disk does not count as the
        server's.
        """
        with self.send("GET", f"{PATH}/files/{key}") as answer:
            if answer.getheader("Content-Type") != FILE:
                protocol.result_of("get", answer.read(LARGEST))
            while data := answer.read(_PIECE):
                yield data
            if answer.length:
                raise StoreUnreachable(f"the transfer of {key} broke off: {answer.length} bytes are missing")

    def withdraw(self, place: str, nonce: str) -> None:
        """Do nothing, because a request on a connection cannot be withdrawn."""

    @contextlib.contextmanager
    def send(
        self, method: str, path: str, body: bytes | Path = b"", *, held: bool = False
    ) -> Iterator[http.client.HTTPResponse]:
        """Make one request, optionally with a file's bytes. Yields the answer, to be read within the block.

        Raises:
            Denied: the server does not accept this token.
            ConfigurationError: the server is not trusted, or is not a hopaas-p2p server of this version; the message
                says what to change.
            StoreUnreachable: no server can be reached now.

        """
        while True:
            token = self._token = self._token or self.address.token()
            try:
                line = self._idle.pop()
            except IndexError:
                line = self._dial()
            fresh, done = not line.used, False
            if held:
                self._held.add(line)
            try:
                answer = line.ask(method, path, token, body)
                with contextlib.closing(answer):
                    if answer.status == http.client.UNAUTHORIZED:
                        self._token = self.address.token()
                        if self._token != token:
                            continue
                    _check(line.server, answer, token)
                    fresh = True  # after an answer, a transfer that breaks off is not retried here
                    yield answer
                    done = answer.isclosed() and not answer.will_close
                return
            except (OSError, http.client.HTTPException) as error:
                if held and line not in self._held:
                    raise StoreUnreachable("this process stopped waiting for the answer") from None
                if not fresh and not isinstance(error, _SILENT):
                    self.close()  # it ended while idle, as others of the same age did
                    continue
                _avoided_until[line.server] = time.monotonic() + _AVOIDED_FOR
                silent = "no data arrived in time" if isinstance(error, _SILENT) else None
                why = silent or getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
                raise StoreUnreachable(f"{line.server} did not answer: {why}{_HINT}") from None
            finally:
                self._held.discard(line)
                self._idle.append(line) if done else line.close()

    def _dial(self) -> _Line:
        """A connection to the first server that accepts one; raises the last server's error if none does."""
        now, failure = time.monotonic(), StoreUnreachable("no server is named")
        order = random.sample(self.address.servers, len(self.address.servers))
        order.sort(key=lambda one: (_avoided_until.get(one, 0.0) > now, one != self._preferred))
        for server in order:
            wait = _busy_until.get(server, now) - now
            if wait > 0:
                failure = StoreUnreachable(f"the server {server} asked to retry in {wait:.0f} s")
                continue
            try:
                line = _Line(server, self.address.path)
            except StoreUnreachable as error:
                failure = error
                _avoided_until[server] = time.monotonic() + _AVOIDED_FOR
                continue
            self._preferred = server
            _avoided_until.pop(server, None)
            return line
        raise failure

    def forget(self) -> None:
        """In a forked child, leave the connections to the parent."""
        for line in [*self._idle, *self._held]:
            line.abandon()
        self._idle.clear()
        self._held.clear()

    def hang_up(self) -> None:
        """Abort the requests that are held."""
        while self._held:
            self._held.pop().shut()

    def close(self) -> None:
        """Close idle connections; the next request opens a new one."""
        lines, self._idle = self._idle, deque()
        while lines:
            lines.pop().close()


def _check(server: ServerAddress, answer: http.client.HTTPResponse, token: Secret | None) -> None:
    """Raise the error for an answer that is not a result."""
    status, version = answer.status, answer.getheader("Hopaas-Server")
    if status == http.client.OK and version == str(protocol.VERSION):
        if answer.length is None:
            raise StoreUnreachable(f"the answer of {server} has no length; check whether a proxy changes it")
        return
    answered = f"the server {server} answered {status} {answer.reason}"
    if status in (429, 500, 502, 503, 504):  # from the server, or from a proxy in front of it
        with contextlib.suppress(ValueError):
            rest = min(max(float(answer.getheader("Retry-After", "1")), 0.0), _LONGEST_REST)
            _busy_until[server] = time.monotonic() + rest
        raise StoreUnreachable(f"{answered}: it cannot serve requests now")
    if status == 401 and version is not None:
        if token is None:
            raise Denied(f"{answered}: it needs a token, and none was given. Set HOPAAS_TOKEN_FILE or HOPAAS_TOKEN")
        raise Denied(f"{answered}: the token is wrong, expired or revoked. {ASK_FOR_ANOTHER}")
    if status == 413:
        why = "it accepts no request of this size"
    elif 300 <= status < 400:
        why = "redirects are not followed; write the server's own address"
    elif version is None:
        why = "that is not a hopaas-p2p server, or a proxy in between refused. Check the address and its path"
    elif version != str(protocol.VERSION):
        why = f"its version is {version[:20]!r}, and here {protocol.VERSION}. Install the same version on both sides"
    elif status == 403:
        why = "the proxy in front of it must accept only TLS, and set X-Forwarded-Proto: https"
    else:
        why = "it does not accept this request. Check the path, and whether a proxy changes requests"
    raise ConfigurationError(f"{answered}: {why}")


def _call(name: str) -> Any:
    """A log method that makes one request."""

    def call(log: RemoteLog, *arguments: Any) -> Any:
        return log.ask(name, *arguments)

    return call


class RemoteLog(Log):
    """A log of a store that is served. The server, not this process, waits for its turn in a store that needs turns."""

    rate_limited = True
    flush_interval = 0.0

    def __init__(self, store: RemoteStore, uuid: str) -> None:
        self._store = store
        self._uuid = uuid

    def ask(self, call: str, *arguments: Any) -> Any:
        """The result of a request about this log."""
        return self._store.connections.ask(call, *arguments, place=self._uuid)

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        result: ExchangeResult
        result, self.flush_interval = self.ask("exchange", outgoing, since)
        read = result.entries[-1].lsn if result.entries else since
        if result.more and read <= since:
            raise StoreUnreachable("the server's answer has no new commits")  # otherwise a reader would never finish
        return result

    snapshot_head = _call("snapshot_head")
    blocks = _call("blocks")
    block_names = _call("block_names")
    put_block = _call("put_block")
    put_snapshot_head = _call("put_snapshot_head")
    doubtful_head = _call("doubtful_head")
    denied_snapshots = _call("denied_snapshots")
    removed_up_to = _call("removed_up_to")
    confirm = _call("confirm")
    destroy = _call("destroy")
    erase = _call("erase")

    def news(self, since: int, within: float) -> bool | None:
        carrier, found = self._store.connections, None
        if isinstance(carrier, Connections):
            found = carrier.ask("news", since, min(within, LONGEST_WAIT), place=self._uuid, held=True)
        return found

    def judge_snapshot(self, found: Doubtful, *, same: bool) -> None:
        self.ask("judge_snapshot", found._replace(data=b""), same)

    def withdraw(self, outgoing: Outgoing) -> None:
        self._store.connections.withdraw(self._uuid, outgoing.nonce)


class RemoteStore(Store):
    """A store that is reached through a server, over HTTPS or a folder. Over HTTPS, connects at the first call."""

    freshness = _FRESHNESS

    def __init__(self, url: str) -> None:
        far = not url.lower().startswith("folder:")
        self.connections: Connections | Box = Connections(RemoteAddress.parse(url)) if far else Box(url)
        self.url = self.connections.url

    def facts(self) -> Facts:
        """The server's facts about the store and this user."""
        return self.connections.ask("hello")  # type: ignore[no-any-return]

    def catalog(self) -> RemoteLog:
        return RemoteLog(self, CATALOG)

    def log(self, uuid: str) -> RemoteLog:
        if uuid == CATALOG or not valid_name(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return RemoteLog(self, uuid)

    def shared(self) -> set[str] | None:
        return self.connections.ask("shared")  # type: ignore[no-any-return]

    def login(self) -> str:
        return self.facts().token

    def beat(self, beat: Beat) -> None:
        self.connections.ask("beat", beat)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        asked = [peer for peer in peers if valid_name(peer)]
        found: dict[str, str] = {}
        for first in range(0, len(asked), protocol.AT_ONCE):
            found |= self.connections.ask("beats", asked[first : first + protocol.AT_ONCE])
        return found

    def remove_beat(self, peer: str) -> None:
        if valid_name(peer):
            self.connections.ask("remove_beat", peer)

    def artifacts(self) -> RemoteArtifacts:
        return RemoteArtifacts(self.connections)

    def hang_up(self) -> None:
        self.connections.hang_up()

    def after_fork(self) -> None:
        self.connections.forget()

    def close(self) -> None:
        self.connections.close()


class RemoteArtifacts(Artifacts):
    """Files of a store that is served: each in one request, which is repeated if it breaks off."""

    def __init__(self, carrier: Connections | Box) -> None:
        self._carrier = carrier

    def put(self, key: str, source: Path) -> None:
        persistently(lambda: self._carrier.put(checked_key(key), source))

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        try:
            persistently(lambda: self._carrier.get(checked_key(key), target, progress))
        except KeyError:
            target.unlink(missing_ok=True)
            raise

    def delete(self, key: str) -> None:
        persistently(lambda: self._carrier.ask("delete", place=checked_key(key)))

    def keys(self, prefix: str) -> list[str]:
        found: list[str] = persistently(lambda: self._carrier.ask("keys", place=prefix))
        return found
