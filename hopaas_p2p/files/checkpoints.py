"""Checkpoints of a running trial, kept beside the logs for the next peer that runs the trial's parameters.

A checkpoint is a file in the store's artifacts and one record with its name, step and checksum. The last two are kept,
so that a peer can resume from the earlier one if the last file is torn or lost.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import Checkpoint
from hopaas_p2p.core.state import COMPLETE, NEVER_PAUSING, RUNNING, WAITING, State
from hopaas_p2p.errors import Denied, HopaasError, StoreCorrupt, waits_for
from hopaas_p2p.files.artifacts import artifacts_of, existing_file, removed_if_refused, within
from hopaas_p2p.runtime.arguments import whole
from hopaas_p2p.runtime.atomic import sha256_of
from hopaas_p2p.runtime.logs import LOG

if TYPE_CHECKING:
    from hopaas_p2p.storage.handle import StudyHandle
    from hopaas_p2p.stores.base import Artifacts

_LOCAL: Final = "a file of this process"


def save(
    handle: StudyHandle, number: int, source: str | Path | bytes, step: int, *, within: float | None = None
) -> Checkpoint:
    """Store a checkpoint and record it in the log. Blocks until both are durable.

    Raises:
        StoreUnreachable: the store did not answer in `within` seconds, by default `store_wait`.
        InvalidInput: the file does not exist, or the step is negative.
        ConfigurationError: the store cannot keep the file; the message says what to do.
        Denied: this user may not write to the study.
        LeaseLost: another peer runs the trial now; the file was removed again.

    """
    step = whole("a checkpoint's step", int(step) if isinstance(step, bool) else step, least=0)
    artifacts = artifacts_of(handle.peer.store)
    key = f"{handle.uuid}/checkpoint/{number}-{step}-{secrets.token_hex(4)}"

    def store() -> Checkpoint:
        with waits_for(_LOCAL), tempfile.TemporaryDirectory(prefix="hopaas-") as directory:
            if isinstance(source, bytes):
                path = Path(directory, "checkpoint")
                path.write_bytes(source)
            else:
                path = existing_file(source, "a checkpoint is a file or bytes", " to store as a checkpoint")
            checkpoint = Checkpoint(step, key, path.stat().st_size, sha256_of(path))
            artifacts.put(key, path)
        return checkpoint

    checkpoint = handle.peer.call(store, within=within)
    with removed_if_refused(artifacts, key):
        dropped = handle.checkpoint(number, checkpoint, within=within)
    with contextlib.suppress(HopaasError):  # they are not needed, and this user may lack the right to remove files
        for old in _removable(handle, number, dropped):
            artifacts.delete(old)
    return checkpoint


def _removable(handle: StudyHandle, number: int, dropped: tuple[Checkpoint, ...]) -> list[str]:
    """The keys of checkpoints that this trial no longer names and no other trial needs.

    In a population, another member may still copy a checkpoint. Its key is kept, and checked again when this process
    saves another checkpoint.
    """
    with handle.lock:
        state, uuid = handle.state, handle.uuid
        own_keys = _folder(uuid)  # a record may name any file of the store
        keys = [one.key for one in dropped if one.key.startswith(own_keys)]
        if state.configurations.population is None:
            return keys
        trial = state.trials[number]
        own = [one for one in trial.checkpoints if one.key.startswith(f"{uuid}/checkpoint/{number}-")]
        if len(own) == 1 and copied_trial(trial) is not None and trial.continues is not None:
            before = state.trials[trial.continues].checkpoints  # of the same member
            keys += [one.key for one in before if one.key.startswith(own_keys)]
        waiting = handle.dropped_checkpoints
        waiting.update(keys)
        needed = _by_need(state)[0] if waiting else {}
        gone = [key for key in waiting if key not in needed]
        waiting.difference_update(gone)
        return gone


def load(
    artifacts: Artifacts, uuid: str, checkpoints: tuple[Checkpoint, ...], directory: Path
) -> tuple[int, Path] | None:
    """(step, local file) of the newest intact checkpoint, in the study with this uuid, or None.

    Blocks while the file is fetched. Raises StoreUnreachable if the store does not answer.
    """
    for checkpoint in reversed(checkpoints):
        path, why = directory / f"checkpoint-{checkpoint.step}", "damaged"
        try:
            if not checkpoint.key.startswith(_folder(uuid)):  # a record may name any file of the store
                raise KeyError(checkpoint.key)
            with waits_for(_LOCAL), contextlib.suppress(StoreCorrupt):
                artifacts.get(checkpoint.key, path, within(path, checkpoint.size))
            if path.stat().st_size == checkpoint.size and sha256_of(path) == checkpoint.sha256:
                return checkpoint.step, path
        except KeyError:
            why = "gone, or does not belong to this study"
        LOG.warning("the checkpoint of step %d is %s; trying the previous one", checkpoint.step, why)
        path.unlink(missing_ok=True)
    return None


def unneeded(state: State) -> dict[str, int]:
    """The checkpoints, in a study with rungs or a population, from which no trial will resume, and their sizes.

    Checkpoints of running, waiting and complete trials are needed, and those of paused trials that may still be
    promoted or copied within the current budget. If the budget is raised later, a continuation without a checkpoint
    starts from the beginning.
    """
    if state.configurations is NEVER_PAUSING:
        return {}
    needed, others = _by_need(state)
    return {key: size for key, size in others.items() if key not in needed}


def _by_need(state: State) -> tuple[dict[str, int], dict[str, int]]:
    """Checkpoints from which a trial may resume, and those of trials that will not resume; a file may be in both."""
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


def collect(handle: StudyHandle) -> None:
    """Remove the checkpoints that are no longer needed. Blocks for one request per checkpoint.

    If this user may not remove one of them, the others are removed nevertheless.
    """
    with handle.lock:
        keys = [key for key in unneeded(handle.state) if key.startswith(_folder(handle.uuid))]
    if keys:
        artifacts = artifacts_of(handle.peer.store)
        for key in keys:
            with contextlib.suppress(Denied):
                artifacts.delete(key)


def _folder(uuid: str) -> str:
    return f"{uuid}/checkpoint/"
