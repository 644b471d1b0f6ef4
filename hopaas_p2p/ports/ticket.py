"""A trial that is passed from command to command: `ask` starts it, and the output of `ask` is all that `tell` needs.

A ticket names the store (without secrets), the study, the trial, and the lease: owner and epoch. It is sealed with its
user's token, so that a ticket from somebody else, which could send the token to another store, is refused.

Between two commands no process sends heartbeats, so `ask` is a separate peer that requested a longer silence
(`peer_ttl`); each later command is a sign of life. A command acts for the owner and writes records in the owner's name;
if another peer has taken the trial over, their epoch is outdated, and they are refused. If the store is unreachable,
the end of a trial is kept in the spool, so a ticket names its study by uuid, too.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.leases import beat_value
from hopaas_p2p.core.records import Commit, TrialFinish, TrialState
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
from hopaas_p2p.open import redacted, servers_of
from hopaas_p2p.ports.verbs import TrialVerbs
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.arguments import shortened
from hopaas_p2p.runtime.process import new_uuid
from hopaas_p2p.runtime.spelled import read_spelled, spell
from hopaas_p2p.stores.base import Beat

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
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
    """The study's uuid, because names may be reused."""
    seal: str = ""
    """Shows that this user made the ticket; see `credentials.seal`."""

    def __str__(self) -> str:
        return spell(_PREFIX, msgspec.msgpack.encode(tuple(self) if self.seal else tuple(self)[:-1]))

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """The ticket in this string.

        Raises:
            InvalidInput: it is not a ticket, or was truncated.

        """
        try:
            ticket = msgspec.msgpack.decode(read_spelled(_PREFIX, text), type=cls)
            if ticket.number < 0:
                raise ValueError
            return ticket
        except (ValueError, msgspec.MsgspecError):
            shown = shortened(text, 24)
            raise InvalidInput(f"{shown!r} is not a whole ticket; use all that `trial ask` printed") from None


def ticket_of(study: Study, trial_number: int) -> Ticket:
    """The ticket of a trial that this process runs. Its reports and attributes are in the store when this returns.

    Raises:
        NotYourTrial: this process does not run the trial.
        LeaseLost: another peer took the trial over.
        StoreUnreachable: the store did not answer; reports and attributes stay queued.

    """
    study.storage.peer.copies_made += 1
    handle = study.handle
    with handle.lock:
        if not handle.held(trial_number):
            raise NotYourTrial(f"trial {trial_number} is not run by this process")
    handle.settle(trial_number)
    trial = handle.state.trials[trial_number]
    assert trial.owner is not None
    store = study.storage.url
    seal = credentials.seal(store, servers_of(store))
    return Ticket(store, study.name, trial_number, trial.owner, trial.epoch, handle.uuid, seal)


def ending(
    ticket: Ticket, values: Sequence[float] = (), *, state: str = "complete", reason: str | None = None
) -> TrialFinish:
    """The record that ends the trial, for `carry`."""
    to = TrialState[state.upper()]
    return TrialFinish(ticket.number, ticket.epoch, to, tuple(values) or None, reason_text(reason))


