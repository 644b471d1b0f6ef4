"""A bucket that is cleaned up all the time, under workers; both are killed at random: nothing that counts goes."""

from __future__ import annotations

import contextlib
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving.files import from_store, named_files
from hopaas_p2p.moving.records import of_state
from hopaas_p2p.peer.session import study_client
from hopaas_p2p.stores.s3 import gc
from hopaas_p2p.stores.s3.store import S3Store
from tests.support import gc_campaign
from tests.support.processes import environment
from tests.support.sigkill import Outcome, massacre

_TOTAL = 80
_KILLS = 5


@pytest.mark.parametrize("keep", [0.0, 86_399.0, math.nan])
def test_nothing_younger_than_a_day_goes(keep: float) -> None:
    with pytest.raises(InvalidInput, match="at least a day"):
        list(gc.collect(None, keep=keep))  # type: ignore[arg-type]  # it is not asked


@pytest.mark.parametrize("seed", range(1, int(os.environ.get("HOPAAS_TEST_GC_ROUNDS", "1")) + 1))
def test_a_bucket_that_is_cleaned_up_under_workers_keeps_all_that_counts(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    space = {"x": hopaas_p2p.Float(0, 1)}
    hopaas_p2p.open_study(
        s3_url, "s", space=space, budget=_TOTAL, policy=hopaas_p2p.StudyPolicy(lease_ttl=20.0)
    ).close()
    with contextlib.closing(hopaas_p2p.open_storage(s3_url)) as storage:
        deleted = hopaas_p2p.open_study(storage, "deleted", space=space)
        deleted.artifacts().put(Path(__file__))
        gone = storage.handle(deleted.study_id).uuid
        storage.delete_study(deleted.study_id)
    with _cleaning(s3_url, seed) as removals:
        outcome = massacre(
            s3_url, tmp_path, seed=seed, study="s", work=gc_campaign.work, workers=4, total=_TOTAL, kills=_KILLS
        )
    assert sum(removals) > 0, "it removed something meanwhile"
    assert not list(spool.histories())
    store = S3Store(s3_url, create=False)
    uuid = next(name for name in store.objects.folders("study/") if len(name) == 32 and name != gone)
    before = _checked(store, uuid, outcome)
    list(gc._collect(store, -60.0, dry_run=False))
    assert list(gc._collect(store, -60.0, dry_run=False)) == [], "a second time there is nothing left to do"
    assert _checked(store, uuid, outcome) == before
    assert store.objects.listed(f"study/{gone}/") == [f"study/{gone}/boundary/deleted"]
    assert store.artifacts().keys(gone) == []
    store.close()


@contextlib.contextmanager
def _cleaning(url: str, seed: int) -> Iterator[list[int]]:
    """Cleans up over and over, and is killed at random; the objects that each complete pass has removed."""
    chooser, removals, over = random.Random(seed), list[int](), threading.Event()
    command = [sys.executable, "-m", "tests.support.gc_campaign", url]

    def run() -> None:
        while not over.is_set():
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
                assert process.stdout is not None
                first = process.stdout.readline()
                if first:
                    removals.append(int(first))
                over.wait(chooser.uniform(0.0, 2.0))
                process.kill()
                removals.extend(int(line) for line in process.stdout if line.endswith("\n"))
            if not first:
                removals.append(-1_000_000)  # it ended by itself

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield removals
    finally:
        over.set()
        thread.join()


def _checked(store: S3Store, uuid: str, outcome: Outcome) -> str:
    """Hold what a fresh peer sees against what was promised; the digest of its state."""
    peer = study_client(store.log(uuid), writer="joiner", now_us=lambda: 0)
    peer.exchange()
    state = peer.state
    assert [trial.number for trial in state.trials] == list(range(len(state.trials)))
    late = {trial.late_of: trial.number for trial in state.trials if trial.late_of is not None}
    for number, value in outcome.acknowledged.items():
        kept = state.trials[late.get(number, number)]
        assert (kept.state, kept.values) == (TrialState.COMPLETE, (value,)), f"the acknowledged tell of #{number}"
    values = [trial.values for trial in state.trials if trial.state is TrialState.COMPLETE]
    assert len(set(values)) == len(values) == _TOTAL, "each result once"
    _check_files(store, uuid, state)
    return snapshot.digest(state)


def _check_files(store: S3Store, uuid: str, state: State) -> None:
    """Every file and checkpoint of which the study speaks can be read."""
    whole = of_state(state, uuid=uuid)
    named = named_files(whole)
    assert len(named) >= len(state.trials) // 2
    fetch = from_store(store, whole)
    assert fetch is not None
    with tempfile.TemporaryDirectory() as directory:
        for one in named:
            fetch(one.id, Path(directory, "file"))
    there = set(store.artifacts().keys(uuid))
    spoken_of = {one.key for trial in state.trials for one in trial.checkpoints}
    assert spoken_of <= there, spoken_of - there
