"""A Postgres connection through a gateway: `connect` gives what psycopg2's gives.

    psycopg2 ── Unix socket in a private directory ── pump (a thread) ── WebSocket over TLS ── gateway ── Postgres

The gateway is dialled before libpq begins, so a refusal is ours to explain, and libpq's own time-out is not spent on
proxies. The socket is there for one connection: its directory (0700, on a file system of this machine) is gone as soon
as libpq has come, and only this very process is let in. The login, SCRAM, runs end to end inside.

Nothing survives a fork: the child's copies of the sockets are closed, and libpq's own is made a dead one, so that a
child that uses its parent's connection is told it is closed, and opens another.
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

from hopaas_p2p import settings
from hopaas_p2p.errors import ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.tunnel.dial import Busy, Gateway, Line, dial
from hopaas_p2p.tunnel.pump import Pump

_PORT: Final = "5432"  # a part of the socket's name, and no more
_CALL: Final = 30.0  # seconds that libpq gets to come
_NOT_TWICE: Final = {"sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable"}
"""The gateway is spoken to in TLS; the Unix socket that leads there needs none."""
_LAST_CHOICE: Final = 60.0  # seconds
_LEADS_ELSEWHERE: Final = ("PGHOSTADDR", "PGSERVICE")

_tunnels: Final[set[Tunnel]] = set()
_resting: Final[dict[Gateway, float]] = {}
"""Gateways that asked to be left alone, and until when."""
_failed: Final[dict[Gateway, float]] = {}
"""Gateways that are the last to be tried, and until when: one that hangs costs the whole time-out."""
_favourite: Gateway | None = None
"""Where the last connection of this process was made."""


def connect(
    gateways: Sequence[Gateway], *, dbname: str, user: str | None = None, password: str | None = None, **options: Any
) -> Any:
    """A psycopg2 connection to the database behind these gateways.

    Args:
        gateways: any of them will do: the one that was good last, else in random order.
        dbname: the database.
        user, password: the login, by default that of HOPAAS_TOKEN_FILE or HOPAAS_TOKEN (`name:password`).
        options: further ones of psycopg2's.

    Raises:
        Denied: the gateway does not let us in with that token.
        ConfigurationError: this is not a gateway to trust, or there is no token.
        StoreUnreachable: not now.
        psycopg2.OperationalError: the gateway let us in, but Postgres did not.

    """
    import psycopg2

    for name in _LEADS_ELSEWHERE:
        if os.environ.get(name):
            raise ConfigurationError(f"{name} would lead past the gateway; unset it")
    role, secret = login(user, password)
    tunnel = Tunnel(reach(gateways, Secret(f"{role}:{secret.reveal()}")))
    try:
        connection = psycopg2.connect(
            **{**options, "host": tunnel.folder, "port": _PORT, **_NOT_TWICE},
            dbname=dbname,
            user=role,
            password=secret.reveal(),
        )
    except BaseException:
        tunnel.close()
        raise
    tunnel.adopt(connection.fileno())
    return connection


def login(user: str | None, password: str | None) -> tuple[str, Secret]:
    """(role, password) to log in with: what is given, else the token's; a token without a name is the user's password.

    Raises:
        Denied: there is no token.

    """
    if user and password:
        return user, Secret(password)
    token = settings.token()
    if token is None:
        raise Denied("a gateway wants a token, and none was given. Set HOPAAS_TOKEN_FILE or HOPAAS_TOKEN")
    role, separator, secret = token.reveal().partition(":")
    if not separator and user:
        return user, token
    if not separator:
        raise ConfigurationError("the token has no name before a colon, and the URL names no user either")
    if user not in (None, "", role, role.rpartition(".")[0]):
        raise Denied(f"the token is not {user}'s. Set HOPAAS_TOKEN_FILE to one of that user's, or leave the user out")
    return role, Secret(secret)


def reach(gateways: Sequence[Gateway], token: Secret) -> Line:
    """A line to the first gateway that takes us; raises what the last one said if none does."""
    global _favourite
    now = time.monotonic()
    order = random.sample(gateways, len(gateways))
    order.sort(key=lambda one: (_failed.get(one, 0.0) > now, one != _favourite))
    failure: StoreUnreachable = StoreUnreachable("no gateway is named")
    for gateway in order:
        rest = _resting.get(gateway, now) - now
        if rest > 0:
            failure = Busy(f"the gateway {gateway} asked to come again in {rest:.0f} s", rest)
            continue
        try:
            line = dial(gateway, token)
        except StoreUnreachable as error:
            failure = error
            if isinstance(error, Busy):
                _resting[gateway] = time.monotonic() + error.retry_after
            _failed[gateway] = time.monotonic() + _LAST_CHOICE
            continue
        _favourite = gateway
        _failed.pop(gateway, None)
        return line
    raise failure


class Tunnel:
    """A Unix socket for one connection of libpq, and the thread that carries it to the gateway."""

    def __init__(self, line: Line) -> None:
        self.folder, self._listener = _listen()
        self.why = ""
        """Why it ended."""
        self._line: Final = line
        self._unix: socket.socket | None = None
        self.libpq: int | None = None
        """The inode of libpq's end."""
        self.pump: Pump | None = None
        self._thread = threading.Thread(target=self._run, name="hopaas-tunnel", daemon=True)
        _tunnels.add(self)
        self._thread.start()

    def adopt(self, descriptor: int) -> None:
        """Tell which descriptor is libpq's end, which a forked child must not use, nor any duplicate of it."""
        self.libpq = os.fstat(descriptor).st_ino

    def close(self) -> None:
        """Give up on a connection that libpq did not make."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CALL)

    def _run(self) -> None:
        try:
            self._unix = self._accept()
            if self._unix is None:
                self.why = "libpq did not come"
                self._line.socket.close()
                return
            self.pump = Pump(self._unix, self._line)
            self.why = self.pump.run()
            if self.pump.deserted:
                _failed[self._line.gateway] = time.monotonic() + _LAST_CHOICE
        finally:
            _tunnels.discard(self)

    def _accept(self) -> socket.socket | None:
        """Libpq's end, which is of this very process; None if it does not come."""
        try:
            deadline = time.monotonic() + _CALL
            while (rest := deadline - time.monotonic()) > 0:
                self._listener.settimeout(rest)
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
        """In a forked child: close the copies of the sockets, without a word to the gateway. Returns libpq's end."""
        for one in (self._listener, self._unix, self._line.socket):
            if one is not None:
                with contextlib.suppress(OSError):
                    os.close(one.detach())
        return self.libpq


