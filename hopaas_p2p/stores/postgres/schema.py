"""Makes the schema of a store, or brings it up to date: `hopaas-p2p admin init`.

Two roles without a login carry the rights of a store: its owner, as which the functions run, and its peers, which may
call them. Both are named after the database, since roles belong to the whole server. The login that runs `init`
becomes a member of the owner: an administrator. A login that may not create roles gets a store for itself alone.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.errors import ConfigurationError, NewerFormat
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.postgres.connect import query, quoted
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION, wrong_schema

RACE: Final = frozenset({"23505", "42710", "42P06", "40P01", "XX000"})
"""Somebody else makes the same roles or schema at this moment, or has just made them."""

TOKEN_SETTINGS: Final = {
    # so that a stopped process does not hold a lock or a connection for long; a snapshot over a thin link takes minutes
    "statement_timeout": "600s",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "30s",
}
"""What a token's role is made with. Its holder can change them, and `init` sets them again."""

TEMPORARY_FILES: Final = "1GB"
"""What one process of the server may have, when a superuser has run `init`."""
_FILES: Final = ("schema.sql", "artifacts.sql", "blocks.sql")
_MARK: Final = re.compile(r"^-- == (?:migration (\d+)|functions) ==$", re.MULTILINE)


def script() -> tuple[dict[int, str], str]:
    """The migrations in the schema's files, by the version that each leads to, and the functions."""
    migrations, functions = defaultdict[int, str](str), ""
    for name in _FILES:
        _, *parts = _MARK.split(_text(name))
        for version, part in zip(parts[::2], parts[1::2], strict=True):
            if version:
                migrations[int(version)] += part
            else:
                functions += part
    return migrations, functions


@functools.cache
def statements(file: str) -> dict[str, str]:
    """The statements of one of the package's SQL files, by name."""
    named = {}
    for part in _text(file).split("-- name: ")[1:]:
        name, *lines = part.splitlines()
        named[name.strip()] = " ".join(line.strip() for line in lines if line and not line.startswith("--"))
    return named


def _text(file: str) -> str:
    return importlib.resources.files("hopaas_p2p.stores.postgres").joinpath(file).read_text()


def run(connection: Any, statement: str, /, **parameters: Any) -> list[Any]:
    """Run a statement of administration.sql; its rows."""
    return query(connection, statements("administration.sql")[statement], parameters)


def install(connection: Any) -> int:
    """Make or update the schema within the transaction of `connection`; returns the version it had, 0 for none.

    Of two that make one at once, the second fails with an error of `RACE`, and is to try again.

    Raises:
        NewerFormat: it was made by a newer version of this program.
        ConfigurationError: it was made before the first release, or the login may not create a schema here.

    """
    before = installed_version(connection)
    if before:  # one at a time; an advisory lock could be held by any login of the server
        query(connection, "SET LOCAL lock_timeout = '60s'")
        query(connection, "LOCK TABLE hopaas.schema_version IN SHARE ROW EXCLUSIVE MODE")
        before = installed_version(connection)
    migrations, functions = script()
    if before > SCHEMA_VERSION:
        raise NewerFormat
    if 0 < before < min(migrations):
        raise ConfigurationError(
            f"the schema here is of version {before}, from before the first release, and cannot be brought up to date. "
            "Export its studies with the program that created it, and import them into a new database"
        )
    if not before:
        _make_schema(connection)
    owner = schema_owner(connection)
    query(connection, f"SET LOCAL ROLE {quoted(owner, connection)}")
    for version in sorted(version for version in migrations if version > before):
        query(connection, migrations[version])
        query(connection, "INSERT INTO hopaas.schema_version (version) VALUES (%s)", (version,))
    query(connection, functions)
    run(connection, "secure_functions")
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
    database, _, may_create_roles, is_super = run(connection, "login")[0]
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
    role, functions = quoted(peers, connection), run(connection, "versioned_functions")[0][0]
    query(connection, f"GRANT USAGE ON SCHEMA hopaas TO {role}")
    query(connection, f"GRANT EXECUTE ON FUNCTION {functions} TO {role}")


def _close_database(connection: Any) -> None:
    """Revoke what a new database lets everybody do: temporary tables and, on old servers, tables in `public`.

    A superuser also revokes the functions that fill the server's disk or memory, and limits temporary files.
    """
    name, owns, _, is_super = run(connection, "login")[0]
    if not owns:
        return
    database = quoted(name, connection)
    query(connection, f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM PUBLIC")
    peers = peers_role(connection)
    if peers is not None:
        query(connection, f"GRANT CONNECT ON DATABASE {database} TO {quoted(peers, connection)}")
    if is_super:
        query(connection, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        functions = run(connection, "costly_functions")[0][0]
        if functions is not None:
            query(connection, f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
        if query(connection, "SHOW temp_file_limit")[0][0] == "-1":
            query(connection, f"ALTER DATABASE {database} SET temp_file_limit = '{TEMPORARY_FILES}'")


def set_token_limits(connection: Any, role: str) -> None:
    """Give a token's role the settings that all tokens have, and no others."""
    name = quoted(role, connection)
    query(connection, f"ALTER ROLE {name} RESET ALL")
    for setting, value in TOKEN_SETTINGS.items():
        query(connection, f"ALTER ROLE {name} SET {setting} = '{value}'")
    for (database,) in run(connection, "databases_with_settings", role=role):
        query(connection, f"ALTER ROLE {name} IN DATABASE {quoted(database, connection)} RESET ALL")


def changed_tokens(connection: Any) -> list[str]:
    """The tokens whose holders have changed what `set_token_limits` set: all, or for a token itself."""
    expected = [f"{setting}={value}" for setting, value in TOKEN_SETTINGS.items()]
    return [str(role) for (role,) in run(connection, "changed_tokens", expected=expected)]


def restore(connection: Any, uuid: str, entries: Iterable[Entry]) -> None:
    """Write commits under their own lsns, with their authors, roles and times; those that are there stay."""
    query(connection, f"SET LOCAL ROLE {quoted(schema_owner(connection), connection)}")
    run(connection, "restore_log", uuid=uuid)
    seen: set[tuple[str, str]] = set()
    for entry in entries:  # one at a time: a commit may have megabytes, and many of them take a server too long
        run(connection, "restore_commit", **_row(uuid, entry, seen))


def _row(uuid: str, entry: Entry, seen: set[tuple[str, str]]) -> dict[str, Any]:
    """A commit as the table holds it. The nonce of one that a directory holds twice is made up."""
    nonce = codec.nonce_of(entry.payload) or f"restored:{entry.lsn}"
    if (nonce, entry.stamp.author) in seen:
        nonce = f"restored:{entry.lsn}"
    seen.add((nonce, entry.stamp.author))
    whole = {"lsn": entry.lsn, "payload": entry.payload, "before": entry.before, **msgspec.structs.asdict(entry.stamp)}
    return {"uuid": uuid, "nonce": nonce, **whole}
