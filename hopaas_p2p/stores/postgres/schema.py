"""Creates the schema of a store, or brings it up to date: `hopaas-p2p admin init`.

Two roles without a login have the rights of a store. The functions run as the owner role, and members of the peers role
may call them. Both are named after the database, since roles belong to the whole server. The login that runs `init`
becomes a member of the owner role, which makes it an administrator. A login that may not create roles gets a store that
only it can use.
"""

from __future__ import annotations

import importlib.resources
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.postgres.connect import query, quoted
from hopaas_p2p.stores.postgres.errors import OLDEST_SCHEMA, SCHEMA_VERSION, wrong_schema

RACE: Final = frozenset({"23505", "42710", "42P06", "40P01", "XX000"})
"""Codes for roles or a schema that another session is creating, or has just created."""

TOKEN_SETTINGS: Final = {
    # so that a stopped process does not hold a lock or a connection for long; a snapshot over a slow link takes minutes
    "statement_timeout": "600s",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
}
"""The settings with which a token's role is created. The token's holder can change them, and `init` resets them."""

TEMPORARY_FILES: Final = "1GB"
"""The most disk space for temporary files of one server process, set if a superuser runs `init`."""
_FILES: Final = ("schema.sql", "artifacts.sql")
_LOGIN: Final = """
    SELECT datname, pg_has_role(current_user, datdba, 'USAGE'), rolcreaterole OR rolsuper, rolsuper
    FROM pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user
"""
"""The database, and whether this login owns it, may create roles, and is a superuser."""
_VERSIONED_FUNCTIONS: Final = """
    SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc
    WHERE pronamespace = 'hopaas'::regnamespace AND proname ~ '_v[0-9]+$'
"""
"""The functions that peers may call, as a list for GRANT."""
_SECURE_FUNCTIONS: Final = """
    DO $$ DECLARE f record; BEGIN
        FOR f IN SELECT oid::regprocedure AS name, CASE WHEN proname ~ '_v[0-9]+$' THEN
            'SECURITY DEFINER SET lock_timeout = ''15s''' ELSE 'SECURITY INVOKER' END AS rights
            FROM pg_proc WHERE pronamespace = 'hopaas'::regnamespace
        LOOP EXECUTE 'ALTER FUNCTION ' || f.name || ' SET search_path = pg_catalog, pg_temp ' || f.rights; END LOOP;
    END $$
"""
"""All functions look up names only where callers cannot create any. Functions that peers may call run as the schema's
owner, and do not wait for a lock longer than a peer's call may take."""
_RESTORE_COMMIT: Final = """
    WITH peer AS (
        INSERT INTO hopaas.peers AS p (peer, author, since)
        SELECT split_part(%(nonce)s, ':', 1), %(author)s, %(at)s
        ON CONFLICT (peer) DO UPDATE SET author = excluded.author, since = excluded.since
        WHERE excluded.since < p.since
    )
    INSERT INTO hopaas.commits (log, lsn, nonce, author, role, at, payload, before)
    SELECT id, %(lsn)s, %(nonce)s, %(author)s, %(role)s, %(at)s, %(payload)s, %(before)s
    FROM hopaas.logs WHERE uuid = %(uuid)s ON CONFLICT (log, lsn) DO NOTHING
"""
"""Inserts a commit as it was when it was backed up. A peer belongs to the author of the earliest commit that has the
peer as its writer, in whatever order logs are restored."""
_MARK: Final = re.compile(r"^-- == (?:migration (\d+)|functions) ==$", re.MULTILINE)


def script() -> tuple[dict[int, str], str]:
    """The migrations in the schema's files, by the version that each leads to, and the functions."""
    migrations, functions = defaultdict[int, str](str), ""
    for name in _FILES:
        text = importlib.resources.files("hopaas_p2p.stores.postgres").joinpath(name).read_text()
        _, *parts = _MARK.split(text)
        for version, part in zip(parts[::2], parts[1::2], strict=True):
            if version:
                migrations[int(version)] += part
            else:
                functions += part
    return migrations, functions