def _listen() -> tuple[str, socket.socket]:
    """A directory that only we may enter, on this machine's own file system and short of name, and a socket in it."""
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


def _is_ours(made: socket.socket) -> bool:
    """Whether this process is at the other end. Where the system cannot tell, the directory's mode has to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    pid, uid, _ = struct.unpack("3i", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(pid == os.getpid() and uid == os.geteuid())


def _in_child() -> None:
    inodes = {tunnel.abandon() for tunnel in list(_tunnels)}
    _tunnels.clear()
    if inodes - {None}:
        _make_useless(inodes)


def _make_useless(inodes: set[int | None]) -> None:
    """Put dead sockets in the place of these, whichever descriptors they have."""
    dead, other = socket.socketpair()
    other.close()
    listing = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112  # no time to lose
    for name in os.listdir(listing):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if os.fstat(int(name)).st_ino in inodes:
                os.dup2(dead.fileno(), int(name), inheritable=False)
    dead.close()


os.register_at_fork(after_in_child=_in_child)


def bytes_moved(inode: int) -> int | None:
    """Bytes carried so far for the connection whose socket at libpq's end has this inode; None if it is no tunnel's."""
    for tunnel in list(_tunnels):
        if tunnel.libpq == inode and tunnel.pump is not None:
            return tunnel.pump.moved
    return None


def forget_gateways() -> None:
    """Do as if no gateway had been dialled yet in this process."""
    global _favourite
    _favourite = None
    _resting.clear()
    _failed.clear()
