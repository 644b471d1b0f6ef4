"""Users, tokens and grants of a store: native roles of the server in Postgres, a list next to the studies elsewhere.

In a directory or bucket, these rights apply to users who connect through `serve https`; see `remote.access`.

In Postgres, a user is a role that cannot log in. A token is a login role, a member of its user's role, with an expiry,
a limit on connections, and timeouts. Its secret is generated here, shown once, and not stored (the server gets a SCRAM
verifier). A grant lets a user view a study, work in it, or own it. Administrators, who are members of the role that
owns the schema, create users and tokens; a study's owners give grants.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
import secrets
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.errors import ConfigurationError, HopaasError, InvalidInput
from hopaas_p2p.open import no_such_study, open_beside, open_store, store_option
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.access import ROLES, AccessList, GrantSet, TokenSet, UserSet, digest
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Store, read_all
from hopaas_p2p.stores.postgres import removal, schema
from hopaas_p2p.stores.postgres.connect import query, quoted
from hopaas_p2p.stores.postgres.errors import wrong_schema
from hopaas_p2p.stores.postgres.store import CATALOG, PostgresStore

MOST_DAYS: Final = 3660
"""The longest validity of a token, in days."""
CONNECTIONS: Final = 256
"""The number of processes that may use one token at once by default; at most a quarter of the server's connections."""

_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,44}")
_ATTEMPTS: Final = 5
_MOST_CONNECTIONS: Final = 100_000


class User(NamedTuple):
    """A user of this store."""

    name: str
    created: datetime.datetime
    tokens: int


class Token(NamedTuple):
    """A token without its secret."""

    name: str
    user: str
    label: str
    created: datetime.datetime
    expires: datetime.datetime | None
    last_used: datetime.datetime | None
    """None if the token has not been used, and always outside of Postgres, where uses are not recorded."""
    connections: int
    """The number of processes that may use the token at once; 0 outside of Postgres, where there is no such limit."""
    sessions: int
    """The number of processes that are connected now; 0 outside of Postgres, where they are not counted."""


class NewToken(NamedTuple):
    """A newly created token, with its secret, which cannot be shown later."""

    name: str
    secret: Secret
    """The content of HOPAAS_TOKEN_FILE: `name:password`."""
    expires: datetime.datetime


class Grant(NamedTuple):
    """The role of one user in one study."""

    user: str
    role: str
    granted: datetime.datetime
    granted_by: str


# --- the store as a whole ----------------------------------------------------------------------------------------


def initialise(url: str) -> int:
    """Make the schema of a store in this database, or bring it up to date. Needs the database owner's login.

    May be repeated or run concurrently. Returns the previous version, 0 for none.

    Raises:
        NewerFormat: a newer version of this program made the schema.
        ConfigurationError: the schema dates from before the first release.
        Denied: this login may not create a schema here.

    """
    with contextlib.closing(PostgresStore(url)) as store:
        for last in (*[False] * (_ATTEMPTS - 1), True):
            try:
                with store.transaction() as connection:
                    before = schema.install(connection)
                break
            except HopaasError as error:
                if last or getattr(error.__cause__, "pgcode", None) not in schema.RACE:
                    raise
        # reset what holders of tokens have changed, except for a role that its own session blocks
        with store.transaction() as connection:
            roles = schema.changed_tokens(connection)
        for role in roles:
            with contextlib.suppress(HopaasError), store.transaction() as connection:
                query(connection, "SET LOCAL lock_timeout = '2s'")
                schema.set_token_limits(connection, role)
        return before


@contextlib.contextmanager
def _administration(url: str) -> Iterator[Any]:
    """A transaction with the login of this URL; raises our errors."""
    with contextlib.closing(PostgresStore(url)) as store, store.transaction() as connection:
        if not schema.installed_version(connection):
            raise wrong_schema(None)
        yield connection


def _share(connection: Any, role: str) -> None:
    """Let every administrator manage this role and end its sessions, whichever of them made it."""
    owner = quoted(schema.schema_owner(connection), connection)
    query(connection, f"GRANT {quoted(role, connection)} TO {owner} WITH ADMIN OPTION")


def _listed(url: str) -> AccessList | None:
    """The list of a directory or bucket, even if it is served over HTTPS; None for a database."""
    if url.startswith("postgresql"):
        return None
    if url.lower().startswith("https:"):  # an administrator may change the list through a server
        return AccessList(open_store(url))
    return AccessList(open_beside(url, create=False))


