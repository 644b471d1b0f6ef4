"""Answers requests in a folder: `serve folder`, for nodes that can reach only a directory that they share.

A server may die at any moment, and several may run. So a request stays in the box until it is carried out, and a commit
that is carried out twice counts once. Servers share the work by the requests' names. After a second, the others take
the requests of a server that dies or loses its link.

However many peers read, a server reads each log once per `pace` into its own copy, and answers from this copy, even
during an outage of the store. A commit, or a file, waits in the box until the store answers. If the store does not let
the server itself in, no request is refused, and the server waits for a new token.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from hopaas_p2p.core.names import valid_name
from hopaas_p2p.errors import (
    BehindRetention,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    StoreUnreachable,
    explained,
)
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.access import is_study
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.copies import Copy, folder_of_copies
from hopaas_p2p.remote.protocol import CATALOG, Facts, StoreRequest
from hopaas_p2p.remote.server import OWN, Service
from hopaas_p2p.runtime.atomic import is_mostly_holes, scratch
from hopaas_p2p.runtime.logs import LOG

_QUICK: Final = 0.004  # seconds between looks for requests, if one came within the last _RECENT seconds
_SLOW: Final = 0.05
_FAR: Final = 0.1  # on a file server
_RECENT: Final = 5.0
_ALIVE: Final = 3.0  # seconds for which a server counts as alive after its last heartbeat
_TAKEN_OVER: Final = 1.0  # seconds after which a request of another server's share is taken
_PAUSES: Final = (0.1, 3.0)  # seconds between attempts while the store does not answer. With the jitter 4.5 at most:
# a caller that waits for 5 s always sees at least one attempt
_PATIENT: Final = 2.0  # seconds for which a read waits for the store, if there is a copy to answer from
_PACE: Final = 0.05  # seconds between reads of a log whose reads are free
_SWEEP_EVERY: Final = 60.0
_AT_ONCE: Final = 10_000  # requests
_SMALL: Final = 16 << 10  # bytes of a request that need not wait for room
_HELD: Final = 256 << 20  # bytes of requests at once
_FILES: Final = 2  # carried at once
_LOGS: Final = 512  # logs of which a server keeps copies
_LOOKED: Final = 3600.0  # seconds for which a server still reads a peer's beats that no caller requests
_PEERS: Final = 10_000  # whose heartbeats a server requests


class _Place:
    """One log behind the box: its copy, the time of its last read, and whether the store answers for it."""

    def __init__(self, file: Path) -> None:
        self.copy = Copy(file)
        self.flush_interval = 0.0
        self.read_at = float("-inf")
        self.pulling: asyncio.Task[None] | None = None
        self.retry_at = 0.0
        self.trouble: str | None = None
        self.backoff = Backoff(*_PAUSES)


class FolderServer:
    """Answers the requests in a box. Used inside one event loop.

    Args:
        box: the folder.
        service: the store.
        pace: seconds between two reads of a log; 0 for the default of 0.05 s.

    """

    def __init__(self, box: Box, service: Service, *, pace: float) -> None:
        self.box, self.service = box, service
        self.pace = pace or _PACE
        self.carried = 0
        """Commits that the store has accepted."""
        self._id = secrets.token_hex(6)
        self._copies = contextlib.ExitStack()
        self._folder = self._copies.enter_context(folder_of_copies(box.name))
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._there: dict[str, float] = {}
        """Requests, and when they were first seen."""
        self._others: dict[str, tuple[bytes, float]] = {}
        """Other servers: the last heartbeat, and when it changed."""
        self._looked: dict[str, float] = {}
        """Peers whose heartbeats are requested, and the time of the last such request."""
        self._beats: dict[str, str] = {}
        """The beats of these peers in the store."""
        self._beats_at = float("-inf")
        self._beats_turn = asyncio.Lock()
        self._rounds = self._held = 0
        self._away = False
        self._freed = asyncio.Condition()
        self._files = asyncio.Semaphore(_FILES)

    # --- the loop ---

    async def run(self, stop: asyncio.Event) -> None:
        """Answer requests until `stop` is set."""
        pause, said, active, beat_at, sweep_at = 0.0, "", 0.0, 0.0, time.monotonic() + _SWEEP_EVERY
        try:
            while not stop.is_set():
                now = time.monotonic()
                try:
                    if now >= beat_at:
                        beat_at = now + 1.0
                        await asyncio.to_thread(self._beat)
                        await self.service.tick(now)
                    if now >= sweep_at:
                        sweep_at = now + _SWEEP_EVERY
                        await asyncio.to_thread(self.box.sweep, f"beats/{self._id}")
                    if self._take(await asyncio.to_thread(self.box.requests), now):
                        active = now
                except HopaasError as error:
                    if str(error) != said:
                        LOG.warning("the folder: %s", error)
                    pause, said = 1.0, str(error)
                else:
                    quick = _FAR if self.box.objects.shared else _QUICK
                    pause, said = quick if now - active < _RECENT else max(quick, _SLOW), ""
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
        finally:
            tasks = [*self._tasks.values(), *(one.pulling for one in self._places.values() if one.pulling is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(HopaasError):
                self.box.objects.delete([f"beats/{self._id}"])
            self.service.close()
            self._copies.close()

    def _take(self, names: list[str], now: float) -> bool:
        """Start on new requests of this server's share, or of any share after a second. Returns whether any came."""
        self._there = {name: self._there.get(name, now) for name in names}
        alive = sorted({self._id, *(name for name, (_, at) in self._others.items() if now - at < _ALIVE)})
        begun = False
        for name, since in self._there.items():
            mine = alive[zlib.crc32(name.encode()) % len(alive)] == self._id or now - since > _TAKEN_OVER
            if mine and name not in self._tasks and len(self._tasks) < _AT_ONCE:
                begun = True
                self._tasks[name] = asyncio.get_running_loop().create_task(self._serve(name))
        return begun

    def _beat(self) -> None:
        now = time.monotonic()
        if not self._troubles():
            self._rounds += 1
            self.box.objects.put(f"beats/{self._id}", str(self._rounds).encode())
        before, self._others = self._others, {}
        for name, value in self.box.beats().items():
            if name != self._id:
                seen = before.get(name, (value, float("-inf")))
                self._others[name] = seen if seen[0] == value else (value, now)

    async def _serve(self, name: str) -> None:
        try:
            found = await asyncio.to_thread(self.box.request, name, _SMALL)
            if found is not None and not found.size:  # on GlusterFS, a file may be visible while it is being written
                await asyncio.sleep(self.box.objects.settles)
            size = 0 if found is None else found.size
            async with self._room(size):
                if found is not None and not found.data:
                    found = await asyncio.to_thread(self.box.request, name)
                answer = None if found is None else await self._answer(name, found.data)
            if answer is not None:
                await asyncio.to_thread(self.box.answer, name, answer)
        except HopaasError as error:  # an error of the folder is retried, unless this server may not read the request
            with contextlib.suppress(HopaasError):
                if isinstance(error, Denied):
                    return await asyncio.to_thread(self.box.answer, name, protocol.refused(error))
            LOG.warning("the folder: %s", error)
            await asyncio.sleep(1.0)
        except Exception:  # noqa: BLE001  # the other requests continue
            LOG.exception("a request failed")
            await asyncio.sleep(1.0)
        finally:
            self._tasks.pop(name, None)

    @contextlib.asynccontextmanager
    async def _room(self, size: int) -> AsyncIterator[None]:
        """Reserve memory for a request of this size; waits until there is room, unless it is small or the only one."""
        async with self._freed:
            await self._freed.wait_for(lambda: size <= _SMALL or not self._held or self._held + size <= _HELD)
        self._held += size
        try:
            yield
        finally:
            self._held -= size
            async with self._freed:
                self._freed.notify_all()

    async def _answer(self, name: str, data: bytes) -> bytes | None:
        """The answer to a request; None if its sender withdrew it while the store did not answer."""
        try:
            request = protocol.decode_request(data)
            if request.kind.of == "log" and not (request.place == CATALOG or is_study(request.place)):
                raise InvalidInput(f"{request.place!r} is not a study's uuid")
        except InvalidInput as error:
            return protocol.refused(error)
        while True:
            try:
                return await self._result(name, request)
            except StoreUnreachable as error:
                if request.commit is None and request.call not in ("put", "delete"):
                    return protocol.refused(error)
            except HopaasError as error:
                return protocol.refused(error)
            await asyncio.sleep(max(_QUICK, self._place(request).retry_at - time.monotonic()))
            if name not in self._there:
                return None

    # --- requests ---

    async def _result(self, name: str, request: StoreRequest) -> bytes:
        if request.call == "exchange" and request.commit is None:
            return await self._read(request)
        if request.call == "beats":
            return await self._look(request.arguments[0])
        if request.call in ("put", "get"):
            return await self._move(name, request)
        place = self._place(request)
        try:
            found = await self._ask(request)
        except StoreUnreachable:
            copied = request.call == "snapshot_head" and place.copy.begun and not place.copy.base
            if copied or request.call == "shared":  # the copy is enough for a reader
                return protocol.answered(None)
            raise
        if protocol.refusal(found) is not None:
            return found
        if request.call == "hello":
            return protocol.answered(Facts(self.box.leads_to, None))
        if request.commit is not None:
            result, place.flush_interval = protocol.result_of("exchange", found)
            self.carried += result.holds(request.commit)
            if place.copy.begun:
                with contextlib.suppress(OSError):
                    place.copy.keep(result.entries)
        elif request.call in ("destroy", "erase"):
            place.copy.drop()
        elif request.call == "beat" and request.arguments[0].peer in self._looked:
            self._beats[request.arguments[0].peer] = request.arguments[0].value
        return found

    async def _read(self, request: StoreRequest) -> bytes:
        """The commits of a log after a given one, from its copy, for which the store is read once per pace."""
        place, since = self._place(request), request.arguments[1]
        copy = place.copy
        if time.monotonic() - place.read_at >= self.pace or since > copy.head or not copy.begun:
            if place.pulling is None or place.pulling.done():
                place.pulling = asyncio.get_running_loop().create_task(self._pull(request.place, place))
                place.pulling.add_done_callback(lambda done: done.cancelled() or done.exception())
            pulling = place.pulling
            await asyncio.wait([pulling], timeout=_PATIENT if copy.begun else None)
            error = pulling.exception() if pulling.done() else None
            if error is not None and not (copy.begun and isinstance(error, StoreUnreachable)):
                raise error
            if error is None and pulling.done() and since > copy.head:
                return await self._ask(request)  # the store can answer a peer that has seen more
        with explained(str(copy.file), kind=StoreUnreachable):
            return protocol.answered((copy.after(since), place.flush_interval))

    async def _pull(self, log: str, place: _Place) -> None:
        """Bring a copy up to date."""
        began, more = time.monotonic(), True
        while more:
            found = await self._ask(StoreRequest("exchange", log, (None, place.copy.head)))
            try:
                result, place.flush_interval = protocol.result_of("exchange", found)
                more = not place.copy.keep(result.entries) or result.more
            except BehindRetention:
                head = protocol.result_of("snapshot_head", await self._ask(StoreRequest("snapshot_head", log, (None,))))
                if head is None or head[0] <= place.copy.head:
                    raise StoreUnreachable("the log's beginning was removed, and there is no snapshot yet") from None
                place.copy.drop(head[0])
            except OSError as error:
                raise StoreUnreachable(f"{error.filename}: {error.strerror}") from None
            except HopaasError:  # the log is gone, or no longer the one that was copied
                place.copy.drop()
                raise
        place.copy.begun, place.read_at = True, began

    async def _look(self, peers: list[str]) -> bytes:
        """The heartbeats of these peers. Those of all peers requested lately are read from the store once per pace."""
        asked = [peer for peer in peers if valid_name(peer)]
        async with self._beats_turn:
            now = time.monotonic()
            due = now - self._beats_at >= self.pace
            new = [peer for peer in asked if peer not in self._looked]
            looked = self._looked | dict.fromkeys(asked, now)
            names = sorted((peer for peer in looked if now - looked[peer] < _LOOKED), key=looked.__getitem__)
            self._looked = {peer: looked[peer] for peer in names[-_PEERS:]}
            wanted, found = list(self._looked) if due else new, {} if due else self._beats
            for first in range(0, len(wanted), protocol.AT_ONCE):
                request = StoreRequest("beats", "", (wanted[first : first + protocol.AT_ONCE],))
                found = found | protocol.result_of("beats", await self._ask(request))
            self._beats, self._beats_at = found, now if due else self._beats_at
        return protocol.answered({peer: self._beats[peer] for peer in asked if peer in self._beats})

    async def _move(self, name: str, request: StoreRequest) -> bytes:
        """Move a file between the box and the store, through a copy on this machine."""
        objects, key = self.box.objects, f"files/{name}"
        if request.call == "put" and await asyncio.to_thread(is_mostly_holes, self.box.path / key):
            await asyncio.to_thread(objects.delete, [key])
            return protocol.refused(InvalidInput("this file is mostly holes (sparse), so it is not stored"))
        try:
            async with self._files:
                with scratch() as file:
                    if request.call == "put" and not await asyncio.to_thread(objects.download, key, file):
                        return protocol.answered(None)  # another server has done it
                    found = await self._ask(request, file)
                    if request.call == "get" and protocol.refusal(found) is None:
                        await asyncio.to_thread(objects.upload, key, file)
        except OSError as error:
            self._failed(self._place(request), f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}")
            raise StoreUnreachable(str(error)) from None
        if request.call == "put":
            if refusal := protocol.refusal(found):
                LOG.warning("file %s: %s", request.place, refusal[1])
            await asyncio.to_thread(objects.delete, [key])
        return found

    # --- the store ---

    def _place(self, request: StoreRequest) -> _Place:
        name = request.place if request.kind.of == "log" else f".{request.kind.of}"
        if name not in self._places:
            self._places[name] = _Place(self._folder / name)
        self._places.move_to_end(name)
        while len(self._places) > _LOGS:
            self._places.popitem(last=False)
        return self._places[name]

    async def _ask(self, request: StoreRequest, file: Path | None = None) -> bytes:
        """The store's answer to a request.

        Raises:
            StoreUnreachable: the store does not answer, did not answer a moment ago, or does not let this server in at
                all. In the last case, no request is refused.

        """
        place = self._place(request)
        if time.monotonic() < place.retry_at:
            raise StoreUnreachable(place.trouble or "")
        found = await self.service.carry_out(OWN, request, file)
        kind, message = protocol.refusal(found) or ("", "")
        misled = kind == ConfigurationError.__name__ and request.kind.of != "files"  # wrong settings
        if misled or (kind == Denied.__name__ and not await self._let_in()) or kind == StoreUnreachable.__name__:
            self._failed(place, message)
            raise StoreUnreachable(message)
        place.backoff.reset()
        place.retry_at, place.trouble = 0.0, None
        if self._away and not self._troubles():  # for any log, since a log that failed may not be requested again
            self._away = False
            LOG.info("the store answers again")
        return found

    async def _let_in(self) -> bool:
        """Whether the store lets this server in."""
        head = self._place(StoreRequest("removed_up_to", CATALOG)).copy.head
        found = protocol.refusal(await self.service.carry_out(OWN, StoreRequest("exchange", CATALOG, (None, head))))
        return found is None or found[0] not in (Denied.__name__, StoreUnreachable.__name__)

    def _troubles(self) -> list[str]:
        """The reasons for recent failures of the store."""
        since = time.monotonic() - _RECENT
        return [one.trouble for one in self._places.values() if one.trouble and one.retry_at > since]

    def _failed(self, place: _Place, why: str) -> None:
        if why not in self._troubles():
            LOG.warning("%s", why)
        place.retry_at = time.monotonic() + place.backoff.pause()
        place.trouble, self._away = why, True
