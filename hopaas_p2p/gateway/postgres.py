"""The one database that a gateway leads to, and a connection to it."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.gateway.connection import Connection, ConnectionHandler
from hopaas_p2p.net.proxies import closed_on_error
from hopaas_p2p.stores.postgres.connect import PostgresAddress

_TLS_REQUEST: Final = struct.pack("!II", 8, 80877103)


class PostgresTarget(NamedTuple):
    """Which Postgres, and which database of it."""

    host: str
    """A name, an address, or the directory of a Unix socket."""
    port: int
    database: str
    address: PostgresAddress

    @classmethod
    def of(cls, url: str) -> PostgresTarget:
        """The target of a postgresql:// URL without a login.

        Raises:
            ConfigurationError: it is not a Postgres, names no single host, or has a login.

        """
        address = PostgresAddress(url)
        parts = address.sqlalchemy_url
        if address.tunnelled:
            raise ConfigurationError(
                f"{address.url}: a gateway connects to a database, as in postgresql://host/database"
            )
        asked = parts.query.get("host", "")
        host = parts.host or (asked if isinstance(asked, str) else ",".join(asked))
        if not host or "," in host:
            raise ConfigurationError(f"{address.url}: give one host; for several, put a pooler or HAProxy in between")
        if parts.username or ":***@" in address.url:
            raise ConfigurationError(f"{address.url}: leave out the login; every peer uses its own")
        port = parts.port or int(str(parts.query.get("port", 5432)))
        return cls(host, port, str(parts.database), address)

    def libpq(self) -> dict[str, str | int]:
        """The same as parameters of libpq."""
        return {"host": self.host, "port": self.port, "dbname": self.database, **self.address.tls}

    async def connect(self, handler: ConnectionHandler) -> Connection:
        """A connection, in TLS if the address asks for it.

        Raises:
            OSError: the server cannot be reached, or its certificate is not to be trusted.

        """
        loop = asyncio.get_running_loop()
        plain = await self._open()
        with closed_on_error(plain):
            tls: dict[str, Any] = {}
            context = self.address.client_context()
            if context is not None:
                await loop.sock_sendall(plain, _TLS_REQUEST)
                if await loop.sock_recv(plain, 1) != b"S":  # one byte and no more: the rest could be from anybody
                    raise ConnectionError("Postgres does not offer TLS")
                tls = {"ssl": context, "server_hostname": self.host}
            _, connection = await loop.create_connection(lambda: Connection(handler), sock=plain, **tls)
            return connection

    async def _open(self) -> socket.socket:
        """A socket that is connected to the first of the host's addresses that answers."""
        loop = asyncio.get_running_loop()
        addresses: list[tuple[int, Any]]
        if self.host.startswith("/"):
            addresses = [(socket.AF_UNIX, f"{self.host}/.s.PGSQL.{self.port}")]
        else:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            addresses = [(family, address) for family, _, _, _, address in found]
        failure = OSError("no address")
        for family, address in addresses:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setblocking(False)
            try:
                with closed_on_error(made):
                    await loop.sock_connect(made, address)
                    return made
            except OSError as error:
                failure = error
        raise failure
