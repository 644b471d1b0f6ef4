"""Carries a study between a store that local peers reach and the one where it lives: `hopaas-p2p bridge NEAR FAR`.

One loop: read the inbox, serve each log's requests in order, bring what is new, carry beats both ways. Every step can
be repeated, so nothing is lost when the bridge dies at any moment, when two are started, or when the link is down for
hours: a request stays in the inbox until the far store has decided about it.

If the far store denies a request, or its log is damaged, the request's sender gets that as a reply. If the far store
does not let the bridge itself log in, or the bridge is set up wrongly, the bridge says so and tries again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from hopaas_p2p.errors import Denied, HopaasError, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import Artifacts, Beat, Outgoing, Store, append, read_all
from hopaas_p2p.stores.bridge import messages
from hopaas_p2p.stores.bridge.file_relay import FileRelay
from hopaas_p2p.stores.bridge.log_relay import ConnectionPool, Contact, LogRelay, StaleWriter

_log: Final = logging.getLogger("hopaas_p2p")
SUBSCRIPTION: Final = 3600.0
"""Seconds for which a subscription lasts; peers renew theirs every 300."""
_RECORD_EVERY: Final = 1.0  # seconds between records of how far the inbox was carried out
_BEATS: Final = 0.5  # seconds between looks for beats of local peers, which wait until they are carried
_QUICK: Final = 0.004  # seconds between looks into an inbox that was used within _RECENT seconds
_SLOW: Final = 0.05
_LOOKS: Final = 10  # per `freshness`, into an inbox on a file server
_RECENT: Final = 5.0


class Bridge:
    """A bridge between two open stores, which nothing else uses.

    Args:
        near: the store that local peers reach.
        far: the store where the studies live.
        pool: further handles on the far store, for sending several commits at once over a long link.
        artifacts: where the far store's files are kept; by default in itself.
        pace: seconds between rounds of beats, and between looks at far logs; by default the far `freshness`, and at
            least half a second.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        near: Store,
        far: Store,
        *,
        pool: Sequence[Store] = (),
        artifacts: Callable[[], Artifacts] | None = None,
        pace: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.near, self.far = near, far
        self.pace = pace or max(0.5, far.freshness)
        self.clock = clock
        self.carried = 0
        """Commits carried to the far side, by this bridge."""
        self.rounds = 0
        self._id = secrets.token_hex(4)
        self._inbox = Inbox(near)
        self._record_at = 0.0
        self._active_at = 0.0
        self._round_at = 0.0
        self._send_at = 0.0
        self._heartbeats = HeartbeatRelay(near, far)
        self._beats = Contact()
        self._pool = ConnectionPool(pool)
        self._files = FileRelay(
            near.artifacts, artifacts or far.artifacts, reply=self._inbox.reply, logged_in=self._logged_in
        )
        self._catalog = LogRelay(messages.CATALOG, near.catalog(), far.catalog())
        self._relays = {messages.CATALOG: self._catalog}

    @property
    def trouble(self) -> str | None:
        """Why the far side cannot be reached, while that is so."""
        return next(iter(self._troubles()), None)

    def _troubles(self) -> list[str]:
        return [one.trouble for one in (*self._relays.values(), self._beats) if one.trouble]

    def run(self, stopped: Callable[[float], bool]) -> None:
        """Carry until told to stop.

        Args:
            stopped: waits for that many seconds, and returns whether to stop; `threading.Event.wait` does.

        """
        pause, said = 0.0, ""
        while not stopped(pause):
            try:
                self.step()
            except HopaasError as error:  # of the near side: errors of the far side are handled where they happen
                if str(error) != said:
                    _log.warning("the near store: %s", error)
                pause, said = 1.0, str(error)
            except Exception:  # noqa: BLE001  # a bridge that ends cuts off a whole site
                _log.exception("an error in the bridge; it continues")
                pause = 1.0
            else:
                recent = self.clock() - self._active_at < _RECENT
                pause, said = max(_QUICK if recent else _SLOW, self.near.freshness / _LOOKS), ""
        with contextlib.suppress(StoreUnreachable):
            self._record(self.clock(), at_once=True)
        self._files.close()
        self._pool.close()

    def step(self) -> None:
        """Do everything that is due."""
        now = self.clock()
        if self._read_inbox(now):
            self._active_at = now
        self._files.step(now)
        for relay in list(self._relays.values()):
            if now >= relay.retry_at:
                self._tend(relay, now)
        if now >= self._round_at:
            self._reach(now, self._round)
        elif now >= self._send_at:
            self._reach(now, self._send_beats)
        self._record(now)

    # --- the inbox ---

    def _read_inbox(self, now: float) -> bool:
        """Accept new requests; whether there were any."""
        inherited = self._inbox.take_over()
        if inherited is not None:
            for name in inherited.logs:
                self._subscribe(name, now)
            self._heartbeats.subscribe(alive=inherited.alive, looked_at=inherited.looked_at, now=now)
        before = self._inbox.place
        for placed in self._inbox.read():
            self._accept(placed, now)
        return self._inbox.place > before

    def _accept(self, placed: messages.PlacedRequest, now: float) -> None:
        place, request = placed
        if isinstance(request, messages.CarryBeats | messages.BringBeats):
            alive, looked_at = ([request.peer], []) if isinstance(request, messages.CarryBeats) else ([], request.peers)
            self._heartbeats.subscribe(alive=alive, looked_at=looked_at, now=now)
            self._round_at = now
        elif isinstance(request, messages.FileRequest):
            self._files.accept(place, request)
        else:
            relay = self._subscribe(request.log, now)
            if relay is not None and isinstance(request, messages.Withdraw):
                relay.discard(request)
            elif relay is not None:
                if not relay.queue:
                    relay.waiting_since = now
                relay.queue.append(placed)

    def _subscribe(self, name: str, now: float) -> LogRelay | None:
        """The relay of this log, which pulls for a while from now on; None if this is not a log of the far store."""
        if name in (messages.INBOX, messages.REPLIES):
            return None  # from a hostile peer: these are not studies
        relay = self._relays.get(name)
        if relay is None:
            try:
                relay = self._relays[name] = LogRelay(name, self.near.log(name), self.far.log(name))
            except HopaasError as error:
                _log.warning("a request of a local peer: %s", error)
                return None
        relay.wanted_until = now + SUBSCRIPTION
        return relay

    # --- one log ---

    def _tend(self, relay: LogRelay, now: float) -> None:
        """Work for a log, and record how that went."""
        try:
            worked = self._work(relay, now)
        except StudyDeleted:
            relay.forget()
            self._end(relay)
        except HopaasError as error:
            self._failed(relay, error, now)
        else:
            if worked:
                self._succeeded(relay)
            elif now >= relay.wanted_until and relay is not self._catalog:
                relay.trouble = None  # no peer subscribes to it any more

    def _work(self, relay: LogRelay, now: float) -> bool:
        """Serve this log's queue, in order, and bring what is new; whether there was anything to do."""
        if self._pool.parallel and relay.queue and relay.trouble is None:
            if relay.gathering(now):
                return False
            relay.carry_together(self._pool)
        worked = bool(relay.queue)
        while relay.queue:
            self._serve(relay, relay.queue[0])
            if relay.queue:  # empty if the log has ended
                relay.queue.popleft()
        if relay.pull_at <= now < relay.wanted_until:
            worked = True
            relay.pull()
            relay.pull_at = now + (_SLOW if self.far.freshness == 0.0 else self.pace)  # 0: a look costs nothing
        return worked

    def _serve(self, relay: LogRelay, placed: messages.PlacedRequest) -> None:
        """Carry out one request. If the far store refuses it, that is the reply; other errors are raised."""
        place, request = placed
        try:
            if isinstance(request, messages.Append):
                visible = relay.carry(request)
                relay.pull_at = self.clock() + self.pace  # commits of others came along
                self.carried += 1
                if not visible:
                    self._reply(place, None)
            elif isinstance(request, messages.Subscribe):
                relay.pull()
            elif isinstance(request, messages.Snapshot):
                relay.send_snapshot()
            elif isinstance(request, messages.Destroy):
                relay.destroy()
                self._end(relay)
        except StaleWriter:
            self._reply(place, StudyDeleted())
        except (Denied, StoreCorrupt) as error:
            self._refuse(relay, placed, error)

    def _refuse(self, relay: LogRelay, placed: messages.PlacedRequest, error: Denied | StoreCorrupt) -> None:
        """Reply with the far store's error, unless it does not let this bridge in at all."""
        if isinstance(error, StoreCorrupt):
            _log.warning("%s", error)
        elif not self._logged_in():
            raise error
        self._reply(placed.place, error)
        if isinstance(error, Denied) and isinstance(placed.request, messages.Subscribe):
            relay.wanted_until = 0.0

    def _logged_in(self) -> bool:
        """Whether the far store lets this bridge in at all."""
        try:
            self._catalog.pull()
        except HopaasError:
            return False
        return True

    def _end(self, relay: LogRelay) -> None:
        """A study is gone: reply so to all requests that still wait for it."""
        while relay.queue:
            placed = relay.queue[0]
            self._reply(placed.place, None if isinstance(placed.request, messages.Destroy) else StudyDeleted())
            relay.queue.popleft()
        if relay is not self._catalog:
            self._relays.pop(relay.name, None)

    def _failed(self, contact: Contact, error: HopaasError, now: float) -> None:
        if str(error) not in self._troubles():
            _log.warning("%s", error)
        contact.failed(error, now)

    def _succeeded(self, contact: Contact) -> None:
        before = self.trouble
        contact.succeeded()
        if before and not self.trouble:
            _log.info("the other side answers again")

    def _reply(self, place: int, error: HopaasError | None) -> None:
        self._inbox.reply(messages.Reply(place, type(error).__name__ if error is not None else "", str(error or "")))

    # --- beats ---

    def _reach(self, now: float, act: Callable[[float], bool]) -> None:
        """Call a function that may use the far side and returns whether it did, unless the far side is away."""
        if now < self._beats.retry_at:
            return
        try:
            reached = act(now)
        except HopaasError as error:
            self._failed(self._beats, error, now)
        else:
            if reached:
                self._succeeded(self._beats)

    def _send_beats(self, now: float) -> bool:
        self._send_at = now + min(self.pace, max(_BEATS, self.near.freshness))
        return self._heartbeats.send()

    def _round(self, now: float) -> bool:
        """Carry beats both ways, update the catalog, and show local peers that the far side was reached."""
        self._round_at = now + self.pace
        seen = self._inbox.place
        self._catalog.pull()
        self._send_beats(now)
        self._heartbeats.bring(now)
        self.rounds += 1
        self.near.beat(Beat(messages.STATUS, f"{self._id}:{self.rounds}:{self.pace:.3g}:{seen}"))
        return True

    def _record(self, now: float, *, at_once: bool = False) -> None:
        """Record how far the inbox was carried out, and the subscriptions."""
        if now < self._record_at and not at_once:
            return
        self._record_at = now + _RECORD_EVERY
        pending = [relay.queue[0].place for relay in self._relays.values() if relay.queue]
        pending += [self._files.first] if self._files.first is not None else []
        logs = [name for name, relay in self._relays.items() if now < relay.wanted_until and name != messages.CATALOG]
        subscriptions = messages.Subscriptions(logs, list(self._heartbeats.alive), list(self._heartbeats.looked_at))
        self._inbox.record(min(pending) - 1 if pending else self._inbox.place, subscriptions)


