"""Answers requests for any store: carries them out, and returns the results.

A server keeps only caches, so several may serve one store side by side, and any may stop at any time. It does not
interpret what studies contain. In Postgres, a token is a login, and the database checks every call. For a directory or
bucket, `access.judge` checks every call, and each commit is stored with a stamp that names its author.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakValueDictionary

from msgspec.structs import replace

from hopaas_p2p.core import codec
from hopaas_p2p.core.names import ONLY_OWNERS, REQUEST
from hopaas_p2p.core.records import Stamp
from hopaas_p2p.errors import (
    ASK_FOR_ANOTHER,
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    StoreCorrupt,
    StoreUnreachable,
)
from hopaas_p2p.remote import access, protocol
from hopaas_p2p.remote.access import AccessList
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.log import event
from hopaas_p2p.remote.protocol import Facts, StoreRequest
from hopaas_p2p.remote.tokens import TokenCache, TokenStatus
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Beat, Log, Store
from hopaas_p2p.stores.objects.store import ObjectBackedStore
from hopaas_p2p.stores.postgres.connect import PostgresAddress
from hopaas_p2p.stores.postgres.store import PostgresStore

Token = tuple[str, Secret]
OWN: Final = ("", Secret(""))
"""Stands for the login of this process, instead of a token."""
_THREADS: Final = 64
_SIDE_BY_SIDE: Final = 8
"""Concurrent calls per token, each on its own connection to Postgres; also per log and kind of call, since Postgres may
lock a log."""
_KEPT: Final = 60.0  # seconds for which a token's connections stay open without a request
_LOGS_KEPT: Final = 256  # each may hold a few megabytes of commits
_LOOK_EVERY: Final = 1.0  # seconds between reads for a waiting caller, since commits may come through other servers
_NOTHING_NEW: Final = protocol.answered(False)  # noqa: FBT003
_BEAT: Final = 48  # characters


_ADDRESS: Final = re.compile(r'connection to server (at "[^"]*"( \([^)]*\))?, port \d+|on socket "[^"]*")')
"""How libpq names a server."""


class Service:
    """One store for callers with tokens. This class accepts every caller, and uses the login of this process.

    All methods are called in one event loop; stores work in threads.

    Args:
        open_one: opens the store with a token; called again for each further handle that concurrent requests need.

    """

    def __init__(self, open_one: Callable[[Token], Store]) -> None:
        self.store = open_one(OWN)
        if isinstance(self.store, ObjectBackedStore):
            self.store.logs_kept = _LOGS_KEPT  # each is used under its turn
        self._open = open_one
        self._free: dict[Token, list[Store]] = {}
        """The idle handles of each token, if a handle is a connection; otherwise, all requests share one handle."""
        self._used: dict[Token, float] = {}
        """When a request of a token last returned such a handle."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hopaas-store")
        self._turns: WeakValueDictionary[object, asyncio.Semaphore] = WeakValueDictionary()
        self._news: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        """For each log with waiting callers, the event that the next commit through this server sets."""
        self._ending = False
        self._places: Sequence[str] = ()
        """Texts in messages that show where the store is, if callers must not see that; the longest first."""

    async def status(self, token: Token, address: str) -> TokenStatus:
        """Whether this token is valid.

        Raises:
            RequestRefused: the caller must wait.
            StoreUnreachable: the store does not answer.

        """
        return TokenStatus(valid=True)

    def turn(self, of: object, at_once: int) -> asyncio.Semaphore:
        """A semaphore that admits `at_once` holders for this object."""
        return self._turns.setdefault(of, asyncio.Semaphore(at_once))

    @contextlib.asynccontextmanager
    async def lease(self, token: Token, request: StoreRequest) -> AsyncIterator[Store]:
        """The store for this request: its own connection, or the shared handle, with exclusive use of its log."""
        if isinstance(self.store, PostgresStore | RemoteStore):
            log = request.log or token, request.kind.of
            async with self.turn(token, _SIDE_BY_SIDE), self.turn(log, _SIDE_BY_SIDE):
                free = self._free.setdefault(token, [])
                store = free.pop() if free else self._open(token)
                try:
                    yield store
                finally:
                    free.append(store)
                    self._used[token] = time.monotonic()
        elif request.kind.of != "log":
            yield self.store
        else:
            async with self.turn(request.log, 1):
                yield self.store

    def call(self, token: Token, request: StoreRequest, store: Store) -> Any:
        """Carry a request out on this store. Blocks."""
        return request.on(store)

    async def answer(
        self, token: Token, request: StoreRequest, status: TokenStatus, gone: Callable[[], bool] = bool
    ) -> bytes:
        """The answer to the request. `gone` returns whether the caller has stopped waiting for it."""
        if request.call == "news":
            return await self._when_there_is_news(token, request, gone)
        found = await self.carry_out(token, request)
        if request.call == "hello" and protocol.refusal(found) is None:
            return protocol.answered(Facts(token[0], status.expires))
        return found

    async def _when_there_is_news(self, token: Token, request: StoreRequest, gone: Callable[[], bool]) -> bytes:
        """The answer to a peer that waits for news: at the next commit through this server, or when a look finds
        one.
        """
        over = time.monotonic() + request.arguments[1]
        while True:
            came = self._news.setdefault(request.place, asyncio.Event())  # before the look, so that none is missed
            found = await asyncio.shield(self.carry_out(token, request))  # leaves no call half done
            left = over - time.monotonic()
            if found != _NOTHING_NEW or left <= 0.0 or self._ending or gone():
                return found
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(came.wait(), min(left, _LOOK_EVERY))

    def _tell(self, log: str) -> None:
        if (came := self._news.pop(log, None)) is not None:
            came.set()

    def end_waits(self) -> None:
        """Answer all callers that wait for news, now and from now on, because this server is about to stop."""
        self._ending = True
        for log in list(self._news):
            self._tell(log)

    async def carry_out(self, token: Token, request: StoreRequest, file: Path | None = None) -> bytes:
        """Like `answer`, for a request that may involve a file's bytes."""
        try:
            async with self.lease(token, request) as store:
                found = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._carried_out, token, request, store, file
                )
            if request.commit is not None or request.call == "destroy":
                self._tell(request.place)
            return found
        except HopaasError as error:
            return self._refused(error)

    def _carried_out(self, token: Token, request: StoreRequest, store: Store, file: Path | None) -> bytes:
        try:
            result = self.call(token, request, store)
            if file is not None:
                getattr(store.artifacts(), request.call)(request.place, file)
            return protocol.answered(result)
        except KeyError as error:
            return protocol.refused(error)
        except HopaasError as error:
            return self._refused(error)
        except ValueError as error:  # a string with a character that no database accepts
            return protocol.refused(InvalidInput(str(error)))
        except Exception as error:  # noqa: BLE001  # the other callers continue
            return protocol.refused(_failed(error, request.call))

    def _refused(self, error: HopaasError) -> bytes:
        """The answer with this error; if callers have their own tokens, without the store's place."""
        text = _ADDRESS.sub("connection to the database", str(error)) if self._places else str(error)
        for place in self._places:
            text = text.replace(place, "the store")
        return protocol.refused(error if text == str(error) else type(error)(text))

    async def tick(self, now: float) -> None:
        """Close connections that are no longer used; called once per second."""
        for token, used in list(self._used.items()):
            if now - used > _KEPT and token not in self._turns:
                del self._used[token]
                for store in self._free.pop(token):
                    await asyncio.get_running_loop().run_in_executor(self._threads, store.close)

    def gauges(self) -> dict[str, float]:
        """The store's part of /metrics."""
        return {}

    def close(self) -> None:
        """Release threads and connections."""
        for store in [self.store, *(one for free in self._free.values() for one in free)]:
            store.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class PostgresService(Service):
    """A Postgres database, which checks the rights. Each token has its own connections, kept while it is in use."""

    def __init__(self, url: str) -> None:
        super().__init__(lambda token: PostgresStore(url, login=token))
        address = PostgresAddress(url)
        self._places = [address.url, *(f'"{host}"' for host, _ in address.destinations if host)]
        if address.user or ":***@" in address.url:
            raise ConfigurationError(f"{address.url}: leave out the login; every peer uses its own")
        self.tokens = TokenCache(url)

    async def status(self, token: Token, address: str) -> TokenStatus:
        return await self.tokens.status(*token, address=address)

    def call(self, token: Token, request: StoreRequest, store: Store) -> Any:
        if request.kind.of == "log" and request.place == access.LOG:
            raise Denied(
                "the users and grants of a database are managed at its own URL: use --store postgresql://…, where an "
                "owner of a study may grant with the same token. Users and tokens need an administrator's login"
            )
        if request.call == "put":
            with contextlib.suppress(StoreCorrupt):  # no such upload was begun; before that, user and size are checked
                store.call("put_part", key=request.place, upload="", size=request.arguments[0], part=-1, data=b"")  # type: ignore[attr-defined]
        return super().call(token, request, store)

    def gauges(self) -> dict[str, float]:
        return {"token_logins_total": self.tokens.logins, "postgres_up": int(self.tokens.reachable)}

    def close(self) -> None:
        self.tokens.close()
        super().close()


