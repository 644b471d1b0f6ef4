"""Removes logins from a server, even if their holders try to prevent it.

A login may have open transactions that lock what has to change, and prepared ones that outlive its sessions. A login
may also have rights and objects in any database of the server, which prevent its role from being dropped. So the login
is shut out first. It loses its right to log in, which no other session can block, and then its rows and grants, in a
short transaction that is retried while it is blocked. What is left does no harm; it is removed as far as possible, and
the rest is reported.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.postgres.connect import query, quoted
from hopaas_p2p.stores.postgres.store import PostgresStore

_ATTEMPTS: Final = 5
_HELD_UP: Final = frozenset({"55P03", "40P01", "40001", "XX000"})
"""Codes for a lock that is not granted, a deadlock, and a row that another transaction changed at the same time."""
_END_SESSIONS: Final = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY (%s)"
_SHUTDOWN_TIMEOUT: Final = 10.0  # seconds within which a terminated session must end


def shut_out(url: str, roles: list[str], forget: Callable[[Any], None]) -> None:
    """Bar these roles from logging in, and then remove them from the store's tables.

    Args:
        url: the URL of the store, with an administrator's login.
        roles: logins, and roles that they are members of, in the order in which they can be dropped.
        forget: removes them from the tables, in the transaction of the connection passed to it.

    Raises:
        HopaasError: the login is not an administrator's, or the tables were locked at every attempt. In the latter
            case, the roles are still in the tables, but can no longer log in.

    """

    def bar(connection: Any) -> None:
        for role in roles:
            query(connection, f"ALTER ROLE {quoted(role, connection)} NOLOGIN")

    for attempt in range(1, _ATTEMPTS + 1):
        with contextlib.closing(PostgresStore(url)) as store:
            try:
                _roll_back_prepared(url, roles)
                for take_away in (bar, forget):
                    with store.transaction() as connection:
                        query(connection, "SET LOCAL lock_timeout = '3s'")
                        query(connection, _END_SESSIONS, (roles,))
                        take_away(connection)
                return
            except HopaasError as error:
                if attempt == _ATTEMPTS or getattr(error.__cause__, "pgcode", None) not in _HELD_UP:
                    raise
                with store.connect() as connection:
                    # of other users, such as an owner who grants to these roles; no honest call takes that long
                    query(connection, "SELECT count(*) FROM hopaas.end_transactions(interval '2 seconds')")


def clear_away(url: str, roles: list[str]) -> list[str]:
    """End these roles' sessions and transactions, drop what they own, then the roles; return what failed, and why."""
    left: list[str] = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except HopaasError as error:
            cause = error.__cause__  # the server's message with its details, such as what depends on a role
            left.append(str(error).rstrip(".") if cause is None else " ".join(str(cause).split()))

    deadline, count = time.monotonic() + _SHUTDOWN_TIMEOUT, 1
    with noted(), contextlib.closing(PostgresStore(url)) as store:
        while count:
            with store.transaction() as connection:
                ((count,),) = query(connection, _END_SESSIONS, (roles,))
            if count and time.monotonic() > deadline:
                left.append(f"{count} session{'s' * (count != 1)} did not end within {_SHUTDOWN_TIMEOUT:.0f} s")
                break
            time.sleep(0.02 if count else 0.0)
    with noted():
        _roll_back_prepared(url, roles)
    databases: list[Any] = []
    with noted(), contextlib.closing(PostgresStore(url)) as store, store.transaction() as connection:
        sql = (
            "SELECT current_database() UNION SELECT d.datname FROM pg_shdepend s"
            " JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.refobjid"
            " WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (%s) AND d.datallowconn"
        )
        databases = query(connection, sql, (roles,))
    for (database,) in databases:
        with noted(), contextlib.closing(_in(url, database)) as other, other.transaction() as connection:
            query(connection, "SET LOCAL lock_timeout = '3s'")
            query(connection, f"DROP OWNED BY {', '.join(quoted(role, connection) for role in roles)}")
    for role in roles:
        with noted(), contextlib.closing(PostgresStore(url)) as store, store.transaction() as connection:
            query(connection, "SET LOCAL lock_timeout = '3s'")
            query(connection, f"DROP ROLE {quoted(role, connection)}")
    return left


def _roll_back_prepared(url: str, roles: list[str]) -> None:
    """Roll back these roles' prepared transactions, which keep their locks and which only their owners may end."""
    with contextlib.closing(PostgresStore(url)) as store, store.transaction() as connection:
        sql = "SELECT gid, owner, database FROM pg_prepared_xacts WHERE owner = ANY (%s)"
        prepared = query(connection, sql, (roles,))
    for gid, owner, database in prepared:
        with contextlib.closing(_in(url, database)) as other, other.connect() as connection:
            query(connection, f"SET ROLE {quoted(owner, connection)}")
            query(connection, "ROLLBACK PREPARED %s", (gid,))


def _in(url: str, database: str) -> PostgresStore:
    """A connection to another database of the server, with the same login."""
    from sqlalchemy import make_url

    return PostgresStore(make_url(url).set(database=database).render_as_string(hide_password=False))
