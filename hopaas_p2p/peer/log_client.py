"""Performs the I/O that a session asks for.

The rule of this file: the lock guards the session and is held for moments; the turn is held for the length of an
exchange, and nothing is read from or written to a store under the lock. Records that queue up during a slow exchange
leave with the next one.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic

from msgspec.structs import replace

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, PeerJoin, Record, TrialClaim, TrialCreate, TrialFinish, TrialState
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import BrokenChain, Denied, NoSuchStudy, NoSuchTrial, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.jobs import Job
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.session import CATALOG, STUDY, LogSession, ReplicatedMachine, S
from hopaas_p2p.peer.vouching import judge_doubtful
from hopaas_p2p.stores.base import (
    Beat,
    ExchangeResult,
    Log,
    Outgoing,
)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within this block, any error of the operating system means that the store did not answer.

    Too many open files, a full quota, a stale NFS handle: a store may encounter these in any call, and all of them pass
    or can be fixed. Unsent records stay queued.
    """
    try:
        yield
    except OSError as error:
        raise _unreachable(error) from error


def _unreachable(error: OSError) -> StoreUnreachable:
    return StoreUnreachable(f"The store cannot be used now: {error}. Waiting records are sent at the next contact.")


class LogClient(Generic[S]):
    """One log as a peer uses it: the session, the log itself, and the two locks.

    Attributes:
        session: replaced as a whole, by the peer, when this process becomes another writer.
        about: what this peer's introduction states in this study only.
        lock: held around calls of the session, and to read more than one field of its state. Never around I/O.
        turn: held for the length of an exchange.
        exchanging_since: when the exchange that the store has not answered yet began; infinite if there is none.
        waiting: the `peer.peer.Caller`s that wait for the next exchanges. Changed under the lock.
        look_again_at: the time before which there is nothing to do unless a caller waits, or the job is woken for
            something else.
        job: makes exchanges, for callers and when one is due; see `peer.jobs`. Set by the peer.

    """

    job: Job[Any]

    def __init__(self, log: Log, session: LogSession[S], clock: Callable[[], float] = time.monotonic) -> None:
        self.log = log
        self.session = session
        self.lock = threading.RLock()
        self.turn = threading.Lock()
        self.waiting: list[Any] = []
        self.look_again_at = -math.inf
        self.exchanging_since = math.inf
        self.about: dict[str, str] = {}
        self.rate_limited = log if log.rate_limited else None
        """The log, if its commits are costly."""
        self._clock = clock

    @property
    def state(self) -> S:
        """The state, as far as the log has been read."""
        return self.session.state

    def put(self, owner: str, *records: Record) -> PendingCommit:
        """Queue records on behalf of `owner`; they leave together, with the next exchange."""
        with self.lock:
            return self.session.put(owner, *records)

    def exchange(self, beat: Beat | None = None) -> None:
        """Send what is queued and apply what is new: one round trip.

        Blocks for that long, or until another thread's exchange is over.

        Raises:
            StoreUnreachable: the outcome is not known; queued records stay queued.
            Denied: this user may not write here, or not even read.

        """
        with self.turn:
            self.exchange_in_turn(self._clock(), beat)

    def exchange_in_turn(self, began: float, beat: Beat | None = None) -> None:
        """Like `exchange`, for a caller that holds the turn; begins now."""
        session, lock, limited = self.session, self.lock, self.rate_limited
        if session.deleted:
            raise StudyDeleted
        try:
            if not session.joined or session.duplicated or session.broken is not None or limited is not None:
                just_read = not session.joined and beat is None
                _check_chain(session)
                if not session.joined:
                    self._join(began)
                if limited is not None and session.has_pending and not session.duplicated:
                    more = True
                    while more:  # before the commit is made: what others queue meanwhile is included
                        receipt = limited.wait_turn(session.state.lsn)
                        with lock:
                            more = session.advance(receipt, began)
                    session.suggested_interval = limited.flush_interval
                if session.duplicated or (just_read and not session.has_pending):
                    return
            with lock:
                commit = session.next_commit()
            try:
                receipt = self.log.exchange(commit, session.state.lsn, beat)
            except Denied as error:
                self._pull(began)  # a viewer continues reading; raises if this user may not even read
                with lock:
                    session.failed(error, began)
                raise
            with lock:
                more = session.advance(receipt, began)
            if more:
                self._pull(began)
        except (StoreUnreachable, OSError) as error:
            away = error if isinstance(error, StoreUnreachable) else _unreachable(error)
            with lock:
                session.failed(away, began)
            if away is error:
                raise
            raise away from error
        except BrokenChain as error:  # from the store
            session.broken = error
            raise

    def _pull(self, began: float) -> None:
        more = True
        while more:
            receipt = self.log.exchange(None, self.session.state.lsn)
            with self.lock:
                more = self.session.advance(receipt, began)

    def _join(self, began: float) -> None:
        """Start from the newest readable snapshot, or else from nothing, and read on to the end of the log."""
        session, short = self.session, self.session.machine.short
        first = self.log.exchange(None, 0) if short else ExchangeResult([], more=True)
        state = None if short and not (first.more and self.rate_limited is not None) else self._newest_readable()
        with self.lock:
            session.start_from(session.machine.empty() if state is None else state)
            more = session.advance(first, began)
        if more:
            self._pull(began)  # before anything is written: the log may have a newer format
        if not session.duplicated:
            with self.lock:
                session.complete_join()
            _check_chain(session)

    def _newest_readable(self) -> S | None:
        """Skips damaged snapshots; older ones matter where `gc` removed the commits that they replace."""
        found = self.log.newest_snapshot()
        while found is not None:
            lsn, data = found
            with contextlib.suppress(CorruptSnapshot):
                state = self.session.machine.load(data)
                if state.lsn == lsn:
                    return state
            found = self.log.newest_snapshot(before=lsn)
        return None

    def changed(self) -> bool | None:
        """Whether the log has new commits, if that can be determined without a round trip; else None."""
        try:
            return self.log.changed(self.session.state.lsn)
        except OSError as error:
            raise _unreachable(error) from error

    def send_for_another(self, commits: list[Outgoing]) -> None:
        """Append commits that another process of this user could not send; the log counts each commit once.

        Raises:
            NoSuchStudy: the store has no such study, for instance because another store took its place under the same
                URL.
            NoSuchTrial: its log lacks the trial that they end, for instance after an older backup was restored.

        """
        with self.turn, translated():
            began = self._clock()
            if self.session.joined:
                self._pull(began)
            else:
                self._join(began)
            if isinstance(self.state, State):
                _check_trials(self.state, commits)
            for commit in commits:
                appended = False
                while not appended:
                    state = self.session.state
                    commit = replace(commit, chain=state.sum)  # noqa: PLW2901
                    receipt = self.log.exchange(commit, state.lsn)
                    with self.lock:
                        self.session.advance(receipt, began)
                    appended = not receipt.more or any(entry.payload == commit.payload for entry in receipt.entries)
                if receipt.more:
                    self._pull(began)

    def write_snapshot(self) -> None:
        """Store a snapshot of the current state for joiners, and vouch for another author's snapshot."""
        with self.lock:
            found = self.session.dump()
        if found is not None:
            with translated():
                if isinstance(self.state, State):
                    judge_doubtful(self.log, *found)
                self.log.put_snapshot(*found)

    def confirm(self) -> None:
        """Check that the log still has what it acknowledged to this process. Raises like `Log.confirm`."""
        with self.turn, translated():
            self.log.confirm()

    def destroy(self) -> None:
        """End the log for everybody. From now on this process exchanges nothing with it, whether that succeeds or not.

        Raises:
            StoreUnreachable: the log may continue elsewhere.
            Denied: this user may not end it.

        """
        self.session.deleted = True
        with self.turn, translated():
            self.log.destroy()

    def withdraw(self) -> None:
        """Withdraw the start of a trial that is still on its way: this process ends, and no other would run it."""
        with self.lock:
            in_flight = self.session.in_flight[:1]
        for sent in in_flight:
            starts = [
                record.state is TrialState.RUNNING
                if isinstance(record, TrialCreate)
                else isinstance(record, TrialClaim | PeerJoin)
                for record in sent.commit.records
            ]
            if all(starts):
                with contextlib.suppress(StoreUnreachable), translated():
                    self.log.withdraw(sent.outgoing)


