"""A store whose studies live elsewhere, as peers see it that reach only this side of a bridge.

Nothing is decided here. What a peer wants appended goes into a box, which is a log of the near store; a bridge carries
it to the far store, where its lsn is given, and copies the far log back, entry by entry (`mirror`). A peer's
exchange ends when its commit appears in the mirror, so that it was acknowledged by the far store and by this one.

Reads are answered from the mirror. Beats must arrive at the far side to count, since that is where others look; and
nobody is taken for silent here while the bridge itself is: without a bridge, or when its link is down, `beat` and
`beats` say `StoreUnreachable`, and leases are in doubt as if every peer's own link were down.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hopaas_p2p import settings
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import Artifacts, Beat, Log, Outgoing, Store
from hopaas_p2p.stores.bridge.frames import (
    ANSWERS,
    BOX,
    CATALOG,
    FAR,
    NAME,
    STATUS,
    Alive,
    Answer,
    Look,
    Request,
    nonce,
    opened,
    seal,
)
from hopaas_p2p.stores.bridge.store_files import BridgedArtifacts
from hopaas_p2p.stores.bridge.store_log import RENEWAL, BridgedLog
from hopaas_p2p.stores.directory.store import DirectoryStore

PATIENCE: Final = 5.0
"""Seconds for which a call waits for the bridge."""
_ROUNDS: Final = 3  # of the bridge, for which a look waits at most
_LONGEST_PACE: Final = 20.0  # seconds that are believed
_PAUSES: Final = (0.002, 0.02)  # seconds between looks into the mirror: at first, and at most
_SHARE: Final = 0.1  # of the wait so far that the next pause may add to it
_PEER: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{NAME}}}")
_BEAT: Final = 64  # characters of a beat that every store keeps
_ERRORS: Final[dict[str, type[HopaasError]]] = {error.__name__: error for error in (Denied, StudyDeleted)}


class BridgedStore:
    """The near side of a bridge.

    Args:
        near: where box and mirrors are.
        patience: seconds for which a call waits for the bridge.
        clock, sleep: monotonic seconds, and how to let them pass; a test passes its own.

    """

    beats_ride = False
    snapshots = True

    def __init__(
        self,
        near: Store,
        *,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.near = near
        self.clock = clock
        self._sleep = sleep
        self.url = near.url
        self.freshness = near.freshness
        self.patience = patience
        self._files: Store | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._box, self._answers = self.near.log(BOX), self.near.log(ANSWERS)
        self._box_at: int | None = None
        self._answers_at = 0
        self._answered: dict[int, Answer] = {}
        self._alive_since: dict[str, float] = {}
        self._looked_since: dict[str, float] = {}
        self._round: str | None = None

    @property
    def leads_to(self) -> str:
        """The far store, as far as it is known on this side."""
        to = self.near.bridged_to if isinstance(self.near, DirectoryStore) else None
        return to or "the other side"

    def near_log(self, name: str) -> Log:
        """The near log that mirrors the far one of this name."""
        return self.near.catalog() if name == CATALOG else self.near.log(name)

    def catalog(self) -> BridgedLog:
        return BridgedLog(self, CATALOG)

    def log(self, uuid: str) -> BridgedLog:
        if uuid in (BOX, ANSWERS) or not uuid:
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return BridgedLog(self, uuid)

    # --- the box ---

    def post(self, request: Request) -> int:
        """Put a request into the box; its place there. Durable when this returns."""
        payload = seal(request)
        outgoing = Outgoing(nonce(), payload)
        with self._lock:
            if self._box_at is None:
                found = self._box.newest_snapshot()  # what a bridge has dealt with
                self._box_at = found[0] if found is not None else 0
            while True:
                receipt = self._box.exchange(outgoing, self._box_at)
                place = next((entry.lsn for entry in receipt.entries if entry.payload == payload), None)
                if receipt.entries:
                    self._box_at = receipt.entries[-1].lsn
                if place is not None:
                    return place

    def waiting(self) -> int:
        """How many requests lie in the box of which no bridge has noted that they were carried out."""
        with self._lock:
            found = self._box.newest_snapshot()
            return len(self._box.exchange(None, found[0] if found is not None else 0).entries)

    def wait(self, place: int, done: Callable[[], bool], *, patience: float | None = None) -> None:
        """Return when `done` says so, or when the request at this place was carried out.

        Raises:
            StoreUnreachable: neither within `patience`.
            HopaasError: what the far store answered.

        """
        patience = self.patience if patience is None else patience
        began = self.clock()
        while not done():
            answer = self.answer_to(place)
            if answer is not None:
                self.judge(answer)
                return
            waited = self.clock() - began
            if waited >= patience:
                raise StoreUnreachable(
                    f"the bridge of {self.url} has not carried this over within {patience:.0f} s. Is it running, "
                    "and does it reach the other side? Nothing is lost: what was told lies in the box, and goes then."
                )
            pause = min(max(_PAUSES[0], _SHARE * waited), _PAUSES[1])
            self._sleep(pause * random.uniform(0.7, 1.3))

    @staticmethod
    def judge(answer: Answer) -> None:
        """Raise what the far store said against a request."""
        if answer.kind:
            raise _ERRORS.get(answer.kind, ConfigurationError)(answer.message)

    def answer_to(self, place: int) -> Answer | None:
        """What the bridge wrote about the request at this place, if it did."""
        with self._lock:
            more = self._answers.changed(self._answers_at) is not False
            while more:
                receipt = self._answers.exchange(None, self._answers_at)
                for entry in receipt.entries:
                    self._answers_at = entry.lsn
                    answer = opened(entry.payload, Answer)
                    if answer is not None:
                        self._answered[answer.place] = answer
                more = receipt.more
            return self._answered.get(place)

    # --- beats ---

    def beat(self, beat: Beat) -> None:
        if not _PEER.fullmatch(beat.peer):
            return  # a name that is no peer's never beats
        self.near.beat(beat)
        now = self.clock()
        if now - self._alive_since.get(beat.peer, -1e9) > RENEWAL:
            self.post(Alive(beat.peer, nonce()))
            self._alive_since[beat.peer] = now
        echo, value = beat.peer + FAR, beat.value[:_BEAT]
        try:
            self.wait(0, lambda: self.near.beats([echo]).get(echo, "")[:_BEAT] == value)
        except StoreUnreachable:
            self._alive_since.pop(beat.peer, None)
            raise

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        names = [peer for peer in peers if _PEER.fullmatch(peer)]
        if not names:
            return {}
        self.wait_for_round(self.patience, names)
        found = self.near.beats([name + FAR for name in names])
        return {name: found[name + FAR] for name in names if name + FAR in found}

    def wait_for_round(self, patience: float, names: Sequence[str] = ()) -> None:
        """Return when the bridge has reached the far side since the last time, and fetched the beats of these.

        Raises:
            StoreUnreachable: not within `patience` seconds.

        """
        if self._round is None:
            self._round = self._status()
        place = self._look_at(names)
        patience = max(patience, _ROUNDS * self._pace())
        self.wait(0, lambda: self._new_round(place), patience=patience)

    def _look_at(self, names: Sequence[str]) -> int:
        """Have the bridge bring the beats of these; the place of the request, if one was needed."""
        now = self.clock()
        new = [name for name in names if now - self._looked_since.get(name, -1e9) > RENEWAL]
        if not new:
            return 0
        place = self.post(Look(new, nonce()))
        self._looked_since.update(dict.fromkeys(new, now))
        return place

    def _new_round(self, place: int) -> bool:
        """Whether the bridge has fetched beats since this was last true, those asked for at `place` among them."""
        said = self._status()
        seen = said.rpartition(":")[2]
        if said == self._round or not seen.isdigit() or int(seen) < place:
            return False
        self._round = said
        return True

    def _pace(self) -> float:
        """Seconds between the rounds of the bridge, as it told."""
        parts = (self._round or "").split(":")
        try:
            return min(float(parts[2]), _LONGEST_PACE)
        except (ValueError, IndexError):
            return 0.0

    def _status(self) -> str:
        return self.near.beats([STATUS]).get(STATUS, "")

    # --- the rest ---

    def artifacts(self) -> Artifacts:
        url = settings.artifacts_url()
        if url is None:
            return BridgedArtifacts(self)
        if self._files is None:
            from hopaas_p2p.stores.url import open_store

            self._files = open_store(url)
        return self._files.artifacts()

    def after_fork(self) -> None:
        self.near.after_fork()
        if self._files is not None:
            self._files.after_fork()
        self._start_afresh()

    def close(self) -> None:
        self.near.close()
        if self._files is not None:
            self._files.close()
