"""How peers share a log in a bucket: on a clock of the test's own, so that every figure is the same on every machine.

A request takes 45 ms for a PUT and 20 ms for a GET, half on each way, unless the server is a near one. The rules are
those of `BucketLog`, the decisions the real `TurnScheduler`'s.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.stores.objects.carried import MOST
from hopaas_p2p.stores.objects.scheduler import CrowdScheduler, SpreadScheduler
from hopaas_p2p.stores.s3.scheduler import TurnScheduler
from hopaas_p2p.stores.s3.search import ABREAST, WIDEST

PUT, GET = 0.045, 0.020


class Bucket:
    """A log, everybody's time, and the seconds that requests take."""

    def __init__(self, put: float = PUT, get: float = GET) -> None:
        self.put, self.get = put, get
        self.now = 0.0
        self.commits: list[tuple[bytes, float]] = []
        self.puts = 0
        self.gets = 0

    def run(self, peers: list[Peer], seconds: float) -> None:
        """Let them work."""
        order = itertools.count()
        due = [(0.0, next(order), peer.life()) for peer in peers]
        while due:
            self.now, _, life = heapq.heappop(due)
            if self.now > seconds:
                return
            heapq.heappush(due, (self.now + next(life), next(order), life))


class Peer:
    """One writer. `rest` gives the seconds between its commits."""

    scheduler: CrowdScheduler
    losses = 1
    """After so many it looks."""

    def __init__(self, bucket: Bucket, name: str, rest: Callable[[], float], seed: int) -> None:
        self.bucket, self.rest = bucket, rest
        self.payload = codec.encode(Commit(name, 1, name, 0, ()))
        self.scheduler = TurnScheduler(random.Random(seed))
        self.head = 0
        self.waits: list[float] = []

    def life(self) -> Iterator[float]:
        while True:
            yield self.rest()
            began = self.bucket.now
            yield from self.append()
            self.waits.append(self.bucket.now - began)

    def append(self) -> Iterator[float]:
        look = self.scheduler.look_first(self.bucket.now)
        losses = 0
        while True:
            yield from self.wait_turn(look=look)
            began = self.bucket.now
            self.bucket.puts += 1
            yield self.bucket.put / 2
            won = self.head == len(self.bucket.commits)
            if won:
                self.bucket.commits.append((self.payload, float(int(self.bucket.now))))
            yield self.bucket.put / 2
            self.head += 1
            if won:
                self.scheduler.won(self.bucket.now, self.bucket.now - began)
                return
            self.scheduler.lost(self.bucket.now, self.bucket.now - began)
            self.bucket.gets += 1
            yield self.bucket.get
            self.scheduler.saw(*self.bucket.commits[self.head - 1], self.bucket.now)
            yield self.scheduler.after_losing()
            losses += 1
            look = losses % self.losses == 0

    def wait_turn(self, *, look: bool) -> Iterator[float]:
        while True:
            if look:
                yield from self.tail()
            pause = self.scheduler.pause(self.bucket.now)
            if not pause:
                return
            yield pause
            look = True

    def tail(self) -> Iterator[float]:
        search = self.scheduler.search(self.bucket.now)
        since = self.head
        while offsets := search.following():
            self.bucket.gets += len(offsets)
            yield self.bucket.get / 2
            length = len(self.bucket.commits)
            yield self.bucket.get / 2
            if len(offsets) <= ABREAST:
                self.scheduler.looked(self.bucket.get)
            for offset in offsets:
                if since + offset > length:
                    search.free(offset)
                    break
                yield from self.fill(since + offset)
                search.found(offset, carries=self.carries(since + offset))
        self.scheduler.reached_head(self.head - since, self.bucket.now)

    def fill(self, lsn: int) -> Iterator[float]:
        """Read what the object of this lsn does not carry, too."""
        known = self.covered(lsn)
        while missing := [place for place in range(self.head + 1, lsn) if place not in known]:
            some = missing[:: -(self.carries(lsn) + 1)][:WIDEST]
            self.bucket.gets += len(some)
            yield self.bucket.get
            known = known.union(*map(self.covered, some))
        for payload, modified in self.bucket.commits[self.head : lsn]:
            self.scheduler.saw(payload, modified, self.bucket.now)
        self.head = max(self.head, lsn)

    def covered(self, lsn: int) -> set[int]:
        return set(range(lsn - self.carries(lsn), lsn + 1))

    def carries(self, lsn: int) -> int:
        """As `PiggybackedCommits`: back to the last commit of every writer among the last."""
        latest = {
            payload: place
            for place, (payload, _) in enumerate(
                self.bucket.commits[max(lsn - 1 - MOST, 0) : lsn - 1], -min(MOST, lsn - 1)
            )
        }
        return -1 - min(latest.values(), default=-1)


