"""The interface of a study that notes, reports, trackers and notebook views need.

A Study shows and exports itself through these, so they must not import its class, which is built on top of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # commands that only show a study need not wait for Optuna
    from optuna.distributions import BaseDistribution

    from hopaas_p2p.core.state import State
    from hopaas_p2p.files.artifacts import StudyArtifacts
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.storage.handle import StudyHandle


class StudyLike(Protocol):
    """A Study from `open_study`, whose methods document these members."""

    storage: Storage
    study_id: int
    name: str

    @property
    def handle(self) -> StudyHandle: ...
    @property
    def state(self) -> State: ...
    @property
    def space(self) -> dict[str, BaseDistribution]: ...
    def is_over(self) -> bool: ...
    def artifacts(self) -> StudyArtifacts: ...


@contextlib.contextmanager
def looking_at(study: StudyLike) -> Iterator[State]:
    """The study's current State, locked. Keep the block short, because writers of this process wait."""
    state = study.state
    with study.handle.lock:
        yield state
