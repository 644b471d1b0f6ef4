"""Which trials try the same configuration, and where each configuration stands: derived from the trials of a study.

A configuration is a chain of trials: the first with its parameters, its retries, a late result, and continuations of
what paused at a rung. The chain counts once, in budgets as on rungs, and keeps its bracket for life. Its value at a
rung is the report of the first of its trials that reached the rung; a later attempt does not change it.

In a population the chain is a member, whose parameters change. Its value at a rung is the report of the newest of its
trials that reached the rung. A continuation that fails does not end it: it goes on from a better one.

Everything here follows from the trials as they are now. So a state that was read from a snapshot makes the same
decisions as one that has replayed the log, and a study whose rungs are changed sorts its trials anew. `apply` says
which trials it touched, and only their configurations are looked at again.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.fidelity import Fidelity, decode_fidelity
from hopaas_p2p.core.inherited import last_step, value_from
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.populations import Members, Population
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.rungs import Ladder
from hopaas_p2p.core.standings import TrialChain, Worth
from hopaas_p2p.core.state import Pausing, State, Trial

_LIVE: Final = (TrialState.RUNNING, TrialState.WAITING)
_TAKES: Final = (TrialState.COMPLETE, TrialState.PRUNED)


def follows(trial: Trial) -> int | None:
    """The earlier trial of the same configuration that this one follows, or None: it is the first."""
    for number in (trial.continues, trial.retry_of, trial.late_of):
        if number is not None:
            return number
    return None


class Configurations(Pausing):
    """The configurations of a study that has, or had, rungs or a population.

    Args:
        policy: the rungs or the population; None: there are none any more, and chains are counted all the same.
        maximize: whether large values are good.

    """

    def __init__(self, policy: Fidelity | None, *, maximize: bool) -> None:
        self.policy = policy
        if isinstance(policy, Population):
            self.population, self.unit, self.standings = policy, "members", Members(policy, maximize=maximize)
        elif policy is not None:
            self.unit, self.standings = "configurations", Ladder(policy, maximize=maximize)
        self.resumable: list[int] = []
        self._used = 0
        self._root: dict[int, int] = {}
        self._chains: dict[int, TrialChain] = {}
        self._touched: set[int] = set()
        self._known = 0

    # --- taking in what has changed ---

    def touch(self, number: int) -> None:
        self._touched.add(number)

    def refresh(self, trials: Sequence[Trial]) -> None:
        if not self._touched and self._known == len(trials):
            return
        touched = sorted({*self._touched, *range(self._known, len(trials))})
        self._touched.clear()
        roots = {self._note(trials[number]): None for number in touched}
        for root in roots:
            self._place(root, trials)

    def _note(self, trial: Trial) -> int:
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
            last = last_step(trial.reports)
            if last is not None and (chain.end is None or number <= chain.end[0]):
                chain.end = number, trial.reports[last]
            chain.complete = True
        failed = trial.state is TrialState.FAIL
        if failed and trial.retried_by is None and number > chain.last:
            chain.failures += 1
        if number >= chain.last:
            chain.last, chain.failed = number, failed
        chain.takes = chain.takes or trial.state in _TAKES
        reached, chain.values = self._merged(chain, chain.values, trial)
        if trial.paused and number > chain.continued:
            chain.paused, chain.paused_rungs = number, reached
            chain.pauses[reached] = number
        return root

    def _admit(self, trial: Trial) -> None:
        number, before = trial.number, follows(trial)
        root = number if before is None else self.root(before)
        chain = self._chains.get(root)
        if chain is None:
            self._chains[number] = TrialChain()
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

    def _merged(self, chain: TrialChain, values: Worth, trial: Trial) -> tuple[int, Worth]:
        """How many rungs this trial has reached, and its configuration's values, including this trial's reports at
        those rungs.

        Of two trials that say something of a rung, the first counts; in a population, the last one that went on to it.
        """
        at = chain.promoted if self.population is not None else 0
        if not trial.reports or self.policy is None:
            return at, values
        merged = list(values)
        for level in self.policy.levels[at:]:
            value = value_from(trial.reports, level + self.policy.first_step - 1)
            if value is None:  # if it reports less often, what it said next counts
                break
            if at >= len(merged):
                merged.append((trial.number, value))
            elif merged[at][0] == trial.number or (merged[at][0] < trial.number) == (self.population is not None):
                merged[at] = trial.number, value
            at += 1
        return at, tuple(merged)

    def _place(self, root: int, trials: Sequence[Trial]) -> None:
        chain = self._chains[root]
        live = [trials[number] for number in chain.live]
        takes = chain.takes or any(trial.state is TrialState.RUNNING for trial in live)
        self._used += takes - chain.counted
        chain.counted = takes
        values = chain.values
        for trial in live:
            _, values = self._merged(chain, values, trial)
            self._set_resumable(trial.number, resumable=takes and trial.state is TrialState.WAITING)
        reached = tuple([value for _, value in values])
        self.standings.place(root, self.standings.standing_of(chain, reached, live=bool(live)))

    def _set_resumable(self, number: int, *, resumable: bool) -> None:
        at = bisect.bisect_left(self.resumable, number)
        if (self.resumable[at : at + 1] == [number]) is resumable:
            return
        if resumable:
            self.resumable.insert(at, number)
        else:
            del self.resumable[at]

    # --- what follows from it ---

    def used(self, counts: Sequence[int]) -> int:  # noqa: ARG002
        return self._used

    def root(self, number: int) -> int:
        return self._root.get(number, number)

    def is_counted(self, number: int) -> bool:
        return self._chains[self.root(number)].counted

    def pauses_at(self, number: int) -> int | None:
        return self.standings.pauses_at(self.root(number))

    def is_at_rung(self, number: int, reports: Mapping[int, float]) -> bool:
        return self._has_come(self.pauses_at(number), reports)

    def may_pause(self, number: int, reports: Mapping[int, float]) -> bool:
        return self._has_come(self.standings.may_pause_at(self.root(number)), reports)

    def _has_come(self, epochs: int | None, reports: Mapping[int, float]) -> bool:
        last = None if epochs is None or self.policy is None else last_step(reports)
        return last is not None and self.policy.epochs(last) >= epochs  # type: ignore[union-attr,operator]

    def promoted(self, *, room: bool, running: bool, skip: Collection[int] = ()) -> int | None:
        roots = {self.root(number) for number in skip} if room else ()
        closing = not (running or room or self.resumable)
        best = self.standings.best(closing=closing, room=room, skip=roots)
        if best is None:
            return None
        chain = self._chains[best]
        return chain.paused if chain.paused >= 0 else chain.last

    def sources(self, number: int) -> list[int]:
        root = self.root(number)
        chain, rung = self._chains[root], len(self.standings.standing(root).reached)
        found = [self._chains[better].pauses.get(rung) for better in self.standings.better(root)]
        if not any(one is not None for one in found) and chain.paused < 0:  # it failed: not as it was before
            found = [chain.pauses.get(rung)]
        return [one for one in found if one is not None]

    def may_be_continued(self, number: int, *, most: int | None) -> bool:
        root = self.root(number)
        return self.standings.may_be_continued(root, self._chains[root], number, used=self._used, most=most)


def follow_fidelity(state: State) -> None:
    """Sort the trials by the rungs or the population that the study's attributes say now."""
    text = state.system.get(FIDELITY)
    if text is None or state.define is None:
        return
    policy = decode_fidelity(text) if len(state.define.directions) == 1 else None
    state.configurations = Configurations(policy, maximize=state.define.directions[0] == "maximize")
    state.configurations.refresh(state.trials)
