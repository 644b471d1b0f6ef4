"""Checkpoints of a running trial: kept beside the logs, for the peer that runs its parameters next.

A checkpoint is a file in the store's artifacts and one record that names it, its step and its sum. The last two are
kept, so that one torn or lost file costs one step back and no more.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import secrets
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hopaas_p2p.core.admission import NEW
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import Checkpoint
from hopaas_p2p.core.rungs import Rungs
from hopaas_p2p.core.state import COMPLETE, NEVER_PAUSING, RUNNING, WAITING, State
from hopaas_p2p.errors import HopaasError, InvalidInput, StoreCorrupt, waits_for
from hopaas_p2p.files.artifacts import artifacts_of, removed_if_refused, within
from hopaas_p2p.runtime.arguments import shown
from hopaas_p2p.runtime.atomic import sha256_of
from hopaas_p2p.runtime.checkpoint_cache import checkpoint_cache
from hopaas_p2p.translate import checked_step

if TYPE_CHECKING:
    from hopaas_p2p.core.records import Budget
    from hopaas_p2p.storage.handle import StudyHandle
    from hopaas_p2p.stores.base import Artifacts

_log: Final = logging.getLogger("hopaas_p2p")
_SHARE: Final = 0.05  # of a processor, which counting what checkpoints take may cost
_LOCAL: Final = "a file of this process"
_CHEAP: Final = 0.005  # seconds that a count takes which may be repeated at any time


def save(
    handle: StudyHandle, number: int, source: str | Path | bytes, step: int, *, within: float | None = None
) -> Checkpoint:
    """Store a checkpoint and tell the log. Blocks until both are durable.

    Raises:
        StoreUnreachable: the store did not answer `within` so many seconds, or `store_wait`.
        InvalidInput: no such file, or a negative step.
        LeaseLost: another peer runs the trial now; the file was removed again.
    """
    try:
        step = checked_step(operator.index(step))
    except TypeError:
        raise InvalidInput(f"a checkpoint's step must be a whole number, got {shown(step)}") from None
    if step < 0:
        raise InvalidInput(f"a checkpoint's step must be 0 or more, got {step}")
    artifacts = artifacts_of(handle.peer.store)
    key = f"{handle.uuid}/checkpoint/{number}-{step}-{secrets.token_hex(4)}"

    def store() -> Checkpoint:
        with waits_for(_LOCAL), tempfile.TemporaryDirectory(prefix="hopaas-") as directory:
            path = _as_file(source, Path(directory))
            checkpoint = Checkpoint(step, key, path.stat().st_size, sha256_of(path))
            artifacts.put(key, path)
            cache = checkpoint_cache()
            if cache is not None:
                cache.keep(checkpoint.sha256, path)
        return checkpoint

    checkpoint = handle.peer.call(store, within=within)
    with removed_if_refused(artifacts, key):
        dropped = handle.checkpoint(number, checkpoint, within=within)
    with contextlib.suppress(HopaasError):  # nobody misses them, and perhaps this user may not remove files
        for old in _removable(handle, number, dropped):
            artifacts.delete(old)
    return checkpoint


def _removable(handle: StudyHandle, number: int, dropped: tuple[Checkpoint, ...]) -> list[str]:
    """Which of the checkpoints that this trial no longer names no other trial needs.

    In a population another member may yet copy one. It is looked at again with the next checkpoint of this process.
    """
    with handle.lock:
        state, uuid = handle.state, handle.uuid
        keys = [one.key for one in dropped if _is_of(uuid, one)]
        if state.configurations.population is None:
            return keys
        trial = state.trials[number]
        own = [one for one in trial.checkpoints if one.key.startswith(f"{uuid}/checkpoint/{number}-")]
        if len(own) == 1 and copied_trial(trial) is not None and trial.continues is not None:
            keys += [one.key for one in state.trials[trial.continues].checkpoints if _is_of(uuid, one)]  # its member's
        handle.dropped_checkpoints.update(keys)
        if not handle.dropped_checkpoints:
            return []
        needed, _ = _by_need(state)
        gone = [key for key in handle.dropped_checkpoints if key not in needed]
        handle.dropped_checkpoints.difference_update(gone)
        return gone


def _as_file(source: str | Path | bytes, directory: Path) -> Path:
    if isinstance(source, bytes):
        path = directory / "checkpoint"
        path.write_bytes(source)
        return path
    try:
        path = Path(source)
    except TypeError:
        raise InvalidInput(f"a checkpoint is a file or bytes, got {shown(source)}") from None
    if not path.is_file():
        raise InvalidInput(f"there is no file {path} to store as a checkpoint; pack a directory into one file first")
    return path


def load(
    artifacts: Artifacts, uuid: str, checkpoints: tuple[Checkpoint, ...], directory: Path
) -> tuple[int, Path] | None:
    """(step, local file) of the newest checkpoint of the study of this uuid that is whole, or None.

    Blocks while it is fetched.
    """
    cache = checkpoint_cache() if checkpoints else None
    for checkpoint in reversed(checkpoints):
        if not _is_of(uuid, checkpoint):
            _log.warning(
                "the checkpoint of step %d does not belong to this study; trying the previous one", checkpoint.step
            )
            continue
        path = directory / f"checkpoint-{checkpoint.step}"
        if cache is not None and cache.fetch(checkpoint.sha256, path):
            if _is_whole(path, checkpoint):
                return checkpoint.step, path
            cache.drop(checkpoint.sha256)
        try:
            with waits_for(_LOCAL), contextlib.suppress(StoreCorrupt):
                artifacts.get(checkpoint.key, path, within(checkpoint.size))
        except KeyError:
            _log.warning("the checkpoint of step %d is gone; trying the previous one", checkpoint.step)
            continue
        if _is_whole(path, checkpoint):
            if cache is not None:
                cache.keep(checkpoint.sha256, path)
            return checkpoint.step, path
        _log.warning("the checkpoint of step %d is damaged; trying the previous one", checkpoint.step)
        path.unlink()
    return None


def unneeded(state: State) -> dict[str, int]:
    """The checkpoints of a study with rungs or a population that no trial will resume from, and their sizes.

    Those of running, waiting and complete trials are needed, and of paused ones that may yet be promoted, or copied,
    within the present budget. If the budget is raised later, a continuation that finds none starts from the beginning.
    """
    if state.configurations is NEVER_PAUSING:
        return {}
    needed, others = _by_need(state)
    return {key: size for key, size in others.items() if key not in needed}


def _by_need(state: State) -> tuple[dict[str, int], dict[str, int]]:
    """Checkpoints that a trial may resume from, and those of trials that nobody resumes; one may be in both."""
    configurations = state.configurations
    needed: dict[str, int] = {}
    others: dict[str, int] = {}
    for trial in state.trials:
        keys = {one.key: one.size for one in trial.checkpoints}
        if not keys:
            continue
        alive = trial.state in (RUNNING, WAITING, COMPLETE)
        if alive or configurations.may_be_continued(trial.number, most=state.budget):
            needed |= keys
        else:
            others |= keys
    return needed, others


def collect(handle: StudyHandle) -> int:
    """Remove the checkpoints that nobody needs any more; returns how many there were. Blocks for a request each."""
    return len(_collected(handle))


def _collected(handle: StudyHandle, but: Collection[str] = ()) -> list[str]:
    """The study's own checkpoints that nobody needs any more, which are removed but for these."""
    with handle.lock:
        keys = [key for key in unneeded(handle.state) if key.startswith(_folder(handle.uuid)) and key not in but]
    if keys:
        artifacts = artifacts_of(handle.peer.store)
        for key in keys:
            artifacts.delete(key)
    return keys


