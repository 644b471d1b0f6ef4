"""Recovers the readable parts of a damaged study into a new study, for `hopaas-p2p doctor STORE --rescue`.

A log is damaged if an earlier commit is missing, or intact but not as written, or if the log has two histories
(`core.codec`): a server accepted two commits under one lsn, or an older copy was restored under running peers. Peers
stop at the damage, because later commits may mean something else without an earlier one. (Trials are numbered in the
order of the log, and a result names its trial by number.) A rescue reads on.

A peer that stops saves its last 1,000 acknowledged commits in its spool, and every commit is kept with its lsn and the
sum of the log before it. So the commits form a tree: a commit follows the one at the preceding lsn after which the log
has that sum. A path from the root to a leaf is a history that some peer has read, and a replay of it gives the state
that its peers saw. The trials of all replays are merged. A trial is identified by the commit that created it, and
a run of it by owner, start and parameters, so shared trials appear once, each with the most advanced of its versions.

* A snapshot made after the damage replaces all commits before it. So does the state of a live peer, which the peer
  hands over on request (`ask_live_peers`). Nothing is lost then. Anyone who may write to the study may answer, so
  unrequested answers are not read.
* Otherwise the commits after the damage reveal how many trials the missing ones had started. The number with which the
  fewest of the later commits are refused is assumed. The missing trials are recreated for their owners without their
  parameters, which are lost; later records of their owners are kept. Every trial that such a commit mentions is marked.
* Commits that never got a place in a log are applied after the earlier commits of their writer (`spool`).

Nothing in the store is changed. The resulting state is copied into a new study, in which the work continues.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from hopaas_p2p import spool
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.names import NO_REQUEST, ONLY_OWNERS, handover_prefix, request_name
from hopaas_p2p.core.records import (
    Commit,
    TrialCheckpoint,
    TrialCreate,
    TrialFinish,
    TrialRelease,
    TrialSet,
    TrialState,
)
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreCorrupt
from hopaas_p2p.moving.arrival import Arrived, bring_in
from hopaas_p2p.moving.files import from_store
from hopaas_p2p.moving.records import Renumber, StudyRecords, linked, of_state, record_of, renamed
from hopaas_p2p.peer.handover import REQUESTS_EVERY
from hopaas_p2p.runtime.atomic import scratch
from hopaas_p2p.stores.base import Beat, Entry, Log, Store, read_all

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage

MARK: Final = "rescued"
"""The user attribute of a trial whose data are uncertain, and the key in the new study's definition."""
_MOST: Final = 64  # trials that a run of missing commits may have started
_EFFORT: Final = (100, 500)
"""How many commits and trials may be replayed per commit and trial of the log, to guess what is missing."""
_MOST_HISTORIES: Final = 100
"""The number of histories replayed from the root. Other histories' own commits follow those of the longest one."""
_OF_A_TRIAL: Final = (TrialSet, TrialFinish, TrialCheckpoint, TrialRelease)
_WATCH: Final = 1.0  # seconds between checks for answers of live peers
_RANKS: Final = (TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE)
_OVER: Final = _RANKS.index(TrialState.FAIL)  # the lowest rank of an ended trial


class Rescued(NamedTuple):
    """The data recovered from a damaged log."""

    study: StudyRecords | None
    """None if not even the definition can be read."""
    uncertain: dict[int, int]
    """Trial -> the damaged commit after which a record mentioned it."""
    unknown: list[int]
    """Trials started by damaged commits, whose parameters are lost."""
    from_spool: int
    """Commits that came from this user's spool."""
    histories: int
    """The number of merged histories."""
    damaged: list[range] = []
    """Lsns of unreadable commits, as ranges, because a commit far beyond the end of the log leaves a wide gap."""
    covered: list[range] = []
    """The damaged lsns that a snapshot or a live peer's state replaces."""
    lost: list[range] = []
    """The damaged lsns that nothing replaces."""
    disputed: bool = False
    """Whether a commit is stored with another sum than that of the commits before it."""


