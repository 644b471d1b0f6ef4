"""Which trials try the same configuration, and where each configuration stands: derived from the trials of a study.

A configuration is a chain of trials: the first with its parameters, its retries, a late result, and continuations of
what paused at a rung. The chain counts once, in budgets as on rungs, and keeps its bracket for life. What it was worth
at a rung is what the first of its trials reported that got there; a later attempt does not change that.

In a population the chain is a member, whose parameters change. What it was worth at a rung is what the newest of its
trials reported there that went on to it. A continuation that fails does not end it: it goes on from a better one.

Everything here follows from the trials as they are now. So a state that was read from a snapshot decides as one that
has replayed the log, and a study whose rungs are changed sorts its trials anew. `apply` says which trials it touched,
and only their configurations are looked at again.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from hopaas_p2p.core.fidelity import Fidelity, Standings, standings_of
from hopaas_p2p.core.inherited import last_step, value_from
from hopaas_p2p.core.lineage import LinkedTrial, copied_trial
from hopaas_p2p.core.populations import Members
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.rungs import Ladder
from hopaas_p2p.core.standings import RungStanding

_LIVE: Final = (TrialState.RUNNING, TrialState.WAITING)
_TAKES: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_MOST_FAILURES: Final = 3
"""Of a member of a population since its last pause: then it is out."""


class ChainedTrial(LinkedTrial, Protocol):
    """What is read of a trial here."""

    @property
    def state(self) -> TrialState: ...
    @property
    def paused(self) -> bool: ...
    @property
    def retried_by(self) -> int | None: ...


def follows(trial: ChainedTrial) -> int | None:
    """The earlier trial of the same configuration that this one follows, or None: it is the first."""
    for number in (trial.continues, trial.retry_of, trial.late_of):
        if number is not None:
            return number
    return None


class _Chain(msgspec.Struct, gc=False):
    """A configuration. What its finished trials say is kept; those that wait or run are read again."""

    values: tuple[tuple[int, float], ...] = ()
    """For each rung that a finished trial has reached: the first that did, and its value there."""
    promoted: int = 0
    paused: int = -1
    """The trial that paused, and has not been continued; -1: none."""
    paused_rungs: int = 0
    """How many rungs that one has reached."""
    pauses: dict[int, int] = {}
    """In a population, the trial of its last pause at each rung, by how many rungs it had reached."""
    failures: int = 0
    """In a population, trials that failed for good since the last pause."""
    copied: int = 0
    """In a population, from how many rungs it had gone on when it last copied another."""
    continued: int = -1
    """The last trial that was continued."""
    complete: bool = False
    end: tuple[int, float] | None = None
    """The first complete one that reported anything, and what it reported last."""
    last: int = -1
    """The newest trial that is over."""
    failed: bool = False
    """Whether that one failed. If nothing is left to be run, the configuration then ranks behind all others."""
    takes: bool = False
    """Whether a finished trial takes a place in the budget."""
    live: tuple[int, ...] = ()
    """Its trials that wait or run."""
    counted: bool = False
    """Whether it is in `used`."""


class Configurations:
    """The configurations of one study; each is known by the number of its first trial.

    Args:
        policy: the rungs or the population; None: there are none, and chains are counted all the same.
        maximize: whether large values are good.

    """

    def __init__(self, policy: Fidelity | None, *, maximize: bool) -> None:
        self.policy = policy
        self.standings: Standings | None = None if policy is None else standings_of(policy, maximize=maximize)
        self.members = self.standings if isinstance(self.standings, Members) else None
        """The standings of a population."""
        self.used = 0
        """Configurations of which a trial is COMPLETE, PRUNED or RUNNING."""
        self.resumable: list[int] = []
        """WAITING trials whose configuration is in `used` already, in order: interrupted continuations."""
        self._root: dict[int, int] = {}
        self._chains: dict[int, _Chain] = {}
        self._touched: set[int] = set()
        self._known = 0

    # --- taking in what has changed ---

    def touch(self, number: int) -> None:
        """This trial has changed; see `refresh`."""
        self._touched.add(number)

    def refresh(self, trials: Sequence[ChainedTrial]) -> None:
        """Take in the trials that were touched, and those that are new."""
        if not self._touched and self._known == len(trials):
            return
        touched = sorted({*self._touched, *range(self._known, len(trials))})
        self._touched.clear()
        roots = {self._note(trials[number]): None for number in touched}
        for root in roots:
            self._place(root, trials)

    def _note(self, trial: ChainedTrial) -> int:
        """Take in one trial; returns the number of its configuration."""
        number = trial.number
        if number >= self._known:
            self._known = number + 1
            self._admit(trial)
        root = self.root(number)
        chain = self._chains[root]
        if trial.state in _LIVE:
            if number not in chain.live:
                chain.live = (*chain.live, number)
            return root
        if number in chain.live:
            chain.live = tuple([one for one in chain.live if one != number])
            self._set_resumable(number, resumable=False)
        if trial.state is TrialState.COMPLETE:
            chain.complete, chain.end = True, _earlier(chain.end, trial)
        failed = trial.state is TrialState.FAIL
        if failed and trial.retried_by is None and number > chain.last:
            chain.failures += 1
        if number >= chain.last:
            chain.last, chain.failed = number, failed
        chain.takes = chain.takes or trial.state in _TAKES
        reached, chain.values = self._merged(root, chain, chain.values, trial)
        if trial.paused and number > chain.continued:
            chain.paused, chain.paused_rungs = number, reached
            if self.members is not None:
                chain.pauses[reached] = number
        return root

    def _admit(self, trial: ChainedTrial) -> None:
        number, before = trial.number, follows(trial)
        root = number if before is None else self.root(before)
        chain = self._chains.get(root)
        if chain is None:
            self._chains[number] = _Chain()
            if self.standings is not None:
                self.standings.admit(number)
            return
        self._root[number] = root
        if trial.continues is not None:
            chain.continued = max(chain.continued, trial.continues)
            if chain.paused == trial.continues:
                chain.promoted, chain.paused = max(chain.promoted, chain.paused_rungs), -1
                chain.failures = 0
            if copied_trial(trial) is not None:
                chain.copied = chain.promoted

    def _merged(
        self, root: int, chain: _Chain, values: tuple[tuple[int, float], ...], trial: ChainedTrial
    ) -> tuple[int, tuple[tuple[int, float], ...]]:
        """How many rungs this trial has reached, and the values of its configuration with what it reported at them."""
        if self.members is None:
            reached = self._reached(root, trial)
            return len(reached), _earliest(values, trial.number, reached)
        reached = self._reached(root, trial, since=chain.promoted)
        return chain.promoted + len(reached), _newest(values, trial.number, reached, since=chain.promoted)

    def _reached(self, root: int, trial: ChainedTrial, *, since: int = 0) -> list[float]:
        """What this trial reported at each rung of its configuration that it has reached, from the one `since`."""
        reports, standings = trial.reports, self.standings
        if standings is None or not reports:
            return []
        values, offset = [], standings.policy.first_step - 1
        for level in standings.levels(root)[since:]:
            value = value_from(reports, level + offset)  # if it reports less often, what it said next counts
            if value is None:
                break
            values.append(value)
        return values

    def _place(self, root: int, trials: Sequence[ChainedTrial]) -> None:
        chain = self._chains[root]
        live = [trials[number] for number in chain.live]
        takes = chain.takes or any(trial.state is TrialState.RUNNING for trial in live)
        self.used += takes - chain.counted
        chain.counted = takes
        values = chain.values
        for trial in live:
            _, values = self._merged(root, chain, values, trial)
            self._set_resumable(trial.number, resumable=takes and trial.state is TrialState.WAITING)
        if self.standings is not None:
            idle = not live and not chain.complete
            reached = tuple([value for _, value in values])
            if self.members is not None:
                self.members.place(root, _as_member(chain, reached, idle=idle, live=bool(live)))
                return
            if idle and chain.failed:
                reached = (math.nan,) * len(reached)
            waits = idle and chain.paused >= 0
            end = None if live or chain.promoted or chain.end is None else chain.end[1]
            self.standings.place(root, RungStanding(reached, chain.promoted, waits, not live and not waits, end))

    def _set_resumable(self, number: int, *, resumable: bool) -> None:
        at = bisect.bisect_left(self.resumable, number)
        if (self.resumable[at : at + 1] == [number]) is resumable:
            return
        if resumable:
            self.resumable.insert(at, number)
        else:
            del self.resumable[at]

    # --- what follows from it ---

    def root(self, number: int) -> int:
        """The first trial of this trial's configuration."""
        return self._root.get(number, number)

    def is_counted(self, number: int) -> bool:
        """Whether the configuration of this trial has a place in the budget."""
        return self._chains[self.root(number)].counted

    def pauses_at(self, number: int) -> int | None:
        """After how many epochs, from the beginning of its configuration, this trial pauses; None: it does not."""
        return None if self.standings is None else self.standings.pauses_at(self.root(number))

    def is_at_rung(self, number: int, reports: Mapping[int, float]) -> bool:
        """Whether a trial with these reports has come to the rung at which it pauses."""
        return self._has_come(self.pauses_at(number), reports)

    def may_pause(self, number: int, reports: Mapping[int, float]) -> bool:
        """Whether one that pauses with these reports is to go on later, also by an earlier state of the rungs."""
        at = None if self.standings is None else self.standings.may_pause_at(self.root(number))
        return self._has_come(at, reports)

    def _has_come(self, epochs: int | None, reports: Mapping[int, float]) -> bool:
        last = None if epochs is None or self.standings is None else last_step(reports)
        return last is not None and self.standings.policy.epochs(last) >= epochs  # type: ignore[union-attr,operator]

    def promoted(self, *, closing: bool, skip: Collection[int] = ()) -> int | None:
        """The paused trial to continue next, but for these; None if no rung promotes one.

        `closing`: see `Ladder.best`.
        """
        roots = {self.root(number) for number in skip}
        best = None if self.standings is None else self.standings.best(closing=closing, skip=roots)
        if best is None:
            return None
        chain = self._chains[best]
        return chain.paused if chain.paused >= 0 else chain.last

    def sources(self, number: int) -> list[int]:
        """In a population, the paused trials of which one is copied where this one would go on; none: it is not."""
        if self.members is None:
            return []
        root = self.root(number)
        chain, rung = self._chains[root], len(self.members.standing(root).reached)
        found = [self._pause(better, rung) for better in self.members.better(root)]
        copied = [one for one in found if one is not None]
        if not copied and chain.paused < 0:  # it failed: not with the same parameters again
            own = self._pause(root, rung)
            return [] if own is None else [own]
        return copied

    def _pause(self, root: int, rung: int) -> int | None:
        """The trial of this member that paused when it had reached so many rungs."""
        return self._chains[root].pauses.get(rung)

    def may_be_continued(self, number: int, *, most: int | None) -> bool:
        """Whether a trial may yet go on from where this one paused, if `most` configurations come at most."""
        root = self.root(number)
        chain = self._chains[root]
        if self.members is not None:
            rung = next((reached for reached, one in chain.pauses.items() if one == number), None)
            few = self.used < self.members.policy.size and (most is None or self.used < most)
            return rung is not None and (few or chain.paused == number or self.members.may_copy_from(rung))
        if not isinstance(self.standings, Ladder) or chain.paused != number:
            return False
        return self.standings.may_be_promoted(root, most=most)

    def may_go_on(self, running: Mapping[int, None]) -> bool:
        """Whether a trial may start once one that runs has come to its rung, or an interrupted one had its rest."""
        waits = self.standings is not None and self.standings.waiting() > 0
        return bool(self.resumable) or (waits and bool(running))


