"""Derives from a study's trials which of them try the same configuration, and where each configuration stands.

A configuration is a chain of trials: the first with its parameters, its retries, a late result, and continuations of
trials that paused at a rung. The chain counts once, in budgets as on rungs, and keeps its bracket for life. Its value
at a rung is the report of the first of its trials that reached the rung; a later attempt does not change it.

In a population the chain is a member, whose parameters change. Its value at a rung is the report of the newest of its
trials that reached the rung. A failed continuation does not end the member, which then continues from a better one.

All results depend only on the trials as they are now. So a state loaded from a snapshot makes the same decisions as one
that has replayed the log, and after a change of its rungs, a study sorts its trials again. `apply` records which trials
it touched, and only their configurations are processed again.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from hopaas_p2p.core.fidelity import MOST_RUNGS, Fidelity
from hopaas_p2p.core.inherited import last_step, value_from
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.standings import Key, Ranking, RungStanding, TrialChain, Worth, remove
from hopaas_p2p.core.state import TAKES_A_PLACE, Pausing, Trial

_LIVE: Final = (TrialState.RUNNING, TrialState.WAITING)


def follows(trial: Trial) -> int | None:
    """The earlier trial of the same configuration that this one follows; None if it is the first."""
    for number in (trial.continues, trial.retry_of, trial.late_of):
        if number is not None:
            return number
    return None


class Configurations(Pausing):
    """The configurations of a study that no longer has rungs or a population; a chain of trials still counts once.

    The state depends only on the order in which configurations were admitted and on where each stands now, so a rebuilt
    object decides exactly like one that was kept. Each configuration is known by the number of its first trial.

    Args:
        policy: the rungs or the population of a subclass.
        maximize: whether large values are good.

    """

    def __init__(self, policy: Fidelity | None = None, *, maximize: bool = False) -> None:
        self.policy = policy
        self.resumable: list[int] = []
        self._sign = -1.0 if maximize else 1.0
        self._standing: dict[int, RungStanding] = {}
        self._used = 0
        self._root: dict[int, int] = {}
        self._chains: dict[int, TrialChain] = {}
        self._known = 0

    # --- processing changes ---

    def refresh(self, trials: Sequence[Trial], touched: set[int]) -> None:
        if not touched and self._known == len(trials):
            return
        roots = {self._note(trials[number]): None for number in sorted({*touched, *range(self._known, len(trials))})}
        touched.clear()
        for root in roots:
            self._locate(root, trials)

    def _note(self, trial: Trial) -> int:
        """Process a trial that is new or has changed; return the number of its configuration."""
        number = trial.number
        if number >= self._known:
            self._known = number + 1
            self._link(trial)
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
            chain.last, chain.failed, chain.infeasible = number, failed, not trial.feasible
        chain.takes = chain.takes or trial.state in TAKES_A_PLACE
        reached, chain.values = self._merged(chain, chain.values, trial)
        if trial.paused and number > chain.continued:
            chain.paused, chain.paused_rungs = number, reached
            chain.pauses[reached] = number
        return root

    def _link(self, trial: Trial) -> None:
        """Process a new trial, which is a configuration of its own, or the next trial of one."""
        number, before = trial.number, follows(trial)
        root = number if before is None else self.root(before)
        chain = self._chains.get(root)
        if chain is None:
            self._chains[number] = TrialChain()
            self.admit(number)
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

        Of two trials with a report for a rung, the first counts; in a population, the last that continued to the rung.
        """
        at = chain.promoted if self.population is not None else 0
        if not trial.reports or self.policy is None:
            return at, values
        merged = list(values)
        for level in self.policy.levels[at : at + MOST_RUNGS]:
            value = value_from(trial.reports, level + self.policy.first_step - 1)
            if value is None:  # a trial that reports less often counts with its next report
                break
            if at >= len(merged):
                merged.append((trial.number, value))
            elif merged[at][0] == trial.number or (merged[at][0] < trial.number) == (self.population is not None):
                merged[at] = trial.number, value
            at += 1
        return at, tuple(merged)

    def _locate(self, root: int, trials: Sequence[Trial]) -> None:
        """Update where a configuration stands."""
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
        self.place(root, self._standing_of(chain, reached, live=bool(live)))

    def _set_resumable(self, number: int, *, resumable: bool) -> None:
        at = bisect.bisect_left(self.resumable, number)
        if (self.resumable[at : at + 1] == [number]) is resumable:
            return
        if resumable:
            self.resumable.insert(at, number)
        else:
            del self.resumable[at]

    def _standing_of(self, chain: TrialChain, reached: tuple[float, ...], *, live: bool) -> RungStanding:
        """Where the configuration of this chain stands, given its value at each rung that it has reached."""
        idle = not live and not chain.complete
        waits = idle and chain.paused >= 0
        if idle and chain.failed:
            reached = (math.nan,) * len(reached)
        end = None if live or chain.promoted or chain.end is None else chain.end[1]
        over = not live and not waits
        return RungStanding(reached, chain.promoted, waits, over, end, infeasible=chain.infeasible)

    # --- where they stand ---

    def admit(self, number: int) -> None:
        """Admit a new configuration."""
        self._standing[number] = RungStanding()

    def place(self, number: int, to: RungStanding) -> None:
        """Record where a configuration stands now."""
        before = self._standing[number]
        if to == before:
            return
        self._standing[number] = to
        for at, (old, new) in enumerate(itertools.zip_longest(before.reached, to.reached)):
            if old != new or before.infeasible != to.infeasible:
                ranking = self._ranking(number, at)
                if old is not None:
                    remove(ranking, (self.key(old, before), number))
                if new is not None:
                    bisect.insort(ranking, (self.key(new, to), number))
        self._placed(number, before, to)

    def key(self, value: float, standing: RungStanding) -> Key:
        """The rank key of a configuration with this standing and this value; diverged ones rank behind all others."""
        worth = math.inf if math.isnan(value) else self._sign * value
        return standing.infeasible or worth == math.inf, worth

    def _ranking(self, number: int, at: int) -> Ranking:  # noqa: ARG002
        """All configurations that have reached a rung and with which this one is compared there."""
        return []

    def _placed(self, number: int, before: RungStanding, to: RungStanding) -> None:
        """Account for a configuration's change of standing."""

    def best(self, *, closing: bool = False, room: bool = False, skip: Collection[int] = ()) -> int | None:  # noqa: ARG002
        """The configuration to continue now; None if there is none.

        Args:
            closing: nothing runs and no new configuration will begin. Each rung that has been reached then promotes at
                least one, so that even a study too small for its rungs ends with a complete training run.
            room: whether a new configuration may begin.
            skip: configurations to pass over.

        """
        return None

    # --- questions about a trial's configuration ---

    def used(self, counts: Sequence[int]) -> int:  # noqa: ARG002
        return self._used

    def root(self, number: int) -> int:
        return self._root.get(number, number)

    def is_counted(self, number: int) -> bool:
        return self._chains[self.root(number)].counted

    def standing(self, number: int) -> RungStanding:
        return self._standing[self.root(number)]

    def is_at_rung(self, number: int, reports: Mapping[int, float], *, ever: bool = False) -> bool:
        epochs = self.may_pause_at(number) if ever else self.pauses_at(number)
        last = None if epochs is None or self.policy is None else last_step(reports)
        return last is not None and self.policy.epochs(last) >= epochs  # type: ignore[union-attr,operator]

    def promoted(self, *, room: bool, running: bool, skip: Collection[int] = ()) -> int | None:
        roots = {self.root(number) for number in skip} if room else ()
        best = self.best(closing=not (running or room or self.resumable), room=room, skip=roots)
        if best is None:
            return None
        chain = self._chains[best]
        return chain.paused if chain.paused >= 0 else chain.last
