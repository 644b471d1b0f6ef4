"""A study with rungs or a population for people: one row per configuration, who stands on which rung, what went on from
where, and whose training each one's weights come from. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hopaas_p2p.core.admission import Continue, Start, next_start
from hopaas_p2p.core.lineage import copied_trial, own_steps, segments
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.rungs import Ladder
from hopaas_p2p.core.standings import RungCount
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, REFUSALS, RUNNING, WAITING, Pausing, State, Trial


class ConfigurationRow(NamedTuple):
    """One configuration: all trials that tried it, as if they were one."""

    first: int
    """The number of its first trial, by which it is known."""
    trials: tuple[int, ...]
    """Their numbers, the newest last."""
    state: str
    """running, paused, complete, pruned, fail or waiting."""
    newest: Trial
    """The trial that says most about it: the one that runs, waits or ended it."""
    bracket: int | None
    epochs: int
    """How far it has come."""
    pauses_at: int | None
    """After how many epochs it pauses next; None: it does not, or there are no rungs."""
    reached: tuple[float, ...]
    """What it was worth at each rung that it has reached."""
    sites: tuple[str, ...]
    """Where it ran, in order, without repeats."""


class WentOn(NamedTuple):
    """A configuration went on from a checkpoint: its own at a rung, or as a population's member another one's."""

    first: int
    trial: int
    """The trial that goes on."""
    source: int
    """The configuration whose checkpoint it was."""
    paused: int
    """Its trial that had paused."""
    epochs: int
    """How many were done."""
    at: int | None
    """When, in microseconds since 1970, by the clock of the peer that goes on."""
    site_before: str | None
    site: str | None


_SAYS_MOST: Final = (FAIL, PRUNED, WAITING, COMPLETE, RUNNING)
"""States in the order of how much a trial in it says about its configuration."""


def rows(state: State) -> list[ConfigurationRow]:
    """The configurations of a study, by their first trials."""
    chains: dict[int, list[Trial]] = {}
    for trial in state.trials:
        chains.setdefault(state.configurations.root(trial.number), []).append(trial)
    policy, ladder = state.configurations.policy, state.configurations.standings
    first_step = 0 if policy is None else policy.first_step
    found = []
    for first, chain in chains.items():
        newest = max(chain, key=lambda trial: (_SAYS_MOST.index(trial.state), trial.number))
        standing = ladder.standing(first) if first in ladder else None
        if newest.paused and standing is not None and standing.over:
            newest = chain[-1]  # it went on from there, and failed
        steps = [max(trial.reports) for trial in chain if trial.reports]
        owners = [owner for trial in chain for owner in (*(past.owner for past in trial.history), trial.owner) if owner]
        sites = dict.fromkeys(site for owner in owners if (site := state.peers.get(owner, {}).get("site")))
        row = ConfigurationRow(
            first=first,
            trials=tuple([trial.number for trial in chain]),
            state="paused" if newest.paused else newest.state.name.lower(),
            newest=newest,
            bracket=None if standing is None else ladder.bracket(first),
            epochs=max(steps) - first_step + 1 if steps else 0,
            pauses_at=None if standing is None else ladder.pauses_at(first),
            reached=() if standing is None else standing.reached,
            sites=tuple(sites),
        )
        found.append(row)
    return found


def promotions(state: State) -> list[WentOn]:
    """What was promoted when, and by which site, in the order of the log."""
    return [_went_on(state, trial, trial.continues) for trial in state.trials if trial.continues is not None]


def copies(state: State) -> list[WentOn]:
    """Which member of a population copied which, in the order of the log."""
    found = [(trial, copied_trial(trial)) for trial in state.trials if trial.continues is not None]
    return [_went_on(state, trial, number) for trial, number in found if number is not None]  # a retry copies nothing


def _went_on(state: State, trial: Trial, paused: int) -> WentOn:
    source, root = state.trials[paused], state.configurations.root
    sites = (state.peers.get(one.owner or "", {}).get("site") for one in (source, trial))
    epochs = epochs_of(state, max(source.reports, default=-1))
    return WentOn(root(trial.number), trial.number, root(paused), paused, epochs, trial.start, *sites)


def stretches(state: State) -> list[tuple[int, int, int, int]]:
    """Member, trial, and between which epochs it came beyond where it began, by the order of the log."""
    found = []
    for trial in state.trials:
        own = own_steps(state.trials, trial, max(trial.reports)) if trial.reports else None
        if own is not None:
            begin, end = (epochs_of(state, step) for step in (own.after, own.last))
            root = state.configurations.root(trial.number)
            found.append((root, trial.number, max(0, begin), end))
    return found


def families(state: State) -> dict[int, list[int]]:
    """Member -> the members whose training led to what it is now, the first one first."""
    root, found = state.configurations.root, {}
    for row in rows(state):
        members = [root(one.trial) for one in segments(state.trials, row.newest.number)]
        found[row.first] = [one for at, one in enumerate(members) if at == 0 or members[at - 1] != one]
    return found


def epochs_of(state: State, step: int) -> int:
    """How many epochs a trial has done that reported this step last."""
    policy = state.configurations.policy
    return step + 1 if policy is None else policy.epochs(step)


def rung_counts(state: State) -> list[RungCount]:
    """Each rung of each bracket, and how many configurations are there; empty without rungs."""
    return state.configurations.standings.places()


def in_words(place: RungCount, *, brackets: int) -> str:
    """One rung in a line: `after 3 epochs: 12 reached it, 4 promoted, 7 waiting`."""
    where = f"bracket {place.bracket}, " if brackets > 1 else ""
    return (
        f"{where}after {place.epochs} epoch{'s' * (place.epochs != 1)}: "
        f"{place.reached} reached it, {place.promoted} promoted, {place.waiting} waiting"
        + ("; trials no longer pause here, because the eventual best ranked low at this rung" if place.passed else "")
    )


def next_in_words(state: State) -> str:
    """What the next peer that asks will do, and if nothing is promoted, why."""
    configurations, found = state.configurations, next_start(state)
    if configurations.policy is None:
        return ""
    ended = state.limit_reached() or (None if found.why in (None, "budget") else REFUSALS[found.why])
    if ended is not None:
        return f"nothing continues now: {ended}"
    if isinstance(found, Start) and found.number in configurations.resumable:
        return f"trial {found.number}, which was interrupted after its promotion, continues next"
    if isinstance(found, Continue):
        return f"trial {found.number} continues next"
    members, running = configurations.standings, state.counts[TrialState.RUNNING]
    if configurations.population is None:
        return f"nothing is promoted now: {_why_not(state, configurations)}"
    if state.has_room():
        waits = f"; {members.waiting()} wait until all have started" if members.waiting() else ""
        return f"a new member starts next, {state.used() + 1} of {state.places()}{waits}"
    return f"no member is waiting; {running} running"


def _why_not(state: State, configurations: Pausing) -> str:
    ladder = configurations.standings
    assert isinstance(ladder, Ladder)
    eta, places = ladder.policy.eta, [place for place in ladder.places() if place.waiting]
    lacking = [place for place in places if place.reached < eta]
    if not state.trials:
        why = "no trial has run yet"
    elif not places:  # those that have paused will not be promoted, whatever others report
        roots = {configurations.root(trial.number) for trial in state.trials if trial.paused}
        count = sum(ladder.standing(root).waits and not ladder.may_be_promoted(root, most=None) for root in roots)
        more = f"; {count} that reported NaN or infinity {'is' if count == 1 else 'are'} not continued"
        why = f"no trial is waiting at a rung{more * (count > 0)}"
    elif len(lacking) == len(places):
        place = lacking[0]
        why = f"a rung promotes one trial in {eta}, and only {place.reached} reached epoch {place.epochs}"
    else:
        end = "" if state.has_room() else ", and the budget has no room for new ones"
        running = state.counts[TrialState.RUNNING]
        wait = f"; {running} running" if running else ""
        why = f"those waiting are not among the best 1/{eta} of their rungs{end}{wait}"
    unproved = f"; no trial pauses until {ladder.policy.whole} have been trained to the end"
    return f"{why}{unproved * ladder.is_unproved()}"
