"""What can be read of a damaged study, and a new study made of it: `hopaas-p2p doctor STORE --rescue`.

A log is damaged where a commit that was there is missing, or is whole and not what was written, or where it has two
histories (`core.chain`). Peers stop there, for what comes behind may mean something else without it: trials are
numbered in the order of the log. A rescue goes on:

* A snapshot that was made behind the damage stands for all commits before it; so does the state of a peer that is still
  alive, which it hands over when it is asked (`ask_live_peers`). Nothing is lost then. Whoever may write to the study
  may answer, so what lies there without having been asked for is not read.
* Else the commits behind the damage tell how many trials the missing ones had started: of all numbers that is the one
  with which the fewest of them are refused. The missing trials are put there for their owners, without parameters,
  which nobody knows; what their owners said later is kept. Every trial that such a commit speaks of is marked.
* What this user's peers could not send is added last (`spool`).
* Of two histories, both are read: the log's, and those of which the store, or peers, have kept commits (`histories`).

Nothing in the store is changed. The state that comes of it is copied into a new study, from which the work goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from hopaas_p2p import spool
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.chain import following, sum_at
from hopaas_p2p.core.names import NO_REQUEST, handover_prefix, request_name
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
from hopaas_p2p.errors import BrokenChain, ConfigurationError, HopaasError, StoreCorrupt
from hopaas_p2p.moving.arrival import Arrived, bring_in
from hopaas_p2p.moving.files import from_store
from hopaas_p2p.moving.histories import Merge, Replay, Tree
from hopaas_p2p.moving.records import StudyRecords, of_state
from hopaas_p2p.peer.handover import REQUESTS_EVERY
from hopaas_p2p.stores.base import Beat, Entry, Log, Store, read_all

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage

MARK: Final = "rescued"
"""The user attribute of a trial that is not quite certain, and the key in the new study's definition."""
_MOST: Final = 64  # trials that a run of missing commits may have started
_OF_A_TRIAL: Final = (TrialSet, TrialFinish, TrialCheckpoint, TrialRelease)
_WATCH: Final = 1.0  # seconds between looks for what live peers hand over


class Rescued(NamedTuple):
    """What a damaged log gave."""

    study: StudyRecords | None
    """None if not even its definition can be read."""
    damaged: list[int]
    """Lsns of commits that cannot be read."""
    covered: list[int]
    """Those among them for which a snapshot or a live peer's state stands."""
    uncertain: dict[int, int]
    """Trial -> the damaged commit behind which something was said of it."""
    unknown: list[int]
    """Trials that a damaged commit had started: their parameters are lost."""
    from_spool: int
    """Commits that came from this user's spool."""
    histories: int
    """How many histories were put together."""

    @property
    def lost(self) -> list[int]:
        """The damaged commits for which nothing stands."""
        return [lsn for lsn in self.damaged if lsn not in self.covered]


# --- reading ---


def names_of(store: Store) -> tuple[dict[str, str], bool]:
    """Uuid -> name of the studies that the store lists, as far as that can be read; and whether all of it can be."""
    catalog, whole = Catalog(), True
    entries, head, _ = _salvaged(store.catalog())
    for lsn in range(1, head + 1):
        entry = entries.get(lsn)
        whole &= entry is not None
        if entry is not None:
            catalog.apply(lsn, codec.decode(entry.payload), entry.stamp)
    return {listing.uuid: listing.name for listing in catalog.by_id.values()}, whole


def is_damaged(log: Log) -> str | None:
    """Why peers stop at this log, or None."""
    since = log.removed_up_to()
    known = (0, 0)  # an lsn, and the sum of the log up to it
    try:
        for entry in read_all(log, since):
            read = sum_at(entry.lsn - 1, known)
            before = read if entry.before is None else entry.before
            if read is not None and before != read:
                return f"it has two histories: commit {entry.lsn} was not written after the ones that precede it"
            known = (entry.lsn, following(before, entry.payload)) if before is not None else (-1, 0)
    except (BrokenChain, StoreCorrupt) as error:
        return str(error)
    return None


def kept_elsewhere(store: Store, uuid: str) -> str | None:
    """What this user's peers were told is in a log, and is not, as after a return to an older backup; or None."""
    kept = {codec.nonce_of(payload): payload for _, one in spool.histories(uuid) for payload in one.payloads}
    if not kept:
        return None
    log = store.log(uuid)
    missing = kept.keys() - {codec.nonce_of(entry.payload) for entry in _salvaged(log)[0].values()}
    if log.removed_up_to():
        for state in _snapshots(log):
            missing = {one for one in missing if not _contains(state, kept[one])}
    said = "commit of its peers is" if len(missing) == 1 else "commits of its peers are"
    return f"{len(missing)} {said} not in the log, but in this machine's spool" if missing else None


