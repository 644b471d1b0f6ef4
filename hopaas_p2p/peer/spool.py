"""The spool as one peer uses it: the peer keeps commits that could not be sent, and sends those that others left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from hopaas_p2p import spool
from hopaas_p2p.core import codec
from hopaas_p2p.core.attributes import LATE_VALUES
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import Commit, TrialFinish, TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import BrokenChain, Denied, HopaasError, NoSuchStudy, NoSuchTrial, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.session import LogClient, LogSession, study_client, translated
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.spool import Spooled
from hopaas_p2p.stores.base import Outgoing, Placed, Store, read_all

_EVERY: Final = 30.0  # seconds between checks of the spool


class KeptForRescue(BrokenChain):
    """A log has lost acknowledged commits, and has continued without them; the spool keeps them for a rescue."""


class SpoolSender:
    """Keeps one peer's unsent commits in the spool, and sends those that other processes left."""

    def __init__(self, store: Store, *, now_us: Callable[[], int]) -> None:
        self._store, self._now_us = store, now_us
        spool.directories()  # now: Python's first search for a folder of temporary files needs a file descriptor
        self._lasts = not store.url.startswith("memory:")
        """Whether the store outlives this process; if not, there is nowhere to send its records later."""
        self._next = 0.0
        self._studies: set[str] = set()
        self._refused: set[Path] = set()
        """Files that the store does not accept from this process, such as those of a deleted study."""
        self._keeping = threading.RLock()
        """Prevents two threads from keeping the same end twice."""
        self._ended = False
        """Whether `keep_all` was called. A file that is written later would be sent out of order."""
        self._unkept = ""
        """The trials whose ends no disk accepted at the last `keep_ends`."""

    def keep(self, uuid: str, log: LogClient[State], *, last: bool = False) -> tuple[Path | None, str]:
        """Spool unsent commits, if they include the end of a trial; return the file, or None and the reason.

        At the `last` moment of the program, also spool acknowledged commits that are not confirmed. They are put before
        the rest in the same file, because a writer's commits must arrive in the order of their sequence numbers.
        """
        session = log.session
        with self._keeping:
            doubtful = set(log.log.unconfirmed()) if last and session.broken is None else set()
            with log.lock:
                ends = session.ends()
                commits = placed = [one for one in session.acknowledged if one.lsn in doubtful]
                if not placed and (ends or last) and session.spooled and self._has(session, ends):
                    return next(reversed(session.spooled)), ""
                undecided = session.undecided() if ends else []
                if ends:
                    commits = [*placed, *(Placed(0, None, one) for one in session.pack_for_spool())]
            if not commits or not self._lasts:
                return None, "the store exists in this process only" if commits else ""
            trials = sorted({*ends, *_ended(placed)})
            path, why = self._write(uuid, log, commits, "unconfirmed" if placed else "unsent", trials)
            if path is not None and placed:
                self.forget(session)  # the new file contains everything in the session's other files
            elif path is not None:
                session.spooled[path] = ends
                session.kept = undecided
            return path, why

    def _write(
        self, uuid: str, log: LogClient[State], commits: list[Placed], why: spool.Why, trials: list[int]
    ) -> tuple[Path | None, str]:
        """Write this log's commits, which end `trials`, to a spool file, like `spool.write`."""
        name, at = log.state.define.name if log.state.define else "", self._now_us()
        places, payloads = [(one.lsn, one.before) for one in commits], [one.commit.payload for one in commits]
        return spool.write(Spooled(self._store.url, uuid, name, trials, at, why, places, payloads))

    def keep_ends(self, logs: Mapping[str, LogClient[State]]) -> None:
        """Spool the ends of trials that no call spools, unless they are already in the spool.

        `optimize` sends an end with its next ask, which waits for the store without a limit, and Ctrl-C may have
        stopped a call of `tell`.
        """
        with self._keeping:
            for uuid, log in list(logs.items()) if self._lasts and not self._ended else ():
                session = log.session
                with log.lock:
                    ends = session.ends()
                if not ends or session.deleted or self._has(session, ends):
                    continue
                path, why = self.keep(uuid, log)
                trials = ", ".join(map(str, ends))
                if path is not None:
                    LOG.warning("the end of trial %s is kept in %s and sent at the next contact", trials, path)
                    self._unkept = ""
                elif trials != self._unkept:
                    LOG.error("the end of trial %s is kept in this process only: %s", trials, why)
                    self._unkept = trials

    @staticmethod
    def _has(session: LogSession[State], ends: list[int]) -> bool:
        """Whether existing spool files hold these ends of trials."""
        kept = [trials for path, trials in list(session.spooled.items()) if path.exists()]
        return {number for trials in kept for number in trials}.issuperset(ends)

    def keep_history(self, uuid: str, log: LogClient[State]) -> None:
        """Spool this session's last acknowledged commits, which one of two histories of the log may lack.

        This is done once; a later call tries again only if no disk accepted the commits.
        """
        with log.lock:
            commits = log.session.history()
        if not commits or not self._lasts:
            return
        path, why = self._write(uuid, log, commits, "history", [])
        what = f"{len(commits)} commit{'s' * (len(commits) != 1)} of this process may be missing from the log"
        if path is None:
            LOG.error("%s, and no copy could be kept: %s", what, why)
        else:
            log.session.acknowledged.clear()
            LOG.warning("%s; copies are kept in %s. Run: hopaas-p2p doctor URL", what, path)

    def keep_all(self, logs: Mapping[str, LogClient[State]]) -> None:
        """Like `keep`, at the end of the program. The start of a trial that never ran is withdrawn.

        Acknowledged but unconfirmed commits are kept too, and compared with the log at the next contact.
        """
        with self._keeping:
            self._ended = True
            for uuid, log in logs.items():
                session, before = log.session, list(log.session.spooled)
                if session.deleted:
                    continue
                ends = session.ends()
                path, why = self.keep(uuid, log, last=True)
                if path is not None and path not in before:
                    LOG.warning("unconfirmed results are kept in %s; to send them: hopaas-p2p admin spool send", path)
                elif path is None and why and self._lasts:
                    LOG.error("the last changes are lost with this process (ended trials: %s): %s", ends, why)
                elif path is None:
                    log.withdraw()

    def arrived(self, session: LogSession[Any]) -> None:
        """Forget the session's files, because everything in them has a verdict; warn of results that did not count."""
        kept, session.kept = session.kept, []
        for pending in kept if isinstance(session.state, State) else ():
            for record in pending.records:
                if isinstance(record, TrialFinish) and (why := _uncounted(session.state, pending.owner, record)):
                    LOG.warning("%s", why)
        self.forget(session)

    @staticmethod
    def forget(session: LogSession[Any]) -> None:
        """Remove the session's files, because everything in them is acknowledged, or in another file."""
        for path in list(session.spooled):
            spool.remove(path)
        session.spooled.clear()

    def send_others(self, logs: Mapping[str, LogClient[State]], studies: set[str], now: float, *, writer: str) -> None:
        """Send commits that other processes of this user have left for one of this store's studies.

        This is done periodically, and when the studies are not those known at the last check.
        """
        if now < self._next and studies == self._studies:
            return
        self._next, self._studies = now + _EVERY, studies
        own = {path for log in list(logs.values()) for path in log.session.spooled}
        for path, spooled in spool.waiting(self._store.url, studies):
            gone = spooled.study not in studies and path.name.endswith((spool.ASIDE, spool.SENT))
            if path in own or path in self._refused or gone:
                continue
            try:
                for why in self.send(spooled, logs, writer=writer):
                    LOG.warning("%s: %s", spooled.name, why)
            except StoreUnreachable:
                raise
            except KeptForRescue as error:
                LOG.error("%s", error)
                spool.remove(path)
            except HopaasError as error:  # one file does not hold up the others
                stays = spool.set_aside(path) if isinstance(error, NoSuchStudy) else path
                self._refused.add(stays)
                LOG.warning("%s was not sent and stays in the spool: %s", stays, error)
            else:
                spool.sent(path, spooled, self._store.url)

    def send(self, spooled: Spooled, logs: Mapping[str, LogClient[State]], *, writer: str) -> list[str]:
        """Send the contents of a spool file; return which of its results the log did not count, and why.

        Raises:
            StoreUnreachable: the store cannot be reached now.
            NoSuchStudy: the file belongs to another store.
            StudyDeleted: the study is gone; the file is kept, because a backup may bring it back.
            KeptForRescue: the log has lost commits that it had acknowledged, and has continued without them.
            Denied: a whole commit was refused, because according to the log its peer belongs to another user.

        """
        log = logs.get(spooled.study) or study_client(
            self._store.log(spooled.study), writer=writer, now_us=self._now_us
        )
        sent = [one.commit for one in spooled.placed if not one.lsn or spooled.why == "unsent"]
        lost = 0
        try:
            if spooled.why == "unconfirmed":
                with spool.alone(spooled.study):  # two processes that append the same commits would collide
                    lost = self._restore(log, spooled)
            if not lost:
                self.append(log, sent)
        except StudyDeleted:
            raise StudyDeleted(
                f"the study {spooled.name!r} was deleted. If nobody restores it from a backup, remove this file"
            ) from None
        if lost:
            spool.take_in(spooled)
            raise KeptForRescue(
                f"{spooled.name}: the log has lost acknowledged commits, and has continued without them. "
                f"Of these commits, {lost} {'is' if lost == 1 else 'are'} kept for a rescue, because in this log they "
                "would mean something else. Run: hopaas-p2p doctor STORE --rescue"
            )
        found = []
        for commit in _decoded(sent):
            last = log.state.writers.get(commit.writer)
            if last is None or last.seq < commit.seq:
                known = [one for name in (commit.writer, commit.owner) if (one := log.state.writers.get(name))]
                if any(not one.author for one in known):
                    raise Denied(
                        "the peer that ran these trials wrote to the store directly, not through a server; send the "
                        "results directly, too: hopaas-p2p admin spool send --store URL"
                    )
                raise Denied(
                    "another user's peer ran these trials; send the results with a token of that user: "
                    "hopaas-p2p admin spool send"
                )
            found += [why for end in _ends(commit) if (why := _uncounted(log.state, commit.owner, end)) is not None]
        return found

    @staticmethod
    def append(log: LogClient[Any], commits: list[Outgoing]) -> None:
        """Append commits that another process of this user could not send; the log counts each commit once.

        Raises:
            NoSuchStudy: the store has no such study, for instance because another store took its place under the same
                URL.
            NoSuchTrial: its log lacks a trial that these commits end, for instance after an older backup was restored.

        """
        with log.turn, translated():
            began = log.clock()
            if log.session.joined:
                log.pull(began)
            else:
                log.join(began)
            if isinstance(log.state, State):
                _check_trials(log.state, commits)
            for commit in commits:
                appended = False
                while not appended:
                    state = log.session.state
                    commit = msgspec.structs.replace(commit, chain=state.sum)  # noqa: PLW2901
                    receipt = log.log.exchange(commit, state.lsn)
                    with log.lock:
                        log.session.advance(receipt, began)
                    appended = not receipt.more or any(entry.payload == commit.payload for entry in receipt.entries)
                if receipt.more:
                    log.pull(began)

    def _restore(self, log: LogClient[State], spooled: Spooled) -> int:
        """Append again acknowledged commits that the log has lost; return how many of them cannot be appended.

        A commit can be appended if the log is the same, up to the commit's old place, as the one that the writer had
        read. Everything that the commit refers to is then there, under the same numbers. The log must also have no
        later commit of the writer. A commit whose old place has been taken must end a trial, because no peer would run
        a trial that it starts.
        """
        lost, head, sums = self._lost(spooled)
        while lost:
            self.append(log, [])  # the replica then knows the writers
            one, before = lost[0], len(lost)
            writer, _, sequence = one.commit.nonce.rpartition(":")
            last = log.state.writers.get(writer)
            agrees = one.before is not None and sums.get(one.lsn) == one.before
            worth = one.lsn > head or bool(_ended([one]))
            takes = agrees and worth and (last is None or last.seq < int(sequence))
            if takes:
                self.append(log, [one.commit])
            lost, head, sums = self._lost(spooled)
            if not takes and len(lost) == before:  # and no other process has appended any
                return before
        return 0

    def _lost(self, spooled: Spooled) -> tuple[list[Placed], int, dict[int, int | None]]:
        """The commits that the log now lacks; the log's last lsn; lsn -> the sum before that commit.

        Commits that were removed because a snapshot replaces them are not listed.
        """
        placed, log = [one for one in spooled.placed if one.lsn], self._store.log(spooled.study)
        removed, head, there = log.removed_up_to(), 0, set[bytes]()
        sums: dict[int, int | None] = {1: 0}
        for entry in read_all(log, max(min((one.lsn for one in placed), default=1) - 2, removed)):
            head, before = entry.lsn, entry.before
            there.add(entry.payload)
            sums[head], sums[head + 1] = before, None if before is None else following(before, entry.payload)
        return [one for one in placed if one.lsn > removed and one.commit.payload not in there], head, sums


