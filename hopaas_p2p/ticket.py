"""A trial that is carried from command to command: `ask` starts it, and what it prints is all that `tell` needs.

A ticket names the store (without secrets), the study, the trial, and the lease: owner and epoch. It is sealed with a
secret of its user's: one from somebody else would send a token to a store of theirs, and is refused.

Between two commands no process is there to beat, so `ask` is a peer of its own that asked for a long silence to be
granted to it (`peer_ttl`); each later command is a sign of life. What they write are records in the owner's name; if
somebody took the trial over, the epoch has passed, and the log refuses them. The end of a trial that finds the store
closed is kept in the spool, so a ticket names its study by uuid, too.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from hopaas_p2p import credentials
from hopaas_p2p.core.leases import beat_value
from hopaas_p2p.core.records import TrialFinish, TrialRelease, TrialSet, TrialState
from hopaas_p2p.core.rungs import AT_RUNG
from hopaas_p2p.core.validity import reason_text
from hopaas_p2p.errors import (
    ConfigurationError,
    Denied,
    InvalidInput,
    LeaseLost,
    NoSuchStudy,
    NoSuchTrial,
    NotYourTrial,
    StoreUnreachable,
)
from hopaas_p2p.metrics import checked, refuse
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.url import redacted, servers_of

if TYPE_CHECKING:
    import optuna

    from hopaas_p2p.core.records import StudyRecord
    from hopaas_p2p.core.state import Trial, Verdict
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

_PREFIX: Final = "hp1-"


class Ticket(NamedTuple):
    """A lease, written down. `str()` gives the text to carry, `Ticket.parse` reads it."""

    store: str
    study: str
    number: int
    owner: str
    epoch: int
    uuid: str
    """The study's: names may be used again."""
    seal: str = ""
    """Shows that this user made it; see `credentials.seal`."""

    def __str__(self) -> str:
        body = msgspec.msgpack.encode(tuple(self) if self.seal else tuple(self)[:-1])
        return _PREFIX + base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """The ticket in this text.

        Raises:
            InvalidInput: it is none, or was cut.

        """
        try:
            if not text.startswith(_PREFIX):
                raise ValueError
            code = text[len(_PREFIX) :]
            data = base64.b64decode(code + "=" * (-len(code) % 4), altchars="-_", validate=True)
            if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
                raise ValueError
            ticket = msgspec.msgpack.decode(data[4:], type=cls)
            if ticket.number < 0:
                raise ValueError
            return ticket
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            shown = text if len(text) <= 24 else f"{text[:24]}…"
            raise InvalidInput(
                f"{shown!r} is not a ticket, or only a part of one; use everything that `ask` printed"
            ) from None


def ticket_of(study: Study, trial_number: int) -> Ticket:
    """The ticket of a trial that this process runs. Its reports and attributes are in the store when this returns."""
    study.storage.peer.handovers += 1
    handle = study.storage.handle(study.study_id)
    with handle.lock:
        if not handle.held(trial_number):
            raise NotYourTrial(f"trial {trial_number} is not run by this process")
    handle.settle(trial_number)
    trial = handle.state.trials[trial_number]
    assert trial.owner is not None
    store = study.storage.url
    return Ticket(store, study.name, trial_number, trial.owner, trial.epoch, handle.uuid, credentials.seal(store))


