"""What the trials of this process use: its time and its energy, divided among those that run at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import msgspec

from hopaas_p2p.core.records import Used

_AGAIN: Final = 0.5
"""Seconds for which a reading is reused: NVML takes a millisecond per GPU."""
_DRIFT: Final = 1.0
"""Seconds, and percent, by which an externally set clock may be off before the owner reports its own measurement."""


class _Running(msgspec.Struct, eq=False):
    began: float
    ahead: float
    """Seconds by which the clock for commits' times was ahead of the other one."""
    seconds: float
    joules: float
    """What a lease had used that ran since the meter was made; all of these as the lease began."""
    shared: bool = False


class Meter:
    """Divides this process's time and energy among the trials that it runs. Methods may be called from any thread.

    Args:
        clock: monotonic seconds.
        now_us: the clock for commits' times.
        energy: returns the joules of this process's devices; None if they cannot be read.

    """

    def __init__(
        self, *, clock: Callable[[], float], now_us: Callable[[], int], energy: Callable[[], float] | None
    ) -> None:
        self._clock, self._now_us, self._energy = clock, now_us, energy
        self._lock = threading.Lock()
        self._running: dict[object, _Running] = {}
        self._at = clock()
        self._read, self._read_at = 0.0 if energy is None else energy(), self._at
        self._seconds = self._joules = 0.0
        """What a lease would have used that ran since this was made."""

    def begin(self, lease: object) -> None:
        """This lease began."""
        with self._lock:
            if self._running or self._energy is not None:
                now = self._divide(fresh=True)
            else:  # there is nobody to charge the time until now
                now = self._at = self._clock()
            self._running[lease] = _Running(now, self._now_us() / 1e6 - now, self._seconds, self._joules)
            if len(self._running) > 1:
                for one in self._running.values():
                    one.shared = True

    def used(self, lease: object, *, at_end: bool = False) -> Used | None:
        """What the lease has used; None if readers of the log can compute it: one trial at a time, no energy.

        `at_end` ends the lease, and reads the devices even if they were read a moment ago.
        """
        with self._lock:
            one = self._running.get(lease)
            if one is None:
                return None
            alone = self._energy is None and not one.shared  # as nearly always
            now = self._clock() if alone else self._divide(fresh=at_end)
            if at_end:
                del self._running[lease]
            seconds = now - one.began if alone else self._seconds - one.seconds
            drift = abs(self._now_us() / 1e6 - now - one.ahead)
            if alone and drift <= _DRIFT + _DRIFT / 100 * seconds:
                return None
            joules = None if self._energy is None else round((self._joules - one.joules) * 1e3)
            return Used(round(seconds * 1e6), joules)

    def _divide(self, *, fresh: bool) -> float:
        """Divide what was used since the last call equally among the leases; return the time."""
        now, leases = self._clock(), len(self._running) or 1
        self._seconds += (now - self._at) / leases
        self._at = now
        if self._energy is not None and (fresh or now - self._read_at >= _AGAIN):
            before, self._read, self._read_at = self._read, self._energy(), now
            self._joules += max(0.0, self._read - before) / leases
        return now