@contextmanager
def carry(
    ticket: Ticket, *, store: str | None = None, patience: float = 60.0, end: TrialFinish | None = None
) -> Iterator[TrialVerbs]:
    """Act for the owner of a ticket's trial; all changes are in the store when the block ends.

    Args:
        ticket: the result of `ticket_of`.
        store: the store's path or URL here, if it differs.
        patience: how many seconds to retry a store that does not answer.
        end: the record that will end the trial (see `ending`). If the store cannot be opened, the record is kept on
            disk and sent at the next contact, and the error says so.

    Raises:
        ConfigurationError: the ticket is not this user's, and the user has not named its store; or `end` cannot
            be kept on disk.
        Denied: the store does not let this user in.
        NoSuchStudy: the ticket's study was deleted, even if another one has its name now.
        LeaseLost: another peer took the trial over; a complete `end` is kept as a separate trial.
        NotYourTrial: the trial is finished already.
        StoreUnreachable: the store did not answer within `patience`.

    """
    import optuna

    from hopaas_p2p.storage import open_storage
    from hopaas_p2p.storage.optuna_internals import begin
    from hopaas_p2p.study import open_study
    from hopaas_p2p.study.trial import Trial

    if store is None:
        servers, seal = servers_of(ticket.store), ticket.seal.encode()
        if not (seal and hmac.compare_digest(seal, credentials.seal(ticket.store, servers).encode())):
            credentials.check_named(ticket.store, servers, by="the ticket")
    with ExitStack() as opened:
        try:
            place, named = store or ticket.store, store is not None
            storage = open_storage(place, create=False, acts_for={ticket.owner}, patience=patience, named=named)
            opened.callback(storage.close)
            study = open_study(storage, ticket.study, create=False)
            peer, handle = storage.peer, storage.handle(study.study_id)
            beat = Beat(ticket.owner, beat_value(peer.uuid, 1, peer.now_us()))
            # an end is sent anyway; in a folder whose server is down, it waits for the next server
            with suppress(*(() if end is None else (StoreUnreachable,))):
                peer.call(lambda: peer.store.beat(beat), within=patience if end is None else 0.0)
        except (StoreUnreachable, Denied, ConfigurationError) as error:
            if end is None:
                raise
            kept = keep(ticket, end, store or ticket.store)
            raise type(error)(f"{str(error).rstrip('.')}. {kept}") from None
        if handle.uuid != ticket.uuid:
            raise NoSuchStudy(f"the study {ticket.study!r} of this ticket is gone; another one has its name")
        why = _why_lost(ticket, study.state)
        if why is not None:
            waits = study.state.trials[ticket.number].state is TrialState.WAITING  # anyone may end a waiting trial
            if end is not None and end.state is TrialState.COMPLETE and not waits:
                (verdict,) = peer.commit(handle.log, end, owner=ticket.owner)
                if verdict.refusal != "finished":  # otherwise a result of this ticket is kept already
                    raise handle.refusal(ticket.number, verdict, end.values)
            raise LeaseLost(f"this ticket no longer holds the lease of trial {ticket.number}: {why}")
        study.sampler = optuna.samplers.RandomSampler()  # the parameters were chosen by `ask`
        verbs = TrialVerbs(study, begin(Trial, study, handle.trial(ticket.number, now=True)))
        yield verbs
        if verbs.released is not None:
            handle.release(ticket.number, reason=verbs.released)
        elif verbs.told is None and handle.log.session.has_unsent(ticket.number):
            handle.settle(ticket.number)
        elif handle.log.session.has_pending:
            raise StoreUnreachable("The store did not answer. The result is kept, and sent at the next contact.")


def _why_lost(ticket: Ticket, state: State) -> str | None:
    """How the lease of this ticket was lost; None if it is still held."""
    number, lease = ticket.number, (ticket.owner, ticket.epoch)
    if number >= len(state.trials):
        raise NoSuchTrial(f"there is no trial {number} in {ticket.study!r}")
    trial = state.trials[number]
    if (trial.owner, trial.epoch) != lease or trial.state is TrialState.WAITING:
        return next((one.why for one in trial.history if (one.owner, one.epoch) == lease), "another peer took it over")
    if trial.end is not None:
        raise NotYourTrial(f"trial {number} has already finished ({trial.state.name}), and stays as it is")
    return None


def keep(ticket: Ticket, end: TrialFinish, store: str) -> str:
    """Put the end of the trial into this user's spool; returns a message with its path.

    Raises:
        ConfigurationError: no directory accepts it.

    """
    from hopaas_p2p import spool
    from hopaas_p2p.peer.peer import microseconds

    place = os.path.expanduser(store)  # noqa: PTH111  # leaves the name of an unknown user as it is
    at, url = microseconds(), redacted(store) if "://" in store else Path(place).absolute().as_uri()
    payload = codec.encode(Commit(new_uuid(), 1, ticket.owner, at, (end,)))
    last = spool.Spooled(url, ticket.uuid, ticket.study, [ticket.number], at, "unsent", [(0, None)], [payload])
    path, why = spool.write(last)
    if path is None:
        raise ConfigurationError(f"The result cannot be kept on disk, and is lost with this command: {why}")
    return f"The result is kept in {path}; it is sent at the next contact, or with: hopaas-p2p admin spool send"