class _Guesses:
    """How many commits and trials may still be replayed to guess what is missing, as a log may consist mostly of gaps.

    When the allowance is used up, no trial is assumed missing, and a commit without a known predecessor follows the one
    before it.
    """

    def __init__(self, left: int) -> None:
        self._left = left

    def allow(self, size: int) -> bool:
        """Whether another `size` commits and trials may be replayed, which then count against the allowance."""
        self._left -= size
        return self._left >= 0


# --- reading ---


def names_of(store: Store) -> tuple[dict[str, str], bool]:
    """Uuid -> name of the studies in the store's list, as far as it can be read; and whether all of it can be read."""
    catalog = Catalog()
    entries, head, _ = _salvaged(store.catalog())
    catalog.replay(entry for _, entry in sorted(entries.items()))
    return {listing.uuid: listing.name for listing in catalog.by_id.values()}, len(entries) == head


def damage(store: Store, uuid: str) -> str | None:
    """Why peers stop at this log, or which acknowledged commits it lacks, as an older backup does; or None."""
    found, log = rescue(store, uuid, unsent=False), store.log(uuid)
    if found.damaged:
        count, first = sum(run.stop - run.start for run in found.damaged), found.damaged[0].start
        return f"{count} commit{'s' * (count != 1)} cannot be read, from commit {first} on"
    if found.histories > 1:
        return f"the log has {found.histories} histories: some commits do not follow the commits before them"
    if found.disputed:
        return "the sum that is stored with a commit is not that of the commits before it"
    if found.from_spool and any(spool.histories(uuid)):
        return f"the log lacks {found.from_spool} of the commits in this machine's spool"
    try:
        for _ in read_all(log, log.removed_up_to()):
            pass
    except StoreCorrupt as error:  # the commits are intact, but not what is stored beside them
        return str(error)
    return None


def _contains(state: State, payload: bytes) -> bool:
    """Whether a state has applied this commit."""
    writer, _, sequence = codec.nonce_of(payload).rpartition(":")
    return writer in state.writers and int(sequence) <= state.writers[writer].seq


def rescue(store: Store, uuid: str, handed_over: Iterable[str] = (), *, unsent: bool = True) -> Rescued:
    """Read all that can be read of a study, the states that live peers `handed_over` (keys of files), and the spool.

    Without `unsent`, results that were never in the log do not count, because the spool may also have those of an
    intact study.
    """
    log = store.log(uuid)
    entries, head, others = _salvaged(log)
    there = {codec.nonce_of(entry.payload) for entry in (*entries.values(), *others)}
    states = sorted([*_snapshots(log), *_handed_over(store, handed_over)], key=lambda state: state.lsn)
    removed = log.removed_up_to()
    base = next((one for one in states if removed and one.lsn >= removed), State())
    placed, loose = _kept(uuid, entries, there, unsent=unsent)
    placed = [entry for entry in placed if not _contains(base, entry.payload)] + others
    agreed = _shared(entries, head)
    shared = min(agreed, *[entry.lsn - 1 for entry in placed], head)
    root = max([base, *(one for one in states if one.lsn <= shared or shared == head)], key=lambda one: one.lsn)
    read = [base.lsn, *sorted(lsn for lsn in entries if lsn > base.lsn), max(head, base.lsn) + 1]
    damaged = [range(one + 1, other) for one, other in itertools.pairwise(read) if other > one + 1]
    loose += [entry.payload for entry in placed if entry.lsn <= root.lsn]
    loose = [payload for payload in loose if not _contains(root, payload)]
    rest = [entry for entry in (*entries.values(), *placed) if entry.lsn > root.lsn]
    later = [state for state in states if state.lsn > root.lsn]
    found = united(root, root.sum, rest, loose, later=later, there=there, uuid=uuid)
    covered = [range(run.start, min(run.stop, root.lsn + 1)) for run in damaged if run.start <= root.lsn]
    lost = [range(max(run.start, root.lsn + 1), run.stop) for run in damaged if run.stop > root.lsn + 1]
    return found._replace(damaged=damaged, covered=covered, lost=lost, disputed=agreed < head)