def install(connection: Any) -> int:
    """Create or update the schema within the transaction of `connection`; return its previous version, 0 for none.

    If two sessions create the schema at once, the second fails with an error in `RACE`, and should try again.

    Raises:
        NewerFormat: the schema was created by a newer version of this program.
        ConfigurationError: the schema was created before the first release, or the login may not create one here.

    """
    before = installed_version(connection)
    if before:  # one session at a time; any login of the server could hold an advisory lock
        query(connection, "SET LOCAL lock_timeout = '60s'")
        query(connection, "LOCK TABLE hopaas.schema_version IN SHARE ROW EXCLUSIVE MODE")
        before = installed_version(connection)
    migrations, functions = script()
    if before > SCHEMA_VERSION or 0 < before < OLDEST_SCHEMA:
        raise wrong_schema(before)
    if not before:
        _make_schema(connection)
    query(connection, f"SET LOCAL ROLE {quoted(schema_owner(connection), connection)}")
    for version in sorted(version for version in migrations if version > before):
        query(connection, migrations[version])
        query(connection, "INSERT INTO hopaas.schema_version (version) VALUES (%s)", (version,))
    query(connection, functions)
    query(connection, _SECURE_FUNCTIONS)
    _set_rights(connection)
    query(connection, "RESET ROLE")
    _close_database(connection)
    return before


def installed_version(connection: Any) -> int:
    """The version of the schema in this database, 0 for none."""
    if not query(connection, "SELECT to_regclass('hopaas.schema_version') IS NOT NULL")[0][0]:
        return 0
    return int(query(connection, "SELECT coalesce(max(version), 0) FROM hopaas.schema_version")[0][0])


def schema_owner(connection: Any) -> str:
    """The role that owns the schema."""
    found = query(connection, "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'hopaas'")
    if not found:
        raise wrong_schema(None)
    return str(found[0][0])


def peers_role(connection: Any) -> str | None:
    """The role whose members may use this store, or None in a store for one login."""
    owner = schema_owner(connection)
    name = _peers_of(owner)
    return name if name != owner and _role_exists(connection, name) else None


def _peers_of(owner: str) -> str:
    return re.sub(r"_owner$", "_peers", owner)


def _make_schema(connection: Any) -> None:
    database, _, may_create_roles, is_super = query(connection, _LOGIN)[0]
    if not may_create_roles:
        query(connection, "CREATE SCHEMA hopaas")
        return
    owner = f"hopaas_{database.encode()[:45].decode(errors='ignore')}_owner"
    for role in (owner, _peers_of(owner)):
        if not _role_exists(connection, role):
            query(connection, f"CREATE ROLE {quoted(role, connection)} NOLOGIN")
    query(connection, f"GRANT {quoted(_peers_of(owner), connection)} TO {quoted(owner, connection)} WITH ADMIN OPTION")
    if not is_super:
        query(connection, f"GRANT {quoted(owner, connection)} TO CURRENT_USER")
    query(connection, f"CREATE SCHEMA hopaas AUTHORIZATION {quoted(owner, connection)}")


def _role_exists(connection: Any, role: str) -> bool:
    return bool(query(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)))


def _set_rights(connection: Any) -> None:
    """Peers may call the versioned functions, and nothing else in the schema."""
    for objects in ("SCHEMA hopaas", "ALL TABLES IN SCHEMA hopaas", "ALL FUNCTIONS IN SCHEMA hopaas"):
        query(connection, f"REVOKE ALL ON {objects} FROM PUBLIC")
    peers = peers_role(connection)
    if peers is None:
        return
    role, functions = quoted(peers, connection), query(connection, _VERSIONED_FUNCTIONS)[0][0]
    query(connection, f"GRANT USAGE ON SCHEMA hopaas TO {role}")
    query(connection, f"GRANT EXECUTE ON FUNCTION {functions} TO {role}")


