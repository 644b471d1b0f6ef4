"""`postgresql+https://` for SQLAlchemy: psycopg2 through a gateway, for anything that takes an SQLAlchemy URL.

The token comes from the URL's user and password, else from HOPAAS_TOKEN_FILE or HOPAAS_TOKEN, anew at each connect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import ArgumentError

from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.net.proxies import ServerAddress


class TunnelDialect(PGDialect_psycopg2):
    """Postgres by psycopg2, connected by `tunnel.client`."""

    driver = "https"
    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        options: dict[str, Any] = {key: value for key, value in url.query.items() if key != "host"}
        if url.username:
            options["user"] = url.username
        if url.password not in (None, "", "***"):
            options["password"] = str(url.password)
        try:
            gateways = gateways_of(url)
        except ConfigurationError as error:
            raise ArgumentError(str(error)) from None
        if not url.database:
            raise ArgumentError("name the database, as in postgresql+https://gateway.example.org/database")
        return [], {**options, "gateways": gateways, "dbname": url.database}

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        from hopaas_p2p.tunnel import client

        try:
            return client.connect(*cargs, **cparams)
        except HopaasError as error:
            raise self.loaded_dbapi.OperationalError(str(error)) from error


def gateways_of(url: URL) -> Sequence[ServerAddress]:
    """The gateways that a URL lists: `//one,two:8443/db`, which share a port, or `//one/db?host=two:8443`.

    Raises:
        ConfigurationError: there is none, or one is not a host and a port.

    """
    asked = url.query.get("host", ())
    listed = [url.host or "", *((asked,) if isinstance(asked, str) else asked)]
    found = [ServerAddress.parse(part, url.port or 443) for entry in listed for part in entry.split(",") if part]
    if not found:
        raise ConfigurationError("name a gateway, as in postgresql+https://gateway.example.org/database")
    for gateway in found:
        if gateway.host.startswith(("/", "@")):
            raise ConfigurationError(f"{gateway.host!r} is not a gateway: its certificate needs a name")
    return found


def register() -> None:
    """Make SQLAlchemy know the scheme where the package's entry points are not installed."""
    from sqlalchemy.dialects import registry

    registry.register("postgresql.https", __name__, TunnelDialect.__name__)
