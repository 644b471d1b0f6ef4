"""Bridges as people run them: a command that is killed and started again, beside real peers on both sides."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.state import State
from hopaas_p2p.open import open_store
from hopaas_p2p.testing.commits import everything
from tests.support.bridge_process import BridgeProcess
from tests.support.bridge_world import replayed
from tests.support.peers import Peers, check
from tests.support.processes import CLI, cli, environment, until
from tests.support.served import Centre
from tests.support.site_fixtures import Squid


@pytest.fixture
def near(tmp_path: Path) -> Path:
    return tmp_path / "campaign"


@pytest.fixture
def bridge(near: Path, postgres_url: str, tmp_path: Path) -> Iterator[BridgeProcess]:
    made = BridgeProcess(near, postgres_url, tmp_path).start()
    yield made
    made.kill()


def test_a_bridge_that_is_killed_again_and_again_loses_and_doubles_nothing(
    bridge: BridgeProcess, near: Path, postgres_url: str, tmp_path: Path
) -> None:
    peers, chooser = Peers(str(near), tmp_path, 2, lease_ttl=20.0), random.Random(7)
    try:
        peers.url = postgres_url
        peers.running.append(peers._start())
        peers.url = str(near)
        for number in range(5):
            told = len(peers.acknowledged())
            until(lambda told=told: len(peers.acknowledged()) > told + 5, 60, what=bridge.log)
            bridge.kill()
            if number == 2:
                peers.replace_one(chooser)
            bridge.start()
        peers.finish()
    finally:
        peers.kill()
    acknowledged = peers.acknowledged()
    state = check(postgres_url, acknowledged)
    assert snapshot.digest(check(str(near), acknowledged)) == snapshot.digest(state)
    owners = {trial.owner or trial.history[-1].owner for trial in state.trials if trial.owner or trial.history}
    assert len({state.peers[owner]["pid"] for owner in owners if owner}) >= 3, "peers of both sides took part"


def test_proxy_and_server_may_go_down_under_a_bridge_and_it_finds_them_again(
    centre: Centre, squid: Squid, near: Path, postgres_url: str, tmp_path: Path
) -> None:
    server = centre.serve()
    way = {
        "HTTPS_PROXY": squid.url(),
        "HOPAAS_TOKEN": centre.token().secret.reveal(),
        "HOPAAS_CA_FILE": str(centre.authority.file),
    }
    bridge = BridgeProcess(near, centre.url(server.port), tmp_path, **way).start()
    peers = Peers(str(near), tmp_path, 2, lease_ttl=20.0)
    try:
        for times, broken in enumerate((squid, server, squid), 1):
            told = len(peers.acknowledged())
            until(lambda told=told: len(peers.acknowledged()) > told + 3, 60, what=bridge.log)
            seen = len(bridge.log())
            broken.kill()
            until(lambda seen=seen: len(bridge.log()) > seen, 60)  # it has noticed
            broken.start()
            until(lambda times=times: bridge.log().count("the other side answers again") >= times, 60, what=bridge.log)
        told = len(peers.acknowledged())
        until(lambda: len(peers.acknowledged()) > told + 3, 60, what=bridge.log)
        peers.finish()
    finally:
        peers.kill()
        bridge.kill()
    acknowledged = peers.acknowledged()
    state = check(postgres_url, acknowledged)
    assert snapshot.digest(check(str(near), acknowledged)) == snapshot.digest(state)
    assert way["HOPAAS_TOKEN"].partition(":")[2] not in bridge.log()


def test_two_bridges_may_run_at_once(bridge: BridgeProcess, near: Path, postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = BridgeProcess(near, postgres_url, tmp_path / "second").start()
    try:
        study = hopaas_p2p.open_study(str(near), "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=12)
        study.optimize(lambda trial: trial.params["x"], n_trials=12)
        uuid = study.storage.handle(study.study_id).uuid
        study.close()
    finally:
        second.kill()
    log = open_store(postgres_url).log(uuid)
    state = replayed(everything(log))
    assert [trial.state.name for trial in state.trials] == ["COMPLETE"] * 12
    assert state.refusals == {}


def test_a_bucket_may_be_the_far_side(s3_url: str, tmp_path: Path) -> None:
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    bridge = BridgeProcess(tmp_path / "near", s3_url, tmp_path, pace=None, **keys).start()
    try:
        study = hopaas_p2p.open_study(str(tmp_path / "near"), "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=3)
        study.optimize(lambda trial: trial.params["x"])
        assert study.storage.peer.lease_valid(study.storage.handle(study.study_id).log, study.storage.peer.uuid), (
            "its beat has crossed"
        )
        study.close()
        found = hopaas_p2p.open_study(s3_url, "s", create=False)
        assert [trial.state.name for trial in found.state.trials] == ["COMPLETE"] * 3
        found.close()
    finally:
        bridge.kill()


TRAINING = """
import os, sys
import hopaas_p2p, optuna

