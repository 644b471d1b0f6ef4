"""Makes the schema of a store, or brings it up to date: `hopaas-p2p admin init`.

Two roles without a login carry the rights of a store: its owner, as which the functions run, and its peers, which may
call them. Both are named after the database, since roles belong to the whole server. The login that runs `init`
becomes a member of the owner: an administrator. A login that may not create roles gets a store for itself alone.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.errors import ConfigurationError, NewerFormat
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION, wrong_schema

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult

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
_BATCH: Final = 500  # commits restored with one call
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


def run(connection: Connection, statement: str, /, **parameters: Any) -> CursorResult[*tuple[Any, ...]]:
    """Run a statement of administration.sql."""
    return connection.exec_driver_sql(statements("administration.sql")[statement], parameters)


def install(connection: Connection) -> int:
    """Make or update the schema within the transaction of `connection`; returns the version it had, 0 for none.

    Of two that make one at once, the second fails with an error of `RACE`, and is to try again.

    Raises:
        NewerFormat: it was made by a newer version of this program.
        ConfigurationError: it was made before the first release, or the login may not create a schema here.

    """
    before = installed_version(connection)
    if before:  # one at a time; an advisory lock could be held by any login of the server
        connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
        connection.exec_driver_sql("LOCK TABLE hopaas.schema_version IN SHARE ROW EXCLUSIVE MODE")
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
    connection.exec_driver_sql(f"SET LOCAL ROLE {quoted(connection, owner)}")
    for version in sorted(version for version in migrations if version > before):
        connection.exec_driver_sql(_literal(migrations[version]))
        connection.exec_driver_sql("INSERT INTO hopaas.schema_version (version) VALUES (%s)", (version,))
    connection.exec_driver_sql(_literal(functions))
    run(connection, "secure_functions")
    _set_rights(connection)
    connection.exec_driver_sql("RESET ROLE")
    _close_database(connection)
    return before


def _literal(sql: str) -> str:
    return sql.replace("%", "%%")  # the driver takes % for a placeholder


def installed_version(connection: Connection) -> int:
    """The version of the schema in this database, 0 for none."""
    there = connection.exec_driver_sql("SELECT to_regclass('hopaas.schema_version') IS NOT NULL").scalar_one()
    if not there:
        return 0
    return int(connection.exec_driver_sql("SELECT coalesce(max(version), 0) FROM hopaas.schema_version").scalar_one())


def quoted(connection: Connection, name: str) -> str:
    """The name of a role or database, quoted for a statement."""
    return connection.dialect.identifier_preparer.quote_identifier(name).replace("%", "%%")


def schema_owner(connection: Connection) -> str:
    """The role that owns the schema."""
    sql = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'hopaas'"
    owner = connection.exec_driver_sql(sql).scalar_one_or_none()
    if owner is None:
        raise wrong_schema(None)
    return str(owner)


def peers_role(connection: Connection) -> str | None:
    """The role whose members may use this store, or None in a store for one login."""
    owner = schema_owner(connection)
    name = _peers_of(owner)
    return name if name != owner and _role_exists(connection, name) else None


def _peers_of(owner: str) -> str:
    return re.sub(r"_owner$", "_peers", owner)


def _make_schema(connection: Connection) -> None:
    database, may_create_roles, is_super = run(connection, "installer").one()
    if not may_create_roles:
        connection.exec_driver_sql("CREATE SCHEMA hopaas")
        return
    owner = f"hopaas_{database.encode()[:45].decode(errors='ignore')}_owner"
    for role in (owner, _peers_of(owner)):
        _make_role(connection, role)
    connection.exec_driver_sql(
        f"GRANT {quoted(connection, _peers_of(owner))} TO {quoted(connection, owner)} WITH ADMIN OPTION"
    )
    if not is_super:
        connection.exec_driver_sql(f"GRANT {quoted(connection, owner)} TO CURRENT_USER")
    connection.exec_driver_sql(f"CREATE SCHEMA hopaas AUTHORIZATION {quoted(connection, owner)}")


def _make_role(connection: Connection, role: str) -> None:
    if not _role_exists(connection, role):
        connection.exec_driver_sql(f"CREATE ROLE {quoted(connection, role)} NOLOGIN")


def _role_exists(connection: Connection, role: str) -> bool:
    found = connection.exec_driver_sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
    return found.one_or_none() is not None


def _set_rights(connection: Connection) -> None:
    """Peers may call the versioned functions, and nothing else in the schema."""
    for objects in ("SCHEMA hopaas", "ALL TABLES IN SCHEMA hopaas", "ALL FUNCTIONS IN SCHEMA hopaas"):
        connection.exec_driver_sql(f"REVOKE ALL ON {objects} FROM PUBLIC")
    peers = peers_role(connection)
    if peers is None:
        return
    role, functions = quoted(connection, peers), run(connection, "versioned_functions").scalar_one()
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA hopaas TO {role}")
    connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {functions} TO {role}")


def _close_database(connection: Connection) -> None:
    """Revoke what a new database lets everybody do: temporary tables and, on old servers, tables in `public`.

    A superuser also revokes the functions that fill the server's disk or memory, and limits temporary files.
    """
    name, owns, is_super = run(connection, "database_rights").one()
    if not owns:
        return
    database = quoted(connection, name)
    connection.exec_driver_sql(f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM PUBLIC")
    peers = peers_role(connection)
    if peers is not None:
        connection.exec_driver_sql(f"GRANT CONNECT ON DATABASE {database} TO {quoted(connection, peers)}")
    if is_super:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        functions = run(connection, "costly_functions").scalar_one()
        if functions is not None:
            connection.exec_driver_sql(f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
        if connection.exec_driver_sql("SHOW temp_file_limit").scalar_one() == "-1":
            connection.exec_driver_sql(f"ALTER DATABASE {database} SET temp_file_limit = '{TEMPORARY_FILES}'")


def set_token_limits(connection: Connection, role: str) -> None:
    """Give a token's role the settings that all tokens have, and no others."""
    name = quoted(connection, role)
    connection.exec_driver_sql(f"ALTER ROLE {name} RESET ALL")
    for setting, value in TOKEN_SETTINGS.items():
        connection.exec_driver_sql(f"ALTER ROLE {name} SET {setting} = '{value}'")
    for database in run(connection, "databases_with_settings", role=role).scalars():
        connection.exec_driver_sql(f"ALTER ROLE {name} IN DATABASE {quoted(connection, database)} RESET ALL")