def _earlier(end: tuple[int, float] | None, trial: ChainedTrial) -> tuple[int, float] | None:
    """`end`, or what this complete trial reported last, if it came before that one."""
    last = None if end is not None and end[0] < trial.number else last_step(trial.reports)
    return end if last is None else (trial.number, trial.reports[last])


def _earliest(
    values: tuple[tuple[int, float], ...], number: int, reached: Sequence[float]
) -> tuple[tuple[int, float], ...]:
    """`values` with what another trial reported at the rungs; of two trials the first counts."""
    if not reached or (len(reached) <= len(values) and all(by < number for by, _ in values)):
        return values
    merged = [(number, value) for value in reached]
    for at, before in enumerate(values):
        if at >= len(merged):
            merged.append(before)
        elif before[0] < number:
            merged[at] = before
    return tuple(merged)


def _newest(
    values: tuple[tuple[int, float], ...], number: int, reached: Sequence[float], *, since: int
) -> tuple[tuple[int, float], ...]:
    """`values` with what another trial reported at the rungs from the one `since`; of two trials the last counts."""
    if not reached:
        return values
    merged = list(values)
    for at, value in enumerate(reached, since):
        if at >= len(merged):
            merged.append((number, value))
        elif merged[at][0] <= number:
            merged[at] = number, value
    return tuple(merged)


def _as_member(chain: _Chain, reached: tuple[float, ...], *, idle: bool, live: bool) -> RungStanding:
    """Where a member stands. One that failed waits at the rung of its last pause, behind all others."""
    if idle and chain.paused < 0 and chain.failed:
        last = reached[: chain.promoted]
        if last and chain.failures <= _MOST_FAILURES:
            return RungStanding((*last[:-1], math.nan), chain.promoted, waits=True, copied=chain.copied)
        return RungStanding(last, chain.promoted, over=True, copied=chain.copied)
    waits = idle and chain.paused >= 0
    return RungStanding(reached, chain.promoted, waits, over=not waits and not live, copied=chain.copied)
