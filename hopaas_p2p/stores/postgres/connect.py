"""Turns a postgresql:// URL into a connection: the driver, TLS, and the secret.

A connection to another machine is encrypted, and the server's certificate is verified, including its name (unless
sslmode is verify-ca); only a Unix socket or this machine's loopback may be unencrypted. The secret is looked up again
at every connect, so that a token can be renewed while a program runs. It is the first found of the URL's password,
HOPAAS_TOKEN_FILE, HOPAAS_TOKEN, and what libpq knows (PGPASSWORD, PGPASSFILE). Unless the URL's require_auth allows it,
the secret is not sent in clear: with libpq 16 or newer, a server that asks for less than SCRAM is refused. Channel
binding is used if the server supports it. `credentials` checks whether the secret may be sent to the server. No setting
of the session is changed, so a pooler may give it to another client between two statements.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net import trust
from hopaas_p2p.net.proxies import is_loopback
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.redaction import redacted
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.postgres.errors import refusal

if TYPE_CHECKING:
    import ssl

    from sqlalchemy import URL

_OPTIONS: Final = frozenset(
    {"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding", "connect_timeout"}
    | {"application_name", "target_session_attrs", "krbsrvname", "require_auth"}
)
_SCHEMES: Final = frozenset({"postgresql", "postgresql+psycopg2"})
_PORT: Final = 5432

_NOTHING_IN_CLEAR: Final = "!password,!md5"  # for what libpq supplies: PGPASSFILE, Kerberos, a certificate
_SCRAM: Final = "scram-sha-256"
_REQUIRE_AUTH: Final = 160000  # the first libpq with this option

_DEFAULTS: Final = {
    "connect_timeout": "10",  # seconds
    "application_name": "hopaas-p2p",
    "gssencmode": "disable",  # TLS is used; asking for GSS costs a round trip
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # milliseconds until an unanswered packet ends the connection
}

_url_passwords: Final[dict[str, Secret]] = {}
"""Passwords that came in URLs, by the URL with `***` in place of the password. That URL, `Store.url`, opens the same
store again in this process; in another process `***` is no password, and the secret comes from the environment."""


class PostgresAddress:
    """The URL of a Postgres store, parsed and checked. Holds no secret except that of a given login.

    Args:
        text: the URL.
        login: user and secret of a server's caller, to log in with regardless of the environment.

    Raises:
        ConfigurationError: the URL cannot be used, or would send data unencrypted; the message says what to change.

    """

    def __init__(self, text: str, login: tuple[str, Secret] | None = None) -> None:
        from sqlalchemy.exc import ArgumentError

        self._login = login
        shown = redacted(text)
        url = _parsed(text, shown)
        if url.drivername not in _SCHEMES:
            raise ConfigurationError(f"{shown}: this is not a Postgres URL; write postgresql://host/database")
        if not url.database:
            raise ConfigurationError(f"{shown}: name the database, as in postgresql://user@host/database")
        if ":" in str(url.query.get("sslkey", "")):
            raise ConfigurationError(f"{shown}: sslkey must be a file; with a colon in it, libpq would load code")
        unknown = set(url.query) - _OPTIONS
        if unknown:
            raise ConfigurationError(
                f"{shown}: the option {', '.join(sorted(unknown))} is not allowed in this URL; use only "
                f"{', '.join(sorted(_OPTIONS))}. Put a secret into the file of HOPAAS_TOKEN_FILE."
            )
        self.user = url.username
        without_secret = url._replace(drivername="postgresql+psycopg2", password=None)
        self.sqlalchemy_url: URL = without_secret.difference_update_query(["sslmode", "sslrootcert"])
        try:
            _, self.parameters = self.sqlalchemy_url.get_dialect()().create_connect_args(self.sqlalchemy_url)
            self.local = all(not port or is_loopback(host) for host, port in self.destinations)
        except (ArgumentError, ValueError) as error:
            raise ConfigurationError(f"{shown}: {error}") from None
        self.tls = _tls(url, shown, local=self.local)
        self.url = url.set(drivername="postgresql").render_as_string(hide_password=True)
        if url.password not in (None, "***"):
            _url_passwords[self.url] = Secret(str(url.password))

    @property
    def destinations(self) -> list[tuple[str, int]]:
        """(host, port) of all servers that may be asked for a login; for a Unix socket, its path and 0."""
        hosts = str(self.parameters.get("host") or os.environ.get("PGHOST", "")).split(",")
        ports = str(self.parameters.get("port") or os.environ.get("PGPORT") or _PORT).split(",")
        ports = ports if len(ports) > 1 else ports * len(hosts)
        return [
            (host, int(port or _PORT) if host and not host.startswith(("/", "@")) else 0)
            for host, port in zip(hosts, ports, strict=True)
        ]

    def client_context(self) -> ssl.SSLContext | None:
        """A TLS context that verifies the server as libpq would; None without TLS."""
        if self.tls["sslmode"] == "disable":
            return None
        verify_name = self.tls["sslmode"] == "verify-full"
        return trust.client_context(self.tls["sslrootcert"], alpn="postgresql", check_hostname=verify_name)

    def credentials(self) -> tuple[str | None, Secret | None]:
        """(user, secret) for the next login; None leaves it to libpq.

        Raises:
            ConfigurationError: the token may not be sent to this server.

        """
        if self._login is not None:
            return self._login
        in_url = _url_passwords.get(self.url) if ":***@" in self.url else None
        if in_url is not None:
            credentials.check_authority(self.destinations)
            return self.user, in_url
        return credentials.login(self.user, self.destinations)

    def connect(self, user: str | None, secret: Secret | None) -> Any:
        """A connection with this login. Raises a `HopaasError` if the server cannot be reached or refuses the login."""
        import psycopg2

        if secret is not None and not secret.reveal():  # libpq would then look for the user's own password
            raise ConfigurationError(f"{self.url}: the token or password is empty; set it, or leave it out")
        parameters = {**_DEFAULTS, **credentials.certificate(self.destinations), **self.parameters, **self.tls}
        if user is not None:
            parameters["user"] = user
        if secret is not None:
            parameters["password"] = secret.reveal()
        if psycopg2.__libpq_version__ >= _REQUIRE_AUTH:
            own = self._login is None  # a certificate or Kerberos identifies this machine, not a server's caller
            certified = own and (secret is None or "sslcert" in self.parameters)
            parameters.setdefault("require_auth", _NOTHING_IN_CLEAR if certified else _SCRAM)
        try:
            made = psycopg2.connect(**parameters)
        except psycopg2.Error as error:
            raise refusal(str(error)) from None
        made.autocommit = True
        return made


def _parsed(text: str, shown: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if not text.lower().startswith("postgresql"):
        raise ConfigurationError(f"{shown} is not a Postgres store")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{shown} cannot be read as a URL; it should look like postgresql://user@host:5432/database"
        ) from None
    if "@" in (url.host or ""):  # otherwise part of the password would be taken for the host, and shown
        raise ConfigurationError(
            f"{shown}: write %40 for @ in a password, or put it into the file of HOPAAS_TOKEN_FILE or PGPASSFILE"
        )
    return url


def _tls(url: URL, shown: str, *, local: bool) -> dict[str, str]:
    """The TLS parameters of libpq."""
    mode = str(url.query.get("sslmode", "disable" if local else "verify-full"))
    if mode == "disable" and local:
        return {"sslmode": "disable"}
    if mode not in ("verify-full", "verify-ca"):
        raise ConfigurationError(
            f"{shown}: sslmode={mode} would let others read the traffic or impersonate the server. Leave it out to "
            "verify the server; for a private authority set HOPAAS_CA_FILE or sslrootcert=/path/ca.pem."
        )
    return {"sslmode": mode, "sslrootcert": trust.authorities(str(url.query.get("sslrootcert", "")))}


def query(connection: Any, sql: str, values: Any = None) -> list[Any]:
    """The rows that a statement returns."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values or None)
        return cursor.fetchall() if cursor.description else []


def quoted(name: str, connection: Any) -> str:
    """The name of a role or database, quoted for a statement."""
    from psycopg2.extensions import quote_ident

    return str(quote_ident(name, connection))
