"""The people who may use a store. A user is a role that nobody logs in as: its tokens do."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.access.administration import administration, share
from hopaas_p2p.access.token_roles import revoke_token
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.stores.postgres import schema

if TYPE_CHECKING:
    from sqlalchemy import Connection

_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,44}")


class User(NamedTuple):
    """Somebody who may use this store."""

    name: str
    created: datetime.datetime
    tokens: int
    adopted: bool
    """Whether the login was there before, and stays when the user is removed."""


def add_user(url: str, name: str, *, existing: bool = False) -> None:
    """Make a user, or with `existing` let a login that is there use this store.

    Raises:
        InvalidInput: no name for a user, or taken; with `existing`, there is no such login.
        Denied: for administrators only.

    """
    if not existing and not _USER.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot be a user: 1 to 45 letters, digits, '-' and '_', beginning with no sign")
    with administration(url) as connection:
        peers = _peers(connection)
        role = connection.exec_driver_sql(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls "
            "OR pg_has_role(rolname, %s, 'MEMBER') OR rolname = %s OR starts_with(rolname, 'pg_') "
            "FROM pg_roles WHERE rolname = %s",
            (schema.schema_owner(connection), peers, name),
        ).one_or_none()
        if existing and role is None:
            raise InvalidInput(f"there is no login {name!r} on this server; leave --existing out to make one")
        if role is not None and not existing:
            raise InvalidInput(f"{name!r} exists already on this server; choose another name, or adopt it: --existing")
        if role is not None and role[0]:
            raise InvalidInput(f"{name!r} has powers over the server or the store, which its tokens would have too")
        quoted = schema.quoted(connection, name)
        if role is None:
            connection.exec_driver_sql(f"CREATE ROLE {quoted} NOLOGIN")
            share(connection, name)
        connection.exec_driver_sql(f"GRANT {schema.quoted(connection, peers)} TO {quoted}")
        connection.exec_driver_sql(
            "INSERT INTO hopaas.users (username, adopted) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, existing)
        )


def users(url: str) -> list[User]:
    """Everybody who may use this store, by name. For administrators."""
    with administration(url) as connection:
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
    with administration(url) as connection:
        adopted = connection.exec_driver_sql(
            "SELECT adopted FROM hopaas.users WHERE username = %s", (name,)
        ).scalar_one_or_none()
        if adopted is None:
            raise InvalidInput(f"there is no user {name!r}; list them with: hopaas-p2p user list")
        held = connection.exec_driver_sql("SELECT role FROM hopaas.tokens WHERE username = %s", (name,)).scalars()
        tokens_held = list(held)
    for token in tokens_held:
        revoke_token(url, token)
    with administration(url) as connection:
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
