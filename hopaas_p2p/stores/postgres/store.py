"""A store in a Postgres database: every exchange is one call of one SQL function, one round trip.

All rules are the server's, in `schema.sql`: order, idempotence, who may do what. This side connects, calls, and says
in our words what went wrong. A connection that was lost while idle is replaced without a word; everything said here
may be said twice, because the server knows a commit again by its nonce.
"""

from __future__ import annotations

import base64
import functools
import importlib.resources
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p import settings
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyClose, StudyOpen
from hopaas_p2p.errors import ConfigurationError, HopaasError, NewerFormat, StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.base import SNAPSHOTS_KEPT, Artifacts, Beat, Entry, Outgoing, Receipt, Store
from hopaas_p2p.stores.postgres.artifacts import PostgresArtifacts
from hopaas_p2p.stores.postgres.connect import Address, Door
from hopaas_p2p.stores.postgres.errors import (
    LOGIN_ENDED,
    NO_SCHEMA,
    READ_ONLY,
    SCHEMA_VERSION,
    failure,
    refusal,
    silent,
    wrong_schema,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError

CATALOG: Final = "catalog"
_REPLY: Final = 4 << 20  # bytes of commits in one reply; the rest is asked for again
_UUID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class PostgresLog:
    """One log: a row of `hopaas.logs` and its commits."""

    def __init__(self, store: PostgresStore, uuid: str) -> None:
        self._store = store
        self._uuid = uuid

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        rows = self._store.call(
            "exchange",
            log=self._uuid,
            since=since,
            nonce=outgoing.nonce if outgoing else None,
            payload=_text(outgoing.payload) if outgoing else None,
            about=self._about(outgoing),
            peer=beat.peer if beat else None,
            beat=beat.value if beat else None,
            limit=_REPLY,
        )
        entries = [Entry(lsn, base64.b64decode(text), author, role, at) for lsn, text, author, role, at, _ in rows]
        return Receipt(entries, more=bool(rows) and rows[-1][0] < rows[-1][5])

    def _about(self, outgoing: Outgoing | None) -> str | None:
        """The study that a commit to the catalog speaks of: its owner's word has more weight there."""
        if outgoing is None or self._uuid != CATALOG:
            return None
        commit = codec.decode(outgoing.payload)
        records = commit.records if isinstance(commit, Commit) else ()
        return next((record.uuid for record in records if isinstance(record, StudyOpen | StudyClose)), None)

    def changed(self, since: int) -> bool | None:
        return None

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        if before is not None:
            return None  # no commit is ever removed here, so all can be replayed from the first
        rows = self._store.call("newest_snapshot", log=self._uuid)
        return (rows[0][0], base64.b64decode(rows[0][1])) if rows else None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._store.call("put_snapshot", log=self._uuid, lsn=lsn, data=_text(data), kept=SNAPSHOTS_KEPT)

    def destroy(self) -> None:
        self._store.call("destroy", log=self._uuid)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class PostgresStore:
    """Logs, snapshots and beats in the schema `hopaas` of a database. Connects at the first call.

    Raises:
        ConfigurationError: the URL cannot be used, or asks for a connection that others could read.

    """

    freshness = 1.0
    beats_ride = True
    snapshots = True

    def __init__(self, url: str) -> None:
        self._door = Door(Address(url))
        self._files: Store | None = None
        self.url = self._door.address.url
        self._logs: dict[str, PostgresLog] = {}
        self._was_primary = False

    @property
    def address(self) -> Address:
        """Where it is, taken apart."""
        return self._door.address

    def catalog(self) -> PostgresLog:
        return self._log(CATALOG)

    def log(self, uuid: str) -> PostgresLog:
        if uuid == CATALOG or not _UUID.fullmatch(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return self._log(uuid)

    def _log(self, uuid: str) -> PostgresLog:
        return self._logs.setdefault(uuid, PostgresLog(self, uuid))

    def beat(self, beat: Beat) -> None:
        self.call("beat", peer=beat.peer, value=beat.value)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        asked = [peer for peer in peers if _UUID.fullmatch(peer)]
        return dict(self.call("beats", peers=asked)) if asked else {}

    def call(self, name: str, **parameters: Any) -> list[Any]:
        """Say one statement of calls.sql: one round trip on the connection there is, else on a new one.

        Raises:
            StoreUnreachable: the outcome is not known, or not for now.
            Denied: wrong secret, or no right to do that.
            ConfigurationError: no schema, another version's, or a server whose settings lose data.

        """
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.exc import TimeoutError as PoolTimeout

        try:
            rows = self._say(calls()[name], parameters)
        except DBAPIError as error:
            raise self.translated(error) from None
        except PoolTimeout:
            raise StoreUnreachable("this process waits for its own connection: another call hangs") from None
        self._was_primary = True
        return rows

    def _say(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        from sqlalchemy.exc import DBAPIError

        try:
            return self._once(sql, parameters)
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) == LOGIN_ENDED:
                self._door.close()  # there may be a new token
            elif not error.connection_invalidated or self._door.gave_up:
                raise
        return self._once(sql, parameters)

    def _once(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        with self._door.engine().connect() as connection:
            return list(connection.exec_driver_sql(sql, parameters).cursor.fetchall())

    def connect(self) -> Connection:
        """The connection, for statements of an administrator, in transactions of their own."""
        connection = self._door.engine().connect()
        return connection.execution_options(isolation_level="READ COMMITTED")

    def translated(self, error: DBAPIError) -> HopaasError:
        """What the driver says, as an error of ours."""
        text, code = str(error.orig), getattr(error.orig, "pgcode", None)
        if error.statement is None and code is None:
            said = error.orig.__cause__ if error.orig is not None else None
            refused = said if isinstance(said, HopaasError) else refusal(text)
            if not refused.retry:
                self._door.remember_refusal(refused)
            return refused
        if self._door.gave_up:
            return silent()
        if code in ("ZH503", READ_ONLY):
            return self._read_only()
        if code in NO_SCHEMA:
            return self._wrong_schema()
        return failure(code, text)

    def _read_only(self) -> HopaasError:
        """A fail-over ends by itself; a URL that never led to a primary does not."""
        if self._was_primary:
            self._door.close()  # the next connection may lead to the new primary
            return StoreUnreachable("the server has become a read-only replica; waiting for the new primary")
        return ConfigurationError(
            f"{self.url} is a read-only replica, which takes no commits. Use the primary's URL, or list all servers: "
            "postgresql://user@/database?host=one,two&target_session_attrs=read-write"
        )

    def _wrong_schema(self) -> HopaasError:
        from sqlalchemy.exc import DBAPIError

        try:
            installed = self._say(calls()["version"], {})[0][0]
        except DBAPIError as error:
            code = getattr(error.orig, "pgcode", None)
            return wrong_schema(None) if code in NO_SCHEMA else failure(code, str(error.orig))
        return NewerFormat() if installed > SCHEMA_VERSION else wrong_schema(installed)

    def artifacts(self) -> Artifacts:
        if self._files is None:
            url = settings.artifacts_url()
            if url is None:
                return PostgresArtifacts(self.call)
            from hopaas_p2p.stores.url import open_store

            self._files = open_store(url)
        return self._files.artifacts()

    def after_fork(self) -> None:
        self._door.forget()
        if self._files is not None:
            self._files.after_fork()

    def close(self) -> None:
        self._door.close()
        if self._files is not None:
            self._files.close()


@functools.cache
def calls() -> dict[str, str]:
    """The statements of calls.sql by name."""
    text = importlib.resources.files("hopaas_p2p.stores.postgres").joinpath("calls.sql").read_text()
    found = {}
    for part in text.split("-- name: ")[1:]:
        name, _, rest = part.partition("\n")
        lines = [line for line in rest.splitlines() if line and not line.startswith("--")]
        found[name.strip()] = " ".join(lines)
    return found
