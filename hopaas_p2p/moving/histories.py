"""The histories of a log that has more than one, and one list of trials made of them.

A server that accepts two commits under one lsn, or an older copy that was brought back under running peers, leaves a
log whose commits do not all follow each other. What each peer was told is safe is in the log or in the spool of that
peer, and every commit is kept with its lsn and the sum of the log before it (`core.chain`). So all of them form a tree:
a commit's parent is the one at the lsn before it behind which the log has that sum. A path from the root to a leaf is a
history that some peer has read, and to replay it is to see what its peers saw: every trial with the number that its
owner knew it by. That matters because a result names its trial by number, and two histories give one number twice.

The trials of all histories are then put together. A trial is known by the commit that created it, and a run of it by
owner and start, so what histories share is there once, and the best of what they say about a trial counts: a result
before a failure, a failure before a trial that still runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.chain import following
from hopaas_p2p.core.records import Commit, TrialCreate, TrialFinish, TrialState
from hopaas_p2p.core.state import State, Trial, Verdict
from hopaas_p2p.moving.records import linked, record_of
from hopaas_p2p.stores.base import Entry

Origin = tuple[str, int, int] | int
"""How a trial is known in all histories: writer and sequence number of the commit that created it, and which of its new
trials it is; or its number, if all histories have it."""
Run = tuple[str | None, int | None, tuple[tuple[str, float], ...]]
"""How one attempt at a trial is known: owner, start, parameters."""
Bridge = Callable[[State, Mapping[int, Entry], int], tuple[State, list[int]]]
"""Goes on behind commits that are missing: the state, and the trials that they had started; see `rescue`."""

_RANK: Final = {
    TrialState.WAITING: 0,
    TrialState.RUNNING: 1,
    TrialState.FAIL: 2,
    TrialState.PRUNED: 3,
    TrialState.COMPLETE: 4,
}
_OVER: Final = 2  # the rank from which on a trial has ended


class Node:
    """A commit at its place in a history."""

    __slots__ = ("after", "children", "entry", "height", "lsn", "parent")

    def __init__(self, lsn: int, after: int | None, entry: Entry | None = None) -> None:
        self.lsn, self.after, self.entry = lsn, after, entry
        self.parent: Node | None = None
        self.children: list[Node] = []
        self.height = lsn

    def adopt(self, child: Node) -> None:
        child.parent = self
        self.children.append(child)


class Replay(NamedTuple):
    """The end of one history."""

    state: State
    origins: list[Origin]
    """Of the trials that not all histories have, by number."""
    uncertain: dict[int, int]
    """Trial -> the missing commit behind which something was said of it."""
    unknown: list[int]
    """Trials that a missing commit had started."""


class Tree:
    """All histories behind a state that they share.

    Args:
        root: the state. It is changed.
        total: the sum of the log up to it; None if that is not known.
        entries: the commits behind it, from the log and from what peers have kept.
        loose: commits whose place is not known; they are tried where one is missing, and those that end trials are
            otherwise said at the end of what their writers had written.
        bridge: goes on where a commit is missing for good.

    """

    def __init__(
        self, root: State, total: int | None, entries: Iterable[Entry], loose: Iterable[bytes], bridge: Bridge
    ) -> None:
        self._state = root
        self._bridge = bridge
        self._root = Node(root.lsn, total)
        self._at: dict[int, list[Node]] = defaultdict(list)
        self._at[root.lsn].append(self._root)
        self._loose = list(loose)
        self.accepted: set[str] = set()
        """Nonces of the commits of which something was accepted in some history."""
        orphans = self._place(entries)
        self._fill_gaps(orphans)
        self._guessed = [node for node in orphans if node.parent is None]
        for node in self._guessed:
            earlier = max((lsn for lsn, some in self._at.items() if some and lsn < node.lsn - 1), default=root.lsn)
            likely = (one for one in self._at[node.lsn - 1] if self._fits(one, node))
            next(likely, self._at[earlier][0]).adopt(node)
        self._say_at_the_end()

    def _place(self, entries: Iterable[Entry]) -> list[Node]:
        """Make nodes of the commits, and give each its parent; those that have none."""
        known = {(entry.lsn, entry.before, entry.payload): entry for entry in entries}
        orphans = []
        for entry in sorted(known.values(), key=lambda one: one.lsn):
            after = None if entry.before is None else following(entry.before, entry.payload)
            node = Node(entry.lsn, after, entry)
            parent = self._with_sum(entry.lsn - 1, entry.before)
            if parent is None:
                orphans.append(node)
            else:
                parent.adopt(node)
            self._at[entry.lsn].append(node)
        return orphans

    def _with_sum(self, lsn: int, total: int | None) -> Node | None:
        """The node behind which the log has this sum; where sums are unknown, whichever is there."""
        there = self._at.get(lsn, ())
        return next((one for one in there if total is None or one.after is None or one.after == total), None)

    def _fill_gaps(self, orphans: list[Node]) -> None:
        """Find the parent of these among commits whose place is not known: the sums tell."""
        for node in orphans:
            assert node.entry is not None
            total = node.entry.before
            parent = next((one for one in self._at[node.lsn - 1] if one.after == total), None)
            for before in list(self._at[node.lsn - 2]):
                if parent is not None or before.after is None:
                    continue
                payload = next((one for one in self._loose if following(before.after, one) == total), None)
                if payload is not None:
                    parent = Node(node.lsn - 1, total, Entry(node.lsn - 1, payload, before=before.after))
                    before.adopt(parent)
                    self._at[parent.lsn].append(parent)
            if parent is not None:
                parent.adopt(node)

    def _fits(self, parent: Node, node: Node) -> bool:
        """Whether nothing is refused of this commit, and of what follows it, behind another commit than it followed."""
        first, *path = reversed([*_up_from(parent)])
        state = snapshot.load(snapshot.dump(self._state))
        for one in path:
            assert one.entry is not None
            _apply(state, one.entry)
        return first is self._root and all(_told(said) for entry in _line(node) for said in _apply(state, entry))

    def _say_at_the_end(self) -> None:
        """Hang what was said out of place behind what its writer had written before, where its numbers mean something.

        That is what never got a place, and what somebody sent later for a peer that had stopped at another history.
        """
        written: dict[str, list[tuple[int, Node]]] = defaultdict(list)
        placed: set[bytes] = set()
        displaced: set[bytes] = set()
        nodes = [node for there in self._at.values() for node in there if node.entry is not None]
        for node in nodes:
            commit = _commit(node)
            if commit is not None:
                written[commit.writer].append((commit.seq, node))
        for node in nodes:
            assert node.entry is not None
            (displaced if _is_displaced(node, written) else placed).add(node.entry.payload)
        last: dict[str, Node] = {}
        rest = {*self._loose, *displaced} - placed
        for payload, commit in sorted(_ends(rest), key=lambda one: (one[1].writer, one[1].seq)):
            earlier = [pair for pair in written[commit.writer] if pair[0] < commit.seq]
            line = commit.writer if earlier else ""
            if line not in last:
                last[line] = max(earlier, key=lambda pair: pair[0])[1] if earlier else self._root
            node = Node(last[line].lsn + 1, None, Entry(last[line].lsn + 1, payload))
            last[line].adopt(node)
            last[line] = node

    # --- replaying ---

    def histories(self) -> Iterator[Replay]:
        """Each history, the longest first. A state is the caller's until it asks for the next."""
        self._measure()
        agreed = len(self._state.trials)
        waiting: list[tuple[Node, bytes, Replay]] = []
        node: Node | None = self._root
        now = Replay(self._state, [], {}, [])
        while node is not None:
            children = sorted(node.children, key=lambda one: -one.height)
            if len(children) > 1:
                saved = snapshot.dump(now.state)
                waiting += [
                    (child, saved, Replay(now.state, list(now.origins), dict(now.uncertain), list(now.unknown)))
                    for child in reversed(children[1:])
                ]
            if children:
                node = children[0]
            else:
                yield now
                if not waiting:
                    return
                node, saved, past = waiting.pop()
                now = past._replace(state=snapshot.load(saved))
            now = self._play(node, now, agreed)

    def _measure(self) -> None:
        """Tell every node how far the histories go that it is part of."""
        order, stack = [], [self._root]
        while stack:
            node = stack.pop()
            order.append(node)
            stack += node.children
        for node in reversed(order):
            node.height = max([node.lsn, *[child.height for child in node.children]])

    def _play(self, node: Node, now: Replay, agreed: int) -> Replay:
        entry = node.entry
        assert entry is not None
        state, origins, uncertain, unknown = now
        if node in self._guessed:
            started: list[int] = []
            uncertain[-1] = min(state.lsn + 1, entry.lsn - 1)  # from here on
            if state.lsn < node.lsn - 1:
                state, started = self._bridge(state, {one.lsn: one for one in _line(node)}, node.height)
            origins += [("", entry.lsn, number) for number in started]
            uncertain |= dict.fromkeys(started, uncertain[-1])
            unknown += started
        commit = codec.decode(entry.payload)
        count = len(state.trials)
        verdicts = _apply(state, entry)
        if isinstance(commit, Commit):
            origins += [(commit.writer, commit.seq, new - count) for new in range(count, len(state.trials))]
            if any(map(_told, verdicts)):
                self.accepted.add(f"{commit.writer}:{commit.seq}")
        if -1 in uncertain:
            numbers = [one.number for one in verdicts if one.accepted and one.number is not None]
            uncertain |= {number: uncertain[-1] for number in numbers if number not in uncertain}
        assert len(origins) == len(state.trials) - agreed
        return Replay(state, origins, uncertain, unknown)


