"""watch and doctor: what is seen of a study and of a store, and the exit codes that scripts rely on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.cli.watch import looks
from hopaas_p2p.core import snapshot
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores import checks
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.study import Study
from tests.support.processes import CLI, campaign, environment, patient, until
from tests.support.processes import cli as run


@pytest.fixture
def study(tmp_path: Path) -> Any:
    study = campaign(tmp_path, budget=4, lease_ttl=1.0)
    study.optimize(lambda trial: trial.params["lr"], n_trials=3)
    yield study
    study.close()


# --- watch -------------------------------------------------------------------------------------------------------


def test_once_prints_one_line(here: dict[str, Any]) -> None:
    (line,) = run("watch", "--once", **here).stdout.splitlines()
    assert "s idle, 3 of 4: 3 complete; best" in line
    look = json.loads(run("watch", "s", "--once", "--json", **here).stdout)
    assert look["counts"]["COMPLETE"] == 3
    assert look["running"] == []


def test_it_waits_until_the_study_is_done_or_the_time_is_up(here: dict[str, Any], study: Study) -> None:
    assert run("watch", "--timeout", "0.2", "--interval", "0.1", check=False, **here).returncode == 1
    study.optimize(lambda trial: trial.params["lr"])
    assert run("watch", **here).returncode == 0


def test_a_study_whose_grid_is_through_is_over_though_its_budget_is_not_used(tmp_path: Path) -> None:
    grid = campaign(tmp_path, space={"n": hopaas_p2p.Int(1, 3)}, sampler=optuna.samplers.BruteForceSampler(), budget=9)
    grid.optimize(lambda trial: trial.params["n"])
    grid.close()
    assert run("watch", "--timeout", "20", cwd=tmp_path, HOPAAS_STORE="./store", HOPAAS_STUDY="s").returncode == 0


def test_the_last_look_shows_a_trial_that_ends_during_it(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, usual = study.ask(), Study.is_over

    def ends_before(one: Study) -> bool:
        if study.state.running:
            study.tell(trial, 0.5)
        return usual(one)

    monkeypatch.setattr(Study, "is_over", ends_before)
    with contextlib.closing(hopaas_p2p.open_study(tmp_path / "store", "s")) as watched:
        look = next(looks(watched))
    assert look["done"] is True
    assert (look["counts"]["COMPLETE"], look["running"]) == (4, [])


def test_it_follows_till_the_end(here: dict[str, Any], study: Study) -> None:
    env = environment(HOPAAS_STORE="./store", HOPAAS_STUDY="s")
    command = [*CLI, "watch", "--interval", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=here["cwd"], env=env) as watching:
        assert watching.stdout is not None
        assert "3 of 4" in watching.stdout.readline()
        trial = study.ask()
        assert "1 running" in watching.stdout.readline()
        study.tell(trial, 1.0)
        assert "done, 4 of 4" in watching.stdout.readline()
        assert watching.wait(patient(60)) == 0


def test_ctrl_c_ends_it(here: dict[str, Any]) -> None:
    env = environment(HOPAAS_STORE="./store", HOPAAS_STUDY="s")
    command = [*CLI, "watch", "--interval", "30"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here["cwd"], env=env
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(patient(60)) == 130


def test_an_outage_passes(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from hopaas_p2p.cli.watch import looks, sentence

    watched = looks(study)
    assert next(watched)["outage"] is None

    def away(*_: object) -> dict[str, str]:
        raise StoreUnreachable("gone fishing")

    with monkeypatch.context() as patch:
        patch.setattr("hopaas_p2p.cli.watch.signs_of_life", away)
        assert "[gone fishing]" in sentence(next(watched))
    assert next(watched)["outage"] is None


def test_the_live_table_shows_who_runs_what(study: Study) -> None:
    from hopaas_p2p.cli.watch import looks, table

    trial = study.ask()
    trial.report(0.125, 7)
    study.storage.flush()
    text = "\n".join(table(next(looks(study))))
    assert "0.125" in text
    assert os.uname().nodename in text
    study.tell(trial, 1.0)
    assert table(next(looks(study))) == [], "no trial is running"


# --- doctor ------------------------------------------------------------------------------------------------------


def findings(*words: str, **here: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    result = run("doctor", *words, "--json", check=False, **here)
    return result.returncode, {one["check"]: one for one in json.loads(result.stdout)}


def test_a_sound_store_passes_and_nothing_is_left_behind(here: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_dir())
    result = run("doctor", "./store", cwd=tmp_path)
    assert all(line.startswith("passed") for line in result.stdout.splitlines())
    assert "checks passed" in result.stderr
    assert sorted(path for path in (tmp_path / "store").rglob("*") if path.is_dir()) == before
    code, found = findings(**here)
    assert code == 0
    assert {
        "reach",
        "write and read",
        "exchange",
        "beat",
        "format",
        "file system",
        "race",
        "clock",
        "room",
        "study s",
    } <= found.keys()


def test_a_store_that_is_not_there_fails(tmp_path: Path) -> None:
    code, found = findings("./nowhere", cwd=tmp_path)
    assert code == 1
    assert "no store" in found["open"]["detail"]
    assert "run: hopaas-p2p study create NAME -s" in found["open"]["detail"]
    assert not (tmp_path / "nowhere").exists()


def test_unreadable_commits_are_counted_and_named(here: dict[str, Any], tmp_path: Path, study: Study) -> None:
    from hopaas_p2p.testing.commits import outgoing

    uuid = study.handle.uuid
    log = DirectoryStore(tmp_path / "store").log(uuid)
    log.exchange(outgoing("garbage"), study.state.lsn)
    code, found = findings(**here)
    assert code == 1
    assert "1 malformed" in found["study s"]["detail"]
    assert "skipped" in found["study s"]["cure"]


def test_snapshots_are_compared_with_replay(here: dict[str, Any], tmp_path: Path, study: Study) -> None:
    uuid = study.handle.uuid
    log = DirectoryStore(tmp_path / "store").log(uuid)
    state = study.state
    log.put_snapshot(state.lsn, snapshot.dump(state))
    code, found = findings(**here)
    assert code == 0
    assert "equal to replay" in found["study s, snapshot"]["detail"]
    log.put_snapshot(state.lsn, b"not a snapshot")
    code, found = findings(**here)
    assert code == 1
    assert "cannot be read" in found["study s, snapshot"]["detail"]
    other = hopaas_p2p.open_study(study.storage, "other")
    log.put_snapshot(state.lsn, snapshot.dump(other.state))
    code, found = findings(**here)
    assert code == 1
    assert "differs from replay" in found["study s, snapshot"]["detail"]


def test_a_check_that_stumbles_is_a_finding_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "store")

    def stumble(_beat: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr(store, "beat", stumble)
    found = {one.check: one for one in checks.examine(store)}
    assert not found["beat"].passed
    assert "oops" in found["beat"].detail
    assert found["studies"].passed


def test_names_that_can_be_created_twice_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path / "store")
    monkeypatch.setattr(store.objects, "put_new", lambda *_, **__: True)
    found = {one.check: one for one in checks.examine(store)}
    assert not found["race"].passed
    assert "another file system" in found["race"].cure


def test_the_file_system_is_named_with_the_options_that_matter(tmp_path: Path) -> None:
    from hopaas_p2p.stores.directory import checks as directory_checks
    from hopaas_p2p.stores.directory.mounts import Mount

    store = DirectoryStore(tmp_path / "store")
    store.objects.mount = Mount("nfs4", "server:/home", ("rw", "vers=4.2", "nocto", "rsize=1048576"))
    found = next(one for one in directory_checks.checks(store) if one.check == "file system")
    assert found.detail == "nfs4 from server:/home (vers=4.2, nocto)"
    assert not found.passed
    assert "without nocto" in found.cure


def test_doctor_on_a_running_study_disturbs_nothing(here: dict[str, Any], study: Study) -> None:
    lsn = study.state.lsn
    run("doctor", **here)
    assert study.state.lsn == lsn
    until(lambda: study.state.lsn == lsn)