class Inbox:
    """The requests of local peers, how far they were carried out, and the replies to them.

    How far is recorded as a snapshot of the inbox's log: all requests before its lsn were carried out, and its bytes
    are the subscriptions from then on. It is written now and then; repeating requests after a crash does no harm.
    """

    def __init__(self, near: Store) -> None:
        self._log, self._replies = near.log(messages.INBOX), near.log(messages.REPLIES)
        self._replies_at = 0
        self._begun = False
        self._recorded = 0
        self.place = 0
        """All requests up to this place were read."""

    def take_over(self) -> messages.Subscriptions | None:
        """Continue where the last bridge recorded that it was, and return its subscriptions. Does so once."""
        if self._begun:
            return None
        found = self._log.newest_snapshot()
        subscriptions = messages.unseal(found[1], messages.Subscriptions) if found is not None else None
        if found is not None and subscriptions is not None:
            self.place = self._recorded = found[0]
        self._begun = True
        return subscriptions

    def read(self) -> Iterator[messages.PlacedRequest]:
        """The requests that have come since the last call; after an error the next call reads on."""
        if self._log.changed(self.place) is not False:
            for entry in read_all(self._log, self.place):
                self.place = entry.lsn
                request = messages.unseal_request(entry.payload)
                if request is not None:
                    yield messages.PlacedRequest(entry.lsn, request)

    def record(self, done: int, subscriptions: messages.Subscriptions) -> None:
        """Record that all requests up to this place were carried out."""
        if done > self._recorded:
            self._log.put_snapshot(done, messages.seal(subscriptions))
            self._recorded = done

    def reply(self, reply: messages.Reply) -> None:
        """Tell the sender of a request its outcome."""
        entries = append(self._replies, Outgoing(f"{reply.place}:{reply.kind}", messages.seal(reply)), self._replies_at)
        self._replies_at = entries[-1].lsn