def _commit(node: Node) -> Commit | None:
    commit = None if node.entry is None else codec.decode(node.entry.payload)
    return commit if isinstance(commit, Commit) else None


def _apply(state: State, entry: Entry) -> tuple[Verdict, ...]:
    return apply(state, state.lsn + 1, codec.decode(entry.payload), entry.stamp)


def _up_from(node: Node | None) -> Iterator[Node]:
    """This commit, and those before it in its history."""
    while node is not None:
        yield node
        node = node.parent


def _told(verdict: Verdict) -> bool:
    return verdict.accepted or verdict.refusal == "late"


def _is_displaced(node: Node, written: Mapping[str, list[tuple[int, Node]]]) -> bool:
    """Whether what its writer wrote before this is known, and not in this history."""
    commit = _commit(node)
    before = () if commit is None else [one for seq, one in written[commit.writer] if seq == commit.seq - 1]
    return bool(before) and not any(one in before for one in _up_from(node))


def _ends(payloads: Iterable[bytes]) -> Iterator[tuple[bytes, Commit]]:
    """Those of these commits that end a trial."""
    for payload in payloads:
        commit = codec.decode(payload)
        if isinstance(commit, Commit) and any(isinstance(record, TrialFinish) for record in commit.records):
            yield payload, commit


def _line(node: Node) -> Iterator[Entry]:
    """This commit, and what follows it in its longest history."""
    while True:
        assert node.entry is not None
        yield node.entry
        if not node.children:
            return
        node = max(node.children, key=lambda one: one.height)


