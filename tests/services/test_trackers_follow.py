"""Peers keep trackers current by themselves: one of them exports, and none of them ever fails for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core.attributes import EXPORTER
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.errors import ConfigurationError, Denied, InvalidInput
from hopaas_p2p.study import Study
from hopaas_p2p.trackers import MLflow, TrackerUnreachable, export_to, follow
from hopaas_p2p.trackers.follow import BackgroundExports, leave_link
from hopaas_p2p.trackers.view import links
from tests.support.mlflow_fixtures import Way
from tests.support.postgres import Server
from tests.support.processes import campaign, environment, script, until


class Notebook:
    """A tracker in memory: several `Pen`s write into it, one a peer."""

    def __init__(self) -> None:
        self.marks: dict[int | None, str] = {}
        self.states: dict[int, str] = {}
        self.writers: Counter[str] = Counter()
        self.trouble: Callable[[], None] = lambda: None
        self.final = False


class Pen:
    name = "notebook"
    place = "a desk"

    def __init__(self, notebook: Notebook, who: str = "somebody") -> None:
        self.notebook, self.who, self.closed = notebook, who, False

    def begin(self, study: Any) -> dict[int | None, str]:
        self.notebook.trouble()
        return dict(self.notebook.marks)

    def put(self, view: Any, files: Any) -> bool:
        self.notebook.trouble()
        self.notebook.marks[view.number] = view.mark
        if view.number is None:
            self.notebook.final = view.final
            return True
        self.notebook.states[view.number] = view.state
        self.notebook.writers[self.who] += 1
        return True

    def link(self) -> str:
        return "desk://page/1"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Callable[[], Study]]:
    """Makes peers of one study; they are closed in the end."""
    made: list[Study] = []

    def make() -> Study:
        made.append(campaign(tmp_path, budget=8))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_happens_is_in_the_tracker_while_it_happens(peers: Callable[[], Study], notebook: Notebook) -> None:
    study = peers()
    followers = BackgroundExports(study, [Pen(notebook)], every=0.05)
    trial = study.ask()
    until(lambda: notebook.states == {0: "RUNNING"})

    study.tell(trial, 1.0)

    until(lambda: notebook.states == {0: "COMPLETE"})
    followers.close()


def test_closing_exports_the_last_of_it(peers: Callable[[], Study], notebook: Notebook) -> None:
    study = peers()
    pen = Pen(notebook)
    followers = BackgroundExports(study, [pen], every=3600)
    study.optimize(lambda trial: trial.params["lr"])

    followers.close()

    assert notebook.states == dict.fromkeys(range(8), "COMPLETE")
    assert notebook.final
    assert pen.closed


def test_of_many_peers_one_exports(peers: Callable[[], Study], notebook: Notebook) -> None:
    studies = [peers() for _ in range(4)]
    first = BackgroundExports(studies[0], [Pen(notebook, "0")], every=0.05)
    studies[0].tell(studies[0].ask(), 1.0)
    until(lambda: notebook.states == {0: "COMPLETE"})
    others = [BackgroundExports(one, [Pen(notebook, str(n))], every=0.05) for n, one in enumerate(studies[1:], 1)]
    for study in studies[1:]:
        study.tell(study.ask(), 1.0)

    until(lambda: notebook.states == dict.fromkeys(range(4), "COMPLETE"))

    for one in [*others, first]:  # the exporter is the last to go
        one.close()
    assert list(notebook.writers) == ["0"]


def test_another_takes_over_when_the_exporter_ends(peers: Callable[[], Study], notebook: Notebook) -> None:
    one, two = peers(), peers()
    first = BackgroundExports(one, [Pen(notebook, "one")], every=0.05)
    one.tell(one.ask(), 1.0)
    until(lambda: notebook.states == {0: "COMPLETE"})
    second = BackgroundExports(two, [Pen(notebook, "two")], every=0.05)
    first.close()

    two.tell(two.ask(), 1.0)
    second.close()

    assert notebook.states == {0: "COMPLETE", 1: "COMPLETE"}
    assert set(notebook.writers) == {"one", "two"}


def test_another_takes_over_when_the_exporter_is_killed(tmp_path: Path, notebook: Notebook) -> None:
    study = campaign(tmp_path, lease_ttl=1.0)
    words = script(
        tmp_path,
        """
        import time
        import hopaas_p2p
        from hopaas_p2p.trackers.follow import BackgroundExports
        from tests.services.test_trackers_follow import Notebook, Pen

        study = hopaas_p2p.open_study("store", "s")
        _running = study.ask()
        notebook = Notebook()
        followers = BackgroundExports(study, [Pen(notebook)], every=0.05)
        while not notebook.states:
            time.sleep(0.01)
        print("exported", flush=True)
        time.sleep(600)
        """,
    )
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "exported\n"
    process.kill()
    process.wait()
    process.stdout.close()

    followers = BackgroundExports(study, [Pen(notebook, "survivor")], every=0.05)

    until(lambda: notebook.writers["survivor"] > 0, 60)
    followers.close()
    study.close()


def test_an_outage_costs_one_warning_and_is_made_good(
    peers: Callable[[], Study], notebook: Notebook, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def away() -> None:
        tries.append(1)
        raise TrackerUnreachable("the desk is away")

    notebook.trouble = away
    study = peers()
    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        followers = BackgroundExports(study, [Pen(notebook)], every=0.02)
        study.optimize(lambda trial: trial.params["lr"])
        until(lambda: len(tries) > 2)
        notebook.trouble = lambda: None
        until(lambda: len(notebook.states) == 8)
        until(lambda: "is reachable again" in caplog.text)
        followers.close()

    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["the desk is away; training continues, and sending is retried"]


def test_whatever_a_tracker_raises_training_goes_on(
    peers: Callable[[], Study], notebook: Notebook, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("no such thing\nas a second line")

    notebook.trouble = broken
    study = peers()
    followers = BackgroundExports(study, [Pen(notebook)], every=3600)

    study.optimize(lambda trial: trial.params["lr"])
    followers.close()

    assert study.state.counts[1] == 8
    assert caplog.records[-1].getMessage() == (
        f"RuntimeError: no such thing; once it is back, run hopaas-p2p study export {study.name!r} --format notebook"
    )


@pytest.mark.parametrize("where", ["close", "start"])
def test_an_error_around_the_exports_is_one_line_and_training_goes_on(
    peers: Callable[[], Study],
    notebook: Notebook,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread\nor anything else")

    monkeypatch.setattr(Pen, "close", fail) if where == "close" else monkeypatch.setattr(
        follow._ExportThread, "start", fail
    )
    study = peers()
    exports = BackgroundExports(study, [Pen(notebook)], every=0.05)
    study.optimize(lambda _trial: 1.0)
    exports.close()
    assert study.state.counts[1] == 8
    (said,) = (one.message for one in caplog.records if one.levelno == logging.WARNING)
    assert said.startswith("notebook")
    assert "can't start new thread" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [TrackerUnreachable("no route from here"), ConfigurationError("no login")])
def test_one_that_cannot_use_its_tracker_lets_another_export(
    peers: Callable[[], Study], notebook: Notebook, error: Exception
) -> None:
    def fail() -> None:
        raise error

    cut_off, near = peers(), peers()
    nowhere = Notebook()
    nowhere.trouble = fail
    first = BackgroundExports(cut_off, [Pen(nowhere)], every=0.02)
    until(lambda: "hopaas:exporter:" in "".join(cut_off.state.system))
    second = BackgroundExports(near, [Pen(notebook, "near")], every=0.02)
    cut_off.tell(cut_off.ask(), 1.0)

    until(lambda: notebook.states == {0: "COMPLETE"}, 60)

    first.close()
    second.close()


def test_a_link_that_is_left_while_another_exporter_is_elected_ends_no_export(
    peers: Callable[[], Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = peers()
    before = {"peer": "the-exporter-before"}
    monkeypatch.setattr(follow.Election, "said", property(lambda _: before))
    leave_link(study, Pen(Notebook()))  # type: ignore[arg-type]  # as above
    assert study.state.refusals["author"] == 1


def test_nobody_makes_another_peer_the_exporter(peers: Callable[[], Study], notebook: Notebook) -> None:
    study, idle, forger = peers(), peers(), peers()
    _running = idle.ask()  # it lives, and exports nothing
    key = f"{EXPORTER}{hashlib.sha256(Pen.place.encode()).hexdigest()[:16]}"
    with pytest.raises(InvalidInput):  # its record counts as refused
        forger.handle.say(StudySet(system={key: json.dumps({"peer": idle.storage.peer.uuid})}))
    assert forger.state.refusals["author"] == 1
    followers = BackgroundExports(study, [Pen(notebook)], every=0.05)
    until(lambda: notebook.states == {0: "RUNNING"}, 20)
    forger.handle.say(StudySet(system={key: json.dumps({"peer": idle.storage.peer.uuid}), "kept": "1"}))
    assert json.loads(study.handle.refresh().system[key])["peer"] == study.storage.peer.uuid
    assert "kept" in study.state.system
    leave_link(forger, Pen(Notebook()))  # type: ignore[arg-type]  # as `study export` does, beside the exporter
    assert json.loads(study.handle.refresh().system[key])["peer"] == study.storage.peer.uuid
    followers.close()
    assert json.loads(study.state.system[key])["peer"] is None


def test_a_tracker_that_hangs_does_not_keep_the_program(
    peers: Callable[[], Study], notebook: Notebook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follow, "_SHUTDOWN_TIMEOUT", 0.1)
    hangs = threading.Event()
    goes_on = threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait(60)

    notebook.trouble = hang
    study = peers()
    followers = BackgroundExports(study, [Pen(notebook)], every=0.02)
    study.tell(study.ask(), 1.0)
    assert hangs.wait(60)

    followers.close()

    assert "notebook has not received the last updates of this study" in caplog.text
    notebook.trouble = lambda: None
    goes_on.set()
    until(lambda: not any(thread.name == "hopaas-notebook" for thread in threading.enumerate()))


def test_who_may_only_read_exports_all_the_same(
    peers: Callable[[], Study], notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = peers()
    study.tell(study.ask(), 1.0)

    refused: list[Any] = []

    def denied(record: Any) -> None:
        refused.append(record)
        raise Denied

    monkeypatch.setattr(study.handle, "say", denied)
    followers = BackgroundExports(study, [Pen(notebook)], every=3600)

    until(lambda: notebook.states == {0: "COMPLETE"})
    followers.close()
    assert len(refused) == 2  # once per step, to ask whether it is one now


def test_the_study_says_where_it_is_to_be_found(peers: Callable[[], Study], notebook: Notebook) -> None:
    study = peers()
    followers = BackgroundExports(study, [Pen(notebook)], every=0.05)
    until(lambda: any("desk://page/1" in text for text in study.state.system.values()))
    followers.close()


def test_a_study_that_travels_leaves_its_trackers_behind(tmp_path: Path, notebook: Notebook) -> None:
    study = campaign(tmp_path, trackers=[Pen(notebook)])

    copy = pickle.loads(pickle.dumps(study))

    assert copy.name == study.name
    copy.close()
    study.close()


def test_what_is_no_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="trackers must be a list such as"):
        campaign(tmp_path, trackers=["mlflow"])


def test_mlflow_without_an_address_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        ConfigurationError,
        match=r"--to http://host:5000, or in Python MLflow\('http://host:5000'\), or set MLFLOW_TRACKING_URI",
    ):
        MLflow()


def test_mlflow_catches_up_after_an_outage_while_training_goes_on(
    tmp_path: Path, mlflow_server: str, way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    study = campaign(tmp_path, budget=4)
    followers = BackgroundExports(study, [MLflow(way.uri, experiment=tmp_path.name)], every=0.1)
    until(lambda: "does not answer" in caplog.text, 60)
    study.optimize(lambda trial: trial.params["lr"], n_trials=2)

    way.open()
    until(lambda: _states(mlflow_server, tmp_path) == ["FINISHED", "FINISHED"], 60)
    study.optimize(lambda trial: trial.params["lr"])
    followers.close()

    assert _states(mlflow_server, tmp_path) == ["FINISHED"] * 4
    assert caplog.text.count("training continues") == 1
    study.close()


def _states(uri: str, tmp_path: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tmp_path.name)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run.info.status for run in found if "hopaas.trial" in run.data.tags]


def test_a_fork_leaves_the_threads_to_its_parent(peers: Callable[[], Study], notebook: Notebook) -> None:
    study = peers()
    exports = BackgroundExports(study, [Pen(notebook)], every=0.05)
    until(lambda: study.state.system)
    (thread,) = exports._threads
    with thread.ending._cond:  # type: ignore[attr-defined]  # as if the thread was about to wait when the process forked
        child = os.fork()
        if not child:
            exports.close()
            os._exit(0)
    try:
        until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    study.tell(study.ask(), 1.0)
    until(lambda: notebook.states == {0: "COMPLETE"})
    exports.close()


def test_a_study_is_opened_with_its_trackers_and_closed_with_them(tmp_path: Path, notebook: Notebook) -> None:
    study = campaign(tmp_path, budget=2, trackers=[Pen(notebook)])
    study.optimize(lambda trial: trial.params["lr"])

    study.close()

    assert notebook.states == {0: "COMPLETE", 1: "COMPLETE"}
    assert notebook.final


def test_a_viewer_on_postgres_exports_though_it_may_not_say_so(
    postgres: Server, postgres_url: str, notebook: Notebook
) -> None:
    study = hopaas_p2p.open_study(postgres_url, "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=2)
    study.optimize(lambda trial: trial.params["x"])
    access.add_user(postgres_url, "vera")
    role, _, password = access.create_token(postgres_url, "vera").secret.reveal().partition(":")
    access.grant(postgres_url, "s", "vera", "viewer")
    looking = hopaas_p2p.open_study(postgres.url("store", user=role, password=password), "s", create=False)

    followers = BackgroundExports(looking, [Pen(notebook)], every=0.1)
    until(lambda: notebook.states == {0: "COMPLETE", 1: "COMPLETE"}, 60)
    followers.close()
    export_to(looking, Pen(notebook))

    assert links(study.storage.get_study_system_attrs(study.study_id)) == {}
    export_to(study, Pen(notebook))
    assert links(study.storage.get_study_system_attrs(study.study_id)) == {"notebook": "desk://page/1"}
    looking.close()
    study.close()
