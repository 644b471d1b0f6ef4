"""A study with rungs for people: one row per configuration, and who stands on which rung. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import NamedTuple

from hopaas_p2p.core.admission import Continue, Start, next_start
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.rungs import Ladder, Rungs
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


class PromotionEvent(NamedTuple):
    """A configuration went on from a rung."""

    first: int
    paused: int
    """The trial that had paused."""
    trial: int
    """The one that goes on."""
    at: int | None
    """When, in microseconds since 1970, by the clock of the peer that goes on."""
    epochs: int
    """How many were done."""
    site_before: str | None
    site: str | None


def chains(state: State) -> dict[int, list[Trial]]:
    """The trials of each configuration, by the number of the first; the newest last."""
    found: dict[int, list[Trial]] = {}
    root = state.configurations.root
    for trial in state.trials:
        found.setdefault(root(trial.number), []).append(trial)
    return found


def newest_of(chain: list[Trial]) -> Trial:
    """The trial that says most about a configuration: running before complete, before one that waits, before others."""
    order = (FAIL, PRUNED, WAITING, COMPLETE, RUNNING)
    return max(chain, key=lambda trial: (order.index(trial.state), trial.number))


def rows(state: State) -> list[ConfigurationRow]:
    """The configurations of a study, by their first trials."""
    return [_row(state, first, chain) for first, chain in chains(state).items()]


def _row(state: State, first: int, chain: list[Trial]) -> ConfigurationRow:
    newest = newest_of(chain)
    policy, ladder = state.configurations.policy, state.configurations.standings
    standing = ladder.standing(first) if first in ladder else None
    if newest.paused and standing is not None and standing.over:
        newest = chain[-1]  # it went on from there, and failed
    word = "paused" if newest.paused else newest.state.name.lower()
    first_step = 0 if policy is None else policy.first_step
    steps = [max(trial.reports) for trial in chain if trial.reports]
    owners = [owner for trial in chain for owner in (*(past.owner for past in trial.history), trial.owner) if owner]
    sites = dict.fromkeys(site for owner in owners if (site := state.peers.get(owner, {}).get("site")))
    return ConfigurationRow(
        first,
        tuple([trial.number for trial in chain]),
        word,
        newest,
        None if standing is None else ladder.bracket(first),
        max(steps) - first_step + 1 if steps else 0,
        None if standing is None else ladder.pauses_at(first),
        () if standing is None else standing.reached,
        tuple(sites),
    )


def promotions(state: State) -> list[PromotionEvent]:
    """What was promoted when, and by which site, in the order of the log."""
    found = []
    for trial in state.trials:
        if trial.continues is None:
            continue
        before = state.trials[trial.continues]
        policy = state.configurations.policy
        steps = max(before.reports, default=-1)
        found.append(
            PromotionEvent(
                state.configurations.root(trial.number),
                before.number,
                trial.number,
                trial.start,
                steps + 1 if policy is None else policy.epochs(steps),
                state.peers.get(before.owner or "", {}).get("site"),
                state.peers.get(trial.owner or "", {}).get("site"),
            )
        )
    return found


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
    if configurations.population is not None:
        return _next_member(state)
    first = ""
    if isinstance(configurations.standings, Ladder) and configurations.standings.is_unproved():
        first = f"; no trial pauses until {configurations.standings.policy.whole} have been trained to the end"
    return f"nothing is promoted now: {_why_not(state, configurations)}{first}"


def _next_member(state: State) -> str:
    members, running = state.configurations.standings, state.counts[TrialState.RUNNING]
    if state.has_room():
        waits = f"; {members.waiting()} wait until all have started" if members.waiting() else ""
        return f"a new member starts next, {state.used() + 1} of {state.places()}{waits}"
    return f"no member is waiting; {running} running"


def _why_not(state: State, configurations: Pausing) -> str:
    policy = configurations.policy
    assert isinstance(policy, Rungs)
    eta = policy.eta
    places = [place for place in configurations.standings.places() if place.waiting]
    if not places:
        diverged = _diverged(state, configurations)
        more = f"; {diverged} that reported NaN or infinity {'is' if diverged == 1 else 'are'} not continued"
        return f"no trial is waiting at a rung{more * (diverged > 0)}" if state.trials else "no trial has run yet"
    lacking = [place for place in places if place.reached < eta]
    if len(lacking) == len(places):
        place = lacking[0]
        return f"a rung promotes one trial in {eta}, and only {place.reached} reached epoch {place.epochs}"
    end = "" if state.has_room() else ", and the budget has no room for new ones"
    running = state.counts[TrialState.RUNNING]
    wait = f"; {running} running" if running else ""
    return f"those waiting are not among the best 1/{eta} of their rungs{end}{wait}"


def _diverged(state: State, configurations: Pausing) -> int:
    """How many configurations have paused, and will not be promoted whatever others report."""
    ladder = configurations.standings
    assert isinstance(ladder, Ladder)
    roots = {configurations.root(trial.number) for trial in state.trials if trial.paused}
    return sum(ladder.standing(root).waits and not ladder.may_be_promoted(root, most=None) for root in roots)
