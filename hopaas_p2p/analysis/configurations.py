"""A study with rungs or a population, for display, as one row per configuration, the counts at each rung, and the trial
that continues next.

The module does no I/O and reads no clock.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hopaas_p2p.analysis.facts import trial_word
from hopaas_p2p.core.admission import Continue, Start, next_start
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.rungs import Ladder
from hopaas_p2p.core.standings import RungCount
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, REFUSALS, RUNNING, WAITING, State, Trial


class ConfigurationRow(NamedTuple):
    """All trials of one configuration, as if they were one."""

    first: int
    """The number of its first trial, which identifies the configuration."""
    trials: tuple[int, ...]
    """The numbers of its trials, newest last."""
    state: str
    """One of running, paused, complete, pruned, fail and waiting."""
    newest: Trial
    """The most informative trial, which runs, waits, or ended the configuration."""
    epochs: int
    """The number of epochs for which the configuration has been trained."""
    pauses_at: int | None
    """The number of epochs after which the configuration pauses next; None if it does not pause, or there are no
    rungs."""
    reached: tuple[float, ...]
    """The configuration's value at each rung that it has reached."""
    sites: tuple[str, ...]
    """The sites where its trials ran, in order, without repeats."""


_SAYS_MOST: Final = (FAIL, PRUNED, WAITING, COMPLETE, RUNNING)
"""States, ordered by how much a trial in that state reveals about its configuration."""


def rows(state: State) -> list[ConfigurationRow]:
    """The configurations of a study, by their first trials."""
    chains: dict[int, list[Trial]] = {}
    for trial in state.trials:
        chains.setdefault(state.configurations.root(trial.number), []).append(trial)
    policy, configurations = state.configurations.policy, state.configurations
    first_step = 0 if policy is None else policy.first_step
    found = []
    for first, chain in chains.items():
        newest = max(chain, key=lambda trial: (_SAYS_MOST.index(trial.state), trial.number))
        standing = configurations.standing(first)
        if newest.paused and standing.over:
            newest = chain[-1]  # a trial that continued it has failed
        steps = [max(trial.reports) for trial in chain if trial.reports]
        owners = [owner for trial in chain for owner in (*(past.owner for past in trial.history), trial.owner) if owner]
        sites = dict.fromkeys(site for owner in owners if (site := state.peers.get(owner, {}).get("site")))
        row = ConfigurationRow(
            first=first,
            trials=tuple([trial.number for trial in chain]),
            state=trial_word(newest).lower(),
            newest=newest,
            epochs=max(steps) - first_step + 1 if steps else 0,
            pauses_at=configurations.pauses_at(first),
            reached=standing.reached,
            sites=tuple(sites),
        )
        found.append(row)
    return found


def in_words(place: RungCount, *, brackets: int) -> str:
    """One rung in a line, such as `after 3 epochs: 12 reached it, 4 promoted, 7 waiting`."""
    where = f"bracket {place.bracket}, " if brackets > 1 else ""
    return (
        f"{where}after {place.epochs} epoch{'s' * (place.epochs != 1)}: "
        f"{place.reached} reached it, {place.promoted} promoted, {place.waiting} waiting"
        + ("; trials no longer pause here, because the eventual best ranked low at this rung" if place.passed else "")
    )


def next_in_words(state: State) -> str:
    """Which trial the next peer will get, or why nothing is promoted; empty if the study has no rungs or population."""
    configurations, found = state.configurations, next_start(state)
    if configurations.policy is None:
        return ""
    ended = state.ledger.reached or (None if found.why in (None, "budget") else REFUSALS[found.why])
    if ended is not None:
        return f"nothing continues now: {ended}"
    if isinstance(found, Start) and found.number in configurations.resumable:
        return f"trial {found.number}, which was interrupted after its promotion, continues next"
    if isinstance(found, Continue):
        return f"trial {found.number} continues next"
    running = state.counts[TrialState.RUNNING]
    if isinstance(configurations, Ladder):
        also = f"; {running} running" * bool(running)
        if any(place.waiting for place in configurations.places()):
            best = f"those waiting are not among the best 1/{configurations.policy.eta} of their rungs"
            return f"nothing is promoted now: {best}{also}"
        # the paused trials will not be promoted, whatever others report
        roots = {configurations.root(trial.number) for trial in state.trials if trial.paused}
        waiting = [root for root in roots if configurations.standing(root).waits]
        count = sum(not configurations.may_be_promoted(root, most=None) for root in waiting)
        more = f"; {count} that reported NaN or infinity {'is' if count == 1 else 'are'} not continued"
        return f"nothing is promoted now: no trial is waiting at a rung{more * (count > 0)}{also}"
    if state.has_room():
        paused = configurations.waiting()
        waits = f"; paused until all have started: {paused}" if paused else ""
        return f"a new member starts next, {state.used() + 1} of {state.places()}{waits}"
    return f"no member is waiting; {running} running"