def _contains(state: State, payload: bytes) -> bool:
    """Whether a state has applied this commit."""
    writer, _, sequence = codec.nonce_of(payload).rpartition(":")
    return writer in state.writers and int(sequence) <= state.writers[writer].seq


def rescue(store: Store, uuid: str, handed_over: Iterable[str] = ()) -> Rescued:
    """Read all that can be read of a study, and what live peers have handed over: the keys of the files."""
    log = store.log(uuid)
    entries, head, others = _salvaged(log)
    there = {codec.nonce_of(entry.payload) for entry in (*entries.values(), *others)}
    states = sorted([*_snapshots(log), *_handed_over(store, handed_over)], key=lambda state: state.lsn)
    removed = log.removed_up_to()
    base = next((one for one in states if removed and one.lsn >= removed), State())
    placed, loose = _kept(uuid, entries, there)
    placed = [entry for entry in placed if not _contains(base, entry.payload)] + others
    shared = min(_shared(entries, head), *[entry.lsn - 1 for entry in placed], head)
    root = max([base, *(one for one in states if one.lsn <= shared or shared == head)], key=lambda one: one.lsn)
    agreed, damaged = root.lsn, [lsn for lsn in range(base.lsn + 1, head + 1) if lsn not in entries]
    loose += [entry.payload for entry in placed if entry.lsn <= agreed]
    loose = [payload for payload in loose if not _contains(root, payload)]
    rest = [entry for entry in (*entries.values(), *placed) if entry.lsn > agreed]
    tree, merge = Tree(root, sum_at(agreed, root.chain), rest, loose, _bridged), Merge(root)
    study: StudyRecords | None = None
    count = 0
    for history in tree.histories():
        if study is None and history.state.define is not None:
            study = of_state(history.state, uuid=uuid)
        merge.add(history)
        count += 1
    for known in states:
        if known.lsn > agreed:
            merge.add(Replay(known, [], {}, []))
    trials, numbers = merge.trials()
    return Rescued(
        study=study and study._replace(trials=trials),
        damaged=damaged,
        covered=[lsn for lsn in damaged if lsn <= agreed],
        uncertain={numbers[place]: lsn for place, lsn in merge.uncertain.items() if place in numbers},
        unknown=sorted(numbers[place] for place in merge.unknown if place in numbers),
        from_spool=len(tree.accepted - there),
        histories=count,
    )


def _shared(entries: Mapping[int, Entry], head: int) -> int:
    """The lsn up to which all commits of the log agree on what it holds; its head, if they all do."""
    shared = head
    for lsn in range(head, 1, -1):
        entry, earlier = entries.get(lsn), entries.get(lsn - 1)
        if entry is None or earlier is None or entry.before is None or earlier.before is None:
            continue
        if entry.before != following(earlier.before, earlier.payload):
            shared = lsn - 2  # one of two commits was accepted over the other
    return shared


def _kept(uuid: str, entries: Mapping[int, Entry], there: Container[str]) -> tuple[list[Entry], list[bytes]]:
    """What this user's spool has of the study and its log has not: commits with a place, and others."""
    placed: list[Entry] = []
    loose: list[bytes] = []
    for _, spooled in itertools.chain(spool.histories(uuid), spool.waiting()):
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
    """The commits of a log that are as they were written, by lsn, the last lsn that there is, and commits of others.

    These are of lsns that another commit has in what is read now.
    """
    found: dict[int, Entry] = {}
    others: list[Entry] = []
    head = 0
    for entry in log.salvage():
        head = max(head, entry.lsn)
        if codec.intact(entry.payload) and found.setdefault(entry.lsn, entry) is not entry:
            others.append(entry)
    return found, head, others


def _snapshots(log: Log) -> Iterator[State]:
    """Those of the log that can be read."""
    found = log.newest_snapshot()
    while found is not None:
        with contextlib.suppress(snapshot.CorruptSnapshot):
            state = snapshot.load(found[1])
            if state.lsn == found[0]:
                yield state
        found = log.newest_snapshot(before=found[0])


def _apply(state: State, entry: Entry) -> tuple[Verdict, ...]:
    return apply(state, entry.lsn, codec.decode(entry.payload), entry.stamp)


# --- commits that are missing ---


def _bridged(state: State, entries: Mapping[int, Entry], head: int) -> tuple[State, list[int]]:
    """The state behind the commits that are missing next, and the numbers of the trials that they had started."""
    last = state.lsn + 1
    while last < head and last + 1 not in entries:
        last += 1
    rest = []
    for lsn in range(last + 1, head + 1):  # up to the next gap
        if lsn not in entries:
            break
        rest.append(entries[lsn])
    saved = snapshot.dump(state)
    best: tuple[int, State, list[int]] | None = None
    for count in range(_MOST + 1):
        tried = snapshot.load(saved)
        started = _start_missing(tried, last, count, rest)
        result = snapshot.dump(tried)
        refused = sum(not verdict.accepted for entry in rest for verdict in _apply(tried, entry))
        if best is None or refused < best[0]:
            best = refused, snapshot.load(result), started
        if not refused:
            break
    assert best is not None
    return best[1], best[2]