def _shared(entries: Mapping[int, Entry], head: int) -> int:
    """The lsn up to which all commits of the log agree on its content; its head, if they all do."""
    shared = head
    for lsn, entry in sorted(entries.items(), reverse=True):
        earlier = entries.get(lsn - 1)
        if earlier is None or entry.before is None or earlier.before is None:
            continue
        if entry.before != following(earlier.before, earlier.payload):
            shared = lsn - 2  # one of two commits was accepted over the other
    return shared


def _kept(
    uuid: str, entries: Mapping[int, Entry], there: Container[str], *, unsent: bool
) -> tuple[list[Entry], list[bytes]]:
    """Commits of the study that this user's spool has and its log lacks: those with a place, and others."""
    placed: list[Entry] = []
    loose: list[bytes] = []
    for _, spooled in itertools.chain(spool.histories(uuid), spool.waiting() if unsent else ()):
        if spooled.study != uuid:
            continue
        for (lsn, total), payload in zip(spooled.places, spooled.payloads, strict=True):
            if lsn and total is not None:
                if lsn not in entries or (entries[lsn].payload, entries[lsn].before) != (payload, total):
                    placed.append(Entry(lsn, payload, before=total))
            elif codec.nonce_of(payload) not in there:
                loose.append(payload)
    return placed, loose


def _salvaged(log: Log) -> tuple[dict[int, Entry], int, list[Entry]]:
    """The intact commits of a log by lsn, its last lsn, and the commits that compete with them.

    A competing commit has the same lsn as another one in the log as it is now.
    """
    found: dict[int, Entry] = {}
    others: list[Entry] = []
    head = 0
    for entry in log.salvage():
        if entry.lsn < 1:  # which no writer of ours uses
            continue
        head = max(head, entry.lsn)
        if codec.intact(entry.payload) and found.setdefault(entry.lsn, entry) is not entry:
            others.append(entry)
    return found, head, others


def _snapshots(log: Log) -> Iterator[State]:
    """The readable snapshots of the log."""
    found = log.newest_snapshot()
    while found is not None:
        with contextlib.suppress(snapshot.CorruptSnapshot):
            state = snapshot.load(found[1])
            if state.lsn == found[0]:
                yield state
        found = log.newest_snapshot(before=found[0])


# --- histories ---


class _Node:
    """A commit at its place in a history.

    Args:
        entry: the commit.
        after: the sum of the log after it; None if unknown.
        parent: the commit that it follows; None for the root.

    """

    def __init__(self, entry: Entry, after: int | None, parent: _Node | None = None) -> None:
        self.entry, self.after, self.parent = entry, after, parent
        self.guessed = False
        """Whether the commit before this one was guessed, because the sums do not show it."""

    def path(self) -> list[_Node]:
        """The commits of its history after the root, up to this one."""
        found, node = list[_Node](), self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


def _histories(
    root: State, total: int | None, entries: Iterable[Entry], loose: Iterable[bytes], guesses: _Guesses
) -> list[list[_Node]]:
    """All histories after a shared state, the longest first; arguments as in `united`."""
    start, loose = _Node(Entry(root.lsn, b""), total), list(loose)
    at: dict[int, list[_Node]] = defaultdict(list, {root.lsn: [start]})
    orphans: list[tuple[int, _Node]] = []
    known = {(entry.lsn, entry.before, entry.payload): entry for entry in entries}
    for place, entry in enumerate(sorted(known.values(), key=lambda one: one.lsn)):
        node = _Node(entry, None if entry.before is None else following(entry.before, entry.payload))
        there = (one for one in at[entry.lsn - 1] if entry.before is None or one.after in (None, entry.before))
        node.parent = next(there, None)
        orphans += [] if node.parent else [(place, node)]
        at[entry.lsn].append(node)
    occupied = sorted(lsn for lsn, some in at.items() if some)
    for place, node in orphans:
        lsn, before = node.entry.lsn, node.entry.before
        for earlier, payload in itertools.product([*at[lsn - 2]], loose):
            fits = earlier.after is not None and following(earlier.after, payload) == before
            if fits and all(one.after != before for one in at[lsn - 1]):
                if not at[lsn - 1]:
                    bisect.insort(occupied, lsn - 1)
                at[lsn - 1].append(_Node(Entry(lsn - 1, payload, before=earlier.after), before, earlier))
        node.parent = next((one for one in at[lsn - 1] if one.after == before), None)
        if node.parent is None:
            node.guessed, line = True, [node]
            while follows := [one for one in at[line[-1].entry.lsn + 1] if one.parent is line[-1]]:
                line.append(follows[0])
            last = occupied[max(bisect.bisect_left(occupied, lsn - 1) - 1, 0)]
            weight = len(root.trials) + place + len(line)
            likely = (one for one in at[lsn - 1] if not guesses.allow(weight) or _fits(root, one.path(), line))
            node.parent = next(likely, at[last][0])
    nodes = [node for some in at.values() for node in some if node is not start]
    return _paths(start, nodes + _said_out_of_place(start, nodes, loose))


