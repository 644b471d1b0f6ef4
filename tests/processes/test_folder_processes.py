"""`serve folder` as people run it: killed and started again, beside real peers on both sides."""

from __future__ import annotations

import json
import os
import random
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
from tests.support.box_world import replayed
from tests.support.peers import Peers, check
from tests.support.processes import CLI, cli, environment, until
from tests.support.served import Centre, FolderProcess
from tests.support.site_fixtures import Squid


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return tmp_path / "box"


@pytest.fixture
def near(box: Path) -> str:
    """The store as it is named where nothing but the folder is reached."""
    return f"folder://{box}"


@pytest.fixture
def served(box: Path, postgres_url: str, tmp_path: Path) -> Iterator[FolderProcess]:
    made = FolderProcess(box, postgres_url, tmp_path).start()
    yield made
    made.kill()


def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(
    served: FolderProcess, near: str, postgres_url: str, tmp_path: Path
) -> None:
    peers, chooser = Peers(near, tmp_path, 2), random.Random(7)

    def through_the_folder() -> int:
        """Results of peers behind it; those of the store's own peer would not show that a server answers."""
        return sum(file.read_text().count("\n") for file in tmp_path.glob("peer-*.notes") if file.stem != "peer-2")

    try:
        peers.url = postgres_url
        peers.running.append(peers._start())
        peers.url = near
        for number in range(5):
            told = through_the_folder()
            until(lambda told=told: through_the_folder() > told + 5, 60, what=served.log)
            served.kill()
            if number == 2:
                peers.replace_one(chooser)
            served.start()
        until(lambda: len(_pids(check(postgres_url, {}))) >= 3, 60, what="peers of both sides take part")
        peers.finish()
    finally:
        peers.kill()
    acknowledged = peers.acknowledged()
    state = check(postgres_url, acknowledged)
    assert snapshot.digest(check(near, acknowledged)) == snapshot.digest(state)


def _pids(state: State) -> set[str]:
    """The processes that have run trials."""
    owners = {trial.owner or trial.history[-1].owner for trial in state.trials if trial.owner or trial.history}
    return {state.peers[owner]["pid"] for owner in owners if owner}


def test_proxy_and_server_may_go_down_behind_a_folder_and_are_found_again(
    centre: Centre, squid: Squid, box: Path, near: str, postgres_url: str, tmp_path: Path
) -> None:
    server = centre.serve()
    way = {
        "HTTPS_PROXY": squid.url(),
        "HOPAAS_TOKEN": centre.token().secret.reveal(),
        "HOPAAS_CA_FILE": str(centre.authority.file),
    }
    served = FolderProcess(box, centre.url(server.port), tmp_path, **way).start()
    peers = Peers(near, tmp_path, 2, lease_ttl=20.0)
    try:
        for times, broken in enumerate((squid, server, squid), 1):
            told = len(peers.acknowledged())
            until(lambda told=told: len(peers.acknowledged()) > told + 3, 60, what=served.log)
            seen = len(served.log())
            broken.kill()
            until(lambda seen=seen: len(served.log()) > seen, 60)  # it has noticed
            broken.start()
            until(lambda times=times: served.log().count("the store answers again") >= times, 60, what=served.log)
        told = len(peers.acknowledged())
        until(lambda: len(peers.acknowledged()) > told + 3, 60, what=served.log)
        peers.finish()
        acknowledged = peers.acknowledged()
        state = check(postgres_url, acknowledged)
        assert snapshot.digest(check(near, acknowledged)) == snapshot.digest(state)
    finally:
        peers.kill()
        served.kill()
    assert way["HOPAAS_TOKEN"].partition(":")[2] not in served.log()