def _start_missing(state: State, last: int, count: int, rest: list[Entry]) -> list[int]:
    """Start so many trials, for whoever speaks of them first, and go on behind the missing commits."""
    first = len(state.trials)
    owners = _owners(rest)
    lsn = state.lsn + 1
    for number in range(first, first + count):
        owner = owners.get(number)
        record = TrialCreate(TrialState.RUNNING if owner else TrialState.FAIL, reason="its commit is damaged")
        writer = f"rescue-{last}-{number}"
        budget, state.budget = state.budget, None
        apply(state, lsn, Commit(writer, 1, owner or writer, 0, (record,)))
        state.budget = budget
        state.writers.pop(writer)
    state.lsn = last
    return list(range(first, len(state.trials)))


def _owners(rest: list[Entry]) -> dict[int, str]:
    """Trial -> the peer that speaks of it first, as the owner of its first lease."""
    owners: dict[int, str] = {}
    for entry in rest:
        commit = codec.decode(entry.payload)
        for record in commit.records if isinstance(commit, Commit) else ():
            if isinstance(record, _OF_A_TRIAL) and record.epoch == 1:
                owners.setdefault(record.number, commit.owner)  # type: ignore[union-attr]
    return owners


# --- live peers ---


HANDOVER_TIMEOUT: Final = 1.25 * REQUESTS_EVERY
"""Seconds for which live peers are waited for: when they have looked for a request, they hand their state over."""


def ask_live_peers(store: Store, uuid: str, *, within: float, sleep: Callable[[float], None] = time.sleep) -> set[str]:
    """Ask the peers of a study for their state; the keys of what they hand over. Blocks for up to `within` seconds.

    A peer that takes part looks for such a request once a minute.
    """
    artifacts = store.artifacts()
    prefix = handover_prefix(uuid)
    before = set(artifacts.keys(prefix))
    store.beat(Beat(request_name(uuid), secrets.token_hex(8)))
    deadline = time.monotonic() + within
    try:
        while not (found := set(artifacts.keys(prefix)) - before) and time.monotonic() < deadline:
            sleep(_WATCH)
    finally:
        store.beat(Beat(request_name(uuid), NO_REQUEST))
    return found


def forget_handed_over(store: Store, uuid: str) -> None:
    """Remove what live peers handed over, as far as this user may."""
    with contextlib.suppress(HopaasError):
        artifacts = store.artifacts()
        for key in artifacts.keys(handover_prefix(uuid)):
            artifacts.delete(key)


def _handed_over(store: Store, keys: Iterable[str]) -> Iterator[State]:
    """The states that live peers have handed over."""
    artifacts = store.artifacts()
    with tempfile.TemporaryDirectory(prefix="hopaas-rescue-") as directory:
        path = Path(directory, "state")
        for key in keys:
            with contextlib.suppress(KeyError, HopaasError, snapshot.CorruptSnapshot):
                artifacts.get(key, path)
                yield snapshot.load(path.read_bytes())


# --- the new study ---


def into_new_study(rescued: Rescued, source: Store, uuid: str, name: str, target: Storage) -> Arrived:
    """Copy what was rescued into a study of this name, which must not be there yet. Trials that ran are WAITING there.

    Raises:
        ConfigurationError: there is a study of that name, or nothing to copy.

    """
    if name in target.study_names():
        raise ConfigurationError(
            f"there is a study {name!r} already, perhaps of an interrupted rescue: give the new one another name with "
            "--as NAME, or delete that one first"
        )
    if rescued.study is None:
        raise ConfigurationError("not even the definition of this study can be read; there is nothing to copy")
    trials = dict(rescued.study.trials)
    for number, lsn in rescued.uncertain.items():
        what = "started in the damaged commit" if number in rescued.unknown else "changed after the damaged commit"
        user = {**trials[number].user, MARK: json.dumps(f"{what} {lsn}")}
        trials[number] = msgspec.structs.replace(trials[number], user=user)
    lost = ", ".join(map(str, rescued.lost)) or "nothing"
    info = {**rescued.study.define.info, MARK: f"from {uuid}; lost commits: {lost}"}
    define = msgspec.structs.replace(rescued.study.define, info=info)
    study = rescued.study._replace(trials=trials, define=define)
    return bring_in(target, study, name=name, fetch=from_store(source, study), begins=True)