def _close_database(connection: Any) -> None:
    """Revoke what a new database allows everybody: temporary tables and, on old servers, tables in `public`.

    A superuser also revokes the functions that fill the server's disk or memory, and limits temporary files.
    """
    name, owns, _, is_super = query(connection, _LOGIN)[0]
    if not owns:
        return
    database = quoted(name, connection)
    query(connection, f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM PUBLIC")
    peers = peers_role(connection)
    if peers is not None:
        query(connection, f"GRANT CONNECT ON DATABASE {database} TO {quoted(peers, connection)}")
    if is_super:
        query(connection, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        functions = costly_functions(connection)
        if functions:
            query(connection, f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
        if query(connection, "SHOW temp_file_limit")[0][0] == "-1":
            query(connection, f"ALTER DATABASE {database} SET temp_file_limit = '{TEMPORARY_FILES}'")


def costly_functions(connection: Any) -> str:
    """Functions with which everybody can fill the server's disk (large objects, messages in the write-ahead log) or its
    table of locks, as a list for REVOKE; empty if they are already revoked.
    """
    sql = (
        "SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace"
        " AND proname ~ '^(lo_creat|lo_create|lo_from_bytea|pg_logical_emit_message|"
        "pg_(try_)?advisory_(xact_)?lock(_shared)?)$' AND has_function_privilege('public', oid, 'EXECUTE')"
    )
    return query(connection, sql)[0][0] or ""


def set_token_limits(connection: Any, role: str) -> None:
    """Give a token's role the settings that all tokens have, and no others."""
    name = quoted(role, connection)
    query(connection, f"ALTER ROLE {name} RESET ALL")
    for setting, value in TOKEN_SETTINGS.items():
        query(connection, f"ALTER ROLE {name} SET {setting} = '{value}'")
    sql = (
        "SELECT d.datname FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
        " JOIN pg_roles r ON r.oid = s.setrole WHERE r.rolname = %s"
    )
    for (database,) in query(connection, sql, (role,)):
        query(connection, f"ALTER ROLE {name} IN DATABASE {quoted(database, connection)} RESET ALL")


def changed_tokens(connection: Any) -> list[str]:
    """The tokens whose holders have changed what `set_token_limits` set; a token sees only itself."""
    expected = [f"{setting}={value}" for setting, value in TOKEN_SETTINGS.items()]
    sql = (  # logins that may read the list of roles see all tokens, others their own
        "SELECT r.rolname FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase <> 0"
        r" WHERE r.rolname ~ '\.[0-9a-f]{8}$' AND (r.rolname = session_user OR pg_has_role(r.oid, 'MEMBER'))"
        " GROUP BY r.rolname, r.rolconfig HAVING count(s.setrole) > 0"
        " OR NOT (coalesce(r.rolconfig, '{}') @> %(expected)s AND coalesce(r.rolconfig, '{}') <@ %(expected)s)"
    )
    return [str(role) for (role,) in query(connection, sql, {"expected": expected})]


def restore(connection: Any, uuid: str, entries: Iterable[Entry]) -> None:
    """Write commits under their own lsns, with their authors, roles and times; existing ones stay."""
    query(connection, f"SET LOCAL ROLE {quoted(schema_owner(connection), connection)}")
    sql = "INSERT INTO hopaas.logs (uuid, created_by) VALUES (%s, session_user) ON CONFLICT DO NOTHING"
    query(connection, sql, (uuid,))
    seen, total = set[tuple[str, str]](), 0
    for entry in entries:  # one at a time, because many commits of megabytes would take a server too long
        nonce, author = codec.nonce_of(entry.payload), entry.stamp.author
        if not nonce or (nonce, author) in seen:  # a directory may contain one twice
            nonce = f"restored:{entry.lsn}"
        seen.add((nonce, author))
        before = total if entry.before is None else entry.before  # unknown for bytes that are not a commit
        total = codec.following(before, entry.payload)
        values = {"uuid": uuid, "nonce": nonce, "lsn": entry.lsn, "payload": entry.payload, "before": before}
        query(connection, _RESTORE_COMMIT, values | msgspec.structs.asdict(entry.stamp))
