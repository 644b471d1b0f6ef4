"""A study at one lsn, as all sessions share it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

from dashboard_app.views.columns import Columns, columns
from hopaas_p2p import notes
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.state import State

T = TypeVar("T")


class Frame:
    """One study after commits 1..lsn. Shared by all sessions: nobody changes what it gives.

    `state` is the replica's own and goes on while a frame is looked at; counts and columns are those of `lsn`.
    """

    def __init__(self, listing: Listing, state: State, before: Frame | None = None) -> None:
        self.listing = listing
        self.state = state
        self.lsn = state.lsn
        self.counts = tuple(state.counts)
        self.columns: Columns = columns(state, before.columns if before is not None else None)
        self._made: dict[Hashable, Any] = {}
        self._making = threading.RLock()  # one view may build on another

    @property
    def uuid(self) -> str:
        return self.listing.uuid

    @property
    def name(self) -> str:
        """The study's name, as people wrote it: escape it."""
        return self.listing.name

    @property
    def study_id(self) -> int:
        return self.listing.study_id

    def trial_id(self, number: int) -> int:
        """Optuna's id of a trial."""
        return (self.study_id << 32) + number

    def once(self, function: Callable[[Frame], T], *key: Hashable) -> T:
        """`function(self)`, computed once for all sessions. `key` tells calls apart that close over something else."""
        name = (function, *key) if not key else (function.__module__, function.__qualname__, *key)
        with self._making:
            if name not in self._made:
                self._made[name] = function(self)
            found: T = self._made[name]
            return found

    @cached_property
    def system(self) -> dict[str, Any]:
        """The study's system attributes, read."""
        return _read(self.state.system)

    @cached_property
    def user(self) -> dict[str, Any]:
        """The study's user attributes, read."""
        return _read(self.state.user)

    @property
    def note(self) -> str:
        return notes.read_note(self.system, None)

    @property
    def tags(self) -> list[str]:
        return notes.read_tags(self.system)


def _read(attributes: dict[str, str]) -> dict[str, Any]:
    found = {}
    for key, text in list(attributes.items()):
        try:
            found[key] = json.loads(text)
        except ValueError:  # another program's, or garbage: shown as it is
            found[key] = text
    return found
