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
from hopaas_p2p.tunnel.dial import Gateway


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


def gateways_of(url: URL) -> Sequence[Gateway]:
    """The gateways that a URL lists: `//one,two:8443/db`, which share a port, or `//one/db?host=two:8443`.

    Raises:
        ConfigurationError: none, or one that is no host and port.

    """
    asked = url.query.get("host", ())
    listed = (asked,) if isinstance(asked, str) else tuple(asked)
    entries = [*(url.host or "").split(","), *(part for entry in listed for part in entry.split(","))]
    found = [_gateway(entry, url.port or 443) for entry in entries if entry]
    if not found:
        raise ConfigurationError("name a gateway, as in postgresql+https://gateway.example.org/database")
    return tuple(found)


def _gateway(entry: str, port: int) -> Gateway:
    host, colon, own = entry.rpartition(":")
    if not colon or "]" in own or (":" in host.strip("[]") and not host.startswith("[")):
        host, own = entry, ""
    if own and not (own.isdigit() and 0 < int(own) < 65536):
        raise ConfigurationError(f"{entry!r} is no gateway: {own!r} is no port")
    if host.startswith(("/", "@")):
        raise ConfigurationError(f"{entry!r} is no gateway: a name is needed, for its certificate")
    return Gateway(host.strip("[]"), int(own or port))


def register() -> None:
    """Make SQLAlchemy know the scheme where the package's entry points are not installed."""
    from sqlalchemy.dialects import registry

    registry.register("postgresql.https", __name__, TunnelDialect.__name__)
