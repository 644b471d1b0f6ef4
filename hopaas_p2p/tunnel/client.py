"""A Postgres connection through a gateway: `connect` gives what psycopg2's gives.

    psycopg2 ── Unix socket in a private directory ── pump (a thread) ── WebSocket over TLS ── gateway ── Postgres

The gateway is dialled before libpq begins, so that a refusal can be explained and libpq's time-out is not spent on
proxies. The socket serves one connection: its directory (0700, on a file system of this machine) is removed as soon as
libpq has connected, and only this process is let in. The login, SCRAM, runs end to end inside.

Nothing survives a fork: the child closes its copies of the sockets and replaces libpq's own by a dead one, so that a
child that uses its parent's connection learns that it is closed, and opens another.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.errors import ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.runtime import credentials, process
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel.dial import GatewayBusy, GatewayConnection, dial
from hopaas_p2p.tunnel.pump import Pump

_PORT: Final = "5432"  # only a part of the socket's name
_LIBPQ_TIMEOUT: Final = 30.0  # seconds for libpq to connect to the socket
_NO_TLS_INSIDE: Final = {"sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable"}
"""The connection to the gateway is in TLS; the Unix socket needs none."""
_AVOIDED_FOR: Final = 60.0  # seconds
_BYPASSES: Final = ("PGHOSTADDR", "PGSERVICE")

_tunnels: Final[set[Tunnel]] = set()
_busy_until: Final[dict[ServerAddress, float]] = {}
"""Gateways that asked to come again later."""
_avoided_until: Final[dict[ServerAddress, float]] = {}
"""Gateways that are tried last: one that hangs costs the whole time-out."""
_preferred: ServerAddress | None = None
"""Where the last connection of this process was made."""


def connect(
    gateways: Sequence[ServerAddress],
    *,
    dbname: str,
    user: str | None = None,
    password: str | None = None,
    **options: Any,
) -> Any:
    """A psycopg2 connection to the database behind these gateways.

    Args:
        gateways: any of them will do; the one that worked last is tried first, the others in random order.
        dbname: the database.
        user, password: the login; by default, that of HOPAAS_TOKEN_FILE or HOPAAS_TOKEN (`name:password`).
        options: further options of psycopg2.

    Raises:
        Denied: the gateway does not let us in with this token.
        ConfigurationError: this is not a gateway to trust, or there is no token.
        StoreUnreachable: no gateway can be reached now.
        psycopg2.OperationalError: the gateway let us in, but Postgres did not.

    """
    import psycopg2

    for name in _BYPASSES:
        if os.environ.get(name):
            raise ConfigurationError(f"{name} would bypass the gateway; unset it")
    role, secret = login(user, password, gateways)
    tunnel = Tunnel(dial_any(gateways, Secret(f"{role}:{secret.reveal()}")))
    try:
        connection = psycopg2.connect(
            **{**options, "host": tunnel.folder, "port": _PORT, **_NO_TLS_INSIDE},
            dbname=dbname,
            user=role,
            password=secret.reveal(),
        )
    except BaseException:
        tunnel.close()
        raise
    tunnel.adopt(connection.fileno())
    return connection


def login(user: str | None, password: str | None, gateways: Sequence[ServerAddress]) -> tuple[str, Secret]:
    """(role, password) to log in with: what is given, else the token's; a token without a name is the user's password.

    Raises:
        Denied: there is no token, or it belongs to another user.
        ConfigurationError: neither the token nor the URL names a user, or the token may not go to these gateways.

    """
    if user and password:
        return user, Secret(password)
    role, secret = credentials.login(user, [(gateway.host, gateway.port) for gateway in gateways])
    if secret is None:
        if credentials.token() is None:
            raise Denied("a gateway needs a token, and none was given. Set HOPAAS_TOKEN_FILE or HOPAAS_TOKEN")
        raise Denied(f"the token is not {user}'s. Set HOPAAS_TOKEN_FILE to one of that user's, or leave out the user")
    if not role:
        raise ConfigurationError("the token has no name before a colon, and the URL names no user either")
    return role, secret


def dial_any(gateways: Sequence[ServerAddress], token: Secret) -> GatewayConnection:
    """A connection to the first gateway that lets us in; raises the error of the last one if none does."""
    global _preferred
    now = time.monotonic()
    order = random.sample(gateways, len(gateways))
    order.sort(key=lambda gateway: (_avoided_until.get(gateway, 0.0) > now, gateway != _preferred))
    failure: StoreUnreachable = StoreUnreachable("no gateway is named")
    for gateway in order:
        wait = _busy_until.get(gateway, now) - now
        if wait > 0:
            failure = GatewayBusy(f"the gateway {gateway} asked to retry in {wait:.0f} s", wait)
            continue
        try:
            connection = dial(gateway, token)
        except StoreUnreachable as error:
            failure = error
            if isinstance(error, GatewayBusy):
                _busy_until[gateway] = time.monotonic() + error.retry_after
            _avoided_until[gateway] = time.monotonic() + _AVOIDED_FOR
            continue
        _preferred = gateway
        _avoided_until.pop(gateway, None)
        return connection
    raise failure


class Tunnel:
    """A Unix socket for one connection of libpq, and the thread that carries it to the gateway."""

    def __init__(self, connection: GatewayConnection) -> None:
        self.folder, self._listener = _listen()
        self._connection: Final = connection
        self._unix: socket.socket | None = None
        self.libpq: int | None = None
        """The inode of libpq's socket."""
        self.pump: Pump | None = None
        self._thread = threading.Thread(target=self._run, name="hopaas-tunnel", daemon=True)
        _tunnels.add(self)
        self._thread.start()

    def adopt(self, descriptor: int) -> None:
        """Say which descriptor is libpq's: a forked child must not use that socket, nor a duplicate of it."""
        self.libpq = os.fstat(descriptor).st_ino

    def close(self) -> None:
        """End a tunnel to which libpq did not connect."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_LIBPQ_TIMEOUT)

    def _run(self) -> None:
        try:
            self._unix = self._accept()
            if self._unix is None:
                self._connection.socket.close()
                return
            self.pump = Pump(self._unix, self._connection)
            self.pump.run()
            if self.pump.gateway_failed:
                _avoided_until[self._connection.gateway] = time.monotonic() + _AVOIDED_FOR
        finally:
            _tunnels.discard(self)

    def _accept(self) -> socket.socket | None:
        """The connection of this process's libpq; None if it does not come."""
        try:
            deadline = time.monotonic() + _LIBPQ_TIMEOUT
            while (left := deadline - time.monotonic()) > 0:
                self._listener.settimeout(left)
                made, _ = self._listener.accept()
                if _is_ours(made):
                    return made
                made.close()
            return None
        except OSError:
            return None
        finally:
            self._listener.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def abandon(self) -> int | None:
        """In a forked child: close the copies of the sockets, and send nothing. Returns the inode of libpq's socket."""
        for copy in (self._listener, self._unix, self._connection.socket):
            if copy is not None:
                with contextlib.suppress(OSError):
                    os.close(copy.detach())
        return self.libpq