def _check_trials(state: State, commits: list[Outgoing]) -> None:
    """Check that this is the study, and that its log has the trials that these commits end, as their owner knows."""
    if state.define is None:
        raise NoSuchStudy("this store does not have the study that it belongs to; perhaps another one was here before")
    for outgoing in commits:
        commit = codec.decode(outgoing.payload)
        last = state.writers.get(commit.writer) if isinstance(commit, Commit) else None
        if not isinstance(commit, Commit) or (last is not None and commit.seq <= last.seq):
            continue  # it is in the log
        for number in [record.number for record in commit.records if isinstance(record, TrialFinish)]:
            trial = state.trials[number] if number < len(state.trials) else None
            owners = () if trial is None else (trial.owner, *[lease.owner for lease in trial.history])
            if commit.owner not in owners and (trial is None or trial.owner is not None):
                raise NoSuchTrial(
                    f"the log of this store does not have trial #{number} as its peer knew it. Was an older backup "
                    "restored? The result is kept; it can be sent to a store with the later commits, with: "
                    "hopaas-p2p admin spool send --store STORE"
                )


def _check_chain(session: LogSession[Any]) -> None:
    if session.broken is not None:
        raise BrokenChain(str(session.broken))


def _client(machine: ReplicatedMachine[S], log: Log, *, writer: str, now_us: Callable[[], int]) -> LogClient[S]:
    return LogClient(log, LogSession(machine, writer, now_us=now_us))


study_client: Final = functools.partial(_client, STUDY)
"""A client of a study's log, independent of any peer's."""
catalog_client: Final = functools.partial(_client, CATALOG)
"""A client of the list of studies."""
