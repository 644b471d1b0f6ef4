"""The box at the near side of a bridge: what was asked, how far that was dealt with, and the answers.

The note of how far is a snapshot of the box: everything before its lsn was carried out, and its bytes say what is to be
kept up from then on. It is written now and then; what is done again after a crash does no harm.
"""

from __future__ import annotations

from hopaas_p2p.stores.base import Outgoing, Store
from hopaas_p2p.stores.bridge.frames import ANSWERS, BOX, Answer, Interest, Placed, opened, request_in, seal
from hopaas_p2p.stores.directory.log import DirectoryLog


class Box:
    """One bridge's view of the box."""

    def __init__(self, near: Store) -> None:
        self._box, self._answers = near.log(BOX), near.log(ANSWERS)
        self._answers_at = 0
        self._begun = False
        self._noted = 0
        self.place = 0
        """All requests up to this place were read."""

    def take_over(self) -> Interest | None:
        """Go on where the last bridge noted it was; what it was asked to keep up. Does so once."""
        if self._begun:
            return None
        found = self._box.newest_snapshot()
        interest = opened(found[1], Interest) if found is not None else None
        if found is not None and interest is not None:
            self.place = self._noted = found[0]
        self._begun = True
        return interest

    def look_anew(self) -> None:
        """Before the next look: a network file system shows for seconds what it saw of a file that is kept open."""
        if isinstance(self._box, DirectoryLog):
            self._box.close()

    def read(self) -> list[Placed]:
        """The requests that have come since."""
        found: list[Placed] = []
        more = self._box.changed(self.place) is not False
        while more:
            receipt = self._box.exchange(None, self.place)
            for entry in receipt.entries:
                self.place = entry.lsn
                request = request_in(entry)
                if request is not None:
                    found.append(Placed(entry.lsn, request))
            more = receipt.more
        return found

    def note(self, done: int, interest: Interest) -> None:
        """All up to this place was carried out."""
        if done > self._noted:
            self._box.put_snapshot(done, seal(interest))
            self._noted = done

    def answer(self, answer: Answer) -> None:
        """Tell who asked."""
        outgoing = Outgoing(f"{answer.place}:{answer.kind}", seal(answer))
        more = True
        while more:
            receipt = self._answers.exchange(outgoing, self._answers_at)
            if receipt.entries:
                self._answers_at = receipt.entries[-1].lsn
            more = receipt.more
