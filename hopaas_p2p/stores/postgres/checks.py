"""What `hopaas-p2p doctor` looks at in a Postgres store: the way, the server, its schema, the token, the clock."""

from __future__ import annotations

import datetime
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from hopaas_p2p.errors import Denied, HopaasError
from hopaas_p2p.stores import gateway_checks, way_checks
from hopaas_p2p.stores.findings import AGAIN, Finding
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.stores.way_checks import Way

if TYPE_CHECKING:
    from sqlalchemy import Connection

_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)  # "SSLRequest" of Postgres' protocol
_OLDEST: Final = 15
_CLOCKS_AGREE: Final = 60.0  # seconds
_TOKEN_ENDS: Final = 12 * 3600.0  # seconds before a token's end that are too few for a night
_ROUNDS: Final = 5


def way(store: PostgresStore) -> Generator[Finding, None, bool]:
    """Whether a server can be reached: of several in the URL, one is enough."""
    address = store.address
    if address.tunnelled:
        return (yield from gateway_checks.way(address))
    trust = _trust(address.tls)
    reached = not address.servers  # a Unix socket has no way
    for host, port in address.servers:
        there = Way(host, port, trust, wants_tls=_has_tls)
        reached = (yield from way_checks.checks(there)) or reached
    return reached


def _trust(tls: dict[str, str]) -> ssl.SSLContext | None:
    """Whom libpq would believe."""
    if tls["sslmode"] == "disable":
        return None
    trust = way_checks.trust_in(None if tls["sslrootcert"] == "system" else tls["sslrootcert"])
    trust.check_hostname = tls["sslmode"] == "verify-full"
    return trust


def _has_tls(connection: socket.socket) -> bool:
    connection.sendall(_SSL_REQUEST)
    return connection.recv(1) == b"S"


def checks(store: PostgresStore) -> Generator[Finding, None, bool]:
    """The findings about the server behind that way. Without a login or a schema nothing else can be looked at."""
    from sqlalchemy.exc import DBAPIError

    try:
        with store.connect() as connection:
            yield _version(connection)
            yield _login(connection)
            yield _clock(connection)
            yield _round_trip(connection)
    except (DBAPIError, Denied) as error:
        refused = store.translated(error) if isinstance(error, DBAPIError) else error
        if not isinstance(refused, Denied):
            raise refused from None
        yield Finding("token", passed=False, detail=str(refused), cure=AGAIN)
        return False
    schema = _schema(store)
    yield schema
    return schema.passed


def _version(connection: Connection) -> Finding:
    said = str(connection.exec_driver_sql("SHOW server_version").scalar_one())
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    well = number >= _OLDEST * 10_000
    cure = "" if well else f"update it; what this program does is tested on Postgres {_OLDEST} and later"
    return Finding("server", passed=well, detail=f"Postgres {said}", cure=cure)


def _login(connection: Connection) -> Finding:
    """Who we are, and for how long."""
    role, users, seconds = connection.exec_driver_sql(
        "SELECT r.rolname, array(SELECT pg_get_userbyid(m.roleid)::text FROM pg_auth_members m WHERE m.member = r.oid),"
        " CASE WHEN isfinite(r.rolvaliduntil) THEN extract(epoch FROM r.rolvaliduntil - now())::float8 END"
        " FROM pg_roles r WHERE r.rolname = session_user"
    ).one()
    user = next((user for user in users if role.startswith(f"{user}.")), None)
    who = f"user {user}, token {role}" if user else f"login {role}"
    if seconds is None:
        return Finding("token", passed=True, detail=f"{who}, which does not expire")
    ends = datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(seconds=seconds)
    detail = f"{who}, valid until {ends:%Y-%m-%d %H:%M} UTC, {seconds / 86400:.1f} days left"
    well = seconds > _TOKEN_ENDS
    cure = "" if well else f"get a new one soon: hopaas-p2p token create {user or role}"
    return Finding("token", passed=well, detail=detail, cure=cure)


def _clock(connection: Connection) -> Finding:
    before = time.time()
    theirs = float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::float8").scalar_one())
    after = time.time()
    apart = theirs - (before + after) / 2
    well = abs(apart) < _CLOCKS_AGREE
    cure = (
        "" if well else "nothing depends on it, but times are shown wrongly and certificates may seem expired; run NTP"
    )
    return Finding("clock", passed=well, detail=f"the server's is {apart:+.1f} s from ours", cure=cure)


def _round_trip(connection: Connection) -> Finding:
    taken = []
    for _ in range(_ROUNDS):
        began = time.monotonic()
        connection.exec_driver_sql("SELECT 1").scalar_one()
        taken.append(time.monotonic() - began)
    return Finding("round trip", passed=True, detail=f"{statistics.median(taken) * 1000:.2f} ms in the median")


def _schema(store: PostgresStore) -> Finding:
    try:
        installed = store.call("version")[0][0]
    except HopaasError as error:
        return Finding("schema", passed=False, detail=str(error), cure=AGAIN)
    well = installed == SCHEMA_VERSION
    cure = "" if well else "bring the older of the two up to date: hopaas-p2p init URL, or pip install -U hopaas-p2p"
    detail = f"of version {installed}" + ("" if well else f", and this program is made for {SCHEMA_VERSION}")
    return Finding("schema", passed=well, detail=detail, cure=cure)
