"""Lost replies, doubled and late requests, and peers and servers that are killed: by both carriers, onto each store."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.stores.base import Store
from tests.stores.test_faults import (
    replica_of,
    test_a_commit_that_comes_late_behind_its_writers_next_one_changes_nothing,
    test_a_peer_that_rejoins_before_its_commit_arrived_sends_it_once,
    test_a_peer_that_rejoins_from_a_snapshot_behind_its_own_commit_learns_the_verdict,
    test_an_ask_counts_once_whatever_happens_to_its_exchange,
    test_in_a_storm_every_ask_and_tell_of_every_peer_counts_exactly_once,
    test_in_a_storm_with_dying_peers_no_acknowledged_tell_is_lost,
    test_reports_that_wait_while_the_store_is_away_leave_later_and_once,
)
from tests.support.processes import ROOT, environment, until
from tests.support.scribe import defined
from tests.support.served import HOST, WAYS, Authority, HttpsProcess, administrator, reached
from tests.unit.test_promises import (
    test_a_clock_that_is_wrong_by_days_costs_no_peer_its_trial_and_saves_no_dead_one,
    test_a_dead_owners_trial_is_back_within_twice_the_ttl,
)

__all__ = [
    "test_a_clock_that_is_wrong_by_days_costs_no_peer_its_trial_and_saves_no_dead_one",
    "test_a_commit_that_comes_late_behind_its_writers_next_one_changes_nothing",
    "test_a_dead_owners_trial_is_back_within_twice_the_ttl",
    "test_a_peer_that_rejoins_before_its_commit_arrived_sends_it_once",
    "test_a_peer_that_rejoins_from_a_snapshot_behind_its_own_commit_learns_the_verdict",
    "test_an_ask_counts_once_whatever_happens_to_its_exchange",
    "test_in_a_storm_every_ask_and_tell_of_every_peer_counts_exactly_once",
    "test_in_a_storm_with_dying_peers_no_acknowledged_tell_is_lost",
    "test_reports_that_wait_while_the_store_is_away_leave_later_and_once",
]

_PEER = """
import sys, time, hopaas_p2p
study = hopaas_p2p.open_study(sys.argv[1], "s", create=False)
study.optimize(lambda trial: time.sleep(0.2) or trial.params["x"])
study.close()
"""


@pytest.fixture(params=WAYS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of each kind, directly, by HTTPS, and through a folder."""
    with contextlib.closing(open_store(reached(request))) as store:
        if isinstance(store, RemoteStore) and isinstance(store.connections, Box):
            store.connections.timeout = 60.0
        yield store


@pytest.fixture
def duplicates(request: pytest.FixtureRequest) -> int:
    """Postgres knows the nonce, and appends the commit once."""
    return 0 if request.node.callspec.params["store"].endswith("postgres") else 2


@pytest.fixture
def inner(store: Store) -> Store:
    """The store, with an empty study in it."""
    founder = replica_of(store.log("study"), "founder")
    founder.put("founder", defined())
    founder.exchange()
    return store


def test_a_campaign_ends_exactly_though_peers_and_servers_are_killed(tmp_path: Path) -> None:
    """Two servers of one directory, peers at either, and one that goes to the directory itself."""
    url, authority = str(tmp_path / "store"), Authority(tmp_path)
    open_store(url).close()
    pair = authority.certificate()
    words = (url, "--tls-cert", str(pair[0]), "--tls-key", str(pair[1]))
    servers = [HttpsProcess(tmp_path, *words).start() for _ in range(2)]
    env = environment(
        HOPAAS_TOKEN=administrator(url), HOPAAS_CA_FILE=str(authority.file), XDG_STATE_HOME=str(tmp_path / "state")
    )
    served = f"https://{HOST}:{servers[0].port},{HOST}:{servers[1].port}"
    space = {"x": hopaas_p2p.Float(0, 1)}
    peers: list[subprocess.Popen[bytes]] = []

    def complete(study: hopaas_p2p.Study) -> int:
        return sum(trial.state.name == "COMPLETE" for trial in study.state.trials)

    def start(where: str) -> subprocess.Popen[bytes]:
        peers.append(subprocess.Popen([sys.executable, "-c", _PEER, where], cwd=ROOT, env=env))
        return peers[-1]

    try:
        with contextlib.closing(
            hopaas_p2p.open_study(
                url, "s", space=space, budget=40, policy=hopaas_p2p.StudyPolicy(lease_ttl=5.0, attempts=9)
            )
        ) as study:
            for where in (served, served, served, url):
                start(where)
            for number in range(3):
                until(lambda wanted=6 * (number + 1): complete(study) >= wanted, 90)
                servers[number % 2].kill()
                peers[number].send_signal(signal.SIGKILL)
                servers[number % 2].start()
                start(served)
            for peer in peers[3:]:
                assert peer.wait(120) == 0
            until(lambda: complete(study) == 40, 60)
    finally:
        for peer in peers:
            peer.kill()
            peer.wait(30)
        for server in servers:
            server.kill()