# --- one list of trials ---


class _Found(NamedTuple):
    record: TrialCreate
    retry_of: int | None
    numbers: dict[int, int]
    """The trials of its history: number there -> place here."""


class Merge:
    """The trials of several histories, put together.

    Args:
        agreed: the state that all of them share.

    """

    def __init__(self, agreed: State) -> None:
        self._agreed = len(agreed.trials)
        self._open = [trial.number for trial in agreed.trials if _RANK[trial.state] < _OVER]
        self._found = [_Found(record_of(trial, agreed), trial.retry_of, {}) for trial in agreed.trials]
        self._places: dict[Origin, int] = {number: number for number in self._open}
        self._runs: dict[Run, int] = {}
        self.uncertain: dict[int, int] = {}
        self.unknown: set[int] = set()

    def add(self, replay: Replay) -> None:
        """Add what this history knows."""
        state, origins, uncertain, unknown = replay
        numbers: dict[int, int] = {}
        for number in [*self._open, *range(self._agreed, len(state.trials))]:
            trial = state.trials[number]
            origin: Origin | None = number if number < self._agreed else None
            if origin is None and number - self._agreed < len(origins):
                origin = origins[number - self._agreed]
            found = _Found(record_of(trial, state), trial.retry_of, numbers)
            place = numbers[number] = self._add(found, origin, _run(trial))
            if number in uncertain:
                self.uncertain[place] = uncertain[number]
        self.unknown |= {numbers[number] for number in unknown if number in numbers}

    def _add(self, found: _Found, origin: Origin | None, run: Run | None) -> int:
        """Add a trial where it belongs, if it says more than what is there; its place."""
        place = None if run is None else self._runs.get(run)
        if place is None and origin is not None:
            place = self._places.get(origin)
            known = None if place is None else self._found[place]
            if known is not None and min(_rank(known), _rank(found)) > _OVER and not _same(known, found):
                place = None  # two peers have run it, and each has a result
        if place is None:
            place = len(self._found)
            self._found.append(found)
            if origin is not None:
                self._places.setdefault(origin, place)
        elif _rank(found) > _rank(self._found[place]):
            self._found[place] = found
        if run is not None and _rank(found) >= _OVER:
            self._runs.setdefault(run, place)
        return place

    def trials(self) -> tuple[dict[int, TrialCreate], dict[int, int]]:
        """All of them with numbers without gaps, and place -> number.

        A retry that has not run is left out where another history has a result of the trial, or another such retry.
        """
        retried: set[int] = set()
        numbers: dict[int, int] = {}
        for place, found in enumerate(self._found):
            of = found.retry_of
            if of is not None and _rank(found) < _OVER:
                of = found.numbers.get(of, of)
                if of in retried or _rank(self._found[of]) > _OVER:
                    continue
                retried.add(of)
            numbers[place] = len(numbers)
        trials = {}
        for place, number in numbers.items():
            record, _, there = self._found[place]
            final = {number: numbers.get(at) for number, at in there.items()}
            system = linked(record.system, lambda one, there=final: there.get(one, numbers.get(one)))  # type: ignore[misc]
            trials[number] = msgspec.structs.replace(record, system=system)
        return trials, numbers


def _same(one: _Found, other: _Found) -> bool:
    """Whether two histories say the same of a trial, also of one that came without the times of its run."""
    encode = msgspec.msgpack.encode  # NaN is not equal to itself
    return encode(one.record) == encode(other.record)


def _rank(found: _Found) -> int:
    return _RANK[found.record.state]


def _run(trial: Trial) -> Run | None:
    """None of a trial that nobody has run."""
    return None if trial.start is None else (trial.owner, trial.start, tuple(sorted(trial.params.items())))
