"""Rungs to which things happen one at a time, where the log tells the product where each configuration stands."""

from __future__ import annotations

from hopaas_p2p.core.rungs import Ladder


class EventLadder(Ladder):
    """A ladder that follows its configurations itself."""

    def report(self, number: int, epochs: int, value: float) -> None:
        """A configuration was worth this after so many epochs."""
        before = self.standing(number)
        more = sum(level <= epochs for level in self.policy.levels) - len(before.reached)
        if more > 0:
            self.place(number, before._replace(reached=before.reached + (value,) * more))

    def pause(self, number: int) -> None:
        """It waits at the highest rung that it has reached."""
        self.place(number, self.standing(number)._replace(waits=True))

    def promote(self, number: int) -> None:
        """It goes on from where it waits."""
        before = self.standing(number)
        self.place(number, before._replace(promoted=len(before.reached), waits=False))

    def end(self, number: int, value: float | None = None) -> None:
        """It is complete and was worth this, or has failed for good."""
        before = self.standing(number)
        end = None if before.promoted else value
        self.place(number, before._replace(waits=False, over=True, end=end))
