"""Tokens: login roles of the server, each with an expiry, a limit of connections and time-outs."""

from __future__ import annotations

import datetime
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.access.administration import administration, share
from hopaas_p2p.errors import InvalidInput, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores.postgres import schema

if TYPE_CHECKING:
    from sqlalchemy import Connection

VALIDITIES: Final = {"day": "1 day", "week": "7 days", "month": "1 month", "year": "1 year"}
CONNECTIONS: Final = 256
"""Processes that may use one token at once, unless said otherwise."""

_MOST: Final = 100_000
_TIMEOUTS: Final = {
    # so that a stopped process holds no lock and no place for long; a snapshot over a thin link takes minutes
    "statement_timeout": "600s",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
}
_FAREWELL: Final = 10.0  # seconds that a terminated session gets to end


class Token(NamedTuple):
    """A token as it may be shown: everything but its secret."""

    name: str
    user: str
    label: str
    created: datetime.datetime
    expires: datetime.datetime | None
    last_used: datetime.datetime | None
    connections: int
    """At most so many processes at once."""
    sessions: int
    """So many are connected now."""


class NewToken(NamedTuple):
    """A token just made. This is the only time its secret is known."""

    name: str
    secret: Secret
    """What goes into HOPAAS_TOKEN_FILE: `name:password`."""
    expires: datetime.datetime


def create_token(
    url: str, user: str, *, label: str = "", valid: str = "month", connections: int = CONNECTIONS
) -> NewToken:
    """Make a token for a user.

    Args:
        url: the store, as its administrator.
        user: whose token it is.
        label: for people: where it is used.
        valid: day, week, month, year, or a date such as 2030-12-31.
        connections: so many processes may use it at once.

    Raises:
        InvalidInput: no such user, no such date, or one that has passed.

    """
    if not 1 <= connections <= _MOST:
        raise InvalidInput(f"connections must be from 1 to {_MOST}, got {connections}")
    name = f"{user}.{secrets.token_hex(4)}"
    password = Secret(secrets.token_urlsafe(32))
    with administration(url) as connection:
        expires = _expiry(connection, valid)
        known = connection.exec_driver_sql("SELECT 1 FROM hopaas.users WHERE username = %s", (user,)).one_or_none()
        if known is None:
            raise InvalidInput(f"there is no user {user!r}; make it with: hopaas-p2p user add {user}")
        role = schema.quoted(connection, name)
        connection.exec_driver_sql(
            f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {connections:d} PASSWORD %s VALID UNTIL %s",
            (_verifier(connection, name, password), expires.isoformat()),
        )
        connection.exec_driver_sql(f"GRANT {schema.quoted(connection, user)} TO {role}{_without_set(connection)}")
        for setting, value in _TIMEOUTS.items():
            connection.exec_driver_sql(f"ALTER ROLE {role} SET {setting} = '{value}'")
        share(connection, name)
        connection.exec_driver_sql(
            "INSERT INTO hopaas.tokens (role, username, label) VALUES (%s, %s, %s)", (name, user, label)
        )
    return NewToken(name, Secret(f"{name}:{password.reveal()}"), expires)


def _verifier(connection: Connection, role: str, password: Secret) -> str:
    """What the server keeps instead of the password, made here: the server and its log never see the password."""
    from psycopg2.extensions import encrypt_password

    scope = connection.connection.driver_connection
    return str(encrypt_password(password.reveal(), role, scope=scope, algorithm="scram-sha-256"))


def _without_set(connection: Connection) -> str:
    """From version 16 on, a member can be kept from becoming the role it is a member of."""
    version = connection.exec_driver_sql("SELECT current_setting('server_version_num')::integer").scalar_one()
    return " WITH INHERIT TRUE, SET FALSE" if version >= 160000 else ""


def _expiry(connection: Connection, valid: str) -> datetime.datetime:
    """When a token ends, by the server's clock, which is the one that will judge."""
    span = VALIDITIES.get(valid)
    now = connection.exec_driver_sql("SELECT now()").scalar_one()
    if span is not None:
        until: datetime.datetime = connection.exec_driver_sql("SELECT now() + %s::interval", (span,)).scalar_one()
        return until
    try:
        date = datetime.datetime.fromisoformat(valid)
    except ValueError:
        raise InvalidInput(
            f"valid: {valid!r} is neither {', '.join(VALIDITIES)} nor a date such as 2030-12-31"
        ) from None
    date = date.replace(tzinfo=datetime.UTC) if date.tzinfo is None else date
    if date <= now:
        raise InvalidInput(f"valid: {valid} has passed")
    return date


def tokens(url: str, *, user: str | None = None) -> list[Token]:
    """The tokens of everybody, or of one user, oldest first. For administrators."""
    with administration(url) as connection:
        rows = connection.exec_driver_sql(
            "SELECT t.role, t.username, t.label, t.created, nullif(r.rolvaliduntil, 'infinity'), t.last_used, "
            "r.rolconnlimit, (SELECT count(*) FROM pg_stat_activity a WHERE a.usename = t.role) "
            "FROM hopaas.tokens t JOIN pg_roles r ON r.rolname = t.role "
            "WHERE %(user)s::text IS NULL OR t.username = %(user)s ORDER BY t.created, t.role",
            {"user": user},
        )
        return [Token(*row) for row in rows]


def revoke_token(url: str, name: str) -> str:
    """End a token: no new logins, and its open sessions are terminated. Returns its name.

    Args:
        url: the store, as its administrator.
        name: the token's name, or its label if no other token has that.

    Raises:
        InvalidInput: there is no such token, or several of that label.
        StoreUnreachable: it can no longer log in, but a session did not end in 10 s.

    """
    with administration(url) as connection:
        found = connection.exec_driver_sql(
            "SELECT role FROM hopaas.tokens WHERE role = %(name)s OR label = %(name)s ORDER BY role = %(name)s DESC",
            {"name": name},
        ).scalars()
        candidates = list(found)
        if name in candidates:
            candidates = [name]
        if len(candidates) != 1:
            which = f"there are {len(candidates)} tokens {name!r}" if candidates else f"there is no token {name!r}"
            raise InvalidInput(f"{which}; list them with: hopaas-p2p token list")
        role = str(candidates[0])
        connection.exec_driver_sql(f"ALTER ROLE {schema.quoted(connection, role)} NOLOGIN")
    with administration(url) as connection:
        _end_sessions(connection, role)
        connection.exec_driver_sql("DELETE FROM hopaas.tokens WHERE role = %s", (role,))
        connection.exec_driver_sql(f"DROP ROLE {schema.quoted(connection, role)}")
    return role


def _end_sessions(connection: Connection, role: str) -> None:
    """Terminate the sessions of a role, and see them end."""
    deadline = time.monotonic() + _FAREWELL
    while True:
        connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        open_sessions = connection.exec_driver_sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s", (role,)
        ).scalar_one()
        if not open_sessions:
            return
        if time.monotonic() > deadline:
            raise StoreUnreachable(f"{role} can no longer log in, but {open_sessions} of its sessions have not ended")
        time.sleep(0.02)
