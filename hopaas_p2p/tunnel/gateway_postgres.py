"""The gateway's one target: which Postgres, and a connection to it."""

from __future__ import annotations

import asyncio
import ssl
import struct
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.postgres.connect import Address
from hopaas_p2p.tunnel.wire import Owner, Wire, client_side

_TLS_REQUEST: Final = struct.pack("!II", 8, 80877103)


class Target(NamedTuple):
    """A database: all that this gateway leads to."""

    host: str
    """A name, an address, or the directory of a Unix socket."""
    port: int
    database: str
    address: Address

    @classmethod
    def of(cls, url: str) -> Target:
        """The target of a postgresql:// URL without a login.

        Raises:
            ConfigurationError: it is no Postgres, names no single host, or a login.

        """
        address = Address(url)
        parts = address.sqlalchemy_url
        if address.tunnelled:
            raise ConfigurationError(f"{address.url}: a gateway leads to a database, as in postgresql://host/database")
        asked = parts.query.get("host", "")
        host = parts.host or (asked if isinstance(asked, str) else ",".join(asked))
        if not host or "," in host:
            raise ConfigurationError(f"{address.url}: name one host; for several, put a pooler or HAProxy between")
        if parts.username or ":***@" in address.url:
            raise ConfigurationError(f"{address.url}: leave the login out; every peer brings its own")
        port = parts.port or int(str(parts.query.get("port", 5432)))
        return cls(host, port, str(parts.database), address)

    def libpq(self) -> dict[str, str | int]:
        """The same in libpq's words."""
        return {"host": self.host, "port": self.port, "dbname": self.database, **self.address.tls}

    async def connect(self, owner: Owner) -> Wire:
        """A connection, in TLS if the address asks for it.

        Raises:
            OSError: nobody there, or not one to trust.

        """
        greeter = _Greeter()
        loop = asyncio.get_running_loop()
        if self.host.startswith("/"):
            path = str(PurePosixPath(self.host) / f".s.PGSQL.{self.port}")
            _, wire = await loop.create_unix_connection(lambda: Wire(greeter, None), path)
        else:
            _, wire = await loop.create_connection(lambda: Wire(greeter, None), self.host, self.port)
        try:
            await self._secure(wire, greeter)
        except BaseException:
            wire.abort()
            raise
        wire.owner = owner
        return wire

    async def _secure(self, wire: Wire, greeter: _Greeter) -> None:
        if self.address.tls["sslmode"] == "disable":
            return
        wire.send(_TLS_REQUEST)
        if await greeter.answer != b"S":  # one byte, and not one more: the rest could be anybody's
            raise ConnectionError("Postgres speaks no TLS")
        wire.start_tls(client_side(self._context(), self.host))
        await wire.ready

    def _context(self) -> ssl.SSLContext:
        root = self.address.tls["sslrootcert"]
        context = ssl.create_default_context(cafile=None if root == "system" else root)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.address.tls["sslmode"] == "verify-full"
        return context


class _Greeter:
    """Owns a wire until Postgres has said whether it speaks TLS."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def arrived(self, wire: Wire, data: bytes) -> None:
        if self.answer.done():
            wire.abort()
        else:
            self.answer.set_result(data)

    def ended(self, wire: Wire) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError("Postgres closed the connection"))
            self.answer.exception()

    def congested(self, wire: Wire, yes: bool) -> None:
        pass
