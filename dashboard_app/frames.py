"""A study at one lsn, shared by all sessions."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Final, TypeVar

from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.state import State

T = TypeVar("T")
_MOST: Final = 100  # results kept per frame, because each filter that a person sets adds some


class Frame:
    """One study after commits 1..lsn. All sessions share a frame, so nothing that it returns may be changed.

    `state` is the replica's own, and can be newer than `lsn`; `columns` does not change.
    """

    def __init__(self, listing: Listing, state: State, before: Frame | None = None) -> None:
        self.uuid, self.study_id = listing.uuid, listing.study_id
        self.name = listing.name
        """The study's name as its creator wrote it. It must be escaped before it is shown."""
        self.state = state
        self.lsn = state.lsn
        self.columns: TrialTable = TrialTable.of(state, before.columns if before is not None else None)
        self._made: dict[Hashable, Any] = {}
        self._making = threading.RLock()  # a view can call another view

    def once(self, function: Callable[[Frame], T], *key: Hashable) -> T:
        """`function(self)`, computed once for all sessions. `key` distinguishes closures of the same function."""
        name = (function, *key) if not key else (function.__module__, function.__qualname__, *key)
        with self._making:
            if name not in self._made:
                for oldest in list(self._made)[:-_MOST]:
                    del self._made[oldest]
                self._made[name] = function(self)
            found: T = self._made[name]
            return found

    @cached_property
    def system(self) -> dict[str, Any]:
        """The study's system attributes, decoded."""
        found: dict[str, Any] = dict(self.state.system)
        for key, text in found.items():
            with contextlib.suppress(ValueError):  # text that is not JSON is shown as it is
                found[key] = json.loads(text)
        return found
