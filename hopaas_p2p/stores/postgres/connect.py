"""From a postgresql:// URL to a connection: which driver, which TLS, whose secret.

A connection to another machine is encrypted and the server's certificate verified, by name too; only a Unix socket or
this machine's own loopback may do without. The secret is looked up anew at every connect, so a token may be renewed
under a running program: the URL's password slot, HOPAAS_TOKEN_FILE, HOPAAS_TOKEN, then what libpq knows (PGPASSWORD,
PGPASSFILE). Nothing is set on the session, so a pooler may hand it to somebody else between two statements.
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p import settings
from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores.postgres.watch import Silence

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

_OPTIONS: Final = frozenset(
    {"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding", "connect_timeout"}
    | {"application_name", "target_session_attrs", "krbsrvname"}
)
_TUNNEL_OPTIONS: Final = frozenset({"host", "connect_timeout", "application_name"})
_SCHEMES: Final = frozenset({"postgresql", "postgresql+psycopg2", "postgresql+https"})
_PORT: Final = 5432
_CONNECT_TIMEOUT: Final = "10"  # seconds
_REFUSED_FOR: Final = 60.0  # seconds before a refused secret is tried again, unless it has changed

_given: Final[dict[str, Secret]] = {}
"""Passwords from URLs' password slots, by the URL with `***` there: that is `Store.url`, and in this process it opens
the same store again. In another one, `***` is no password, and the secret comes from the environment."""


class Address:
    """Where a Postgres store is, taken apart and checked. Holds no secret.

    Raises:
        ConfigurationError: it cannot be used, or would send data in the clear; the message says what to change.

    """

    def __init__(self, text: str) -> None:
        from hopaas_p2p.stores.url import redacted

        shown = redacted(text)
        url = _parsed(text, shown)
        if url.drivername not in _SCHEMES:
            raise ConfigurationError(f"{shown}: this is no Postgres; write postgresql://host/database")
        if not url.database:
            raise ConfigurationError(f"{shown}: name the database, as in postgresql://user@host/database")
        self.tunnelled = url.drivername == "postgresql+https"
        allowed = _TUNNEL_OPTIONS if self.tunnelled else _OPTIONS
        unknown = set(url.query) - allowed
        if unknown:
            raise ConfigurationError(
                f"{shown}: the option {', '.join(sorted(unknown))} is not for this URL; it may have "
                f"{', '.join(sorted(allowed))}. A secret goes into HOPAAS_TOKEN_FILE."
            )
        if self.tunnelled:
            _look_at_gateways(url)
        self.local = not self.tunnelled and all(map(_is_local, _hosts(url)))
        self.tls = {} if self.tunnelled else _tls(url, shown, local=self.local)
        self.user = url.username
        driver = "postgresql+https" if self.tunnelled else "postgresql+psycopg2"
        self.sqlalchemy_url: URL = url._replace(drivername=driver, password=None)
        scheme = "postgresql+https" if self.tunnelled else "postgresql"
        self.url = url.set(drivername=scheme).render_as_string(hide_password=True)
        if url.password not in (None, "***"):
            _given[self.url] = Secret(str(url.password))

    @property
    def servers(self) -> list[tuple[str, int]]:
        """(host, port) of each server that is reached by TCP."""
        url = self.sqlalchemy_url
        asked = url.query.get("port", "")
        ports = (asked if isinstance(asked, str) else ",".join(asked)).split(",")
        usual = int(url.port or (ports[0] if ports[0].isdigit() else 0) or os.environ.get("PGPORT", "") or _PORT)
        found = []
        for index, host in enumerate(_hosts(url)):
            if host and not host.startswith(("/", "@")):
                name, _, own = host.rpartition(":") if host.count(":") == 1 else (host, "", "")
                port = own or (ports[index] if index < len(ports) else "")
                found.append((name.strip("[]"), int(port) if port.isdigit() else usual))
        return found

    def credentials(self) -> tuple[str | None, Secret | None]:
        """(user, secret) to log in with now; None leaves it to libpq."""
        given = _given.get(self.url) if ":***@" in self.url else None
        if given is not None:
            return self.user, given
        token = settings.token()
        if token is None:
            return self.user, None
        role, separator, secret = token.reveal().partition(":")
        if not separator:
            return self.user, token
        if self.user in (None, role, role.rpartition(".")[0]):
            return role, Secret(secret)
        return self.user, None  # somebody else logs in here: the token is not his


def _parsed(text: str, shown: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if not text.lower().startswith("postgresql"):
        raise ConfigurationError(f"{shown} is no Postgres store; users, tokens and grants are a database's")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{shown} cannot be read as a URL; it should look like postgresql://user@host:5432/database"
        ) from None
    if "@" in (url.host or ""):  # else a part of the password would be taken, and shown, for the host
        raise ConfigurationError(
            f"{shown}: in a password write %40 for @, or leave it out and put it into HOPAAS_TOKEN_FILE or PGPASSFILE"
        )
    return url


def _look_at_gateways(url: URL) -> None:
    """See that the gateways are named well, and that SQLAlchemy knows the way through them."""
    from hopaas_p2p.tunnel import dialect

    dialect.register()
    dialect.gateways_of(url)


def _hosts(url: URL) -> tuple[str, ...]:
    """The hosts that libpq may connect to; an empty one is its Unix socket."""
    asked = url.query.get("host", ())
    listed = (asked,) if isinstance(asked, str) else tuple(asked)
    hosts = [host for entry in (url.host or "", *listed) for host in entry.split(",") if host]
    return tuple(hosts) or tuple(os.environ.get("PGHOST", "").split(","))


def _is_local(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    for candidate in (host, host.rpartition(":")[0]):  # a host in the query may carry its port
        try:
            return ipaddress.ip_address(candidate.strip("[]")).is_loopback
        except ValueError:
            continue
    return False


def _tls(url: URL, shown: str, *, local: bool) -> dict[str, str]:
    """The TLS parameters of libpq."""
    mode = str(url.query.get("sslmode", "disable" if local else "verify-full"))
    if mode == "disable" and local:
        return {"sslmode": "disable"}
    if mode not in ("verify-full", "verify-ca"):
        raise ConfigurationError(
            f"{shown}: sslmode={mode} would let others read or answer in the server's place. Leave it out to verify "
            "the server; for a private authority set HOPAAS_CA_FILE or sslrootcert=/path/ca.pem."
        )
    root = str(url.query.get("sslrootcert", "")) or settings.ca_file()
    if root is None:
        import certifi

        root = certifi.where()
    elif root != "system" and not Path(root).is_file():
        raise ConfigurationError(f"{shown}: there is no file {root} with certificate authorities")
    return {"sslmode": mode, "sslrootcert": root}


class Door:
    """The engine of one address: one connection at most, opened when it is first needed.

    After the server has refused a secret, the same refusal is raised for a minute without asking it again.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._engine: Engine | None = None
        self._silence: Silence | None = None
        self._lock = threading.Lock()
        self._refusal: tuple[HopaasError, tuple[str | None, Secret | None], float] | None = None

    def engine(self) -> Engine:
        """The engine; raises what the server said when it refused this secret a moment ago."""
        refusal = self._refusal
        if refusal is not None:
            error, credentials, until = refusal
            if time.monotonic() < until and self.address.credentials() == credentials:
                raise type(error)(str(error))
            self._refusal = None
        with self._lock:
            if self._engine is None:
                self._engine = self._new_engine()
            return self._engine

    def remember_refusal(self, error: HopaasError) -> None:
        """The server does not take this secret: do not ask it again for a while."""
        self._refusal = (error, self.address.credentials(), time.monotonic() + _REFUSED_FOR)

    def _new_engine(self) -> Engine:
        from sqlalchemy import create_engine, event

        engine = create_engine(
            self.address.sqlalchemy_url.set(query=self._query()),
            pool_size=1,
            max_overflow=0,
            pool_timeout=60.0,
            pool_reset_on_return=None,  # every statement is a transaction of its own
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            use_native_hstore=False,
            connect_args=self._connect_args(),
        )
        engine.dialect.initialize = _ask_nothing  # type: ignore[assignment,method-assign]

        @event.listens_for(engine, "do_connect")
        def log_in(_dialect: object, _record: object, _args: object, parameters: dict[str, Any]) -> None:
            user, secret = self.address.credentials()
            if user is not None:
                parameters["user"] = user
            if secret is not None:
                parameters["password"] = secret.reveal()

        self._silence = Silence(engine)
        return engine

    @property
    def gave_up(self) -> bool:
        """Whether the last statement ended because the server was silent for too long."""
        return self._silence is not None and self._silence.broken

    def _query(self) -> dict[str, Any]:
        query = self.address.sqlalchemy_url.query
        return {key: value for key, value in query.items() if not key.startswith(("sslmode", "sslrootcert"))}

    def _connect_args(self) -> dict[str, str]:
        defaults = {
            "connect_timeout": _CONNECT_TIMEOUT,
            "application_name": "hopaas-p2p",
            "gssencmode": "disable",  # TLS it is; asking for the other costs a round trip
            "keepalives": "1",
            "keepalives_idle": "30",
            "keepalives_interval": "10",
            "keepalives_count": "3",
            "tcp_user_timeout": "30000",  # milliseconds until an unanswered packet ends the connection
        }
        asked = self.address.sqlalchemy_url.query
        return {**{key: value for key, value in defaults.items() if key not in asked}, **self.address.tls}

    def forget(self) -> None:
        """In a forked child: leave the connection to the parent, without a word to the server."""
        engine, self._engine, self._silence = self._engine, None, None
        self._lock = threading.Lock()
        if engine is not None:
            engine.dispose(close=False)

    def close(self) -> None:
        """End the connection; the next call opens another."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()


def _ask_nothing(_connection: object) -> None:
    """SQLAlchemy asks a new server for its version, schema and habits: four round trips for nothing we use."""