def test_two_servers_may_run_at_once(
    served: FolderProcess, box: Path, near: str, postgres_url: str, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = FolderProcess(box, postgres_url, tmp_path / "second").start()
    try:
        study = hopaas_p2p.open_study(near, "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=12)
        study.optimize(lambda trial: trial.params["x"], n_trials=12)
        uuid = study.handle.uuid
        study.close()
    finally:
        second.kill()
    log = open_store(postgres_url).log(uuid)
    state = replayed(everything(log))
    assert [trial.state.name for trial in state.trials] == ["COMPLETE"] * 12
    assert state.refusals == {}


def test_a_bucket_may_be_served(s3_url: str, box: Path, near: str, tmp_path: Path) -> None:
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    served = FolderProcess(box, s3_url, tmp_path, **keys).start()
    try:
        study = hopaas_p2p.open_study(near, "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=3)
        study.optimize(lambda trial: trial.params["x"])
        assert study.storage.peer.lease_valid(study.handle.log, study.storage.peer.uuid), "its beat has crossed"
        study.close()
        found = hopaas_p2p.open_study(s3_url, "s", create=False)
        assert [trial.state.name for trial in found.state.trials] == ["COMPLETE"] * 3
        found.close()
    finally:
        served.kill()


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


def test_a_trial_begun_behind_a_folder_ends_in_a_bucket_at_another_site(
    s3_url: str, box: Path, near: str, tmp_path: Path
) -> None:
    rungs = hopaas_p2p.Rungs(min=1, max=3)
    study = hopaas_p2p.open_study(s3_url, "s", space={"x": hopaas_p2p.Float(0, 1)}, fidelity=rungs, budget=1)
    served = FolderProcess(box, s3_url, tmp_path).start()
    try:
        for site, store in (("north", near), ("south", s3_url)):
            command = [sys.executable, "-c", TRAINING, store]
            done = subprocess.run(
                command, env=environment(HOPAAS_SITE=site), capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
        ends = ["PRUNED", "COMPLETE"]  # the reader's copy of a bucket may be some seconds old
        until(lambda: [trial.state.name for trial in study.trials] == ends, 30)
        paused, whole = study.trials
        assert whole.params == paused.params
        assert whole.user_attrs == {"trained": "north south south "}
        assert study.state.used() == 1
    finally:
        served.kill()
        study.close()


def test_a_result_that_was_told_without_a_server_lies_in_the_spool_and_counts_once(
    served: FolderProcess, near: str, postgres_url: str, tmp_path: Path
) -> None:
    here = {"HOPAAS_STORE": near, "HOPAAS_STUDY": "s", "XDG_STATE_HOME": str(tmp_path / "state")}
    cli("study", "create", "s", "--budget", "5", "--space", "x=float(0,1)", **here)
    ticket = json.loads(cli("trial", "ask", "--json", **here).stdout)["ticket"]
    served.kill()
    told = cli("trial", "tell", "0.25", check=False, HOPAAS_TICKET=ticket, HOPAAS_PATIENCE="1", **here)
    assert told.returncode in (0, 69), told.stderr
    assert "Traceback" not in told.stderr
    assert len(list((tmp_path / "state").rglob("*.commits"))) == 1
    served.start()
    cli("admin", "spool", "send", **here)
    state = until(lambda: _finished(postgres_url), 60)
    assert list((tmp_path / "state").rglob("*.commits")) == []
    assert [trial.values for trial in state.trials] == [(0.25,)]
    assert list(_finished(postgres_url).trials) == list(state.trials)


def test_a_trial_that_ask_could_not_begin_without_a_server_is_nobodys_later(
    served: FolderProcess, near: str, postgres_url: str, tmp_path: Path
) -> None:
    here = {"HOPAAS_STORE": near, "HOPAAS_STUDY": "s", "XDG_STATE_HOME": str(tmp_path / "state")}
    cli("study", "create", "s", "--budget", "1", "--space", "x=float(0,1)", **here)
    cli("study", "show", "s", **here)
    served.kill()
    asked = cli("trial", "ask", check=False, HOPAAS_PATIENCE="1", **here)
    assert (asked.returncode, asked.stdout) == (69, "")
    served.start()
    assert json.loads(cli("trial", "ask", "--json", **here).stdout)["number"] == 0, "the budget of one is not used up"


def _finished(url: str) -> State | None:
    """The study's state, when its trial has ended."""
    study = hopaas_p2p.open_study(url, "s", create=False)
    state = study.state
    study.close()
    return state if not state.running else None


def test_a_study_is_begun_and_ended_through_the_folder(served: FolderProcess, near: str, postgres_url: str) -> None:
    cli("study", "create", "s", "--store", near)
    assert "s" in cli("study", "list", "--store", postgres_url).stdout
    cli("study", "rm", "s", "--yes", "--store", near)
    assert "s" not in [
        one["name"] for one in json.loads(cli("study", "list", "--store", postgres_url, "--json").stdout)
    ]


def test_the_doctor_sees_the_server_and_its_absence(
    served: FolderProcess, box: Path, near: str, postgres_url: str
) -> None:
    hopaas_p2p.open_study(postgres_url, "s").close()
    result = cli("doctor", near, "--json", check=False)
    found = {one["check"]: one for one in json.loads(result.stdout)}
    assert result.returncode == 0, result.stdout
    assert {"file system", "server", "requests", "write and read", "exchange", "beat", "study s"} <= found.keys()
    assert "postgresql://dba:***@127.0.0.1" in found["server"]["detail"]
    assert found["requests"]["detail"] == "nothing waits"
    served.kill()
    result = cli("doctor", near, "--json", check=False)
    found = {one["check"]: one for one in json.loads(result.stdout)}
    assert result.returncode == 1
    assert [name for name, one in found.items() if not one["passed"]] == ["server"]
    assert f"hopaas-p2p serve folder {box} postgresql://" in found["server"]["cure"]
    assert "write and read" not in found


def test_lists_and_studies_are_shown_while_the_link_is_down(
    centre: Centre, box: Path, near: str, tmp_path: Path
) -> None:
    server = centre.serve()
    way = {"HOPAAS_TOKEN": centre.token().secret.reveal(), "HOPAAS_CA_FILE": str(centre.authority.file)}
    served = FolderProcess(box, centre.url(server.port), tmp_path, **way).start()
    try:
        cli("study", "create", "s", "--budget", "5", "--space", "x=float(0,1)", "--store", near)
        cli("trial", "ask", "s", "--store", near)  # whose heartbeat nobody sees
        assert "s" in cli("study", "list", "--store", near).stdout
        cli("study", "show", "s", "--store", near)
        server.kill()
        served.kill()
        served.start()
        assert "s" in cli("study", "list", "--store", near).stdout
        assert "State       unknown" in cli("study", "show", "s", "--store", near).stdout
    finally:
        served.kill()


def test_a_server_ends_politely_and_says_what_it_did(served: FolderProcess, near: str) -> None:
    cli("study", "create", "s", "--store", near)
    assert served.process is not None
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    assert "Stopped. Forwarded" in served.log()


def test_it_speaks_json(box: Path, near: str, tmp_path: Path) -> None:
    hopaas_p2p.open_study(str(tmp_path / "far"), "s").close()
    words = [*CLI, "serve", "folder", str(box), str(tmp_path / "far"), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        begun = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        ended = json.loads(process.stdout.readline())
    assert begun == {"folder": near, "store": (tmp_path / "far").as_uri()}
    assert ended == {"carried": 0}
    assert process.returncode == 0


def test_no_secret_stands_in_the_folder_or_in_the_log(
    served: FolderProcess, box: Path, near: str, postgres_url: str
) -> None:
    cli("study", "create", "s", "--store", near)
    secret = postgres_url.split(":")[2].partition("@")[0].encode()
    assert secret not in served.log().encode()
    assert all(secret not in path.read_bytes() for path in box.rglob("*") if path.is_file())


def test_what_cannot_be_served_is_refused_in_one_line(served: FolderProcess, near: str, tmp_path: Path) -> None:
    for store in ("store", "far"):
        hopaas_p2p.open_study(str(tmp_path / store), "s").close()
    for folder, store, complaint in (
        (tmp_path / "store", str(tmp_path / "far"), "is a store itself"),
        (tmp_path / "another", near, "cannot be served through a folder; use a directory or another URL"),
        (tmp_path / "nowhere" / "box", str(tmp_path / "far"), "cannot serve through"),
        (tmp_path / "another", "ftp://there", "no store has the scheme"),
        (tmp_path / "another", str(tmp_path / "misspelt"), "there is no store in"),
    ):
        result = cli("serve", "folder", str(folder), store, check=False)
        assert result.returncode == 78
        assert complaint in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "misspelt").exists()