def _paths(start: _Node, nodes: Sequence[_Node]) -> list[list[_Node]]:
    """The paths from here to the commits that no other follows, the longest first.

    Beyond `_MOST_HISTORIES`, what is on no other path becomes a part of the longest one.
    """
    followed = {node.parent for node in nodes}
    leaves = [node for node in nodes or [start] if node not in followed]
    leaves.sort(key=lambda one: -one.entry.lsn)
    seen = {start, *itertools.chain.from_iterable(leaf.path() for leaf in leaves[:_MOST_HISTORIES])}
    for leaf in reversed(leaves[_MOST_HISTORIES:]):
        first = leaf
        while first.parent is not None and first.parent not in seen:
            seen.add(first)
            first = first.parent
        seen.add(first)
        first.parent, first.guessed, leaves[0] = leaves[0], True, leaf
    return [leaf.path() for leaf in leaves[:_MOST_HISTORIES]]


def _fits(root: State, path: list[_Node], line: list[_Node]) -> bool:
    """Whether all commits of `line` are accepted after those of `path`, which they did not follow originally."""
    state = snapshot.load(snapshot.dump(root))
    for node in path:
        _apply(state, node.entry)
    return all(_counts(verdict) for node in line for verdict in _apply(state, node.entry))


def _said_out_of_place(start: _Node, nodes: list[_Node], loose: list[bytes]) -> list[_Node]:
    """Commits that end trials, placed after earlier commits of their writers, where their numbers are meaningful.

    The log has no place for these commits, or they were sent later for a peer that had stopped at another history.
    """
    commits = {node: commit for node in nodes if isinstance(commit := codec.decode(node.entry.payload), Commit)}
    written: dict[tuple[str, int], _Node] = {}
    numbers: dict[str, list[int]] = defaultdict(list)
    for node, commit in commits.items():
        written.setdefault((commit.writer, commit.seq), node)
        bisect.insort(numbers[commit.writer], commit.seq)
    placed, rest = set[bytes](), {*loose, *(node.entry.payload for node in commits)}
    for path in _paths(start, nodes):
        here = set[tuple[str, int]]()
        for node, commit in ((one, commits[one]) for one in path if one in commits):
            before = (commit.writer, commit.seq - 1)
            placed |= {node.entry.payload} if before in here or before not in written else set()
            here.add((commit.writer, commit.seq))
    ends = [(commit, payload) for payload in rest - placed if isinstance(commit := codec.decode(payload), Commit)]
    ends = [pair for pair in ends if any(isinstance(record, TrialFinish) for record in pair[0].records)]
    added = []
    last: dict[str, _Node] = {"": start}
    for commit, payload in sorted(ends, key=lambda pair: (pair[0].writer, pair[0].seq)):
        some = numbers.get(commit.writer, [])
        earlier = bisect.bisect_left(some, commit.seq)
        line = commit.writer if earlier else ""
        behind = last[line] if line in last else written[line, some[earlier - 1]]
        last[line] = _Node(Entry(behind.entry.lsn + 1, payload), None, behind)
        added.append(last[line])
    return added


