"""What an administrator does to the store as a whole: make its schema, and act in it, a transaction at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.stores.postgres.store import PostgresStore

if TYPE_CHECKING:
    from sqlalchemy import Connection


def initialise(url: str) -> int:
    """Make the schema of a store in this database, or bring it up to date. Needs the database owner's login.

    May be repeated, and two may run at once. Returns the version that was there before, 0 for none.

    Raises:
        NewerFormat: a newer version of this program made it.
        Denied: this login may not create a schema here.

    """
    with administration(url, existing=False) as connection:
        return schema.install(connection)


@contextlib.contextmanager
def administration(url: str, *, existing: bool = True) -> Iterator[Connection]:
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


def share(connection: Connection, role: str) -> None:
    """Let every administrator manage a role, whoever of them made it, and end its sessions."""
    owner = schema.quoted(connection, schema.schema_owner(connection))
    connection.exec_driver_sql(f"GRANT {schema.quoted(connection, role)} TO {owner} WITH ADMIN OPTION")
