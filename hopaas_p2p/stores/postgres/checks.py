"""What `hopaas-p2p doctor` looks at in a Postgres store: the way, the server, its schema, the token, the clock."""

from __future__ import annotations

import datetime
import socket
import statistics
import struct
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from hopaas_p2p.errors import Denied, HopaasError
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net.checks import Route
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION
from hopaas_p2p.stores.postgres.store import PostgresStore

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
    context = address.client_context()
    reached = not address.servers  # a Unix socket has no way
    for host, port in address.servers:
        route = Route(ServerAddress(host, port), context, request_tls=_request_tls)
        reached = (yield from net_checks.checks(route)) or reached
    return reached


def _request_tls(connection: socket.socket) -> bool:
    connection.sendall(_SSL_REQUEST)
    return connection.recv(1) == b"S"


def checks(store: PostgresStore) -> Generator[Finding, None, bool]:
    """The findings about the server. Without a login or a schema nothing else can be checked."""
    try:
        with store.connect() as connection:
            yield _version(connection)
            yield _login(connection)
            yield _clock(connection)
            yield _round_trip(connection)
            yield from _limits(connection)
    except (DBAPIError, Denied) as error:
        refused = store.translated(error) if isinstance(error, DBAPIError) else error
        if not isinstance(refused, Denied):
            raise refused from None
        yield Finding("token", passed=False, detail=str(refused), cure=AGAIN)
        return False
    installed = _schema(store)
    yield installed
    return installed.passed


def _version(connection: Connection) -> Finding:
    version = str(connection.exec_driver_sql("SHOW server_version").scalar_one())
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    cure = f"update it; this program is tested on Postgres {_OLDEST} and later"
    return Finding.judged("server", f"Postgres {version}", passed=number >= _OLDEST * 10_000, cure=cure)


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
    cure = f"get a new one soon: hopaas-p2p admin token create {user or role}"
    return Finding.judged("token", detail, passed=seconds > _TOKEN_ENDS, cure=cure)


def _clock(connection: Connection) -> Finding:
    before = time.time()
    theirs = float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())::float8").scalar_one())
    after = time.time()
    difference = theirs - (before + after) / 2
    detail = f"the server's differs from ours by {difference:+.1f} s"
    cure = "nothing depends on it, but times are shown wrongly and certificates may seem expired; run NTP"
    return Finding.judged("clock", detail, passed=abs(difference) < _CLOCKS_AGREE, cure=cure)


def _round_trip(connection: Connection) -> Finding:
    seconds = []
    for _ in range(_ROUNDS):
        began = time.monotonic()
        connection.exec_driver_sql("SELECT 1").scalar_one()
        seconds.append(time.monotonic() - began)
    return Finding("round trip", passed=True, detail=f"{statistics.median(seconds) * 1000:.2f} ms in the median")


def _limits(connection: Connection) -> Generator[Finding, None, None]:
    """What any token can do to the server beside this store, and what one has done."""
    prepared = int(connection.exec_driver_sql("SHOW max_prepared_transactions").scalar_one())
    if prepared:
        detail = f"any login may leave up to {prepared} behind, and their locks outlive its sessions"
        cure = "hopaas-p2p does not use them: set max_prepared_transactions = 0 in postgresql.conf, and restart"
        yield Finding("prepared transactions", passed=False, detail=detail, cure=cure)
    opened = ["NOTIFY, work_mem (no server forbids them)"]
    if schema.run(connection, "costly_functions").scalar_one():
        opened.append("large objects, advisory locks, messages in the write-ahead log")
    if connection.exec_driver_sql("SHOW temp_file_limit").scalar_one() == "-1":
        opened.append("temporary files of any size")
    others = schema.run(connection, "other_databases").scalar_one()
    if others:
        opened.append(f"to connect to {others}")
    closes = "; a superuser's hopaas-p2p admin init closes what can be" if len(opened) > 1 else ""
    yield Finding("open to all", passed=True, detail=f"{'; '.join(opened)}{closes}")
    changed = schema.changed_tokens(connection)
    if changed:
        detail = f"{', '.join(changed)}: timeouts were changed by the token's holder"
        yield Finding(
            "tokens", passed=False, detail=detail, cure="ask who has it; hopaas-p2p admin init sets them again"
        )


def _schema(store: PostgresStore) -> Finding:
    try:
        installed = store.call("version")[0][0]
    except HopaasError as error:
        return Finding("schema", passed=False, detail=str(error), cure=AGAIN)
    same = installed == SCHEMA_VERSION
    cure = "bring the older of the two up to date: hopaas-p2p admin init URL, or this installation"
    detail = f"of version {installed}" + ("" if same else f", and this program is made for {SCHEMA_VERSION}")
    return Finding.judged("schema", detail, passed=same, cure=cure)