def _apply(state: State, entry: Entry) -> tuple[Verdict, ...]:
    return apply(state, state.lsn + 1, codec.decode(entry.payload), entry.stamp)


def _counts(verdict: Verdict) -> bool:
    return verdict.accepted or verdict.refusal == "late"


def _bridged(state: State, path: list[_Node], place: int, guesses: _Guesses) -> tuple[State, range]:
    """The state after the commits that are missing before this place, and the numbers of the trials that they started.

    Chooses the number of trials with which the fewest commits up to the next gap are refused; the owner of each is the
    first peer that mentions it.
    """
    last, lsn, first = path[place].entry.lsn - 1, state.lsn + 1, len(state.trials)
    behind, lsns = (path[at].entry for at in range(place, len(path))), itertools.count(last + 1)
    rest = list(itertools.takewhile(lambda entry: entry.lsn == next(lsns), behind))
    owners: dict[int, str] = {}
    most = 0  # starting more trials than the records mention makes no further record valid
    for commit in (codec.decode(entry.payload) for entry in rest):
        for record in commit.records if isinstance(commit, Commit) else ():
            number = getattr(record, "number", None)
            most = max(most, min(_MOST, number - first + 1)) if isinstance(number, int) else most
            if isinstance(record, _OF_A_TRIAL) and record.epoch == 1:
                owners.setdefault(record.number, commit.owner)  # type: ignore[union-attr]
    saved = b""

    def started(count: int) -> State:
        tried = snapshot.load(saved)
        budget, tried.budget = tried.budget, None
        for number in range(first, first + count):
            writer, owner = f"rescue-{last}-{number}", owners.get(number)
            record = TrialCreate(TrialState.RUNNING if owner else TrialState.FAIL, reason="its commit is damaged")
            apply(tried, lsn, Commit(writer, 1, owner or writer, 0, (record,)))
            tried.writers.pop(writer)
        tried.budget, tried.lsn = budget, last
        return tried

    best = (len(rest) * codec.MAX_BYTES, 0)
    for count in range(most + 1) if most else ():  # otherwise there is nothing to guess
        if not guesses.allow(first + len(state.writers)):
            break
        saved = saved or snapshot.dump(state)
        tried, refused = started(count), 0
        for entry in rest:
            refused += sum(not verdict.accepted for verdict in _apply(tried, entry))
            if refused >= best[0] or not guesses.allow(1):
                break
        else:
            best = (refused, count)
        if not best[0]:
            break
    if not saved:
        state.lsn = last
        return state, range(0)
    return started(best[1]), range(first, first + best[1])


# --- one list of trials ---


def united(
    root: State,
    total: int | None,
    entries: Iterable[Entry],
    loose: Iterable[bytes] = (),
    *,
    later: Iterable[State] = (),
    there: Container[str] = (),
    uuid: str = "",
) -> Rescued:
    """Merge all histories after a shared state.

    Args:
        root: the state.
        total: the sum of the log up to it; None if unknown.
        entries: the commits after it, from the log and from the spools of peers.
        loose: commits without a known place. They are tried where one is missing; otherwise, those that end trials are
            applied after their writers' other commits.
        later: states whose commits are unknown.
        there: nonces of the commits of the log.
        uuid: the study's.

    """
    saved, union = snapshot.dump(root), _Union(root)
    study: StudyRecords | None = None
    its_places: dict[int, int] = {}
    accepted: set[str] = set()
    entries = list(entries)
    orders, guesses = (_Guesses(effort * (len(entries) + len(root.trials))) for effort in _EFFORT)
    paths = _histories(root, total, entries, loose, orders)
    for path in paths:
        state, origins, uncertain, missing = snapshot.load(saved), dict[int, _Known](), dict[int, int](), -1
        for place, node in enumerate(path):
            if node.guessed:
                missing = min(state.lsn + 1, node.entry.lsn - 1)  # trials from here on are uncertain
                if state.lsn < node.entry.lsn - 1:
                    state, started = _bridged(state, path, place, guesses)
                    origins |= {number: ("", node.entry.lsn, number) for number in started}
                    uncertain |= dict.fromkeys(started, missing)
            count, commit = len(state.trials), codec.decode(node.entry.payload)
            verdicts = _apply(state, node.entry)
            if isinstance(commit, Commit):
                created = range(count, len(state.trials))
                origins |= {number: (commit.writer, commit.seq, number - count) for number in created}
                accepted |= {f"{commit.writer}:{commit.seq}"} if any(map(_counts, verdicts)) else set()
            for verdict in verdicts if missing >= 0 else ():
                if verdict.accepted and verdict.number is not None:
                    uncertain.setdefault(verdict.number, missing)
        places = union.add(state, origins, uncertain)
        if study is None and state.define is not None:
            study, its_places = of_state(state)._replace(uuid=uuid), places
    for state in later:
        union.add(state, {}, {})
    trials, numbers = union.trials()
    if study is not None:
        to = _renumber(its_places, numbers)
        said = msgspec.structs.replace(study.settings, system=renamed(study.settings.system, to, to))
        study = study._replace(trials=trials, settings=said)
    return Rescued(
        study=study,
        uncertain={numbers[place]: lsn for place, lsn in union.uncertain.items() if place in numbers},
        unknown=sorted(numbers[place] for place in union.unknown if place in numbers),
        from_spool=sum(nonce not in there for nonce in accepted),
        histories=len(paths),
    )