def changed_tokens(connection: Connection) -> list[str]:
    """The tokens whose holders have changed what `set_token_limits` set: all, or for a token itself."""
    expected = [f"{setting}={value}" for setting, value in TOKEN_SETTINGS.items()]
    return [str(role) for role in run(connection, "changed_tokens", expected=expected).scalars()]


def restore(connection: Connection, uuid: str, entries: Iterable[Entry]) -> None:
    """Write commits under their own lsns, with their authors, roles and times; those that are there stay."""
    connection.exec_driver_sql(f"SET LOCAL ROLE {quoted(connection, schema_owner(connection))}")
    run(connection, "restore_log", uuid=uuid)
    statement = statements("administration.sql")["restore_commit"]
    seen: set[tuple[str, str]] = set()
    for batch in _batches(entries):
        connection.exec_driver_sql(statement, [_row(uuid, entry, seen) for entry in batch])


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield batch


def _row(uuid: str, entry: Entry, seen: set[tuple[str, str]]) -> dict[str, Any]:
    """A commit as the table holds it. The nonce of one that a directory holds twice is made up."""
    nonce = codec.nonce_of(entry.payload) or f"restored:{entry.lsn}"
    if (nonce, entry.stamp.author) in seen:
        nonce = f"restored:{entry.lsn}"
    seen.add((nonce, entry.stamp.author))
    whole = {"lsn": entry.lsn, "payload": entry.payload, "before": entry.before, **msgspec.structs.asdict(entry.stamp)}
    return {"uuid": uuid, "nonce": nonce, **whole}
