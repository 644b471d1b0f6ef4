"""A store in a Postgres database, in which every exchange is one call of one SQL function, in one round trip.

The server enforces all rules on order, idempotence and permissions, in `schema.sql`. This side connects, calls, and
turns the server's errors into ours. A connection lost while idle is replaced silently. Every statement may be sent
twice, because the server recognizes a commit by its nonce.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import astuple

from hopaas_p2p.core.names import checked_key, valid_name
from hopaas_p2p.core.records import Stamp
from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreCorrupt, StoreUnreachable
from hopaas_p2p.net.backoff import persistently
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import (
    SNAPSHOTS_KEPT,
    Artifacts,
    Beat,
    Doubtful,
    Entry,
    ExchangeResult,
    Log,
    Outgoing,
    Progress,
    Store,
)
from hopaas_p2p.stores.postgres.connect import PostgresAddress, query
from hopaas_p2p.stores.postgres.copying import copied_rows
from hopaas_p2p.stores.postgres.errors import LOGIN_ENDED, NO_SCHEMA, READ_ONLY, Locked, failure, wrong_schema
from hopaas_p2p.stores.postgres.schema import restore
from hopaas_p2p.stores.postgres.watchdog import watched

if TYPE_CHECKING:
    import psycopg2

CATALOG: Final = "catalog"
_CONNECTION_WAIT: Final = 60.0  # seconds that a call waits for another call to end
_REFUSED_FOR: Final = 60.0  # seconds before a refused secret is tried again, unless it has changed
_PART: Final = 1 << 20  # bytes of a file in one statement, as stored on the server
_REPLY: Final = 4 << 20  # bytes of commits in one reply; the rest takes another exchange


class PostgresLog(Log):
    """One log: a row of `hopaas.logs` and its commits."""

    def __init__(self, store: PostgresStore, uuid: str) -> None:
        self._store = store
        self._uuid = uuid

    def _call(self, function: str, **arguments: Any) -> list[Any]:
        return self._store.call(function, log=self._uuid, **arguments)

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        nonce, payload, about, chain, _ = (None,) * 5 if outgoing is None else astuple(outgoing)
        sent = {"nonce": nonce, "payload": payload, "about": about or None, "chain": chain}
        peer, value = beat or (None, None)
        rows = self._call("exchange", since=since, peer=peer, beat=value, limit=_REPLY, **sent)
        entries = [
            Entry(lsn, base64.b64decode(text), Stamp(author, role, at), before)
            for lsn, text, author, role, at, before, _ in rows
        ]
        return ExchangeResult(entries, more=bool(rows) and rows[-1][0] < rows[-1][6])

    def snapshot_head(self, before: int | None) -> tuple[int, bytes] | None:
        if before is not None:
            return None  # commits are never removed here, so the log can be replayed from the first
        rows = self._call("newest_snapshot")
        return (rows[0][0], base64.b64decode(rows[0][1])) if rows else None

    def blocks(self, names: list[str]) -> dict[str, bytes]:
        return {name.decode(): data for name, data in self._call("blocks", names=names, copied=True)}

    def block_names(self) -> set[str]:
        return {name for (name,) in self._call("block_names")}

    def put_block(self, name: str, data: bytes) -> None:
        self._call("put_block", name=name, data=data)

    def put_snapshot_head(self, lsn: int, head: bytes) -> None:
        self._call("put_snapshot", lsn=lsn, data=head, kept=SNAPSHOTS_KEPT)

    def doubtful_head(self, after: int, up_to: int) -> Doubtful | None:
        rows = self._call("doubtful_snapshot", after=after, up_to=up_to)
        if not rows:
            return None
        lsn, author, text = rows[0]
        head = base64.b64decode(text)
        return Doubtful(lsn, author, head, hashlib.sha256(head).hexdigest())

    def judge_snapshot(self, found: Doubtful, *, same: bool) -> None:
        lsn, author, _, total = found
        self._call("judge_snapshot", lsn=lsn, author=author, sum=total, same=same)

    def denied_snapshots(self) -> list[tuple[int, str, list[str]]]:
        return [(lsn, author, deniers) for lsn, author, deniers in self._call("denied_snapshots")]

    def destroy(self) -> None:
        self._call("destroy")

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        with self._store.transaction() as connection:  # only an administrator may do so
            restore(connection, self._uuid, entries)


class PostgresStore(Store):
    """Logs, snapshots and beats in the schema `hopaas` of a database. Connects at the first call.

    A store has one connection, used by one thread at a time. After the server has refused a secret, the same error is
    raised for a minute without another attempt.

    Raises:
        ConfigurationError: the URL cannot be used, or asks for a connection that others could read.

    """

    freshness = 1.0
    piggybacks_heartbeats = True

    def __init__(self, url: str, *, login: tuple[str, Secret] | None = None) -> None:
        self.address = PostgresAddress(url, login)
        self.url = self.address.url
        self._was_primary = False
        self._connection: Any = None
        self._lock = threading.Lock()
        self._refusal: tuple[HopaasError, tuple[str | None, Secret | None], float] | None = None

    def catalog(self) -> PostgresLog:
        return PostgresLog(self, CATALOG)

    def log(self, uuid: str) -> PostgresLog:
        if uuid == CATALOG or not valid_name(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return PostgresLog(self, uuid)

    def beat(self, beat: Beat) -> None:
        self.call("beat", peer=beat.peer, value=beat.value)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        asked = [peer for peer in peers if valid_name(peer)]
        return dict(self.call("beats", peers=asked)) if asked else {}

    def shared(self) -> set[str]:
        """The uuids of the studies that this user may see."""
        return {uuid for (uuid,) in self.call("shared")}

    def login(self) -> str:
        with self._connected() as connection:
            return str(connection.info.user)

    def call(self, function: str, *, copied: bool = False, **arguments: Any) -> list[Any]:
        """Call a function of the schema, in one round trip on the open connection, or on a new one.

        Args:
            function: its name without its version.
            arguments: by their names without `p_`. Bytes are sent in base64; in results, base64 is not decoded.
            copied: whether the rows are returned by COPY instead, as bytes.

        Raises:
            StoreUnreachable: the outcome is not known, or the server cannot serve this now.
            Denied: the secret is wrong, or this user may not do that.
            StudyDeleted: the study is gone.
            BrokenChain: the log does not match what a peer has read, for example because the server has lost commits.
            StoreCorrupt: an upload failed, or a reply cannot be read.
            ConfigurationError: the schema is missing or of another version, server settings would lose data, or the
                server rejects the arguments.

        """
        import psycopg2

        try:
            found = self._run(function, arguments, copied=copied)
        except psycopg2.Error as error:
            failed = self._translated(error)
            if isinstance(failed, Locked) and "log" in arguments and function != "unlock":
                with contextlib.suppress(HopaasError):  # end sessions that have held locks for minutes
                    self.call("unlock", log=arguments["log"])
            raise failed from None
        self._was_primary = True
        return found

    def _run(self, function: str, arguments: dict[str, Any], *, copied: bool = False) -> list[Any]:
        import psycopg2

        coded = [name for name, value in arguments.items() if isinstance(value, bytes | memoryview)]
        given = [
            f"p_{name} => decode(%({name})s, 'base64')" if name in coded else f"p_{name} => %({name})s"
            for name in arguments
        ]
        sql = f"SELECT * FROM hopaas.{function}_v1({', '.join(given)})"  # noqa: S608  # names are ours
        values = arguments | {name: base64.b64encode(arguments[name]).decode() for name in coded}
        for last in (False, True):
            try:
                with self._connected() as connection:
                    if not copied:
                        return query(connection, sql, values)
                    with connection.cursor() as cursor, io.BytesIO() as file:
                        cursor.copy_expert(cursor.mogrify(f"COPY ({sql}) TO STDOUT (FORMAT binary)", values), file)
                        return copied_rows(file.getvalue())
            except psycopg2.Error as error:
                if error.pgcode == LOGIN_ENDED:
                    self.close()  # there may be a new token
                elif not connection.closed:
                    raise
                if last:
                    raise
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        """The connection, while the block lasts. Every statement is a transaction of its own.

        Raises:
            StoreUnreachable: there is no connection, another call hangs, or no data moved for too long.
            HopaasError: the server refuses this secret, or did so less than a minute ago.

        """
        lock = self._lock
        if not lock.acquire(timeout=_CONNECTION_WAIT):
            raise StoreUnreachable("this process's only connection is in use by another call, which hangs")
        try:
            connection = self._connection
            if connection is None or connection.closed:
                connection = self._connection = self._log_in()
            try:
                with watched(connection.fileno()):
                    yield connection
            finally:
                if connection is not self._connection:  # `close` was called meanwhile
                    connection.close()
        finally:
            lock.release()

    def _log_in(self) -> Any:
        login = self.address.credentials()
        if self._refusal is not None:
            refused, given, until = self._refusal
            if time.monotonic() < until and given == login:
                raise type(refused)(str(refused))
        try:
            self._refusal, made = None, self.address.connect(*login)
        except HopaasError as refused:
            self._refusal = None if refused.retry else (refused, login, time.monotonic() + _REFUSED_FOR)
            raise
        return made

    @contextlib.contextmanager
    def connect(self) -> Iterator[Any]:
        """The connection, for an administrator's statements, each in a transaction of its own. Raises like `call`."""
        import psycopg2

        try:
            with self._connected() as connection:
                yield connection
        except psycopg2.Error as error:
            raise self._translated(error) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """Like `connect`, with all statements in one transaction, which an error rolls back."""
        import psycopg2

        with self.connect() as connection:
            query(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
            try:
                yield connection
                query(connection, "COMMIT")
            except BaseException:
                with contextlib.suppress(psycopg2.Error):
                    query(connection, "ROLLBACK")
                raise

    def _translated(self, error: psycopg2.Error) -> HopaasError:
        """Our error for this error of the driver."""
        if error.pgcode in ("ZH503", READ_ONLY) and self._was_primary:  # during a fail-over, which ends by itself
            self.close()  # the next connection may lead to the new primary
            return StoreUnreachable("the server has become a read-only replica; waiting for the new primary")
        if error.pgcode in ("ZH503", READ_ONLY):
            return ConfigurationError(
                f"{self.url} is a read-only replica, which accepts no commits. Use the primary's URL, or list all "
                "servers: postgresql://user@/database?host=one,two&target_session_attrs=read-write"
            )
        if error.pgcode not in NO_SCHEMA:
            return failure(error.pgcode, str(error))
        import psycopg2

        try:
            installed = self._run("version", {})[0][0]
        except psycopg2.Error as another:
            return wrong_schema(None) if another.pgcode in NO_SCHEMA else failure(another.pgcode, str(another))
        return wrong_schema(installed)

    def artifacts(self) -> PostgresArtifacts:
        return PostgresArtifacts(self)

    def after_fork(self) -> None:
        """Leave the connection to the parent, and send the server nothing."""
        self._connection, self._lock = None, threading.Lock()

    def close(self) -> None:
        """Close the connection once it is unused; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None and self._lock.acquire(blocking=False):
            connection.close()
            self._lock.release()


class PostgresArtifacts(Artifacts):
    """Files in the database, for models and plots of a few megabytes, sent and fetched in parts of 1 MiB.

    The server checks what may be stored, and by whom; see `artifacts.sql`. A part whose reply was lost is sent again,
    and the server counts it once.
    """

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    def put(self, key: str, source: Path) -> None:
        upload = secrets.token_hex(16)
        with source.open("rb") as file:
            size = source.stat().st_size
            for part in range(max(-(-size // _PART), 1)):
                data = file.read(_PART)
                self._retry("put_part", key=checked_key(key), upload=upload, size=size, part=part, data=data)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        found: int | None = None
        done, size, part = 0, 1, 0
        with target.open("wb") as file:
            while done < size:
                rows = self._retry("read_part", key=checked_key(key), id=found, part=part)
                if not rows:
                    break
                found, size, text = rows[0]
                data = base64.b64decode(text or "")
                file.write(data)
                done, part = done + len(data), part + 1
                if progress is not None:
                    progress(len(data))
        if found is None:
            target.unlink()
            raise KeyError(key)
        if done < size:
            raise StoreUnreachable(f"{key} was replaced while it was read; get it again")

    def delete(self, key: str) -> None:
        self._retry("remove_artifact", key=checked_key(key))

    def keys(self, prefix: str) -> list[str]:
        return [key for (key,) in self._retry("artifact_keys", prefix=prefix)]

    def _retry(self, name: str, **parameters: Any) -> list[Any]:
        return persistently(lambda: self._store.call(name, **parameters))
