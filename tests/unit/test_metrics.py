"""Metrics beside the report: `trial.log`, what becomes of bad ones, and what an attempt inherits."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import hopaas_p2p
from hopaas_p2p.core import blocks, snapshot
from hopaas_p2p.core.records import Checkpoint, TrialCheckpoint, TrialCreate, TrialReclaim, TrialSet
from hopaas_p2p.core.state import BLOCK
from hopaas_p2p.core.validity import MOST_METRICS
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.ports.local import LocalPeer
from hopaas_p2p.study import Study
from hopaas_p2p.study.trial import Trial
from tests.support.exchanges import exchanges_of
from tests.support.processes import SPACE
from tests.support.scribe import COMPLETE, Scribe


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = hopaas_p2p.open_study(
        hopaas_p2p.open_storage(str(tmp_path / "store"), linger=3600.0),
        "s",
        space=SPACE,
        policy=hopaas_p2p.StudyPolicy(lease_ttl=3600.0),
    )
    yield made
    made.close()


def metrics_of(study: Study, number: int = 0) -> dict[str, dict[int, float]]:
    """What another peer reads in the log."""
    url = study.storage.url
    other = hopaas_p2p.open_study(url, study.name, create=False)
    try:
        return other.state.trials[number].metrics
    finally:
        other.close()


# --- what a trial logs ---


def test_several_metrics_per_step_are_in_the_log_beside_the_report(study: Study) -> None:
    trial = study.ask()
    for step in (1, 2):
        trial.report(1.0 / step, step)
        trial.log(step, loss=1.0 / step, auc=np.float32(0.5))
    assert trial.metrics == {"loss": {1: 1.0, 2: 0.5}, "auc": {1: 0.5, 2: 0.5}}

    study.tell(trial, 0.5)

    assert metrics_of(study) == {"loss": {1: 1.0, 2: 0.5}, "auc": {1: 0.5, 2: 0.5}}
    assert study.trials[0].intermediate_values == {1: 1.0, 2: 0.5}


def test_a_step_that_is_logged_again_has_the_newer_value(study: Study) -> None:
    trial = study.ask()
    trial.log(1, loss=0.5)
    study.storage.flush()
    trial.log(1, loss=0.25)
    study.tell(trial, 1.0)
    assert metrics_of(study) == {"loss": {1: 0.25}}


def test_metrics_cost_no_round_trip(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def objective(trial: Trial) -> float:
        for step in range(10):
            trial.log(step, loss=0.1, auc=0.9)
        return 1.0

    study.optimize(objective, n_trials=1)
    calls = exchanges_of(study, monkeypatch)
    study.optimize(objective, n_trials=5)
    assert len(calls) == 6  # as without metrics: one per trial, and one for the last end


def test_metrics_decide_nothing_about_pruning(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(f"memory://{tmp_path}", "s", space=SPACE, pruner=hopaas_p2p.pruners.MedianPruner())

    def objective(trial: Trial) -> float:
        for step in range(3):
            trial.log(step, loss=float(trial.number))
            assert not trial.should_prune()
        return 1.0

    study.optimize(objective, n_trials=12)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    study.storage.close()


# --- bad values: one clear line, and nothing is lost ---


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"loss": "abc"}, "step 1: loss is 'abc', which is not a number. The others are kept: auc"),
        ({"loss": "0.5"}, "step 1: loss is '0.5', which is not a number. The others are kept: auc"),
        ({"loss": None}, "step 1: loss is None, which is not a number. The others are kept: auc"),
        ({"loss": [1.0, 2.0]}, "step 1: loss is [1.0, 2.0], which is not a number. The others are kept: auc"),
        (
            {"two\nlines": 1.0},
            (
                "step 1: the name of a metric must be one line of at most 100 characters, "
                r"got 'two\nlines'. The others are kept: auc"
            ),
        ),
    ],
    ids=["text", "digits", "none", "list", "name"],
)
def test_what_is_not_a_number_is_named_in_one_line_and_the_others_are_kept(
    study: Study, bad: dict[str, Any], message: str
) -> None:
    trial = study.ask()
    with pytest.raises(InvalidInput) as error:
        trial.log(1, **bad, auc=0.5)
    study.tell(trial, 1.0)
    assert str(error.value) == message
    assert metrics_of(study) == {"auc": {1: 0.5}}


def test_too_many_metrics_are_refused_by_name_and_the_first_ones_are_kept(study: Study) -> None:
    trial = study.ask()
    trial.log(0, **{f"m{i}": float(i) for i in range(MOST_METRICS)})
    with pytest.raises(InvalidInput, match="m64 would be metric 65, and a trial has at most 64"):
        trial.log(1, m64=1.0, m0=2.0)
    study.tell(trial, 1.0)
    found = metrics_of(study)
    assert len(found) == MOST_METRICS
    assert found["m0"] == {0: 0.0, 1: 2.0}


def test_nan_is_kept_and_said_once(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    trial = study.ask()
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        for step in (1, 2):
            trial.log(step, loss=math.nan, auc=math.inf)
    study.tell(trial, 1.0)
    assert [one.getMessage() for one in caplog.records] == ["trial 0: the metric loss is NaN at step 1"]
    found = metrics_of(study)
    assert [math.isnan(value) for value in found["loss"].values()] == [True, True]
    assert found["auc"] == {1: math.inf, 2: math.inf}


@pytest.mark.parametrize("step", ["1", 1 << 70, None])
def test_a_step_that_is_no_whole_number_is_one_clear_line(study: Study, step: Any) -> None:
    with pytest.raises(InvalidInput, match="whole number"):
        study.ask().log(step, loss=1.0)


def test_the_log_leaves_out_what_no_trial_may_have_and_keeps_the_rest_of_the_record() -> None:
    scribe = Scribe()
    trial = scribe.start("ann")
    many = {f"m{i}": {1: 1.0} for i in range(MOST_METRICS + 2)}
    verdict = scribe.say("ann", TrialSet(0, 1, reports={1: 0.5}, metrics={"": {1: 1.0}, **many}))
    assert verdict.accepted
    assert trial.reports == {1: 0.5}
    assert list(trial.metrics) == [f"m{i}" for i in range(MOST_METRICS)]
    assert scribe.state.refusals == {"malformed": 3}


# --- attempts ---


def test_a_retry_goes_on_with_the_metrics_up_to_its_checkpoint() -> None:
    scribe = Scribe()
    scribe.start("ann")
    scribe.say("ann", TrialSet(0, 1, metrics={"loss": {1: 3.0, 2: 2.0, 3: 1.0}, "late": {3: 1.0}}))
    scribe.say("ann", TrialCheckpoint(0, 1, Checkpoint(2, "key", 10, "0" * 64)))
    scribe.say("bob", TrialReclaim(0, 1))
    retry = scribe.claim("bob", 1)
    assert retry.metrics == {"loss": {1: 3.0, 2: 2.0}}
    scribe.say("bob", TrialSet(1, 1, metrics={"loss": {2: 2.5}}, resumed_from=1))
    assert retry.metrics == {"loss": {1: 3.0, 2: 2.5}}
    assert scribe.state.trials[0].metrics["loss"] == {1: 3.0, 2: 2.0, 3: 1.0}


def test_a_retry_that_begins_anew_forgets_what_its_predecessor_logged(study: Study) -> None:
    trial = study.ask()
    trial.log(1, loss=1.0, old=1.0)
    trial.log(2, loss=2.0)
    trial.checkpoint(b"weights", step=2)
    study.handle.release(trial.number)
    again = study.ask()
    assert again.number == trial.number
    assert again.metrics == {"loss": {1: 1.0, 2: 2.0}, "old": {1: 1.0}}
    again.log(1, loss=5.0)  # without a look at the checkpoint
    study.tell(again, 1.0)
    assert metrics_of(study) == {"loss": {1: 5.0}}


def test_a_retry_that_resumes_keeps_the_metrics_up_to_there(study: Study) -> None:
    trial = study.ask()
    for step in (1, 2, 3):
        trial.log(step, loss=float(step))
    trial.checkpoint(b"weights", step=2)
    study.handle.release(trial.number)
    again = study.ask()
    assert again.resume is not None
    assert again.resume[0] == 2
    again.log(3, loss=9.0)
    study.tell(again, 1.0)
    assert metrics_of(study) == {"loss": {1: 1.0, 2: 2.0, 3: 9.0}}


# --- snapshots, and other versions ---


def _logged(count: int) -> Scribe:
    scribe = Scribe()
    for number in range(count):
        metrics = {"loss": {1: float(number), 2: math.inf}, f"m{number % 3}": {number: 0.5}} if number % 2 else {}
        scribe.say("ann", TrialCreate(COMPLETE, values=(1.0,), metrics=metrics))
    return scribe


def test_a_snapshot_holds_the_metrics_of_open_and_of_packed_trials() -> None:
    scribe = _logged(BLOCK + 10)
    before = [dict(trial.metrics) for trial in scribe.state.trials]
    loaded = snapshot.load(snapshot.dump(scribe.state))
    assert loaded.trials.closed
    assert [trial.metrics for trial in loaded.trials] == before
    assert snapshot.digest(loaded) == snapshot.digest(scribe.state)


@pytest.mark.parametrize(
    "row", [(9999, 0, 0), (0, 9999, 0), (0, 0, 9999), (-1, 0, 0)], ids=["trial", "name", "steps", "negative"]
)
def test_a_block_whose_metrics_point_nowhere_is_corrupt(row: tuple[int, int, int]) -> None:
    scribe = _logged(4)
    block = blocks.columns(scribe.state.trials.block(0))
    found = blocks._decode_metrics(block.metrics)
    found.rows[0] = row
    block.metrics = msgspec.msgpack.encode(found)
    with pytest.raises((ValueError, IndexError)):
        blocks.check(msgspec.msgpack.encode(block), blocks.StudyRules(1, {}, 10, 1 << 40), first=0)


def test_a_version_that_knows_no_metrics_reads_the_rest_of_the_record() -> None:
    class Older(msgspec.Struct, array_like=True, frozen=True, tag="trial.set"):
        number: int
        epoch: int
        params: dict[str, float] = {}
        dists: dict[str, Any] = {}
        reports: dict[int, float] = {}

    sent = msgspec.msgpack.encode(TrialSet(3, 1, reports={1: 0.5}, metrics={"loss": {1: 0.5}}))
    assert msgspec.msgpack.decode(sent, type=Older) == Older(3, 1, reports={1: 0.5})


# --- for programs that speak JSON ---


def test_a_client_logs_metrics_and_reads_the_last_ones(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(f"memory://{tmp_path}")
    hopaas_p2p.open_study(storage, "s", space=SPACE)
    peer = LocalPeer(storage, actions=True)
    number = peer.ask("s")["trial"]
    for step in (1, 2):
        assert peer.request("s", number, "log", step=step, metrics={"auc": step / 4, "step": 1.0}) == {
            "trial": number,
            "study": "s",
        }
    with pytest.raises(InvalidInput, match="step 3: auc is 'high', which is not a number"):
        peer.request("s", number, "log", step=3, metrics={"auc": "high"})
    peer.request("s", number, "tell", values=[0.5])
    assert peer.trial("s", number)["metrics"] == {"auc": 0.5, "step": 1.0}
    peer.close()