def _decoded(sent: Iterable[Outgoing]) -> list[Commit]:
    """The commits in these bytes, without those that cannot be read."""
    return [commit for one in sent if isinstance(commit := codec.decode(one.payload), Commit)]


def _ends(commit: Commit) -> list[TrialFinish]:
    return [record for record in commit.records if isinstance(record, TrialFinish)]


def _ended(placed: Iterable[Placed]) -> list[int]:
    """The trials that these commits end."""
    return [end.number for commit in _decoded([one.commit for one in placed]) for end in _ends(commit)]


def _uncounted(state: State, owner: str, record: TrialFinish) -> str | None:
    """Why the log did not count the values in this end of a trial of `owner`; None if it counted them.

    `tell` returns when a result is in the spool. If another process told the same trial meanwhile, the result that
    arrived first counts, and the sender of the later result is warned that it was dropped.
    """
    if record.state is not TrialState.COMPLETE or record.values is None or record.number >= len(state.trials):
        return None
    trial = state.trials[record.number]
    lease = owner, record.epoch
    kept = [state.trials[one.kept_as] for one in trial.history if one.kept_as and (one.owner, one.epoch) == lease]
    late = msgspec.json.encode(record.values).decode()
    if any(one.values == record.values or one.system.get(LATE_VALUES) == late for one in (trial, *kept)):
        return None
    there = kept[0] if kept else trial
    found = there.state.name if there.values is None else f"{there.state.name} with {_shown(there.values)}"
    why = f"trial #{there.number} is already {found}"
    expected = 1 if state.define is None else len(state.define.directions)
    if len(record.values) != expected:  # the number could not be checked when the result was told
        why = f"{expected} value{'s' * (expected > 1)} expected, got {len(record.values)}"
    return f"the result {_shown(record.values)} of trial #{record.number} was not counted: {why}"


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(map(repr, values))


def _check_trials(state: State, commits: list[Outgoing]) -> None:
    """Check that this is the right study, and that its log has the trials that these commits end, with their owners."""
    if state.define is None:
        raise NoSuchStudy("this store does not have the study; perhaps another store was here before")
    for commit in _decoded(commits):
        last = state.writers.get(commit.writer)
        if last is not None and commit.seq <= last.seq:
            continue  # it is in the log
        for number in [end.number for end in _ends(commit)]:
            trial = state.trials[number] if number < len(state.trials) else None
            owners = () if trial is None else (trial.owner, *[lease.owner for lease in trial.history])
            if commit.owner not in owners and (trial is None or trial.owner is not None):
                raise NoSuchTrial(
                    f"the log of this store does not have trial #{number} as its peer knew it; perhaps an older backup "
                    "was restored. The result is kept. To send it to a store with the later commits: "
                    "hopaas-p2p admin spool send --store STORE"
                )
