"""One log as this process takes part in it: its replica, and what the courier remembers about it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Generic

from hopaas_p2p.peer.replica import Replica, S

_NEVER: Final = -1e9
"""A time on any monotonic clock that is long past."""


class Membership(Generic[S]):
    """See the module. All times are seconds on the courier's monotonic clock."""

    def __init__(self, study_id: int, uuid: str, replica: Replica[S]) -> None:
        self.study_id = study_id
        self.uuid = uuid
        self.replica = replica
        self.introduced = False
        """Whether this peer has told who it is; a mere reader never does, and neither beats nor reclaims."""
        self.pulled_at = _NEVER
        """When the last successful exchange began."""
        self.read_at = _NEVER
        """When somebody last wanted to read."""
        self.drafted_at: float | None = None
        """When the oldest draft that has not left was begun."""
        self.noted_at = _NEVER
        """When something was last drafted."""
        self.spooled: list[Path] = []
        """Files that hold what this process itself still tries to send."""
        self.left_alone_until = _NEVER
        """Until when the background thread does nothing for it: it cannot be read."""
        self.deleted = False
