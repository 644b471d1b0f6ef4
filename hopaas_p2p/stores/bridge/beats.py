"""Carries signs of life over a bridge: of peers that beat here to the far side, and back what is looked at here."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.stores.base import Beat, Store
from hopaas_p2p.stores.bridge.frames import FAR, NAME

WANTED: Final = 3600.0
"""Seconds for which an interest lasts; those who have one renew it every 300."""


class Beats:
    """What was last seen and shown of each peer. Times are seconds on the bridge's monotonic clock."""

    def __init__(self, near: Store, far: Store) -> None:
        self.near, self.far = near, far
        self.alive: dict[str, float] = {}
        """Peers that beat at the near side, and until when that is believed."""
        self.looked_at: dict[str, float] = {}
        """Peers whose beats are wanted at the near side, and until when."""
        self._forwarded: dict[str, str] = {}
        self._shown: dict[str, str] = {}

    def want(self, *, alive: list[str], looked_at: list[str], now: float) -> None:
        """Carry these for a while."""
        self.alive.update({peer: now + WANTED for peer in alive if len(peer) <= NAME})
        self.looked_at.update({peer: now + WANTED for peer in looked_at if len(peer) <= NAME})

    def bring(self, now: float) -> None:
        """Show here what the far side has of those that are looked at."""
        for interests in (self.alive, self.looked_at):
            for peer in [peer for peer, until in interests.items() if until < now]:
                del interests[peer]
        for peer, value in self.far.beats(list(self.looked_at)).items():
            self._show(peer, value)

    def send(self) -> bool:
        """Carry to the far side what has changed here; whether that was anything."""
        reached = False
        for peer, value in self.near.beats(list(self.alive)).items():
            if self._forwarded.get(peer) != value:
                self.far.beat(Beat(peer, value))
                reached = True
                self._forwarded[peer] = value
                self._show(peer, value)
        return reached

    def _show(self, peer: str, value: str) -> None:
        """Let local peers see a beat as the far side has it."""
        if self._shown.get(peer) != value:
            self.near.beat(Beat(peer + FAR, value))
            self._shown[peer] = value
