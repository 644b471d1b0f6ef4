"""The end of trials: told, durable, spooled if the store is away; or given back."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Final

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hopaas_p2p.core import records
from hopaas_p2p.core.records import TrialCheckpoint, TrialClaim, TrialFinish, TrialRelease
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import Denied, InvalidInput, LeaseLost, NoWork, StoreUnreachable
from hopaas_p2p.frozen import Live
from hopaas_p2p.peer.outbox import Ticket
from hopaas_p2p.storage.part import Part
from hopaas_p2p.storage.running import Running

_log: Final = logging.getLogger("hopaas_p2p")


class Ending(Running):
    """The side of the storage that ends trials."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        part, number = self._locate(trial_id)
        told = None if values is None else tuple([float(value) for value in values])
        if state == TrialState.RUNNING:
            return self._claim(part, number)
        if state == TrialState.WAITING:
            return self.release(trial_id)
        if state == TrialState.COMPLETE and (told is None or any(map(math.isnan, told))):
            raise InvalidInput(f"a COMPLETE trial needs values that are numbers, got {values}")
        self.finish(trial_id, state, told, self._mode.reason)
        return True

    def _claim(self, part: Part, number: int) -> bool:
        with part.lock:
            trial = part.replica.state.trials[number]
            if trial.end is not None:
                raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
            if trial.state is records.TrialState.RUNNING:
                return False
        try:
            self._start(part, TrialClaim(number))
        except NoWork as none:
            if none.refusal == "finished":
                raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.") from None
            if none.refusal == "not waiting":
                return False
            raise
        return True

    def finish(
        self, trial_id: int, state: TrialState, values: tuple[float, ...] | None, reason: str | None = None
    ) -> None:
        """End a trial of this process, or a WAITING one: durable when this returns, unless `telling(defer=True)`.

        Raises:
            LeaseLost: somebody took the trial over; a complete result was kept as a trial of its own. (Only a
                warning in the log when Optuna itself tells, so that its `optimize` goes on.)
            Denied: the store lets this user in no more; the end is kept on disk.
        """
        part, number = self._locate(trial_id)
        to = records.TrialState(state.value)
        with part.lock:
            live = self._writable(part, number)
            if live is None:
                epoch = part.replica.state.trials[number].epoch
                ticket = self.courier.put(part.membership, TrialFinish(number, epoch, to, values, reason))
            else:
                why = reason or self._why_stopped(part, number, live, to)
                ticket = self._put_finish(part, number, live, to, values, why)
                live.frozen.state = state
                live.frozen._values = live.frozen._values if values is None else list(values)
        if self._mode.defer:
            part.deferred.append((number, ticket))
            return
        try:
            self.courier.settle(part.membership, ticket)
        except (StoreUnreachable, Denied) as error:
            self._spool(part, number, error)
            return
        self._check_finish(part, number, ticket)

    @staticmethod
    def _why_stopped(part: Part, number: int, live: Live, to: records.TrialState) -> str | None:
        """What the owner was asked to stop for, if this is the answer: a request goes with its lease."""
        trial = part.replica.state.trials[number]
        asked = to is not records.TrialState.COMPLETE and (trial.owner, trial.epoch) == live.lease
        return trial.stop if asked else None

    def _spool(self, part: Part, number: int, error: StoreUnreachable | Denied) -> None:
        """Keep the end of a trial on disk; raise if it cannot even go there, or if the store lets us in no more."""
        path = self.courier.keep_on_disk(part.membership)
        if path is None:
            raise error
        kept = f"It is kept in {path} and sent at the next contact, or with: hopaas-p2p spool send"
        if isinstance(error, Denied):
            raise Denied(f"trial {number}: {error} {kept}")
        _log.warning("trial %d: %s %s", number, error, kept)

    def _put_finish(
        self,
        part: Part,
        number: int,
        live: Live,
        to: records.TrialState,
        values: tuple[float, ...] | None,
        reason: str | None,
    ) -> Ticket:
        """Queue the end of a trial, with all that still has to be said about it, in one commit."""
        owner, epoch = live.lease
        trial = part.replica.state.trials[number]
        if (trial.owner, trial.epoch) != live.lease:
            self._retell(part, number, live)  # what was sent since the lease was lost was refused
        return self._put_last(part, TrialFinish(number, epoch, to, values, reason), owner=owner)

    def _put_last(self, part: Part, record: TrialFinish | TrialRelease | TrialCheckpoint, *, owner: str) -> Ticket:
        """Queue this behind all that still has to be said about its trial: in the same commit, if that is not a lot."""
        draft = part.replica.drafts.get(record.number)
        words = draft.records() if draft is not None else []
        for much in words[:-1]:
            self.courier.put(part.membership, much, owner=owner)
        ticket = self.courier.put(part.membership, *words[-1:], record, owner=owner)
        part.replica.drafts.pop(record.number, None)
        return ticket

    def _check_finish(self, part: Part, number: int, ticket: Ticket) -> None:
        assert ticket.verdicts is not None
        verdict = ticket.verdicts[-1]
        with part.lock:
            part.view.live.pop(number, None)
            part.replica.state.changed.add(number)
        if not verdict.accepted:
            try:
                self._refused(number, verdict)
            except LeaseLost as lost:
                if self._mode.strict:
                    raise
                _log.warning("%s", lost)

    def release(self, trial_id: int, *, reason: str | None = None) -> bool:
        """Give a running trial of this process back: WAITING again, with the same parameters."""
        part, number = self._locate(trial_id)
        with part.lock:
            live = self._writable(part, number)
            if live is None:
                return False
            release = TrialRelease(number, live.lease.epoch, reason=reason)
            ticket = self._put_last(part, release, owner=live.lease.owner)
            part.view.live.pop(number, None)
            part.replica.state.changed.add(number)
        return self.courier.settle(part.membership, ticket)[-1].accepted

    @contextlib.contextmanager
    def telling(self, *, defer: bool = False, strict: bool = False, reason: str | None = None) -> Iterator[None]:
        """How trials end in this block, on this thread.

        Args:
            defer: queue the end; it leaves with the next exchange, and `settle_deferred` tells its fate.
            strict: raise when the lease is lost, where Optuna's own `optimize` only gets a warning in the log.
            reason: why they end so.
        """
        self._mode.defer, self._mode.strict, self._mode.reason = defer, strict, reason
        try:
            yield
        finally:
            self._mode.__dict__.clear()

    def settle_deferred(self, study_id: int) -> list[tuple[int, Verdict]]:
        """Wait until every deferred end is durable; the trials and verdicts of those that were refused."""
        part = self.part(study_id)
        refused = []
        with part.lock:
            deferred, part.deferred = part.deferred, []
        for number, ticket in deferred:
            try:
                verdict = self.courier.settle(part.membership, ticket)[-1]
            except (StoreUnreachable, Denied) as error:
                self._spool(part, number, error)
                continue
            with part.lock:
                part.view.live.pop(number, None)
                part.replica.state.changed.add(number)
            if not verdict.accepted:
                refused.append((number, verdict))
        return refused
