"""Signs of life that somebody forges for a peer that is dead, in a store to which many may write.

Nothing there says who wrote a heartbeat or a commit. A trial that is kept from being reclaimed in this way is still in
the log with all that it reported, and an operator can end it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, Record, StudySet, TrialCreate, TrialSet
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.stores.base import Beat, Outgoing, Store, append
from tests.support.ticking import tick

TTL = 12.0
_LOOKS = 6  # per ttl


class Clock:
    """Seconds, as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def say(store: Store, uuid: str, seq: int, *records: Record) -> None:
    """Append a commit in ann's name."""
    append(store.log(uuid), Outgoing(f"ann:{seq}", codec.encode(Commit("ann", seq, "ann", 0, records))), 0)


def beat(store: Store, _uuid: str, count: int) -> None:
    store.beat(Beat("ann", f"ann:{count}:0"))


def commit(store: Store, uuid: str, count: int) -> None:
    say(store, uuid, count, StudySet({"note": str(count)}))


def watch(store: Store, uuid: str, forge: Callable[[Store, str, int], None] | None) -> bool:
    """Whether ann's trial runs after an honest peer has watched it for four ttls."""
    clock = Clock()
    peer = Peer(store, linger=1.0, clock=clock, threaded=False, describe=dict, patience=0.0)
    log = peer.log(uuid)
    peer.introduce(log)
    for count in range(2, 2 + 4 * _LOOKS):
        if forge is not None:
            forge(store, uuid, count)
        tick(peer)
        clock.now += TTL / _LOOKS
    peer.flush()
    return 0 in log.state.running


@pytest.fixture
def study(tmp_path: Path) -> tuple[str, str]:
    """A store with a study in which ann, who is dead, runs a trial; and the study's uuid."""
    url = str(tmp_path / "store")
    made = hopaas_p2p.open_study(url, "s", policy=hopaas_p2p.StudyPolicy(lease_ttl=TTL))
    uuid = made.handle.uuid
    made.close()
    store = open_store(url)
    say(store, uuid, 1, TrialCreate(), TrialSet(0, 1, reports={0: 0.5, 1: 0.25}))
    store.close()
    return url, uuid


def test_without_a_forger_a_dead_peers_trial_is_reclaimed(study: tuple[str, str]) -> None:
    url, uuid = study
    assert not watch(open_store(url), uuid, None)


@pytest.mark.parametrize("forge", [beat, commit])
def test_a_trial_that_forged_signs_of_life_keep_is_ended_by_an_operator_with_all_it_reported(
    study: tuple[str, str], forge: Callable[[Store, str, int], None]
) -> None:
    url, uuid = study
    assert watch(open_store(url), uuid, forge), "not defended"

    operator = hopaas_p2p.open_study(hopaas_p2p.open_storage(url, operator=True, create=False), "s", create=False)
    operator.tell(0, state="fail", reason="its peer is dead")
    ended = operator.trials[0]
    assert ended.state.name == "FAIL"
    assert ended.intermediate_values == {0: 0.5, 1: 0.25}
    operator.close()
