"""When garbage is collected: Streamlit would do it after every run of a session, at more cost than the run."""

from __future__ import annotations

import gc
import threading
from typing import Final

_FREEZE_AFTER: Final = 2000  # trials read since; the objects of 10,000 cost each collection 0.15 s
_COLLECT: Final = 60.0  # seconds between collections of garbage, which Streamlit would make after every run


class Collector:
    """Takes the trials that were read out of the garbage collector's sight, and collects now and then.

    A collection looks at each report of each trial. Trials hold no cycles; they go when nobody refers to them.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._due = 0.0
        self._lock = threading.Lock()

    def read(self, trials: int) -> None:
        """So many trials were read."""
        with self._lock:
            self._seen += trials

    def collect(self, now: float) -> None:
        """Collect, if it is due."""
        with self._lock:
            if now < self._due:
                return
            self._due = now + _COLLECT
            many = self._seen >= _FREEZE_AFTER
            self._seen = 0 if many else self._seen
        gc.collect()
        if many:
            gc.freeze()


collector: Final = Collector()
"""This process's."""
