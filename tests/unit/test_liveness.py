"""Who is alive, in words: of peers, of studies, and of the trials that failed."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hopaas_p2p
from hopaas_p2p.analysis.facts import duration, retried, state_word, value_cells
from hopaas_p2p.cli import main
from hopaas_p2p.core.leases import FailureDetector, beat_time, beat_value
from hopaas_p2p.core.records import StudyDefine
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import StudyFinished
from hopaas_p2p.peer.liveness import SignOfLife, any_alive, sign_of_life
from hopaas_p2p.stores.base import Beat

SPACE = {"x": hopaas_p2p.Float(0, 1)}
WALL = 1_000_000_000.0


def _state() -> State:
    state = State()
    state.define = StudyDefine("s", ("minimize",), {})
    return state


def _seen(beat: str | None, *, after: float = 0.0, then: str | None = None) -> SignOfLife:
    detector = FailureDetector()
    detector.look({} if beat is None else {"ann": beat}, ["ann"], 0.0)
    if then is not None:
        detector.look({"ann": then}, ["ann"], after)
    return sign_of_life(_state(), "ann", detector, after, WALL)


def test_a_heartbeat_says_when_it_was_made() -> None:
    assert beat_time(beat_value("ann", 3, 1_700_000_000_999_999)) == 1_700_000_000.0


@pytest.mark.parametrize("beat", [None, "", "ann:3", "ann:3:x", "ann:3:-5", "a:b:c:4"])
def test_a_heartbeat_of_an_older_version_says_nothing(beat: str | None) -> None:
    assert beat_time(beat) is None


def test_a_first_look_tells_a_live_peer_from_a_dead_one() -> None:
    assert _seen(f"ann:1:{WALL - 30:.0f}") == SignOfLife(True, 30.0)
    assert _seen(f"ann:1:{WALL - 300:.0f}") == SignOfLife(False, 300.0)


def test_a_peer_whose_heartbeat_is_overdue_is_not_said_to_be_alive() -> None:
    assert _seen(f"ann:1:{WALL - 49:.0f}") == SignOfLife(True, 49.0)
    assert _seen(f"ann:1:{WALL - 54:.0f}") == SignOfLife(None, 54.0)
    seen_to_beat = f"ann:2:{WALL - 54:.0f}"
    assert _seen("ann:1:5", after=1.0, then=seen_to_beat).alive, "this observer has just seen it"


@pytest.mark.parametrize("heard", [(), ("ann",)])
def test_a_sign_of_life_that_may_be_older_than_a_moment_proves_nothing_of_the_time_since(
    heard: tuple[str, ...],
) -> None:
    detector = FailureDetector()
    detector.look({"ann": "ann:1"}, ["ann"], 0.0)
    detector.look({"ann": "ann:2"}, ["ann"], 10.0, heard=heard)  # it beat at 1.0, perhaps, and died at 2.0
    assert not detector.proven_alive("ann", since=5.0)
    assert detector.silence("ann", 11.0) == 1.0, "it is not reclaimed earlier for that"
    detector.look({"ann": "ann:3"}, ["ann"], 20.0)
    assert detector.proven_alive("ann", since=5.0) == (not heard), "what was not read at 10.0 may have changed before"
    detector.look({"ann": "ann:4"}, ["ann"], 30.0, heard=heard)
    assert detector.proven_alive("ann", since=20.0)


def test_what_cannot_be_known_yet_is_unknown() -> None:
    assert _seen("ann:1").alive is None
    assert _seen(f"ann:1:{WALL + 86400:.0f}").alive is None  # its clock is a day ahead


def test_what_an_observer_saw_itself_counts_more_than_a_clock() -> None:
    old = f"ann:1:{WALL - 86400:.0f}"
    assert _seen(old, after=5.0, then=f"ann:2:{WALL - 86395:.0f}") == SignOfLife(True, 0.0)
    assert _seen("ann:1", after=121.0).alive is False


def test_a_study_is_unknown_only_while_nobody_is_known_to_be_alive() -> None:
    dead, alive, unknown = SignOfLife(False, 1.0), SignOfLife(True, 1.0), SignOfLife(None, None)
    assert any_alive([dead, unknown, alive]) is True
    assert any_alive([dead, unknown]) is None
    assert any_alive([dead]) is False


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0.0 s"), (0.03, "0.03 s"), (4.24, "4.2 s"), (42.4, "42 s"), (59.8, "1 min"), (200, "3 min 20 s"),
     (7200, "2 h"), (7500, "2 h 5 min"), (86400 * 3 + 4 * 3600, "3 d 4 h")],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def _listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main.run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_study_whose_peer_died_is_idle_and_the_peer_is_silent(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    trial = study.ask()
    peer = study.storage.peer
    assert state_word(study.state) == "running"
    [alive] = _listed(capsys, "peers", "list", "--store", store, "--study", "s")
    assert (alive["state"], alive["last_seen"] < 60) == ("alive", True)

    peer.jobs.stop(within=5.0)  # its own beats
    peer.store.beat(Beat(peer.uuid, beat_value(peer.uuid, 10**6, int((time.time() - 1000) * 1e6))))
    [silent] = _listed(capsys, "peers", "list", "--store", store, "--study", "s")
    peer.store.beat(Beat(peer.uuid, beat_value(peer.uuid, 10**7, int((time.time() - 54) * 1e6))))
    [overdue] = _listed(capsys, "peers", "list", "--store", store, "--study", "s")
    peer.store.beat(Beat(peer.uuid, beat_value(peer.uuid, 10**8, int((time.time() - 1000) * 1e6))))
    shown = _listed(capsys, "study", "show", "s", "--store", store)
    study.tell(trial, 1.0)
    study.close()

    assert (overdue["state"], 54 <= overdue["last_seen"] < 120) == ("not heard from", True)
    assert silent["state"] == "silent"
    assert silent["last_seen"] >= 1000
    assert shown["state"] == "idle"
    assert list(shown["silent"]) == [peer.uuid]
    assert shown["peers"] == {}


def test_a_command_that_ran_no_trial_is_not_listed_as_a_peer(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPAAS_SITE", "here")
    with contextlib.closing(hopaas_p2p.open_study(store, "s", space=SPACE)) as study:
        study.tell(study.ask(), 1.0)
        worker = study.storage.peer.uuid
    at = "--store", store, "--study", "s"
    assert [main.run([*words, *at]) for words in (["study", "pause"], ["peers", "drain", "--site", "here"])] == [0, 0]

    assert [one["peer"] for one in _listed(capsys, "peers", "list", *at)] == [worker]
    assert [one["peer"] for one in _listed(capsys, "peers", "list", "--all", *at)] == [worker]


def test_a_peer_without_a_trial_is_idle_while_it_lives_and_then_has_left_or_is_gone(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = {name: hopaas_p2p.open_study(store, "s", space=SPACE) for name in ("idle", "left", "gone")}
    names = {study.storage.peer.uuid: name for name, study in studies.items()}
    for study in studies.values():
        study.tell(study.ask(), 1.0)
    studies["left"].close()
    gone = studies["gone"].storage.peer
    gone.jobs.stop(within=5.0)  # its own beats
    gone.store.beat(Beat(gone.uuid, beat_value(gone.uuid, 10**6, int((time.time() - 1000) * 1e6))))

    listed = _listed(capsys, "peers", "list", "--all", "--store", store, "--study", "s")
    for study in studies.values():
        study.close()

    assert {names[one["peer"]]: one["state"] for one in listed} == {"idle": "idle", "left": "left", "gone": "gone"}
    assert all(one["last_seen"] is not None for one in listed)


def test_failures_that_were_run_again_are_counted_apart(store: str) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    for _ in range(2):
        study.tell(study.ask(), state="fail", reason="crashed")
    study.requeue(0)

    assert (study.state.counts[3], retried(study.state)) == (2, 1)
    study.close()


def test_a_finished_study_takes_no_trial_that_would_never_run(store: str) -> None:
    study = hopaas_p2p.open_study(store, "my study", space=SPACE, budget=1)
    study.tell(study.ask(), 1.0)
    for queue in (lambda: study.enqueue_trial({"x": 0.5}), lambda: study.requeue(0)):
        with pytest.raises(StudyFinished, match=r"would never run.*study set 'my study' --budget LIMITS"):
            queue()
    study.set_budget(2)

    assert study.enqueue_trial({"x": 0.5}) == 1
    study.close()


def test_attributes_take_what_numpy_gives(store: str) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    trial = study.ask()
    trial.set_user_attr("mean", np.float32(0.5))
    trial.set_user_attr("shape", {"rows": np.arange(3), "ok": np.bool_(True)})
    study.tell(trial, np.float64(1.0))
    study.set_user_attr("seeds", np.array([[1, 2], [3, 4]]))
    study.close()

    again = hopaas_p2p.open_study(store, "s", create=False)
    assert again.trials[0].user_attrs == {"mean": 0.5, "shape": {"rows": [0, 1, 2], "ok": True}}
    assert again.user_attrs == {"seeds": [[1, 2], [3, 4]]}
    with pytest.raises(hopaas_p2p.errors.InvalidInput, match=r"keep it as a file.*trial\.upload"):
        again.set_user_attr("big", "x" * (1 << 21))
    again.close()


def test_a_column_of_values_has_its_points_below_each_other() -> None:
    assert value_cells([(0.734551,), (12.3,), None, (0.00004,)]) == ["0.7346", "12.3000", "-", "4.000e-05"]
    assert value_cells([(0.5,), (0.25,), (1e9,)]) == ["0.5000", "0.2500", "1.000e+09"]
    assert value_cells([(3,), (14,)]) == ["3", "14"]


def test_failures_are_listed_alone_each_with_its_reason(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    study.tell(study.ask(), 0.5)
    study.tell(study.ask(), state="fail", reason="the command ended with 1\nTraceback\nValueError: no data")
    study.close()
    capsys.readouterr()

    assert main.run(["trial", "list", "s", "--state", "fail", "--store", store]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split() == ["#", "STATE", "VALUE", "TIME", "TRY", "WHERE", "REASON", "PARAMETERS"]
    assert "the command ended with 1: ValueError: no data" in lines[1]


def test_quiet_commands_print_results_and_errors_only(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    hopaas_p2p.open_study(store, "s", space=SPACE).close()
    capsys.readouterr()

    assert main.run(["study", "pause", "s", "--store", store, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main.run(["study", "pause", "missing", "--store", store, "-q"]) == 1
    assert "missing" in capsys.readouterr().err
