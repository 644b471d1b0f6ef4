"""Users, tokens and grants of a Postgres store: all of them native roles of the server.

A user is a role that nobody logs in as. A token is a login role, member of its user's, with an expiry, a limit of
connections and time-outs; its secret is made here, shown once, and kept by nobody (the server gets a SCRAM verifier).
A grant lets a user view a study, work in it, or own it. Users and tokens are made by administrators, who are members
of the role that owns the schema; grants are given by a study's owners.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError, InvalidInput, NoSuchStudy, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores import postgres_schema as schema
from hopaas_p2p.stores.postgres import PostgresStore

if TYPE_CHECKING:
    from sqlalchemy import Connection

ROLES: Final = ("viewer", "worker", "owner")
VALIDITIES: Final = {"day": "1 day", "week": "7 days", "month": "1 month", "year": "1 year"}
CONNECTIONS: Final = 256
"""Processes that may use one token at once, unless said otherwise."""

_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,44}")
_TIMEOUTS: Final = {
    # so that a stopped process holds no lock and no place for long
    "statement_timeout": "60s",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
}
_FAREWELL: Final = 10.0  # seconds that a terminated session gets to end


class User(NamedTuple):
    """Somebody who may use this store."""

    name: str
    created: datetime.datetime
    tokens: int
    adopted: bool
    """Whether the login was there before, and stays when the user is removed."""


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


class Grant(NamedTuple):
    """What one user may do in one study."""

    user: str
    role: str
    granted: datetime.datetime
    granted_by: str


# --- the store itself --------------------------------------------------------------------------------------------


def initialise(url: str) -> int:
    """Make the schema of a store in this database, or bring it up to date. Needs the database owner's login.

    May be repeated, and two may run at once. Returns the version that was there before, 0 for none.

    Raises:
        NewerFormat: a newer version of this program made it.
        Denied: this login may not create a schema here.

    """
    with _administration(url, existing=False) as connection:
        return schema.install(connection)


@contextlib.contextmanager
def _administration(url: str, *, existing: bool = True) -> Iterator[Connection]:
    """A transaction as the login of this URL; its errors as ours."""
    from sqlalchemy.exc import DBAPIError

    store = PostgresStore(url)
    try:
        with store.connect() as connection, connection.begin():
            if existing and not schema.installed_version(connection):
                raise ConfigurationError("this database holds no store yet; make one with: hopaas-p2p init URL")
            yield connection
    except DBAPIError as error:
        raise store.translated(error) from None
    finally:
        store.close()


# --- users -------------------------------------------------------------------------------------------------------


def add_user(url: str, name: str, *, existing: bool = False) -> None:
    """Make a user, or with `existing` let a login that is there use this store.

    Raises:
        InvalidInput: no name for a user, or taken; with `existing`, there is no such login.
        Denied: for administrators only.

    """
    if not existing and not _USER.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot be a user: 1 to 45 letters, digits, '-' and '_', beginning with no sign")
    with _administration(url) as connection:
        peers = _peers(connection)
        role = connection.exec_driver_sql(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls "
            "FROM pg_roles WHERE rolname = %s",
            (name,),
        ).one_or_none()
        if existing and role is None:
            raise InvalidInput(f"there is no login {name!r} on this server; leave --existing out to make one")
        if role is not None and not existing:
            raise InvalidInput(f"{name!r} exists already on this server; choose another name, or adopt it: --existing")
        if role is not None and role[0]:
            raise InvalidInput(f"{name!r} has powers over the server, which its tokens would have too; choose another")
        quoted = schema.quoted(connection, name)
        if role is None:
            connection.exec_driver_sql(f"CREATE ROLE {quoted} NOLOGIN")
            _share(connection, name)
        connection.exec_driver_sql(f"GRANT {schema.quoted(connection, peers)} TO {quoted}")
        connection.exec_driver_sql(
            "INSERT INTO hopaas.users (username, adopted) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, existing)
        )


def users(url: str) -> list[User]:
    """Everybody who may use this store, by name. For administrators."""
    with _administration(url) as connection:
        rows = connection.exec_driver_sql(
            "SELECT u.username, u.created, count(t.role), u.adopted "
            "FROM hopaas.users u LEFT JOIN hopaas.tokens t USING (username) GROUP BY u.username ORDER BY u.username"
        )
        return [User(*row) for row in rows]


def remove_user(url: str, name: str) -> None:
    """Remove a user, its tokens and its grants; the tokens' open sessions end at once. What it did stays in the logs.

    An adopted login stays, without any right here.

    Raises:
        InvalidInput: there is no such user.
        Denied: for administrators only.

    """
    with _administration(url) as connection:
        adopted = connection.exec_driver_sql(
            "SELECT adopted FROM hopaas.users WHERE username = %s", (name,)
        ).scalar_one_or_none()
        if adopted is None:
            raise InvalidInput(f"there is no user {name!r}; list them with: hopaas-p2p user list")
        held = connection.exec_driver_sql("SELECT role FROM hopaas.tokens WHERE username = %s", (name,)).scalars()
        tokens_held = list(held)
    for token in tokens_held:
        revoke_token(url, token)
    with _administration(url) as connection:
        connection.exec_driver_sql("DELETE FROM hopaas.grants WHERE username = %s", (name,))
        connection.exec_driver_sql("DELETE FROM hopaas.users WHERE username = %s", (name,))
        quoted = schema.quoted(connection, name)
        connection.exec_driver_sql(f"REVOKE {schema.quoted(connection, _peers(connection))} FROM {quoted}")
        if not adopted:
            connection.exec_driver_sql(f"DROP ROLE {quoted}")


def _peers(connection: Connection) -> str:
    peers = schema.peers_role(connection)
    if peers is None:
        raise ConfigurationError(
            "this store was made by a login that may not create roles, so it has no other users. "
            "Let one that may (CREATEROLE) make it: hopaas-p2p init URL"
        )
    return peers


def _share(connection: Connection, role: str) -> None:
    """Let every administrator manage a role, whoever of them made it, and end its sessions."""
    owner = schema.quoted(connection, schema.schema_owner(connection))
    connection.exec_driver_sql(f"GRANT {schema.quoted(connection, role)} TO {owner} WITH ADMIN OPTION")


# --- tokens ------------------------------------------------------------------------------------------------------


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
    if connections < 1:
        raise InvalidInput(f"connections must be 1 or more, got {connections}")
    name = f"{user}.{secrets.token_hex(4)}"
    password = Secret(secrets.token_urlsafe(32))
    with _administration(url) as connection:
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
        _share(connection, name)
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
    with _administration(url) as connection:
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
    with _administration(url) as connection:
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
    with _administration(url) as connection:
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


# --- grants ------------------------------------------------------------------------------------------------------


def grant(url: str, study: str, user: str, role: str) -> None:
    """Let a user view a study, work in it, or own it. For the study's owners.

    Raises:
        InvalidInput: no such role.
        NoSuchStudy: no such study.
        Denied: you do not own it.

    """
    if role not in ROLES:
        raise InvalidInput(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    with _opened(url) as store:
        store.call("grant", log=_uuid(store, study), user=user, role=role)


def revoke(url: str, study: str, user: str) -> None:
    """Take a user's grant for a study away. For the study's owners; raises as `grant`."""
    with _opened(url) as store:
        store.call("revoke", log=_uuid(store, study), user=user)


def grants(url: str, study: str) -> list[Grant]:
    """Who may do what in a study. For everybody with a grant."""
    with _opened(url) as store:
        return [Grant(*row) for row in store.call("grants", log=_uuid(store, study))]


@contextlib.contextmanager
def _opened(url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(url)
    try:
        yield store
    finally:
        store.close()


def _uuid(store: PostgresStore, name: str) -> str:
    from hopaas_p2p.peer import identity
    from hopaas_p2p.peer.courier import microseconds
    from hopaas_p2p.peer.replica import catalog_replica

    replica = catalog_replica(store.catalog(), writer=identity.new_uuid(), now_us=microseconds)
    replica.exchange()
    listing = replica.state.by_name.get(name)
    if listing is None:
        raise NoSuchStudy(f"There is no study {name!r} in this store; list them with: hopaas-p2p study list")
    return listing.uuid
