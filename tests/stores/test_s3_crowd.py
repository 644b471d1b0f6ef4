"""Many at once on a real S3 server: races, peers that are killed, a server that is killed."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections import Counter
from pathlib import Path

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import ExchangeResult, Outgoing
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import everything, outgoing_of, together
from tests.support.peers import Peers, check
from tests.support.processes import until
from tests.support.s3_racer import KEYS, PROCESSES, race
from tests.support.s3_server import S3Server


def test_three_hundred_keys_and_sixteen_processes_have_one_winner_each(s3_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    racers = [context.Process(target=race, args=(s3_url, f"racer-{i}", barrier, results)) for i in range(PROCESSES)]
    for racer in racers:
        racer.start()
    won: dict[str, list[int]] = dict(results.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join(30)
    winners = Counter(key for keys in won.values() for key in keys)
    assert set(winners) == set(range(KEYS))
    assert set(winners.values()) == {1}
    objects = S3Store(s3_url).objects
    for name, keys in won.items():
        for key in keys[:3]:
            found = objects.get(f"race/{key}", limit=100)
            assert found is not None
            assert found.data.decode() == name


def retried(log: BucketLog, commit: Outgoing, since: int, deadline: float) -> ExchangeResult:
    """Exchange until the commit is there, as a peer does."""
    while True:
        try:
            return log.exchange(commit, since)
        except StoreUnreachable:
            assert time.monotonic() < deadline
            time.sleep(random.uniform(0.05, 0.2))


def test_a_server_killed_under_eight_peers_and_started_again_loses_nothing(mortal_s3_server: S3Server) -> None:
    deadline = time.monotonic() + 100
    url = mortal_s3_server.url(mortal_s3_server.new_prefix())
    done: Counter[int] = Counter()
    killed = threading.Event()

    def work(peer: int) -> list[int]:
        store = S3Store(url)
        log, since, lsns = store.log("u"), 0, []
        turns_after = 5
        for turn in range(10_000):
            if killed.is_set():
                turns_after -= 1
            commit = outgoing_of(f"peer-{peer}", f"{peer}-{turn}")
            entries = retried(log, commit, since, deadline).entries
            while not any(entry.payload == commit.payload for entry in entries):
                since = entries[-1].lsn
                entries = retried(log, commit, since, deadline).entries
            lsns += [entry.lsn for entry in entries if entry.payload == commit.payload]
            since = entries[-1].lsn
            done[peer] += 1
            if turns_after == 0:
                break
        store.close()
        return lsns

    def disturb() -> list[int]:
        until(lambda: len(done) == 8 and min(done.values()) >= 2, 40)
        mortal_s3_server.kill()
        mortal_s3_server.start()
        killed.set()
        return []

    acknowledged = together(*[lambda peer=peer: work(peer) for peer in range(8)], disturb)
    lsns = [lsn for own in acknowledged for lsn in own]
    store = S3Store(url)
    found = everything(store.log("u"))
    store.close()
    assert sorted(lsns) == [entry.lsn for entry in found] == list(range(1, len(found) + 1))
    assert len({entry.payload for entry in found}) == len(found)


def test_peers_killed_at_any_moment_lose_no_acknowledged_result(s3_url: str, tmp_path: Path) -> None:
    chooser = random.Random(5)
    peers = Peers(s3_url, tmp_path, 4)
    try:
        for _ in range(5):
            before = len(peers.acknowledged())
            until(lambda before=before: len(peers.acknowledged()) > before + 5, 60)
            peers.replace_one(chooser)
        peers.finish()
    finally:
        peers.kill()
    state = check(s3_url, peers.acknowledged())
    assert len(state.running) <= 5, "only who was killed left a trial"
