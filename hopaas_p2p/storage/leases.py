"""What an owner asks of its lease: is it held, shall the trial end, where may it be resumed."""

from __future__ import annotations

from hopaas_p2p.core import records
from hopaas_p2p.core.records import TrialCheckpoint
from hopaas_p2p.errors import NotYourTrial
from hopaas_p2p.storage.ending import Ending
from hopaas_p2p.storage.part import Part


class Leases(Ending):
    """The side of the storage that is about the leases of this process."""

    def lease_held(self, trial_id: int) -> bool:
        """Whether the log, as far as it was read, says that this process runs the trial."""
        part, number = self._locate(trial_id)
        with part.lock:
            return self._held(part, number)

    def _held(self, part: Part, number: int) -> bool:
        trial = part.replica.state.trials[number]
        live = part.view.live.get(number)
        if live is None:
            return trial.end is None and self.courier.is_mine(trial.owner)
        return (trial.owner, trial.epoch) == live.lease

    def standing(self, trial_id: int) -> tuple[str | None, bool]:
        """(why somebody asked this trial to end, or None; whether its lease is held). Reads the replica."""
        part, number = self._locate(trial_id)
        self._refresh(part)
        with part.lock:
            return part.replica.state.trials[number].stop, self._held(part, number)

    def was_lent(self, trial_id: int) -> bool:
        """Whether another process that acts for this one was heard to write to its trial. Reads the replica."""
        part, number = self._locate(trial_id)
        with part.lock:
            if number in part.replica.state.changed:
                part.view.catch_up(part.replica.state)
            live = part.view.live.get(number)
            return live is not None and live.lent

    def lease_valid(self, trial_id: int) -> bool:
        """Whether this process may still trust that nobody takes the trial over."""
        part, number = self._locate(trial_id)
        owner = part.replica.state.trials[number].owner
        return owner is not None and self.lease_held(trial_id) and self.courier.lease_valid(part.membership, owner)

    def acknowledge_stop(self, trial_id: int) -> None:
        """Let the others see that the request to stop has arrived; leaves with the next exchange."""
        part, number = self._locate(trial_id)
        with part.lock:
            live = part.view.live.get(number)
            if live is not None and not part.replica.state.trials[number].stopping:
                self._draft(part, number, live).stopping = True

    def stop_requested(self, trial_id: int) -> str | None:
        """Why somebody asked this trial to end, if somebody did. Reads the replica."""
        return self.standing(trial_id)[0]

    def check_writable(self, trial_id: int) -> None:
        """Raises NotYourTrial or UpdateFinishedTrialError if this process may not end the trial."""
        part, number = self._locate(trial_id)
        with part.lock:
            self._writable(part, number)

    def attempt(self, trial_id: int) -> int:
        """Which try of its parameters this trial is, from 1."""
        part, number = self._locate(trial_id)
        return part.replica.state.trials[number].attempt

    def checkpoint_key(self, trial_id: int, step: int, token: str) -> str:
        """Where the artifact of a new checkpoint goes."""
        part, number = self._locate(trial_id)
        return f"{part.membership.uuid}/checkpoint/{number}-{step}-{token}"

    def checkpoints(self, trial_id: int) -> tuple[records.Checkpoint, ...]:
        """Where the trial may be resumed, the newest last."""
        part, number = self._locate(trial_id)
        return part.replica.state.trials[number].checkpoints

    def tell_checkpoint(self, trial_id: int, checkpoint: records.Checkpoint) -> tuple[records.Checkpoint, ...]:
        """Say that a checkpoint is stored; returns those that it replaces. Raises LeaseLost."""
        part, number = self._locate(trial_id)
        with part.lock:
            live = self._writable(part, number)
            if live is None:
                raise NotYourTrial(f"trial {number} is not running")
            before = part.replica.state.trials[number].checkpoints
            owner, epoch = live.lease
            ticket = self._put_last(part, TrialCheckpoint(number, epoch, checkpoint), owner=owner)
        verdict = self.courier.settle(part.membership, ticket)[-1]
        if not verdict.accepted:
            self._refused(number, verdict)
        kept = {one.key for one in part.replica.state.trials[number].checkpoints}
        return tuple([one for one in before if one.key not in kept])