class ListedService(Service):
    """A directory or bucket, whose users are in a list next to the studies. One request per log at a time."""

    def __init__(self, store: Store) -> None:
        super().__init__(lambda _: store)
        self._places = _places(store.url)
        self._access = AccessList(store)

    async def status(self, token: Token, address: str) -> TokenStatus:
        found = self._access.token(*token)
        if found is None:  # it may be new; a known token is looked up again when its request is carried out
            await asyncio.get_running_loop().run_in_executor(self._threads, self._read_access)
            found = self._access.token(*token)
        if found is None:
            return TokenStatus(valid=False)
        return TokenStatus(valid=True, expires=found.expires)

    def _read_access(self) -> None:
        try:
            self._access.read()
        except HopaasError:
            raise
        except Exception as error:
            raise _failed(error, "status") from error  # a future would never end with a StopIteration

    @contextlib.asynccontextmanager
    async def lease(self, token: Token, request: StoreRequest) -> AsyncIterator[Store]:
        share = self.turn((token, request.kind.of), _SIDE_BY_SIDE)  # of the calls that run or wait for a log
        async with share, super().lease(token, request) as store:
            yield store

    def call(self, token: Token, request: StoreRequest, store: Store) -> Any:
        roles, found = self._access.read(), self._access.token(*token)
        if found is None:
            raise Denied(f"the token has expired or was revoked. {ASK_FOR_ANOTHER}")
        user = found.user
        if request.call == "exchange" and request.place == access.LOG and self._all(user):
            if request.commit is not None:
                request = self._stamped(user, request, Stamp(user, "owner"), self._access)
            return self._access.exchange(*request.arguments), 0.0
        log, exists = request.place, True  # only a request that has this log's turn may look
        if request.kind.of == "log" and access.is_study(log) and access.role_in(roles, user, log) is None:
            exists = bool(roles.grants.get(log)) or not store.log(log).is_empty()
        stamp = access.judge(roles, user, request, exists=exists)
        if request.call == "shared":
            return None if self._all(user) else [log for log in list(roles.grants) if access.role_in(roles, user, log)]
        if request.call in ("beat", "remove_beat"):
            return self._beat(user, request, store)
        if request.call in ("put_block", "put_snapshot_head") and stamp.role != "owner":
            return None  # peers that join from a snapshot trust it as they trust the log
        if request.commit is not None:
            opened = store.catalog() if log == protocol.CATALOG else store.log(log)
            request = self._stamped(user, request, stamp, opened)
        return request.on(store)

    def _all(self, user: str) -> bool:
        return self._access.roles.role(user, protocol.CATALOG) == "owner"

    def _stamped(self, user: str, request: StoreRequest, stamp: Stamp, log: Log | AccessList) -> StoreRequest:
        """The same commit with the server's stamp; the author of a log's first commit becomes its owner."""
        commit, since = request.arguments
        total = log.sum_at(since)
        if not codec.takes_stamp(commit.payload):
            raise InvalidInput("these bytes are not a commit")
        if None not in (total, commit.chain) and total != commit.chain:
            raise BrokenChain
        if access.role_in(self._access.roles, user, request.place) is None:
            self._access.change(access.GrantSet(request.place, user, "owner"), by=user)
        stamp = Stamp(stamp.author, stamp.role, int(time.time() * 1e6))  # only servers write a time
        return replace(request, arguments=(replace(commit, chain=total, stamp=stamp), since))

    def _beat(self, user: str, request: StoreRequest, store: Store) -> None:
        """Only a peer's own user may send its heartbeat; the mark in the value shows the user to every server."""
        beat = Beat(request.arguments[0], "") if request.call == "remove_beat" else request.arguments[0]
        asks = beat.peer.startswith(REQUEST)  # any of the study's owners may end a rescue that another began
        mark = "" if asks else "@" + hashlib.blake2b(user.encode(), digest_size=6).hexdigest()
        if asks and access.role_in(self._access.roles, user, beat.peer.removeprefix(REQUEST)) != "owner":
            raise Denied(ONLY_OWNERS)
        if not store.beats([beat.peer]).get(beat.peer, mark).endswith(mark):  # also if it came through another server
            raise Denied("this peer is another user's")
        if request.call == "remove_beat":
            store.remove_beat(beat.peer)
        else:
            store.beat(Beat(beat.peer, beat.value[:_BEAT] + mark))


def _failed(error: Exception, what: str) -> StoreUnreachable:
    """The error that callers see for a failure of the server, whose log then names the cause."""
    event("failed", level=logging.ERROR, why=type(error).__name__, request=what)
    return StoreUnreachable(f"the server failed: {type(error).__name__}; see its log")


def _places(url: str) -> list[str]:
    """Texts in messages that show where a directory or bucket is: its URL, path or endpoint; the longest first."""
    parts = urlsplit(url)
    endpoints = parse_qs(parts.query).get("endpoint", [])
    found = [url, *endpoints, *(f"{one}, bucket {parts.netloc!r}" for one in endpoints)]
    if parts.scheme == "file":
        found.append(unquote(parts.path))
    return sorted((one for one in found if len(one) > 1), key=len, reverse=True)
