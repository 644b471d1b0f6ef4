"""What `hopaas-p2p doctor` checks in a Postgres store: the route, the server, the token, the clock and the schema."""

from __future__ import annotations

import datetime
import socket
import struct
import time
from collections.abc import Generator, Iterator
from typing import Any, Final

from hopaas_p2p.errors import Denied, HopaasError
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net.findings import AGAIN, Finding, clock
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.stores.postgres.connect import query
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION, wrong_schema
from hopaas_p2p.stores.postgres.store import PostgresStore

_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)  # "SSLRequest" of Postgres' protocol
_OLDEST: Final = 15
_TOKEN_ENDS: Final = 12 * 3600.0  # seconds; a token with less time left may end during a night's run


def way(store: PostgresStore) -> Generator[Finding, None, bool]:
    """The findings about the route; returns whether at least one server in the URL can be reached."""
    address = store.address
    context = address.client_context()
    servers = [(host, port) for host, port in address.destinations if port]  # a Unix socket has no route to check
    reached = not servers
    for host, port in servers:
        found = net_checks.checks(ServerAddress(host, port), context, request_tls=_request_tls)
        reached = (yield from found) or reached
    return reached


def _request_tls(connection: socket.socket) -> bool:
    connection.sendall(_SSL_REQUEST)
    return connection.recv(1) == b"S"


def checks(store: PostgresStore) -> Generator[Finding, None, bool]:
    """The findings about the server; returns whether the login works and the schema has the right version."""
    try:
        with store.connect() as connection:
            number, version = query(connection, "SELECT current_setting('server_version_num'), version()")[0]
            cure = f"update it; this program is tested on Postgres {_OLDEST} and later"
            said = f"Postgres {version.split()[1]}"
            yield Finding("server", said, passed=int(number) >= _OLDEST * 10_000, cure=cure)
            yield _login(connection)
            before = time.time()
            ((theirs,),) = query(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
            yield clock(theirs - (before + time.time()) / 2)
            yield from _limits(connection)
    except Denied as refused:
        yield Finding("token", str(refused), passed=False, cure=AGAIN)
        return False
    try:
        installed = store.call("version")[0][0]
    except HopaasError as error:
        yield Finding("schema", str(error), passed=False, cure=AGAIN)
        return False
    same = installed == SCHEMA_VERSION
    detail = f"of version {installed}" if same else str(wrong_schema(installed))
    yield Finding("schema", detail, passed=same, cure=AGAIN)
    return bool(same)


def _login(connection: Any) -> Finding:
    """The login, and how long it remains valid."""
    ((role, users, seconds),) = query(
        connection,
        "SELECT r.rolname, array(SELECT pg_get_userbyid(m.roleid)::text FROM pg_auth_members m WHERE m.member = r.oid),"
        " CASE WHEN isfinite(r.rolvaliduntil) THEN extract(epoch FROM r.rolvaliduntil - now())::float8 END"
        " FROM pg_roles r WHERE r.rolname = session_user",
    )
    user = next((user for user in users if role.startswith(f"{user}.")), None)
    who = f"user {user}, token {role}" if user else f"login {role}"
    if seconds is None:
        return Finding("token", f"{who}, which does not expire")
    ends = datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(seconds=seconds)
    detail = f"{who}, valid until {ends:%Y-%m-%d %H:%M} UTC, {seconds / 86400:.1f} days left"
    cure = f"get a new one soon: hopaas-p2p admin token create {user or role}"
    return Finding("token", detail, passed=seconds > _TOKEN_ENDS, cure=cure)


def _limits(connection: Any) -> Iterator[Finding]:
    """What any token can do to the server outside this store, and which tokens have changed their timeouts."""
    prepared = int(query(connection, "SHOW max_prepared_transactions")[0][0])
    if prepared:
        detail = f"any login may leave up to {prepared} behind, whose locks outlive its sessions"
        cure = "set max_prepared_transactions = 0 in postgresql.conf, and restart the server; hopaas-p2p needs none"
        yield Finding("prepared transactions", detail, passed=False, cure=cure)
    opened = ["NOTIFY, work_mem (no server forbids them)"]
    if schema.costly_functions(connection):
        opened.append("large objects, advisory locks, messages in the write-ahead log")
    if query(connection, "SHOW temp_file_limit")[0][0] == "-1":
        opened.append("temporary files of any size")
    others = query(
        connection,
        "SELECT string_agg(datname, ', ' ORDER BY datname) FROM pg_database"
        " WHERE datallowconn AND datname <> current_database() AND has_database_privilege('public', oid, 'CONNECT')",
    )[0][0]
    if others:
        opened.append(f"to connect to {others}")
    closes = "; a superuser's hopaas-p2p admin init revokes some of these" if len(opened) > 1 else ""
    yield Finding("open to all", f"{'; '.join(opened)}{closes}")
    changed = schema.changed_tokens(connection)
    if changed:
        detail = f"{', '.join(changed)}: timeouts were changed by the token's holder"
        yield Finding("tokens", detail, passed=False, cure="ask the holder; hopaas-p2p admin init resets them")