class NfsPeer(Peer):
    """A writer to a directory on a file server: it reads a commit with two calls, up to the first gap."""

    losses = FolderLog.losses

    def __init__(self, bucket: Bucket, name: str, rest: Callable[[], float], seed: int) -> None:
        super().__init__(bucket, name, rest, seed)
        self.scheduler = SpreadScheduler(random.Random(seed))

    def tail(self) -> Iterator[float]:
        before = self.head
        while True:
            yield self.bucket.get
            if self.head >= len(self.bucket.commits):
                break
            yield self.bucket.get
            self.scheduler.saw(*self.bucket.commits[self.head], self.bucket.now)
            self.head += 1
        self.scheduler.reached_head(self.head - before, self.bucket.now)


def crowd(
    count: int, rest: Callable[[random.Random], float], seconds: float, seed: int = 1
) -> tuple[Bucket, list[Peer]]:
    bucket = Bucket()
    chooser = random.Random(seed)
    peers = [Peer(bucket, f"peer-{i}", lambda: rest(chooser), seed * 1000 + i) for i in range(count)]
    bucket.run(peers, seconds)
    return bucket, peers


def test_sixteen_peers_pay_four_to_five_gets_a_commit() -> None:
    commits = puts = gets = 0
    waits: list[float] = []
    for seed in range(1, 9):
        bucket, peers = crowd(16, lambda chooser: chooser.uniform(2.0, 6.0), 300.0, seed)
        commits, puts, gets = commits + len(bucket.commits), puts + bucket.puts, gets + bucket.gets
        waits += [wait for peer in peers for wait in peer.waits]
    waits.sort()
    assert commits > 8000
    assert gets / commits <= 4.45, "without copies it is 17.4"
    assert puts / commits <= 1.18, "a beat now and then goes on top of it: 1.25 with them"
    assert waits[len(waits) // 2] < 0.25
    assert waits[int(0.99 * len(waits))] < 1.0


@pytest.mark.parametrize(
    ("count", "puts", "gets"), [(2, 1.1, 4), (4, 1.2, 7), (8, 1.3, 10), (16, 1.4, 12), (32, 1.5, 16)]
)
def test_peers_at_full_speed_take_turns(count: int, puts: float, gets: float) -> None:
    bucket, peers = crowd(count, lambda _: 0.001, 60.0)
    served = sorted(len(peer.waits) for peer in peers)
    assert len(bucket.commits) / 60.0 >= 11
    assert bucket.puts / len(bucket.commits) <= puts
    assert bucket.gets / len(bucket.commits) <= gets
    assert served[0] >= 0.5 * served[-1]


@pytest.mark.parametrize("rest", [0.0, 0.0005])
def test_who_writes_without_a_break_to_a_server_nearby_lets_the_others_in(rest: float) -> None:
    """Where a look takes as long as a PUT, who has just written would always be first, and never see the others."""
    bucket = Bucket(put=0.002, get=0.002)
    peers = [Peer(bucket, f"peer-{i}", lambda: rest, i) for i in range(8)]
    bucket.run(peers, 10.0)
    served = sorted(len(peer.waits) for peer in peers)
    assert served[0] >= 0.4 * served[-1], served
    assert max(max(peer.waits) for peer in peers) < 1.0


@pytest.mark.parametrize("count", [2, 4, 8])
def test_where_a_look_is_far_slower_than_a_put_nobody_is_starved(count: int) -> None:
    """Ceph as it is installed, and a client that acknowledges late; two served a twentieth of what the others did."""
    bucket = Bucket(put=0.005, get=0.044)
    peers = [Peer(bucket, f"peer-{i}", lambda: 0.001, i) for i in range(count)]
    bucket.run(peers, 20.0)
    served = sorted(len(peer.waits) for peer in peers)
    assert served[0] >= 20, served
    assert max(max(peer.waits) for peer in peers) < 5.0


def test_a_storm_is_over_soon() -> None:
    """All begin at once, and then have little to say: nobody waits for those who are only taken to stand in line."""
    bucket, chooser = Bucket(), random.Random(1)
    peers = [
        Peer(bucket, f"peer-{i}", lambda: chooser.uniform(2.0, 6.0) if bucket.now > 0.5 else chooser.uniform(0, 0.3), i)
        for i in range(16)
    ]
    bucket.run(peers, 100.0)
    waits = sorted(wait for peer in peers for wait in peer.waits)
    assert bucket.puts / len(bucket.commits) <= 1.3
    assert waits[len(waits) // 2] < 0.25
    assert waits[int(0.99 * len(waits))] < 1.25


def test_a_lone_peer_at_full_speed_hardly_ever_looks_or_waits() -> None:
    bucket, (peer,) = crowd(1, lambda _: 0.001, 60.0)
    assert bucket.puts == len(bucket.commits) > 1250
    waits = sorted(peer.waits)
    assert waits[-9] == pytest.approx(PUT), "it lets go after 16, 32, 64, 128 and each 256 commits"
    assert waits[-1] < 7 * PUT
    assert bucket.gets <= 9


def test_a_lone_peer_with_work_to_do_never_looks_or_waits() -> None:
    bucket, (peer,) = crowd(1, lambda _: 0.2, 60.0)
    assert bucket.gets <= 1
    assert bucket.puts == len(bucket.commits)
    assert max(peer.waits[1:]) == pytest.approx(PUT)


def test_one_that_comes_now_and_then_is_served_among_those_at_full_speed() -> None:
    bucket = Bucket()
    busy = [Peer(bucket, f"busy-{i}", lambda: 0.001, i) for i in range(6)]
    guest = Peer(bucket, "guest", lambda: 3.0, 100)
    bucket.run([*busy, guest], 120.0)
    assert len(guest.waits) > 20
    assert sorted(guest.waits)[len(guest.waits) // 2] < 1.0


@pytest.mark.parametrize(("put", "get", "pause", "longest"), [(PUT, GET, 0.5, 2.5), (0.0013, 0.0012, 0.05, 0.3)])
def test_one_that_comes_now_and_then_does_not_starve_beside_one_that_never_pauses(
    put: float, get: float, pause: float, longest: float
) -> None:
    """It always comes second, and must not be asleep whenever the other one lets go."""
    for seed in (1, 2, 3):
        bucket, chooser = Bucket(put, get), random.Random(seed)
        hog = Peer(bucket, "hog", lambda chooser=chooser: put / 10 * chooser.random(), 1)  # type: ignore[misc]
        guest = Peer(bucket, "guest", lambda chooser=chooser: pause * chooser.uniform(0.5, 1.5), 2)  # type: ignore[misc]
        bucket.run([hog, guest], 60.0 if put == PUT else 8.0)
        assert len(guest.waits) > 50
        assert max(guest.waits) < longest


def test_a_turn_that_nobody_takes_passes() -> None:
    """Seven of eight fall silent at once: the one that is left soon writes as if it were alone."""
    bucket = Bucket()
    silent = [Peer(bucket, f"silent-{i}", lambda: 0.001 if bucket.now < 20.0 else 1e6, i) for i in range(7)]
    left = Peer(bucket, "left", lambda: 0.001, 100)
    bucket.run([*silent, left], 60.0)
    assert len(left.waits) > 20 / 0.5 + 30 / 0.1
    assert sorted(left.waits[-100:])[-2] < 0.1, "but for once, see the lone peer"


@pytest.mark.parametrize(
    ("writers", "least", "most"), [(0, 0.0, 0.0), (1, 0.1, 1.0), (16, 3.0, 5.0), (500, 30.0, 30.0)]
)
def test_reports_linger_longer_in_a_crowd(writers: int, least: float, most: float) -> None:
    scheduler = TurnScheduler(random.Random(1))
    for i in range(writers):
        scheduler.saw(codec.encode(Commit(f"peer-{i}", 1, f"peer-{i}", 0, ())), 1e9, 100.0)
    assert least <= scheduler.flush_interval(101.0) <= most
    assert scheduler.flush_interval(200.0) == 0.0, "they have gone"


def nfs(count: int, rest: Callable[[], float], seconds: float, seed: int) -> tuple[Bucket, list[Peer]]:
    folder = Bucket(put=0.004, get=0.001)
    peers: list[Peer] = [NfsPeer(folder, f"peer-{i}", rest, 1000 * seed + i) for i in range(count)]
    folder.run(peers, seconds)
    return folder, peers


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("count", "commits", "longest"), [(2, 170, 0.1), (8, 155, 0.4), (32, 150, 1.6)])
def test_peers_of_a_file_server_at_full_speed_are_served_alike(
    count: int, commits: float, longest: float, seed: int
) -> None:
    folder, peers = nfs(count, lambda: 0.001, 60.0, seed)
    served = sorted(len(peer.waits) for peer in peers)
    assert len(folder.commits) / 60.0 > commits
    assert served[0] >= 0.8 * served[-1]
    assert max(max(peer.waits) for peer in peers) < longest


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_peers_of_a_file_server_at_leisure_do_not_wait_for_each_other(seed: int) -> None:
    chooser = random.Random(seed)
    _, peers = nfs(8, lambda: chooser.uniform(0.5, 1.5), 120.0, seed)
    waits = sorted(wait for peer in peers for wait in peer.waits)
    assert waits[len(waits) // 2] < 0.020
    assert waits[int(0.99 * len(waits))] < 0.035


def test_a_lone_peer_of_a_file_server_hardly_ever_looks_or_waits() -> None:
    folder, (peer,) = nfs(1, lambda: 0.001, 20.0, 1)
    assert folder.puts - len(folder.commits) <= 1, "the last one is still on its way"
    assert folder.gets < 0.01 * folder.puts
    assert sorted(peer.waits)[int(0.99 * len(peer.waits))] == pytest.approx(folder.put)


def test_one_that_comes_now_and_then_is_served_soon_by_a_file_server_whose_peers_never_pause() -> None:
    folder = Bucket(put=0.004, get=0.001)
    busy: list[Peer] = [NfsPeer(folder, f"busy-{i}", lambda: 0.0, i) for i in range(6)]
    guest = NfsPeer(folder, "guest", lambda: 1.0, 100)
    folder.run([*busy, guest], 60.0)
    assert len(guest.waits) > 40
    assert max(guest.waits) < 0.6


def test_the_flush_interval_can_be_computed_while_another_thread_reads_commits() -> None:
    class Now(float):
        """A moment at which, in the middle of the sum, another commit is seen."""

        def __sub__(self, other: float) -> float:
            scheduler.saw(payload, 0.0, 0.0)
            return float(self) - other

    scheduler = SpreadScheduler(random.Random(1))
    payload = codec.encode(Commit("w", 1, "w", 0, ()))
    scheduler.saw(payload, 0.0, 0.0)
    scheduler.saw(payload, 0.0, 0.0)

    assert scheduler.flush_interval(Now(1.0)) > 0.0