_Known = int | tuple[str, int, int] | tuple[str | None, int, tuple[tuple[str, float], ...]]
"""The identity of a trial across histories: its number, if all have it; writer and sequence number of the commit that
created it, and its index in that commit; or, for a run of it, owner, start and parameters."""


class _Found(NamedTuple):
    record: TrialCreate
    retry_of: int | None
    numbers: dict[int, int]
    """The trials of its history: number there -> index here."""

    @property
    def rank(self) -> int:
        return _RANKS.index(self.record.state)


class _Union:
    """The trials of several histories that have the trials of this state in common."""

    def __init__(self, agreed: State) -> None:
        self._agreed = len(agreed.trials)
        self._found = [_Found(record_of(trial, agreed), trial.retry_of, {}) for trial in agreed.trials]
        self._open = [number for number, found in enumerate(self._found) if found.rank < _OVER]
        self._places: dict[_Known | None, int] = {number: number for number in self._open}
        self.uncertain: dict[int, int] = {}
        self.unknown: set[int] = set()

    def add(self, state: State, origins: Mapping[int, _Known], uncertain: Mapping[int, int]) -> dict[int, int]:
        """Merge the trials of a history, each into its place if it is more advanced than the trial there.

        Returns the index here of each of its trials whose index differs from its number.
        """
        numbers: dict[int, int] = {}
        for number in [*self._open, *range(self._agreed, len(state.trials))]:
            trial, origin = state.trials[number], number if number < self._agreed else origins.get(number)
            run = None if trial.start is None else (trial.owner, trial.start, tuple(sorted(trial.params.items())))
            found = _Found(record_of(trial, state), trial.retry_of, numbers)
            place = self._places.get(run)
            if place is None and (place := self._places.get(origin)) is not None:
                there, encode = self._found[place], msgspec.msgpack.encode  # NaN is not equal to itself
                if min(there.rank, found.rank) > _OVER and encode(there.record) != encode(found.record):
                    place = None  # two peers ran it, and each has a result
            if place is None:
                place = len(self._found)
                self._found.append(found)
            elif found.rank > self._found[place].rank:
                self._found[place] = found
            numbers[number] = place
            for known in (origin, run if found.rank >= _OVER else None):
                if known is not None:
                    self._places.setdefault(known, place)
            if number in uncertain:
                self.uncertain[place] = uncertain[number]
            if isinstance(origin, tuple) and not origin[0]:
                self.unknown.add(place)
        return numbers

    def trials(self) -> tuple[dict[int, TrialCreate], dict[int, int]]:
        """All trials, renumbered without gaps, and place -> number.

        A retry that has not run is left out if another history has a result of the trial, or another such retry.
        """
        retried: set[int] = set()
        numbers: dict[int, int] = {}
        for place, found in enumerate(self._found):
            of = found.retry_of
            if of is not None and found.rank < _OVER:
                of = found.numbers.get(of, of)
                if of in retried or self._found[of].rank > _OVER:
                    continue
                retried.add(of)
            numbers[place] = len(numbers)
        trials = {}
        for place, number in numbers.items():
            record, _, there = self._found[place]
            system = linked(record.system, _renumber(there, numbers))
            trials[number] = msgspec.structs.replace(record, system=system)
        return trials, numbers


