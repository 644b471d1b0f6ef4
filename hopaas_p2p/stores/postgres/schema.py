"""Makes the schema of a store, or brings it up to date: `hopaas-p2p init`.

Two roles that nobody logs in as carry the rights of a store: its owner, which the functions run as, and its peers,
which may call them. Both are named after the database, since roles belong to the whole server. Whoever runs `init`
becomes a member of the owner: an administrator. A login that may not create roles gets a store for itself alone.
"""

from __future__ import annotations

import importlib.resources
import re
from typing import TYPE_CHECKING, Final

from hopaas_p2p.errors import ConfigurationError, NewerFormat
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION

if TYPE_CHECKING:
    from sqlalchemy import Connection

_LOCK: Final = 0x686F70616173  # "hopaas": one init at a time in a database
_FILES: Final = ("schema.sql", "artifacts.sql")
_MARK: Final = re.compile(r"^-- == (migration (\d+)|functions) ==$", re.MULTILINE)


def script() -> tuple[dict[int, str], str]:
    """The migrations of the schema's files by number, and their functions."""
    migrations, functions = dict[int, str](), ""
    for name in _FILES:
        text = importlib.resources.files("hopaas_p2p.stores.postgres").joinpath(name).read_text()
        marks = list(_MARK.finditer(text))
        for mark, following in zip(marks, [*marks[1:], None], strict=True):
            part = text[mark.end() : following.start() if following else len(text)]
            if mark.group(2):
                migrations[int(mark.group(2))] = part
            else:
                functions += part
    return migrations, functions


def install(connection: Connection) -> int:
    """Make or update the schema, in the transaction that `connection` is in; returns the version it had, 0 for none.

    Raises:
        NewerFormat: it was made by a newer version of this program.
        ConfigurationError: the login may not create a schema here.

    """
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    before = installed_version(connection)
    if before > SCHEMA_VERSION:
        raise NewerFormat
    if not before:
        _make_schema(connection)
    owner = schema_owner(connection)
    migrations, functions = script()
    connection.exec_driver_sql(f"SET LOCAL ROLE {quoted(connection, owner)}")
    for version in range(before + 1, SCHEMA_VERSION + 1):
        connection.exec_driver_sql(_literal(migrations[version]))
        connection.exec_driver_sql("INSERT INTO hopaas.schema_version (version) VALUES (%s)", (version,))
    connection.exec_driver_sql(_literal(functions))
    _set_rights(connection)
    connection.exec_driver_sql("RESET ROLE")
    _close_database(connection)
    return before


def _literal(sql: str) -> str:
    return sql.replace("%", "%%")  # the driver reads % as a place for a value


def installed_version(connection: Connection) -> int:
    """The version of the schema in this database, 0 for none."""
    there = connection.exec_driver_sql("SELECT to_regclass('hopaas.schema_version') IS NOT NULL").scalar_one()
    if not there:
        return 0
    return int(connection.exec_driver_sql("SELECT coalesce(max(version), 0) FROM hopaas.schema_version").scalar_one())


def quoted(connection: Connection, name: str) -> str:
    """A role's or database's name, fit to stand in a statement."""
    return connection.dialect.identifier_preparer.quote_identifier(name).replace("%", "%%")


def schema_owner(connection: Connection) -> str:
    """The role that owns the schema."""
    sql = "SELECT nspowner::regrole::text, pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'hopaas'"
    row = connection.exec_driver_sql(sql).one_or_none()
    if row is None:
        raise ConfigurationError("this database holds no store yet; make one with: hopaas-p2p init URL")
    return str(row[1])


def peers_role(connection: Connection) -> str | None:
    """The role whose members may use this store, or None in a store for one login."""
    owner = schema_owner(connection)
    name = _peers_of(owner)
    found = connection.exec_driver_sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).one_or_none()
    return name if found and name != owner else None


def _peers_of(owner: str) -> str:
    return re.sub(r"_owner$", "_peers", owner)


def _make_schema(connection: Connection) -> None:
    database, may_create_roles, is_super = connection.exec_driver_sql(
        "SELECT current_database(), rolcreaterole OR rolsuper, rolsuper FROM pg_roles WHERE rolname = current_user"
    ).one()
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
    there = connection.exec_driver_sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).one_or_none()
    if not there:
        connection.exec_driver_sql(f"CREATE ROLE {quoted(connection, role)} NOLOGIN")


def _set_rights(connection: Connection) -> None:
    """Peers may call the versioned functions, and nothing else in the schema."""
    connection.exec_driver_sql("REVOKE ALL ON SCHEMA hopaas FROM PUBLIC")
    connection.exec_driver_sql("REVOKE ALL ON ALL TABLES IN SCHEMA hopaas FROM PUBLIC")
    connection.exec_driver_sql("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA hopaas FROM PUBLIC")
    peers = peers_role(connection)
    if peers is None:
        return
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA hopaas TO {quoted(connection, peers)}")
    functions = connection.exec_driver_sql(
        "SELECT oid::regprocedure::text FROM pg_proc "
        "WHERE pronamespace = 'hopaas'::regnamespace AND proname ~ '_v[0-9]+$'"
    ).scalars()
    for function in list(functions):
        connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {function} TO {quoted(connection, peers)}")


def _close_database(connection: Connection) -> None:
    """Take from everybody what a new database lets everybody do: temporary tables and, on old ones, any table."""
    owns, is_super = connection.exec_driver_sql(
        "SELECT pg_has_role(current_user, datdba, 'USAGE'), rolsuper FROM pg_database, pg_roles "
        "WHERE datname = current_database() AND rolname = current_user"
    ).one()
    if not owns:
        return
    name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
    connection.exec_driver_sql(f"REVOKE CREATE, TEMPORARY ON DATABASE {quoted(connection, name)} FROM PUBLIC")
    peers = peers_role(connection)
    if peers is not None:
        connection.exec_driver_sql(
            f"GRANT CONNECT ON DATABASE {quoted(connection, name)} TO {quoted(connection, peers)}"
        )
    if is_super:
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        for function in ("lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)"):
            connection.exec_driver_sql(f"REVOKE EXECUTE ON FUNCTION pg_catalog.{function} FROM PUBLIC")
