"""Carries a study between a store that local peers reach and the one where it lives: `hopaas-p2p bridge NEAR FAR`.

One loop: read the box, serve each log's requests in order, bring what is new, carry beats both ways. Every step may be
repeated, so nothing is lost when the bridge dies at any moment, when it is started twice, or when the link is down for
hours: a request stays in the box until the far store has decided about it.

What the far store refuses for want of a grant is answered. What it refuses because the bridge itself cannot log in, or
is set up wrongly, is trouble of the bridge's: it says so, and tries again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final

from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import Beat, Store
from hopaas_p2p.stores.bridge.beats import WANTED, Beats
from hopaas_p2p.stores.bridge.box import Box
from hopaas_p2p.stores.bridge.crew import Crew
from hopaas_p2p.stores.bridge.files import Files
from hopaas_p2p.stores.bridge.frames import (
    ANSWERS,
    BOX,
    CATALOG,
    STATUS,
    Alive,
    Answer,
    Append,
    Destroy,
    File,
    Interest,
    Look,
    Placed,
    Request,
    Snapshot,
    Watch,
    Withdraw,
)
from hopaas_p2p.stores.bridge.lane import Lane, NotThere

_log: Final = logging.getLogger("hopaas_p2p")
_PAUSES: Final = (0.1, 10.0)  # seconds between tries when the far side does not answer
_SAVE_EVERY: Final = 1.0  # seconds between notes of how far the box was dealt with
_BEATS: Final = 0.5  # seconds between looks for beats of local peers, who wait for them to be carried
_QUICK: Final = 0.004  # seconds between looks into a box that was in use a moment ago
_SLOW: Final = 0.05
_RECENT: Final = 5.0


class Bridge:
    """A bridge between two open stores, which it alone uses.

    Args:
        near: the store that local peers reach.
        far: the store where the studies live.
        crew: further handles on the far store, for sending several commits at once over a long link.
        pace: seconds between rounds of beats, and between looks for what others did; by default the far `freshness`,
            and half a second at least.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        near: Store,
        far: Store,
        *,
        crew: Sequence[Store] = (),
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
        self._box = Box(near)
        self._save_at = 0.0
        self._active_at = 0.0
        self._round_at = 0.0
        self._send_at = 0.0
        self._look_at = 0.0
        self._lanes: dict[str, Lane] = {}
        self._beats = Beats(near, far)
        self._crew = Crew(crew)
        self._files = Files(near, far)
        self._lanes[CATALOG] = Lane(CATALOG, near.catalog(), far.catalog())

    @property
    def trouble(self) -> str | None:
        """What keeps the far side from being reached, while that is so."""
        return next((lane.trouble for lane in self._lanes.values() if lane.trouble), None)

    def run(self, stopped: Callable[[float], bool]) -> None:
        """Carry until told to stop.

        Args:
            stopped: waits for so many seconds, and says whether to stop; `threading.Event.wait` does.

        """
        pause = 0.0
        while not stopped(pause):
            try:
                self.step()
            except HopaasError as error:  # the near side's: the far side's is dealt with where it happens
                _log.warning("the near store: %s", error)
                pause = 1.0
                continue
            except Exception:  # noqa: BLE001  # a bridge that ends cuts a whole site off
                _log.exception("the bridge stumbled and goes on")
                pause = 1.0
                continue
            recent = self.clock() - self._active_at < _RECENT
            pause = _QUICK if recent else _SLOW
        with contextlib.suppress(StoreUnreachable):
            self._save(self.clock(), at_once=True)
        self._files.close()
        self._crew.close()

    def step(self) -> None:
        """Do all that is due."""
        now = self.clock()
        if self._read_box(now):
            self._active_at = now
        answer = self._files.step(now)
        if answer is not None:
            self._box.answer(answer)
        for lane in list(self._lanes.values()):
            if now >= lane.retry_at:
                self._tend(lane, now)
        if now >= self._round_at:
            self._reach(now, self._round)
        elif now >= self._send_at:
            self._reach(now, self._send_beats)
        self._save(now)

    # --- the box ---

    def _read_box(self, now: float) -> bool:
        """Take in what was asked; whether there was anything."""
        interest = self._box.take_over()
        if interest is not None:
            for name in interest.logs:
                self._want(name, now)
            self._beats.want(alive=interest.alive, looked_at=interest.looked_at, now=now)
        if now >= self._look_at:
            self._box.look_anew()
            self._look_at = now + _SLOW
        requests = self._box.read()
        for placed in requests:
            self._accept(placed, now)
        return bool(requests)

    def _accept(self, placed: Placed, now: float) -> None:
        place, request = placed
        if isinstance(request, Alive | Look):
            alive, looked_at = ([request.peer], []) if isinstance(request, Alive) else ([], request.peers)
            self._beats.want(alive=alive, looked_at=looked_at, now=now)
            self._round_at = now
        elif isinstance(request, File):
            self._files.accept(place, request)
        else:
            lane = self._want(request.log, now)
            if lane is not None and isinstance(request, Withdraw):
                lane.pass_over(request)
            elif lane is not None:
                if not lane.queue:
                    lane.waiting_since = now
                lane.queue.append(placed)

    def _want(self, name: str, now: float) -> Lane | None:
        lane = self._lanes.get(name)
        if name in (BOX, ANSWERS):
            return None  # from a hostile peer: these are no studies
        if lane is None:
            try:
                near, far = (store.catalog() if name == CATALOG else store.log(name) for store in (self.near, self.far))
            except HopaasError as error:
                _log.warning("a request of a local peer: %s", error)
                return None
            lane = self._lanes[name] = Lane(name, near, far)
        lane.wanted_until = now + WANTED
        return lane

    # --- one log ---

    def _tend(self, lane: Lane, now: float) -> None:
        """Work for a log, and take note of how that went."""
        try:
            asked = self._work(lane, now)
        except StudyDeleted:
            lane.forget()
            self._end(lane)
        except HopaasError as error:
            self._stumbled(lane, error, now)
        else:
            if asked:
                self._well(lane)
            elif now >= lane.wanted_until and lane.name != CATALOG:
                lane.trouble = None  # nobody wants to know any more

    def _work(self, lane: Lane, now: float) -> bool:
        """Serve what waits for this log, in order, and bring what is new; whether there was anything to do."""
        if self._crew.large and lane.queue and not lane.pause:
            if lane.gathering(now):
                return False
            lane.carry_together(self._crew)
        asked = bool(lane.queue)
        while lane.queue:
            self._serve(lane, lane.queue[0])
            if lane.queue:  # else the log has ended
                lane.queue.popleft()
        if lane.pull_at <= now < lane.wanted_until:
            asked = True
            lane.pull()
            lane.pull_at = now + (_SLOW if self.far.freshness == 0.0 else self.pace)  # where a look costs nothing
        return asked

    def _serve(self, lane: Lane, placed: Placed) -> None:
        """One request. What it is refused for is answered; trouble of other kinds is raised."""
        place, request = placed
        try:
            if self._do(lane, request):
                self._answer(place, None)
        except NotThere:
            self._answer(place, StudyDeleted())
        except Denied as error:
            if not self._logged_in():
                raise
            self._answer(place, error)
            if isinstance(request, Watch):
                lane.wanted_until = 0.0
            return
        if isinstance(request, Destroy):
            self._end(lane)

    def _do(self, lane: Lane, request: Request) -> bool:
        """Carry out a request; whether its sender has to be told that it was."""
        if isinstance(request, Append):
            shown = lane.carry(request)
            lane.pull_at = self.clock() + self.pace  # what others said came along
            self.carried += 1
            return not shown
        if isinstance(request, Watch):
            lane.pull()
        elif isinstance(request, Snapshot):
            lane.send_snapshot(request)
        elif isinstance(request, Destroy):
            lane.destroy(request)
        return False

    def _logged_in(self) -> bool:
        """Whether the far store lets this bridge in at all."""
        try:
            self._lanes[CATALOG].pull()
        except HopaasError:
            return False
        return True

    def _end(self, lane: Lane) -> None:
        """A study is gone: whoever still asks for it is told."""
        while lane.queue:
            placed = lane.queue.popleft()
            self._answer(placed.place, None if isinstance(placed.request, Destroy) else StudyDeleted())
        self._lanes.pop(lane.name, None)

    def _stumbled(self, lane: Lane, error: HopaasError, now: float) -> None:
        """The far side does not answer, or not as it should: again later, whatever it is."""
        lane.pause = min(max(2 * lane.pause, _PAUSES[0]), _PAUSES[1])
        lane.retry_at = now + lane.pause
        if self.trouble != str(error):
            _log.warning("%s", error)
        lane.trouble = str(error)

    def _well(self, lane: Lane) -> None:
        """The far side answers."""
        before = self.trouble
        lane.pause, lane.trouble = 0.0, None
        if before and not self.trouble:
            _log.info("the other side answers again")

    def _answer(self, place: int, error: HopaasError | None) -> None:
        self._box.answer(Answer(place, type(error).__name__ if error is not None else "", str(error or "")))

    # --- beats ---

    def _reach(self, now: float, act: Callable[[float], bool]) -> None:
        """Do something that may take the far side, and says whether it did, unless that is known to be away."""
        catalog = self._lanes[CATALOG]
        if now < catalog.retry_at:
            return
        try:
            reached = act(now)
        except HopaasError as error:
            self._stumbled(catalog, error, now)
        else:
            if reached:
                self._well(catalog)

    def _send_beats(self, now: float) -> bool:
        self._send_at = now + min(self.pace, max(_BEATS, self.near.freshness))
        return self._beats.send()

    def _round(self, now: float) -> bool:
        """Carry beats both ways, see which studies there are, and say that the far side was reached."""
        self._round_at = now + self.pace
        seen = self._box.place
        self._lanes[CATALOG].pull()
        self._send_beats(now)
        self._beats.bring(now)
        self.rounds += 1
        self.near.beat(Beat(STATUS, f"{self._id}:{self.rounds}:{self.pace:.3g}:{seen}"))
        return True

    def _save(self, now: float, *, at_once: bool = False) -> None:
        """Note how far the box was dealt with, and what is wanted."""
        if now < self._save_at and not at_once:
            return
        self._save_at = now + _SAVE_EVERY
        pending = [lane.queue[0].place for lane in self._lanes.values() if lane.queue]
        pending += [self._files.first] if self._files.first is not None else []
        wanted = [name for name, lane in self._lanes.items() if now < lane.wanted_until and name != CATALOG]
        interest = Interest(wanted, list(self._beats.alive), list(self._beats.looked_at))
        self._box.note(min(pending) - 1 if pending else self._box.place, interest)