class TicketTrial:
    """The trial of a ticket, in one command. Get one from `carry`. Every call waits for the store.

    Raises:
        NoSuchStudy: its study was deleted, even if another one has its name by now.
        LeaseLost: another peer took the trial over.
        NotYourTrial: the trial is finished already.
        StoreUnreachable: the store did not answer within the storage's patience.

    """

    def __init__(self, ticket: Ticket, storage: Storage) -> None:
        from hopaas_p2p.study import open_study

        self.ticket = ticket
        self.storage = storage
        self.study = open_study(storage, ticket.study, create=False)
        handle = storage.handle(self.study.study_id)
        if handle.uuid != ticket.uuid:
            raise NoSuchStudy(
                f"the study {ticket.study!r} of this ticket is not in {storage.url}, where another one has its name"
            )
        self._log = handle.log
        try:
            self._show_life()
        except StoreUnreachable as error:  # the end of a trial is kept on disk in that case
            self._unseen = error

    _unseen: StoreUnreachable | None = None
    """Why the sign of life did not arrive."""

    def _show_life(self) -> None:
        peer = self.storage.peer
        peer.store.beat(Beat(self.ticket.owner, beat_value(peer.uuid, 1, peer.now_us())))

    def _say(self, record: StudyRecord) -> Verdict:
        """Write in the owner's name, without introducing this short-lived process as one more peer."""
        self._refuse_if_waiting()
        (verdict,) = self.storage.peer.await_commit(self._log, self._log.put(self.ticket.owner, record))
        if not verdict.accepted:
            self._refused(verdict)
        return verdict

    def _refuse_if_waiting(self) -> None:
        """Anyone may change a waiting trial, but not a holder that believes it still runs it."""
        trials = self.study.state.trials
        if self.ticket.number < len(trials) and trials[self.ticket.number].state is TrialState.WAITING:
            self._explain_loss()

    def _refused(self, verdict: Verdict) -> None:
        number = self.ticket.number
        if verdict.refusal == "late":
            raise LeaseLost(
                f"trial {number} was taken over by another peer; its result is kept as trial {verdict.number}",
                kept_as=verdict.number,
            )
        if verdict.refusal in ("fenced", "not running"):
            self._explain_loss()
        if verdict.refusal == "finished":
            raise NotYourTrial(f"trial {number} has already finished, and stays as it is")
        if verdict.refusal == "no such trial":
            raise NoSuchTrial(f"there is no trial {number} in {self.ticket.study!r}")
        from hopaas_p2p.storage.refusals import why_refused

        raise InvalidInput(f"trial {number} was refused: {why_refused(self.study.state, verdict)}")

    def _trial(self) -> Trial:
        """The trial as the log has it now, still ours; raises otherwise."""
        trials = self.study.state.trials
        if self.ticket.number >= len(trials):
            raise NoSuchTrial(f"there is no trial {self.ticket.number} in {self.ticket.study!r}")
        trial = trials[self.ticket.number]
        if (trial.owner, trial.epoch) != (self.ticket.owner, self.ticket.epoch) or trial.end is not None:
            self._explain_loss()
        return trial

    def _explain_loss(self) -> None:
        """Raise the error that says how the lease ended."""
        number, lease = self.ticket.number, (self.ticket.owner, self.ticket.epoch)
        trial = self.study.state.trials[number]
        if (trial.owner, trial.epoch) == lease and trial.end is not None:
            raise NotYourTrial(f"trial {number} has already finished ({trial.state.name}), and stays as it is")
        why = next((one.why for one in trial.history if (one.owner, one.epoch) == lease), "another peer took it over")
        raise LeaseLost(f"trial {number} is no longer run by this ticket: {why}")

    # --- what the commands do ---

    def report(self, value: float, *, step: int) -> None:
        """Add an intermediate value."""
        self._say(TrialSet(self.ticket.number, self.ticket.epoch, reports={step: float(value)}))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of one step. Raises InvalidInput if one cannot be kept; the others are in the store then."""
        trials, number = self.study.state.trials, self.ticket.number
        kept, wrong = checked(metrics, trials[number].metrics if number < len(trials) else ())
        if kept:
            said = {name: {step: value} for name, value in kept.items()}
            self._say(TrialSet(number, self.ticket.epoch, metrics=said))
        refuse(wrong, step=step, kept=kept)

    def should_prune(self, pruner: optuna.pruners.BasePruner | None = None) -> str | None:
        """Why to give this trial up now, or None: it was asked to stop, or the pruner says so."""
        trial = self._trial()
        if trial.stop is not None:
            return trial.stop
        configurations = self.study.state.configurations
        if configurations is not None and configurations.is_at_rung(trial.number, trial.reports):
            return AT_RUNG
        judge = pruner or self.study.optuna.pruner
        frozen = self.storage.get_trial(self.storage.get_trial_id_from_study_id_trial_number(*self._place))
        if len(self.study.optuna.directions) > 1:
            raise InvalidInput("a study with several objectives has no pruning")
        return f"{type(judge).__name__} says so" if judge.prune(self.study.optuna, frozen) else None

    @property
    def _place(self) -> tuple[int, int]:
        return self.study.study_id, self.ticket.number

    def tell(
        self, values: Sequence[float] | None = None, *, state: TrialState | None = None, reason: str | None = None
    ) -> None:
        """End the trial: COMPLETE with values, else PRUNED or FAIL.

        Raises:
            InvalidInput: values that are not numbers, or as many as the study has directions. The trial goes on.

        """
        end = ending(self.ticket, values, state=state, reason=reason or self._why_stopped(state))
        expected, given = len(self.study.optuna.directions), len(end.values or ())
        if end.state is TrialState.COMPLETE and given != expected:
            raise InvalidInput(f"{expected} value{'s' * (expected > 1)} expected, got {given}")
        pauses = end.state is TrialState.PRUNED and end.reason is None and self.study.state.configurations is not None
        self._say(msgspec.structs.replace(end, paused=True) if pauses else end)

    def _why_stopped(self, state: TrialState | None) -> str | None:
        """What the ticket was asked to stop for, if this is the answer."""
        trials, number = self.study.state.trials, self.ticket.number
        if state in (None, TrialState.COMPLETE) or number >= len(trials):
            return None
        return trials[number].stop if trials[number].epoch == self.ticket.epoch else None

    def renew(self) -> None:
        """Nothing but a sign of life, and a look whether the lease still holds."""
        if self._unseen is not None:
            raise self._unseen
        self._trial()

    def release(self, reason: str | None = None) -> None:
        """Give the trial back: WAITING, with the same parameters."""
        self._say(TrialRelease(self.ticket.number, self.ticket.epoch, reason=reason_text(reason)))


def ending(
    ticket: Ticket, values: Sequence[float] | None, *, state: TrialState | None = None, reason: str | None = None
) -> TrialFinish:
    """The record that ends the trial; raises InvalidInput for NaN."""
    to = state if state is not None else TrialState.COMPLETE
    told = None if values is None else tuple([float(value) for value in values])
    if to is TrialState.COMPLETE and any(math.isnan(value) for value in told or ()):
        raise InvalidInput("NaN is not a result; use --state fail")
    return TrialFinish(ticket.number, ticket.epoch, to, told, reason_text(reason))


@contextmanager
def carry(
    ticket: Ticket, *, store: str | None = None, patience: float = 60.0, end: TrialFinish | None = None
) -> Iterator[TicketTrial]:
    """Go on with the trial of a ticket.

    Args:
        ticket: what `ticket_of` gave.
        store: where the store is, if it has another path or URL here.
        patience: seconds for which a store that does not answer is tried.
        end: what is going to be told. If the store cannot be opened, it is kept on disk and sent at the next contact.

    Raises:
        ConfigurationError: the ticket is not this user's, and its store is not one that the user named.

    """
    from hopaas_p2p.storage import open_storage

    storage = None
    if store is None and not (ticket.seal and hmac.compare_digest(ticket.seal, credentials.seal(ticket.store))):
        credentials.check_named(ticket.store, servers_of(ticket.store), by="the ticket")
    try:
        storage = open_storage(store or ticket.store, create=False, acts_for={ticket.owner}, patience=patience)
        trial = TicketTrial(ticket, storage)
    except (StoreUnreachable, Denied, ConfigurationError) as error:
        if storage is not None:
            storage.close()
        if end is None:
            raise
        path = _keep(ticket, store or ticket.store, end)
        kept = f"The result is kept in {path}; it is sent at the next contact, or with: hopaas-p2p spool send"
        raise type(error)(f"{str(error).rstrip('.')}. {kept}") from None
    try:
        yield trial
    finally:
        storage.close()


def _keep(ticket: Ticket, store: str, end: TrialFinish) -> Path:
    """Put the end of the trial into this user's spool."""
    from hopaas_p2p import spool
    from hopaas_p2p.peer.outbox import Outbox, PendingCommit
    from hopaas_p2p.peer.peer import microseconds
    from hopaas_p2p.process import new_uuid
    from hopaas_p2p.stores.base import Placed

    outbox = Outbox(new_uuid(), microseconds)
    outbox.queue(PendingCommit(ticket.owner, (end,)))
    path, why = spool.keep(
        [Placed(0, None, one) for one in outbox.everything()],
        store=redacted(store) if "://" in store else Path(store).expanduser().absolute().as_uri(),
        study=ticket.uuid,
        name=ticket.study,
        trials=[ticket.number],
        at=microseconds(),
    )
    if path is None:
        raise ConfigurationError(f"The result cannot be kept on disk, and is lost with this command: {why}")
    return path