def train(trial):
    last, file = trial.resume or (-1, None)
    trained = file.read_text() if file else ""
    for epoch in range(last + 1, 3):
        trained += os.environ["HOPAAS_SITE"] + " "
        trial.checkpoint(trained.encode(), step=epoch)
        trial.report(trial.params["x"], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("trained", trained)
    return trial.params["x"]

study = hopaas_p2p.open_study(sys.argv[1], "s", create=False)
study.optimize(train, n_trials=1)
study.close()
"""


def test_a_trial_begun_in_a_directory_behind_a_bridge_ends_in_a_bucket_at_another_site(
    s3_url: str, near: Path, tmp_path: Path
) -> None:
    rungs = hopaas_p2p.Rungs(min=1, max=3)
    study = hopaas_p2p.open_study(s3_url, "s", space={"x": hopaas_p2p.Float(0, 1)}, fidelity=rungs, budget=1)
    bridge = BridgeProcess(near, s3_url, tmp_path).start()
    try:
        for site, store in (("north", str(near)), ("south", s3_url)):
            command = [sys.executable, "-c", TRAINING, store]
            done = subprocess.run(
                command, env=environment(HOPAAS_SITE=site), capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
        until(lambda: len(study.trials) == 2, 30, what="the reader's copy of a bucket may be some seconds old")
        paused, whole = study.trials
        assert [trial.state.name for trial in (paused, whole)] == ["PRUNED", "COMPLETE"]
        assert whole.params == paused.params
        assert whole.user_attrs == {"trained": "north south south "}
        assert study.state.used() == 1
    finally:
        bridge.kill()
        study.close()


def test_a_result_that_was_told_without_a_bridge_lies_in_inbox_and_spool_and_counts_once(
    bridge: BridgeProcess, near: Path, postgres_url: str, tmp_path: Path
) -> None:
    here = {"HOPAAS_STORE": str(near), "HOPAAS_STUDY": "s", "XDG_STATE_HOME": str(tmp_path / "state")}
    cli("study", "create", "s", "--budget", "5", "--space", "x=float(0,1)", **here)
    ticket = json.loads(cli("trial", "ask", "--json", **here).stdout)["ticket"]
    bridge.kill()
    told = cli("trial", "tell", "0.25", check=False, HOPAAS_TICKET=ticket, HOPAAS_PATIENCE="1", **here)
    assert told.returncode in (0, 69), told.stderr
    assert "Traceback" not in told.stderr
    assert len(list((tmp_path / "state").rglob("*.commits"))) == 1
    bridge.start()
    state = until(lambda: _finished(postgres_url), 60)
    cli("admin", "spool", "send", **here)
    assert list((tmp_path / "state").rglob("*.commits")) == []
    assert [trial.values for trial in state.trials] == [(0.25,)]
    assert _finished(postgres_url).trials == state.trials


def test_a_trial_that_ask_could_not_begin_without_a_bridge_is_nobodys_later(
    bridge: BridgeProcess, near: Path, postgres_url: str, tmp_path: Path
) -> None:
    here = {"HOPAAS_STORE": str(near), "HOPAAS_STUDY": "s", "XDG_STATE_HOME": str(tmp_path / "state")}
    cli("study", "create", "s", "--budget", "1", "--space", "x=float(0,1)", **here)
    cli("study", "show", "s", **here)
    bridge.kill()
    asked = cli("trial", "ask", check=False, HOPAAS_PATIENCE="1", **here)
    assert (asked.returncode, asked.stdout) == (69, "")
    bridge.start()
    assert json.loads(cli("trial", "ask", "--json", **here).stdout)["number"] == 0, "the budget of one is not used up"


def _finished(url: str) -> State | None:
    """The study's state, when its trial has ended."""
    study = hopaas_p2p.open_study(url, "s", create=False)
    state = study.state
    study.close()
    return state if not state.running else None


def test_a_study_is_begun_and_ended_from_the_near_side(bridge: BridgeProcess, near: Path, postgres_url: str) -> None:
    cli("study", "create", "s", "--store", str(near))
    assert "s" in cli("study", "list", "--store", postgres_url).stdout
    cli("study", "rm", "s", "--yes", "--store", str(near))
    assert "s" not in [
        one["name"] for one in json.loads(cli("study", "list", "--store", postgres_url, "--json").stdout)
    ]


def test_the_doctor_sees_the_bridge_and_its_absence(bridge: BridgeProcess, near: Path, postgres_url: str) -> None:
    hopaas_p2p.open_study(postgres_url, "s").close()
    result = cli("doctor", str(near), "--json", check=False)
    found = {one["check"]: one for one in json.loads(result.stdout)}
    assert result.returncode == 0, result.stdout
    assert {"file system", "room", "bridge", "inbox", "write and read", "exchange", "beat", "study s"} <= found.keys()
    assert "postgresql://dba:***@127.0.0.1" in found["bridge"]["detail"]
    until(lambda: "inbox: nothing waits" in cli("doctor", str(near)).stdout, 60)
    bridge.kill()
    cli("study", "list", "--store", str(near))  # says that it would like to know
    result = cli("doctor", str(near), "--json", check=False)
    found = {one["check"]: one for one in json.loads(result.stdout)}
    assert result.returncode == 1
    assert [name for name, one in found.items() if not one["passed"]] == ["bridge"]
    assert "hopaas-p2p bridge NEAR FAR" in found["bridge"]["cure"]
    assert re.search(r"\d+ requests? waits? in the inbox", found["bridge"]["detail"])
    assert "write and read" not in found


def test_a_bridge_ends_politely_and_says_what_it_did(bridge: BridgeProcess, near: Path) -> None:
    cli("study", "create", "s", "--store", str(near))
    assert bridge.process is not None
    bridge.process.send_signal(signal.SIGTERM)
    assert bridge.process.wait(30) == 0
    assert "Stopped. Carried" in bridge.log()


def test_a_bridge_speaks_json(tmp_path: Path) -> None:
    words = [*CLI, "bridge", str(tmp_path / "near"), str(tmp_path / "far"), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        begun = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        ended = json.loads(process.stdout.readline())
    assert begun == {"near": (tmp_path / "near").as_uri(), "far": (tmp_path / "far").as_uri()}
    assert ended == {"carried": 0}
    assert process.returncode == 0


def test_no_secret_stands_in_the_directory_or_in_the_log(bridge: BridgeProcess, near: Path, postgres_url: str) -> None:
    cli("study", "create", "s", "--store", str(near))
    secret = postgres_url.split(":")[2].partition("@")[0].encode()
    assert secret not in bridge.log().encode()
    assert all(secret not in path.read_bytes() for path in near.rglob("*") if path.is_file())


def test_wrong_ends_are_refused_in_one_line(tmp_path: Path) -> None:
    here, away = str(tmp_path / "a"), "postgresql://dba@127.0.0.1:1/store"
    bucket = "s3://tuning/near?endpoint=http://127.0.0.1:1&region=us-east-1"
    for near, far, complaint in (
        (here, here, "two stores"),
        (bucket, away, "the near side of a bridge is a directory"),
        (away, here, "the near side of a bridge is a directory"),
        (here, "ftp://there", "no store has the scheme"),
    ):
        result = cli("bridge", near, far, check=False)
        assert result.returncode == 78
        assert complaint in result.stderr
        assert result.stderr.count("\n") == 1