class HeartbeatRelay:
    """Carries beats of near peers to the far store, and brings those that are needed near.

    Times are seconds on the bridge's clock.
    """

    def __init__(self, near: Store, far: Store) -> None:
        self.near, self.far = near, far
        self.alive: dict[str, float] = {}
        """Peers that beat at the near side, and the end of each subscription."""
        self.looked_at: dict[str, float] = {}
        """Peers whose beats are needed at the near side, and the end of each subscription."""
        self._forwarded: dict[str, str] = {}
        self._shown: dict[str, str] = {}

    def subscribe(self, *, alive: list[str], looked_at: list[str], now: float) -> None:
        """Carry these for a while; of too many, the last."""
        for subscriptions, peers in ((self.alive, alive), (self.looked_at, looked_at)):
            subscriptions.update(dict.fromkeys(peers, now + SUBSCRIPTION))
            for peer in list(subscriptions)[: -messages.MOST_PEERS]:
                del subscriptions[peer]

    def bring(self, now: float) -> None:
        """Copy the far beats that are needed to the near side."""
        for subscriptions in (self.alive, self.looked_at):
            for peer in [peer for peer, until in subscriptions.items() if until < now]:
                del subscriptions[peer]
        for peer, value in self.far.beats(list(self.looked_at)).items():
            self._show(peer, value)

    def send(self) -> bool:
        """Carry changed near beats to the far side; whether there were any."""
        sent = False
        for peer, value in self.near.beats(list(self.alive)).items():
            if self._forwarded.get(peer) != value:
                self.far.beat(Beat(peer, value))
                sent = True
                self._forwarded[peer] = value
                self._show(peer, value)
        return sent

    def _show(self, peer: str, value: str) -> None:
        """Let local peers see a beat that the far side has."""
        if self._shown.get(peer) != value:
            self.near.beat(Beat(peer + messages.FAR_SUFFIX, value))
            self._shown[peer] = value