def _listen() -> tuple[str, socket.socket]:
    """A directory that only we may enter, on this machine's file system and with a short path, and a socket in it."""
    for place in ("/dev/shm", os.environ.get("XDG_RUNTIME_DIR"), "/tmp", tempfile.gettempdir()):  # noqa: S108
        if not place:
            continue
        try:
            folder = tempfile.mkdtemp(prefix="hopaas-", dir=place)
        except OSError:
            continue
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(Path(folder) / f".s.PGSQL.{_PORT}"))
            listener.listen(1)
        except OSError:  # a path too long, or a file system without sockets
            listener.close()
            shutil.rmtree(folder, ignore_errors=True)
            continue
        return folder, listener
    raise ConfigurationError("there is no place for a socket: set XDG_RUNTIME_DIR to a directory of this machine")


def _is_ours(connection: socket.socket) -> bool:
    """Whether this process is at the other end. Where the system cannot tell, the directory's mode has to suffice."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(pid == os.getpid() and uid == os.geteuid())


def _in_child() -> None:
    inodes = {tunnel.abandon() for tunnel in list(_tunnels)}
    _tunnels.clear()
    if inodes - {None}:
        _make_useless(inodes)


def _make_useless(inodes: set[int | None]) -> None:
    """Replace the sockets with these inodes by dead ones, whichever descriptors they have."""
    dead, other = socket.socketpair()
    other.close()
    listing = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112  # no time to lose
    for name in os.listdir(listing):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if os.fstat(int(name)).st_ino in inodes:
                os.dup2(dead.fileno(), int(name), inheritable=False)
    dead.close()


process.call_in_child(_in_child)


def bytes_moved(inode: int) -> int | None:
    """Bytes carried so far for libpq's socket with this inode; None if it does not belong to a tunnel."""
    for tunnel in list(_tunnels):
        if tunnel.libpq == inode and tunnel.pump is not None:
            return tunnel.pump.moved
    return None