def _renumber(places: Mapping[int, int], numbers: Mapping[int, int]) -> Renumber:
    """Maps a trial's number in a history to its final number, given the indices that differ."""
    return lambda number: numbers.get(places.get(number, number))


# --- live peers ---


HANDOVER_TIMEOUT: Final = 1.25 * REQUESTS_EVERY
"""Seconds to wait for live peers, which hand over their state when they next look for a request."""


def ask_live_peers(store: Store, uuid: str, *, within: float) -> set[str]:
    """Ask the peers of a study for their states; returns the keys of their answers. Blocks for up to `within` seconds.

    An active peer looks for such a request once a minute. Raises Denied if this user does not own the study.
    """
    artifacts = store.artifacts()
    prefix = handover_prefix(uuid)
    before = set(artifacts.keys(prefix))
    name, request = request_name(uuid), secrets.token_hex(8)
    store.beat(Beat(name, request))
    if not store.beats([name]).get(name, "").startswith(request):
        raise Denied(ONLY_OWNERS)
    deadline = time.monotonic() + within
    try:
        while not (found := set(artifacts.keys(prefix)) - before) and time.monotonic() < deadline:
            time.sleep(_WATCH)
    finally:
        store.beat(Beat(name, NO_REQUEST))
    return found


def forget_handed_over(store: Store, uuid: str) -> None:
    """Remove the answers of live peers, as far as this user may."""
    with contextlib.suppress(HopaasError):
        artifacts = store.artifacts()
        for key in artifacts.keys(handover_prefix(uuid)):
            artifacts.delete(key)


def _handed_over(store: Store, keys: Iterable[str]) -> Iterator[State]:
    """The states that live peers have handed over."""
    artifacts = store.artifacts()
    with scratch() as path:
        for key in keys:
            with contextlib.suppress(KeyError, HopaasError, snapshot.CorruptSnapshot):
                artifacts.get(key, path)
                yield snapshot.load(path.read_bytes())


# --- the new study ---


def in_words(runs: Iterable[range]) -> str:
    """Lsns, with consecutive ones as ranges."""
    return ", ".join(str(run[0]) if run[0] == run[-1] else f"{run[0]} to {run[-1]}" for run in runs)


def into_new_study(rescued: Rescued, source: Store, uuid: str, name: str, target: Storage) -> Arrived:
    """Copy the rescued data into a study of this name, which must not exist yet. RUNNING trials become WAITING there.

    Raises:
        ConfigurationError: there is a study of that name, or nothing to copy.

    """
    if name in target.study_names():
        raise ConfigurationError(
            f"there is a study {name!r} already, perhaps of an interrupted rescue. Give the new one another name with "
            "--as NAME, or delete the existing one first"
        )
    if rescued.study is None:
        raise ConfigurationError("not even the definition of this study can be read; there is nothing to copy")
    trials = dict(rescued.study.trials)
    for number, lsn in rescued.uncertain.items():
        what = "started in the damaged commit" if number in rescued.unknown else "changed after the damaged commit"
        user = {**trials[number].user, MARK: json.dumps(f"{what} {lsn}")}
        trials[number] = msgspec.structs.replace(trials[number], user=user)
    lost = in_words(rescued.lost) or "nothing"
    info = {**rescued.study.define.info, MARK: f"from {uuid}; lost commits: {lost}"}
    define = msgspec.structs.replace(rescued.study.define, info=info)
    study = rescued.study._replace(trials=trials, define=define)
    return bring_in(target, study, name=name, fetch=from_store(source, study), begins=True)