def _at(microseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(microseconds / 1e6, tz=datetime.UTC)


# --- users -------------------------------------------------------------------------------------------------------


def add_user(url: str, name: str, *, guest_of: str | None = None, administrator: bool = False) -> None:
    """Create a user.

    With `guest_of`, the uuid of a study, the user can never get a grant for another study, and cannot create one. In a
    directory or bucket, an `administrator` may do everything, even through a server. In a database, administrators are
    made with rights on the server instead.

    Raises:
        InvalidInput: the name is malformed or taken, or an `administrator` is to be made in a database.
        ConfigurationError: the database has no store, or one that cannot have users.
        Denied: you are not an administrator.

    """
    if not _USER.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be a user: use 1 to 45 letters, digits, '-' and '_', beginning with a letter or digit"
        )
    if (listed := _listed(url)) is not None:
        listed.change(
            UserSet(name, guest_of or ""), *([GrantSet(protocol.CATALOG, name, "owner")] if administrator else [])
        )
        return
    if administrator:
        raise InvalidInput(
            "--administrator is for a directory or bucket. In a database, GRANT the login the schema owner's role"
        )
    with _administration(url) as connection:
        peers, role = quoted(_peers(connection), connection), quoted(name, connection)
        if query(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)):
            raise InvalidInput(f"{name!r} already exists on this server; choose another name")
        query(connection, f"CREATE ROLE {role} NOLOGIN")
        _share(connection, name)
        query(connection, f"GRANT {peers} TO {role}")
        sql = "INSERT INTO hopaas.users (username, guest_of) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        query(connection, sql, (name, guest_of))


def guest(url: str, study: str, role: str, site: str = "") -> str:
    """The name of the user that holds a site's tokens with this role in this one study. Creates the user if needed.

    There is one user per site, not per invitation, so that a later invitation can send what an expired one left in a
    spool.

    Args:
        url: the store, with an administrator's login.
        study: the study's uuid. The name contains a hash of all of it, because the creator of a study may choose its
            uuid.
        role: what the guest may do there.
        site: the guest's site.

    Raises:
        InvalidInput: there is a user of that name, and it is not this study's guest.
        Denied: you are not an administrator.

    """
    where = f"{study}\0{site}"
    name = f"guest-{hashlib.sha256(where.encode()).hexdigest()[:32]}-{role}"
    if (listed := _listed(url)) is not None:
        roles = listed.read()
        found = [(roles.guest_of(name),)] if name in roles.users else []
    else:
        with _administration(url) as connection:
            found = query(connection, "SELECT guest_of FROM hopaas.users WHERE username = %s", (name,))
    if not found:
        add_user(url, name, guest_of=study)
    elif found[0][0] != study:
        cure = f"hopaas-p2p admin user rm {shlex.quote(name)}{store_option(url)}"
        raise InvalidInput(f"the user {name!r} exists, but is not this study's guest. To remove that user: {cure}")
    return name


def users(url: str) -> list[User]:
    """All users of this store, by name. For administrators.

    Raises:
        Denied: you are not an administrator.

    """
    if (listed := _listed(url)) is not None:
        roles = listed.read()
        owned = Counter(one.what.user for one in roles.tokens.values())
        return [User(name, _at(one.at), owned[name]) for name, one in sorted(roles.users.items())]
    with _administration(url) as connection:
        sql = (
            "SELECT u.username, u.created, count(t.role) FROM hopaas.users u"
            " LEFT JOIN hopaas.tokens t USING (username) GROUP BY u.username ORDER BY u.username"
        )
        return [User(*row) for row in query(connection, sql)]


def remove_user(url: str, name: str) -> None:
    """Remove a user, its tokens and its grants; open sessions end at once. The user's work stays in the logs.

    Raises:
        InvalidInput: there is no such user.
        ConfigurationError: the user is removed, but the server keeps objects that the user owns; the message names
            them.
        Denied: you are not an administrator.

    """
    if (listed := _listed(url)) is not None:
        listed.change(UserSet(name, gone=True))
        return
    with _administration(url) as connection:
        sql = "SELECT array(SELECT role FROM hopaas.tokens WHERE username = %(name)s)"
        found = query(connection, f"{sql} FROM hopaas.users WHERE username = %(name)s", {"name": name})
    if not found:
        raise InvalidInput(f"there is no user {name!r}; list them with: hopaas-p2p admin user list")
    ((held,),) = found

    def forget(connection: Any) -> None:
        query(connection, "DELETE FROM hopaas.grants WHERE username = %s", (name,))
        query(connection, "DELETE FROM hopaas.users WHERE username = %s", (name,))
        for token in held:
            _expel(connection, token, name)

    _remove([*held, name], url, forget)


