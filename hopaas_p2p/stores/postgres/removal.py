"""Takes logins away from a server, whatever their holders did to stay.

A login may have open transactions that lock what has to change, prepared ones that outlive its sessions, and rights and
objects in any database of the server, which keep its role from being dropped. So it is shut out first, in one short
transaction that is tried again while it is held up: no login, no rows, no grants. What is left then harms nobody, and
is cleared away as far as possible; what cannot be is told.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.stores.postgres.store import PostgresStore

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

_ATTEMPTS: Final = 5
_HELD_UP: Final = frozenset({"55P03", "40P01", "40001", "XX000"})
"""A lock that is not given, a deadlock, a row that another transaction changed at the same time."""
_SHUTDOWN_TIMEOUT: Final = 10.0  # seconds in which a terminated session must end


class RoleRemoval:
    """Removes these roles from the server that a store is on.

    Args:
        url: the store, with an administrator's login.
        roles: logins, and roles that they are members of, in the order in which they can be dropped.

    """

    def __init__(self, url: str, roles: Sequence[str]) -> None:
        self._url, self._roles = url, list(roles)
        self.left: list[str] = []
        """What could not be removed, and why."""

    def shut_out(self, forget: Callable[[Connection], None]) -> None:
        """Let none of them log in any more, and forget them in the store's tables; all of it or nothing.

        Raises:
            HopaasError: it was held up again and again, or the login is no administrator's.

        """
        from sqlalchemy.exc import DBAPIError

        for attempt in range(1, _ATTEMPTS + 1):
            with contextlib.closing(PostgresStore(self._url)) as store:
                try:
                    self._roll_back_prepared(store)
                    with store.connect() as connection, connection.begin():
                        connection.exec_driver_sql("SET LOCAL lock_timeout = '3s'")
                        schema.run(connection, "end_sessions", roles=self._roles)
                        for role in self._roles:
                            connection.exec_driver_sql(f"ALTER ROLE {schema.quoted(connection, role)} NOLOGIN")
                        forget(connection)
                    return
                except DBAPIError as error:
                    if attempt == _ATTEMPTS or getattr(error.orig, "pgcode", None) not in _HELD_UP:
                        raise store.translated(error) from None
                    with store.connect() as connection, connection.begin():
                        schema.run(connection, "end_transactions")  # of others, such as an owner that grants to them

    def clear_away(self) -> None:
        """End their sessions and transactions, and drop what they own, then the roles. Errors go to `left`."""
        self._attempt(self._end_sessions)
        self._attempt(self._roll_back_prepared)
        for database in self._databases():
            self._attempt(self._drop_owned, database=database)
        for role in self._roles:
            self._attempt(functools.partial(self._drop_role, role))

    def _attempt(self, step: Callable[[PostgresStore], None], *, database: str | None = None) -> None:
        from sqlalchemy.exc import DBAPIError

        with contextlib.closing(PostgresStore(self._in(database))) as store:
            try:
                step(store)
            except DBAPIError as error:
                self.left.append(_said(error))
            except HopaasError as error:
                self.left.append(str(error).rstrip("."))

    def _in(self, database: str | None) -> str:
        """The URL of another database of the server, with the same login."""
        from sqlalchemy import make_url

        url = make_url(self._url)
        return url.set(database=database or url.database).render_as_string(hide_password=False)

    def _databases(self) -> list[str]:
        """Where something depends on these roles; this one, in any case."""
        found: list[str] = []
        self._attempt(lambda store: found.extend(self._names(store, "databases_with")))
        return found

    def _names(self, store: PostgresStore, statement: str) -> list[str]:
        with store.connect() as connection:
            return [str(row[0]) for row in schema.run(connection, statement, roles=self._roles)]

    def _end_sessions(self, store: PostgresStore) -> None:
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT
        while True:
            with store.connect() as connection:
                count = schema.run(connection, "end_sessions", roles=self._roles).scalar_one()
            if not count:
                return
            if time.monotonic() > deadline:
                self.left.append(f"{count} of their sessions have not ended within {_SHUTDOWN_TIMEOUT:.0f} s")
                return
            time.sleep(0.02)

    def _roll_back_prepared(self, store: PostgresStore) -> None:
        """A prepared transaction keeps its locks after its session has ended. Only its owner may end it."""
        with store.connect() as connection:
            prepared = list(schema.run(connection, "prepared_by", roles=self._roles))
        for gid, owner, database in prepared:
            with contextlib.closing(PostgresStore(self._in(database))) as other, other.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql(f"SET ROLE {schema.quoted(connection, owner)}")
                connection.exec_driver_sql("ROLLBACK PREPARED %s", (gid,))

    def _drop_owned(self, store: PostgresStore) -> None:
        with store.connect() as connection, connection.begin():
            connection.exec_driver_sql("SET LOCAL lock_timeout = '3s'")
            names = ", ".join(schema.quoted(connection, role) for role in self._roles)
            connection.exec_driver_sql(f"DROP OWNED BY {names}")

    @staticmethod
    def _drop_role(role: str, store: PostgresStore) -> None:
        with store.connect() as connection, connection.begin():
            connection.exec_driver_sql("SET LOCAL lock_timeout = '3s'")
            connection.exec_driver_sql(f"DROP ROLE {schema.quoted(connection, role)}")


def _said(error: DBAPIError) -> str:
    """The server's message with its details, such as what depends on a role."""
    return " ".join(str(error.orig).split())