class CheckpointBound:
    """Whether the checkpoints of a study leave room for a new configuration, by the `checkpoint_mb` of its rungs.

    What runs or waits goes on. Each peer counts by itself, so those that begin at the same moment may exceed the bound.
    Any thread may ask.
    """

    def __init__(self) -> None:
        self._collected: set[str] = set()
        """Checkpoints that this process has removed."""
        self._reason: str | None = None
        self._policy: Rungs | None = None
        """By which this reason was found."""
        self._count_at = -math.inf
        self._showed: Budget | None = None
        """Limits for which this peer made a commit when one was reached: the log notices at a commit only."""

    def reason(self, handle: StudyHandle, *, within: float) -> str | None:
        """Why no new configuration may begin now; None if one may, or the log gives out something else.

        Removes checkpoints that nobody needs before it says so.
        May block for an exchange, and for a request per checkpoint that it removes.
        """
        policy = handle.state.configurations.policy
        if not isinstance(policy, Rungs) or not policy.checkpoint_mb:
            return None
        if policy != self._policy or time.monotonic() >= self._count_at:
            began = time.thread_time()
            self._reason, self._policy = self._counted(handle, policy.checkpoint_mb, within), policy
            cost = time.thread_time() - began
            self._count_at = -math.inf if cost < _CHEAP else time.monotonic() + cost / _SHARE
        return self._reason

    def _counted(self, handle: StudyHandle, most: int, within: float) -> str | None:
        if self._total(handle) < most * 1e6:
            return None
        due = handle.limits_due()
        if due is not None and due != self._showed:
            self._showed = due
            handle.peer.show_clock(handle.log)
        handle.look_again(within)
        if handle.next_start() is not NEW:
            return None
        with contextlib.suppress(HopaasError):  # perhaps this user may not remove files
            self._collected.update(_collected(handle, but=self._collected))
        total = self._total(handle)
        if total < most * 1e6:
            return None
        return (
            f"the checkpoints take {total / 1e6:,.0f} MB, and new configurations begin below {most:,} MB only. "
            "To raise checkpoint_mb: hopaas-p2p study set NAME --fidelity 'rungs(…)'"
        )

    def _total(self, handle: StudyHandle) -> int:
        with handle.lock:
            needed, others = _by_need(handle.state)
        left = {key: size for key, size in others.items() if key not in self._collected} | needed
        own = _folder(handle.uuid)
        return sum(max(size, 0) for key, size in left.items() if key.startswith(own))  # a record may say anything


def _is_of(uuid: str, checkpoint: Checkpoint) -> bool:
    """Whether its file is a checkpoint of this study: a record may name any file of the store."""
    return checkpoint.key.startswith(_folder(uuid))


def _folder(uuid: str) -> str:
    return f"{uuid}/checkpoint/"


def _is_whole(path: Path, checkpoint: Checkpoint) -> bool:
    return path.stat().st_size == checkpoint.size and sha256_of(path) == checkpoint.sha256
