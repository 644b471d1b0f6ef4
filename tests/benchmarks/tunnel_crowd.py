"""500 peers on one gateway, played by one process with one thread, so that peers cost little of the machine.

Each is a session of its own, directly in TLS or through the gateway, that says over and over what a peer's exchange
says: the statement is taken from the store, and the answer read as far as its lsn.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Beat, Outgoing
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.tunnel import dial
from tests.benchmarks.bench_core import commits
from tests.support.tunnel_fixtures import startup

PEERS: Final = 500
SECONDS: Final = 6.0
_LOGS: Final = 50  # ten peers a study
_READY: Final = b"Z\0\0\0\5I"
_SINCE, _NONCE, _PEER, _LOG = 987654321, "nonce-mark", "peer-mark", "log-mark"


class Load(NamedTuple):
    """What the peers did together."""

    exchanges: float
    """A second."""
    p50: float
    """Seconds."""
    p99: float


def run(connect: Callable[[], Session], statement: bytes, connected: Callable[[], None] = lambda: None) -> Load:
    """Let all peers connect, then exchange for some seconds. `connected` is called when all are."""
    run_name = secrets.token_hex(4)
    sessions = [connect() for _ in range(PEERS)]
    for number, session in enumerate(sessions):
        log = f"{run_name}-{number % _LOGS}"
        session.statement = statement.replace(_LOG.encode(), log.encode()).replace(
            _PEER.encode(), f"p{number}".encode()
        )
    connected()
    waits = sorted(_exchange(sessions))
    for session in sessions:
        session.socket.close()
    return Load(len(waits) / SECONDS, waits[len(waits) // 2], waits[int(0.99 * len(waits))])


def _exchange(sessions: Sequence[Session]) -> Iterator[float]:
    """The seconds that each exchange took."""
    with selectors.DefaultSelector() as selector:
        for session in sessions:
            session.ask()
            selector.register(session.socket, selectors.EVENT_READ, session)
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            for key, _ in selector.select(1.0):
                session = key.data
                if session.hears():
                    yield time.perf_counter() - session.asked
                    session.ask()


def together(loads: Sequence[Load]) -> Load:
    """The mean of several."""
    return Load(*(sum(values) / len(loads) for values in zip(*loads, strict=True)))


def statement_of(url: str) -> bytes:
    """What a store says for one exchange, as SQL with marks where peers differ."""
    from sqlalchemy import event

    said: list[tuple[str, Any]] = []
    store = PostgresStore(url)
    engine = store._connections.engine()
    event.listen(engine, "before_cursor_execute", lambda _c, _k, sql, values, *_: said.append((sql, values)))
    with contextlib.suppress(HopaasError):  # it has not come so far; what counts is what it said
        store.log(_LOG).exchange(Outgoing(_NONCE, commits(1, alone=False)[-1]), _SINCE, Beat(_PEER, "b"))
    with engine.connect() as connection, connection.connection.cursor() as cursor:
        statement = bytes(cursor.mogrify(*said[0]))  # type: ignore[attr-defined]
    store.close()
    assert all(str(mark).encode() in statement for mark in (_SINCE, _NONCE, _PEER, _LOG))
    return statement


# --- one session -------------------------------------------------------------------------------------------------


class Session:
    """A login at Postgres, over whatever carries its bytes."""

    def __init__(self, secured: ssl.SSLSocket, protocol: Any = None) -> None:
        self.socket, self._protocol = secured, protocol
        self.socket.settimeout(60)
        self.statement = b""
        self.asked = 0.0
        self._since = 0
        self._number = 0
        self._heard = bytearray()

    def ask(self) -> None:
        self._number += 1
        nonce = f"{id(self):x}{self._number}".encode()
        sql = self.statement.replace(_NONCE.encode(), nonce).replace(b"%d" % _SINCE, b"%d" % self._since)
        self.asked = time.perf_counter()
        self.send(b"Q" + struct.pack("!I", len(sql) + 5) + sql + b"\0")

    def hears(self) -> bool:
        """Take what has come; whether the answer is whole."""
        self._heard += self.receive()
        if not self._heard.endswith(_READY):
            return False
        at = 0
        while at < len(self._heard):
            (length,) = struct.unpack_from("!I", self._heard, at + 1)
            kind = self._heard[at : at + 1]
            if kind == b"D":
                (width,) = struct.unpack_from("!I", self._heard, at + 7)
                self._since = int(self._heard[at + 11 : at + 11 + width])
            elif kind == b"E":
                raise RuntimeError(bytes(self._heard[at : at + length]).decode(errors="replace"))
            at += length + 1
        self._heard.clear()
        return True

    def send(self, data: bytes) -> None:
        if self._protocol is not None:
            self._protocol.send_binary(data)
            data = b"".join(self._protocol.data_to_send())
        self.socket.sendall(data)

    def receive(self) -> bytes:
        data = self.socket.recv(1 << 16)
        while self.socket.pending():
            data += self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("closed")
        if self._protocol is None:
            return data
        self._protocol.receive_data(data)
        return b"".join(bytes(event.data) for event in self._protocol.events_received() if event.opcode == 2)

    def log_in(self, login: dict[str, str]) -> Session:
        """SCRAM-SHA-256, see RFC 5802 and 7677."""
        self.send(startup(user=login["user"], database=login["dbname"]))
        self._demand(10)
        nonce = secrets.token_hex(12)
        bare = f"n=,r={nonce}"
        first = f"n,,{bare}".encode()
        self._say(b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
        challenge = self._demand(11).decode()
        parts = dict(part.split("=", 1) for part in challenge.split(","))
        salted = hashlib.pbkdf2_hmac(
            "sha256", login["password"].encode(), base64.b64decode(parts["s"]), int(parts["i"])
        )
        key = hmac.digest(salted, b"Client Key", "sha256")
        unsigned = f"c=biws,r={parts['r']}"
        said = f"{bare},{challenge},{unsigned}".encode()
        signature = hmac.digest(hashlib.sha256(key).digest(), said, "sha256")
        proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        self._say(f"{unsigned},p={base64.b64encode(proof).decode()}".encode())
        while not self._heard.endswith(_READY):
            self._heard += self.receive()
        self._heard.clear()
        return self

    def _say(self, data: bytes) -> None:
        self.send(b"p" + struct.pack("!I", len(data) + 4) + data)

    def _demand(self, code: int) -> bytes:
        heard = self.receive()
        if heard[:1] != b"R" or struct.unpack_from("!I", heard, 5) != (code,):
            raise RuntimeError(heard.decode(errors="replace"))
        return heard[9:]


def directly(port: int, login: dict[str, str], authority: Path) -> Session:
    """A session in TLS with Postgres itself."""
    plain = socket.create_connection(("localhost", port), timeout=60)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.sendall(struct.pack("!II", 8, 80877103))
    assert plain.recv(1) == b"S"
    context = ssl.create_default_context(cafile=authority)
    return Session(context.wrap_socket(plain, server_hostname="localhost")).log_in(login)


def through(gateway: int, login: dict[str, str]) -> Session:
    """A session through the gateway."""
    line = dial.dial(ServerAddress("localhost", gateway), Secret(f"{login['user']}:{login['password']}"), timeout=60)
    return Session(line.socket, line.protocol).log_in(login)


# --- what the gateway uses ---------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Of the gateway so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def memory(pid: int, *, most: bool = False) -> int:
    """Bytes that a process has now, or has had at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:" if most else "VmRSS:")[2].split()[0]) * 1024