def _expel(connection: Any, member: str, role: str) -> None:
    """End a membership. Since version 16, only the role that granted it, or one that may act for it, can."""
    query(connection, f"REVOKE {quoted(role, connection)} FROM {quoted(member, connection)}")


def _remove(roles: list[str], url: str, forget: Callable[[Any], None]) -> None:
    removal.shut_out(url, roles, forget)
    if left := removal.clear_away(url, roles):
        raise ConfigurationError(
            f"{', '.join(roles)} can no longer log in and have no rights in this store, but could not be removed from "
            f"the server: {'; '.join(left)}. To remove a role, run as a superuser in the database named above: "
            "DROP OWNED BY role; DROP ROLE role"
        )


def _peers(connection: Any) -> str:
    peers = schema.peers_role(connection)
    if peers is None:
        raise ConfigurationError(
            "this store was created by a login that may not create roles, so it has no other "
            "users. Have a login with CREATEROLE create it: hopaas-p2p admin init URL"
        )
    return peers


# --- tokens ------------------------------------------------------------------------------------------------------


def create_token(url: str, user: str, *, label: str = "", days: int = 30, connections: int | None = None) -> NewToken:
    """Create a token for a user.

    Args:
        url: the store, with an administrator's login.
        user: the user to whom the token belongs.
        label: a note for people, such as where the token is used.
        days: how many days the token is valid.
        connections: the number of processes that may use the token at once, in Postgres only. By default a quarter of
            the server's limit, so that no token shuts others out, and at most 256.

    Raises:
        InvalidInput: there is no such user, or a number is out of range.
        Denied: you are not an administrator.

    """
    if connections is not None and not 1 <= connections <= _MOST_CONNECTIONS:
        raise InvalidInput(f"connections must be from 1 to {_MOST_CONNECTIONS}, got {connections}")
    if not 1 <= days <= MOST_DAYS:
        raise InvalidInput(f"days must be from 1 to {MOST_DAYS}, got {days}")
    name = f"{user}.{secrets.token_hex(4)}"
    password = Secret(secrets.token_urlsafe(32))
    if (listed := _listed(url)) is not None:
        expires = datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(days=days)
        secret = password.reveal()
        listed.change(TokenSet(name, user, digest(secret), int(expires.timestamp()), label))
        return NewToken(name, Secret(f"{name}:{secret}"), expires)
    from psycopg2.extensions import encrypt_password

    with _administration(url) as connection:
        expires = query(connection, "SELECT now()")[0][0] + datetime.timedelta(days=days)
        if not query(connection, "SELECT 1 FROM hopaas.users WHERE username = %s", (user,)):
            raise InvalidInput(f"there is no user {user!r}; create it with: hopaas-p2p admin user add {user}")
        if connections is None:
            connections = max(1, min(CONNECTIONS, int(query(connection, "SHOW max_connections")[0][0]) // 4))
        role = quoted(name, connection)
        sql = f"CREATE ROLE {role.replace('%', '%%')} LOGIN CONNECTION LIMIT {connections:d} PASSWORD %s VALID UNTIL %s"
        # the server and its log see only the verifier that replaces the password, never the password itself
        verifier = encrypt_password(password.reveal(), name, scope=connection, algorithm="scram-sha-256")
        query(connection, sql, (verifier, expires.isoformat()))
        # from version 16 on, a member can be kept from becoming the role it is a member of
        without = " WITH INHERIT TRUE, SET FALSE" if connection.server_version >= 160000 else ""
        query(connection, f"GRANT {quoted(user, connection)} TO {role}{without}")
        schema.set_token_limits(connection, name)
        _share(connection, name)
        sql = "INSERT INTO hopaas.tokens (role, username, label) VALUES (%s, %s, %s)"
        query(connection, sql, (name, user, label))
    return NewToken(name, Secret(f"{name}:{password.reveal()}"), expires)


def tokens(url: str, *, user: str | None = None) -> list[Token]:
    """All tokens, or those of one user, oldest first. For administrators.

    Raises:
        Denied: you are not an administrator.

    """
    if (listed := _listed(url)) is not None:
        return [
            Token(one.name, one.user, one.label, _at(at), _at(one.expires * 1_000_000), None, 0, 0)
            for one, at, _ in listed.read().tokens.values()
            if user in (None, one.user)
        ]
    with _administration(url) as connection:
        sql = (
            "SELECT t.role, t.username, t.label, t.created, nullif(r.rolvaliduntil, 'infinity'), t.last_used,"
            " r.rolconnlimit, (SELECT count(*) FROM pg_stat_activity a WHERE a.usename = t.role)"
            " FROM hopaas.tokens t JOIN pg_roles r ON r.rolname = t.role"
            " WHERE %(user)s::text IS NULL OR t.username = %(user)s ORDER BY t.created, t.role"
        )
        return [Token(*row) for row in query(connection, sql, {"user": user})]


def revoke_token(url: str, name: str) -> None:
    """Revoke a token, so that it allows no new login, and terminate its open sessions.

    Raises:
        InvalidInput: there is no such token.
        ConfigurationError: the token is revoked, but the server keeps objects that it owns; the message names them.
        Denied: you are not an administrator.

    """
    if (listed := _listed(url)) is not None:
        found: Any = name in listed.read().tokens
    else:
        with _administration(url) as connection:
            found = query(connection, "SELECT username FROM hopaas.tokens WHERE role = %s", (name,))
    if not found:
        raise InvalidInput(f"there is no token {name!r}; list them with: hopaas-p2p admin token list")
    if listed is not None:
        listed.change(TokenSet(name, gone=True))
        return

    def forget(connection: Any) -> None:
        query(connection, "DELETE FROM hopaas.tokens WHERE role = %s", (name,))
        _expel(connection, name, found[0][0])

    _remove([name], url, forget)


# --- grants ------------------------------------------------------------------------------------------------------


def grant(url: str, study: str, user: str, role: str) -> None:
    """Let a user view a study, work in it, or own it. For the study's owners.

    Raises:
        InvalidInput: there is no such role; or, outside of Postgres, the change is refused for a reason below.
        NoSuchStudy: there is no such study.
        ConfigurationError: there is no such user.
        Denied: you do not own the study, the study would have no owner, or the user is another study's guest.

    """
    if role not in ROLES:
        raise InvalidInput(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    _set_role(url, study, user, role=role)


def revoke(url: str, study: str, user: str) -> None:
    """Revoke a user's grant for a study. For the study's owners. Raises like `grant`, also if there is none."""
    _set_role(url, study, user)


def _set_role(url: str, study: str, user: str, **role: Any) -> None:
    if (listed := _listed(url)) is not None:
        listed.change(GrantSet(uuid_of(listed.store, study), user, **role))
        return
    with contextlib.closing(PostgresStore(url)) as store:
        store.call("grant" if role else "revoke", log=uuid_of(store, study), user=user, **role)


def unlock(url: str, study: str | None = None) -> list[tuple[str, int, bool]]:
    """End the sessions whose open transaction has blocked a study for 20 s or, if you do not own it, for two minutes.

    Args:
        url: the store.
        study: the study's name; None for the list of studies, which only administrators own.

    Returns:
        For each session whose open transaction could block a study: its login, how many seconds the transaction has
        been open, and whether the session was ended.

    Raises:
        ConfigurationError: the store is not in Postgres.
        NoSuchStudy: there is no such study.
        Denied: you may not work in the study.

    """
    with contextlib.closing(PostgresStore(url)) as store:
        uuid = CATALOG if study is None else uuid_of(store, study)
        return store.call("unlock", log=uuid)


def grants(url: str, study: str) -> list[Grant]:
    """The grants for a study. For everyone with a grant.

    Raises:
        NoSuchStudy: there is no such study.
        Denied: you have no grant for the study.

    """
    if not url.startswith("postgresql"):
        with contextlib.closing(open_store(url, create=False)) as opened:
            there = AccessList(opened).read().grants.get(uuid_of(opened, study), {})
        return [Grant(one.what.user, one.what.role, _at(one.at), one.by) for _, one in sorted(there.items())]
    with contextlib.closing(PostgresStore(url)) as store:
        return [Grant(*row) for row in store.call("grants", log=uuid_of(store, study))]


def uuid_of(store: Store, name: str) -> str:
    """The uuid of the study of this name.

    Raises:
        NoSuchStudy: there is no such study.

    """
    catalog = Catalog()
    catalog.replay(read_all(store.catalog()))
    listing = catalog.by_name.get(name)
    if listing is None:
        raise no_such_study(name, store.url, catalog.by_name)
    return listing.uuid
