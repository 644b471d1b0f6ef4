"""Studies in MLflow, on a real `mlflow server`."""

from __future__ import annotations

import http.server
import math
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p import notes
from hopaas_p2p.core.records import TrialCreate, TrialState
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.study import Study
from hopaas_p2p.trackers import Export, MLflow, TrackerUnreachable, export_to
from tests.support.listening import Answering as Says
from tests.support.listening import Listening
from tests.support.mlflow_fixtures import Way, needed, three_trials
from tests.support.processes import campaign, cli, start, until

needed("mlflow")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """One COMPLETE trial with a file, one PRUNED, one failed."""
    one = three_trials(tmp_path, directions="maximize")
    yield one
    one.close()


def tracker(uri: str, tmp_path: Path) -> MLflow:
    return MLflow(uri, experiment=tmp_path.name)


def runs(uri: str, tmp_path: Path) -> list[Any]:
    """All runs of the test's experiment, by the number of their trial; the study's own comes first."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tmp_path.name)
    found = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    return sorted(found, key=lambda run: int(run.data.tags.get("hopaas.trial", -1)))


def contents(uri: str, tmp_path: Path) -> list[Any]:
    """All that matters of these runs, to be compared."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ours = runs(uri, tmp_path)
    identity = ("hopaas.study", "hopaas.owner", "mlflow.parentRunId", "hopaas.files", "hopaas.mark")
    return [
        (
            run.info.run_name,
            run.info.status,
            run.data.params,
            {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in METRICS},
            {name: text for name, text in run.data.tags.items() if name not in identity},
            [one.path for one in client.list_artifacts(run.info.run_id)],
        )
        for run in ours
    ]


METRICS = ("report", "value", "best_value", "trials_complete")


def test_a_study_becomes_a_run_with_a_nested_run_for_each_trial(
    study: Study, mlflow_server: str, tmp_path: Path
) -> None:
    mlflow = tracker(mlflow_server, tmp_path)

    sent = export_to(study, mlflow)

    assert sent == 3
    parent, failed, pruned, complete = runs(mlflow_server, tmp_path)
    assert (parent.info.run_name, parent.info.status) == ("s", "FINISHED")
    assert parent.data.params["directions"] == "maximize"
    assert parent.data.params["lr"].startswith("FloatDistribution(")
    assert (parent.data.metrics["best_value"], parent.data.metrics["trials_fail"]) == (0.75, 1)
    assert parent.info.run_id in mlflow.link()
    statuses = [run.info.status for run in (failed, pruned, complete)]
    assert statuses == ["FAILED", "KILLED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in (failed, pruned, complete)} == {parent.info.run_id}
    assert failed.data.tags["hopaas.reason"].startswith("ValueError: diverged")
    frozen = study.trials[2]
    assert complete.data.params == {name: str(value) for name, value in frozen.params.items()}
    assert complete.data.metrics == {"report": 1.5, "value": 0.75}
    assert [(one.step, one.value) for one in mlflow.client.get_metric_history(complete.info.run_id, "report")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]
    trial = study.state.trials[2]
    assert (complete.info.start_time, complete.info.end_time) == (trial.start // 1000, trial.end // 1000)
    provenance = study.provenance(2)
    tags = complete.data.tags
    assert (tags["hopaas.state"], tags["hopaas.attr.seed"]) == ("COMPLETE", "7")
    assert (tags["hopaas.site"], tags["hopaas.node"]) == (provenance["site"], provenance["host"])
    assert (tags["hopaas.state"], tags["hopaas.attr.seed"], tags["mlflow.user"]) == (
        "COMPLETE",
        "7",
        provenance["user"],
    )
    assert tags["hopaas.command"] == f"hopaas-p2p trial show 2 --study s --store {study.storage.url}"
    place = mlflow.client.download_artifacts(complete.info.run_id, "model.txt", str(tmp_path))
    assert Path(place).read_text() == "weights"


class Counting:
    """MLflow's client, with its calls counted, and cut at one of them: before it happens, or before its reply."""

    def __init__(self, client: Any, *, cut: int | None = None, late: bool = False) -> None:
        self.calls: list[str] = []
        self._client, self._cut, self._late = client, cut, late

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            import requests

            self.calls.append(name)
            here = len(self.calls) - 1 == self._cut
            if here and not self._late:
                raise requests.ConnectionError("cut before it")
            result = method(*args, **kwargs)
            if here:
                raise requests.ConnectionError("cut after it")
            return result

        return call


def test_a_second_export_sends_nothing(study: Study, mlflow_server: str, tmp_path: Path) -> None:
    export_to(study, tracker(mlflow_server, tmp_path))
    before = contents(mlflow_server, tmp_path)
    again = tracker(mlflow_server, tmp_path)
    again._client = counting = Counting(again.client)  # type: ignore[assignment]

    sent = export_to(study, again)

    assert sent == 0
    assert counting.calls == ["get_experiment_by_name", "search_runs"]
    assert contents(mlflow_server, tmp_path) == before


@pytest.mark.parametrize("late", [False, True], ids=["lost request", "lost reply"])
def test_an_export_cut_at_any_request_goes_on_without_duplicates(
    mlflow_server: str, tmp_path: Path, late: bool
) -> None:
    study = campaign(tmp_path, budget=1)
    trial = study.ask()
    trial.report(0.5, 1)
    (tmp_path / "model.txt").write_text("weights")
    trial.upload(tmp_path / "model.txt")
    study.tell(trial, 0.5)
    whole = MLflow(mlflow_server, experiment=f"{tmp_path.name} whole")
    whole._client = counting = Counting(whole.client)  # type: ignore[assignment]
    export_to(study, whole)
    wanted = contents(mlflow_server, Path(f"{tmp_path.name} whole"))

    for place in range(len(counting.calls)):
        name = f"{tmp_path.name} {place} {late}"
        first = MLflow(mlflow_server, experiment=name)
        first._client = Counting(first.client, cut=place, late=late)  # type: ignore[assignment]
        if counting.calls[place] == "create_experiment":  # taken for somebody who was quicker
            continue
        with pytest.raises(TrackerUnreachable):
            export_to(study, first)
        export_to(study, MLflow(mlflow_server, experiment=name))

        assert contents(mlflow_server, Path(name)) == wanted, f"cut at {place}: {counting.calls[place]}"
    study.close()


def test_exporters_that_race_leave_one_run_for_each_trial(study: Study, mlflow_server: str, tmp_path: Path) -> None:
    tracker(mlflow_server, tmp_path)._find_experiment(tmp_path.name)
    gate = threading.Barrier(3)

    def race() -> None:
        mine = Export(study, tracker(mlflow_server, tmp_path))
        begin = mine.tracker.begin

        def together(view: Any) -> dict[int | None, str]:
            marks = begin(view)
            gate.wait(60)  # all have looked, and none has found a trial
            return marks

        mine.tracker.begin = together  # type: ignore[method-assign]
        mine.sync()

    threads = [threading.Thread(target=race) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(runs(mlflow_server, tmp_path)) > 4

    export_to(study, tracker(mlflow_server, tmp_path))

    parent, *nested = runs(mlflow_server, tmp_path)
    assert [run.data.tags["hopaas.trial"] for run in nested] == ["0", "1", "2"]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}


def test_reports_of_a_running_trial_arrive_once_whoever_exports(mlflow_server: str, tmp_path: Path) -> None:
    study = campaign(tmp_path)
    trial = study.ask()
    trial.report(1.0, 1)
    study.storage.flush()
    staying = Export(study, tracker(mlflow_server, tmp_path))
    staying.sync()
    trial.report(2.0, 2)
    study.storage.flush()
    export_to(study, tracker(mlflow_server, tmp_path))  # another one, which knows nothing
    trial.report(3.0, 3)
    study.storage.flush()
    staying.sync()
    (_, run) = runs(mlflow_server, tmp_path)
    assert run.info.status == "RUNNING"

    study.tell(trial, 0.5)
    staying.sync()

    (_, run) = runs(mlflow_server, tmp_path)
    assert run.info.status == "FINISHED"
    client = tracker(mlflow_server, tmp_path).client
    steps = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "report")]
    assert steps == [(1, 1.0), (2, 2.0), (3, 3.0)]
    study.close()


def test_metrics_arrive_beside_the_reports_once_whoever_exports(mlflow_server: str, tmp_path: Path) -> None:
    study = campaign(tmp_path)
    trial = study.ask()
    trial.report(1.0, 1)
    trial.log(1, auc=0.5, report=7.0)
    study.storage.flush()
    staying = Export(study, tracker(mlflow_server, tmp_path))
    staying.sync()
    trial.log(2, auc=0.6)
    study.tell(trial, 0.5)
    export_to(study, tracker(mlflow_server, tmp_path))  # another one, which knows nothing
    staying.sync()

    (_, run) = runs(mlflow_server, tmp_path)
    client = tracker(mlflow_server, tmp_path).client

    def history(name: str) -> list[tuple[int, float]]:
        return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]

    assert history("auc") == [(1, 0.5), (2, 0.6)]
    assert history("metric.report") == [(1, 7.0)]
    assert history("report") == [(1, 1.0)]
    study.close()


def test_what_is_said_of_a_finished_trial_later_arrives(study: Study, mlflow_server: str, tmp_path: Path) -> None:
    staying = Export(study, tracker(mlflow_server, tmp_path))
    staying.sync()
    notes.save_note(study, "the good one", 2)
    notes.change_tags(study, 2, add=["keep"])
    study.artifacts().put(tmp_path / "model.txt", trial=2, filename="again.txt")

    sent = staying.sync()

    assert sent == 1
    run = runs(mlflow_server, tmp_path)[3]
    assert (run.data.tags["mlflow.note.content"], run.data.tags["hopaas.tags"]) == ("the good one", "keep")
    names = [one.path for one in staying.tracker.client.list_artifacts(run.info.run_id)]  # type: ignore[attr-defined]
    assert names == ["again.txt", "model.txt"]


def test_odd_names_and_numbers_are_taken_as_far_as_mlflow_can(mlflow_server: str, tmp_path: Path) -> None:
    study = campaign(
        tmp_path, space={"läyers (first)": hopaas_p2p.Int(1, 3), "x" * 300: hopaas_p2p.Int(1, 3)}, budget=1
    )
    trial = study.ask()
    for step, value in enumerate((math.inf, -math.inf, 1.0)):
        trial.report(value, step)
    trial.set_user_attr("long", "y" * 10_000)
    study.tell(trial, math.inf)

    export_to(study, tracker(mlflow_server, tmp_path))

    run = runs(mlflow_server, tmp_path)[1]
    assert set(run.data.params) == {"l_yers _first_", "x" * 250}
    assert run.data.metrics["report"] == 1.0
    assert run.data.metrics["value"] > 1e300
    study.close()


def test_names_that_are_odd_as_paths_keep_no_run_out_of_mlflow(mlflow_server: str, tmp_path: Path) -> None:
    odd = ("", ".", "..", "/", "a//b", "a/../b", "../x", "x" * 249 + "/y")
    study = campaign(tmp_path, space={name: hopaas_p2p.Int(1, 3) for name in odd}, budget=1)
    trial = study.ask()
    for name in odd[1:4]:
        trial.log(1, **{name: 0.5})
    study.set_user_attr("a/../b", 1)
    study.tell(trial, 0.5)

    export_to(study, tracker(mlflow_server, tmp_path))

    for run in runs(mlflow_server, tmp_path):
        assert run.data.tags["hopaas.mark"]
        assert {"_", "__", "a__b", "a____b", "___x", "x" * 249 + "_"} <= set(run.data.params)
    study.close()


def test_a_peer_with_a_clock_before_1970_keeps_no_run_out_of_mlflow(mlflow_server: str, tmp_path: Path) -> None:
    study = campaign(tmp_path, budget=1)
    early = TrialCreate(TrialState.COMPLETE, values=(0.5,), start=-1_000_000_000, end=-1_000_000)
    study.storage.peer.commit(study.handle.log, early)

    export_to(study, tracker(mlflow_server, tmp_path))

    of_study, of_trial = runs(mlflow_server, tmp_path)
    assert of_study.data.metrics["best_value"] == of_trial.data.metrics["value"] == 0.5
    study.close()


def test_many_reports_and_attributes_go_in_as_few_batches_as_mlflow_takes(mlflow_server: str, tmp_path: Path) -> None:
    study = campaign(tmp_path, budget=1)
    trial = study.ask()
    for step in range(2000):
        trial.report(step / 7, step)
    for number in range(150):
        trial.set_user_attr(f"attr{number}", number)
    study.tell(trial, 1.0)
    mlflow = tracker(mlflow_server, tmp_path)
    mlflow._client = counting = Counting(mlflow.client)  # type: ignore[assignment]

    export_to(study, mlflow)

    assert counting.calls.count("log_batch") == 1 + 4  # the study's; 2001 metrics by 800, and more than 100 tags
    run = runs(mlflow_server, tmp_path)[1]
    assert len(mlflow.client.get_metric_history(run.info.run_id, "report")) == 2000
    assert run.data.tags["hopaas.attr.attr149"] == "149"
    study.close()


def test_the_command_exports_and_says_where_to_look(study: Study, mlflow_server: str, tmp_path: Path) -> None:
    words = ["study", "export", "s", "-s", "store", "--format", "mlflow", "--to", mlflow_server]

    done = cli(*words, cwd=tmp_path, MLFLOW_EXPERIMENT_NAME=tmp_path.name)

    assert done.stdout == ""
    assert done.stderr.startswith(f"Exported 3 trials to mlflow: {mlflow_server}/#/experiments/")
    assert len(runs(mlflow_server, tmp_path)) == 4
    assert (
        f"Seen at     {mlflow_server}/#/experiments/" in cli("study", "show", "s", "-s", "store", cwd=tmp_path).stdout
    )


def test_a_tracker_that_is_away_costs_one_line_without_the_password(study: Study, way: Way, tmp_path: Path) -> None:
    uri = way.uri.replace("//", "//ann:geheim@")

    done = cli("study", "export", "s", "-s", "store", "--format", "mlflow", "--to", uri, cwd=tmp_path, check=False)

    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert "does not answer" in done.stderr
    assert "geheim" not in done.stderr + done.stdout


def test_an_error_that_mlflow_ends_with_a_stop_has_one(study: Study, tmp_path: Path) -> None:
    words = ["study", "export", "s", "-s", "store", "--format", "mlflow", "--to", "nowhere://x"]

    done = cli(*words, cwd=tmp_path, check=False)

    assert done.stderr.endswith(". For a traceback, add --debug.\n")
    assert ".." not in done.stderr


@pytest.mark.parametrize(
    "written",
    ["file://{}", "{}", "abfss://fs@acc.evil.example.org{}", "wasbs://c@[2001:db8::1]\\.blob.core.windows.net{}"],
)
def test_a_file_is_not_written_where_another_user_of_the_server_says(
    written: str, study: Study, mlflow_server: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    private = tmp_path / "private"
    MlflowClient(mlflow_server).create_experiment(tmp_path.name, artifact_location=written.format(private))

    with pytest.raises(ConfigurationError, match="not on that server"):
        export_to(study, tracker(mlflow_server, tmp_path))

    assert not private.exists()


def test_a_file_is_not_written_where_the_server_says_once_its_first_answer_was_checked(
    study: Study, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    private = tmp_path / "private"
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=private.as_uri()))
    monkeypatch.setattr(TrackingServiceClient, "get_run", lambda *_: run)

    export_to(study, tracker(mlflow_server, tmp_path))

    assert not private.exists()


@pytest.mark.parametrize(
    "tags",
    [
        {"hopaas.trial": "x"},
        {"hopaas.trial": "0", "hopaas.files": "5"},
        {"hopaas.files": "{"},
        {"hopaas.files": "[" * 4999},
    ],
)
def test_a_run_that_another_user_of_the_server_wrote_stops_no_export(
    tags: dict[str, str], study: Study, mlflow_server: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    experiment = client.create_experiment(tmp_path.name)
    client.create_run(experiment, 1, {"hopaas.study": study.handle.uuid, **tags})

    export_to(study, tracker(mlflow_server, tmp_path))

    exported = [run for run in client.search_runs([experiment]) if "hopaas.mark" in run.data.tags]
    assert len(exported) == 1 + len(study.trials)


def test_answers_that_are_none_are_one_short_line(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = b'{"experiment": {"experiment_id": "5", "lifecycle_stage": "active"}, "next_page_token": "x"}'
    monkeypatch.setattr("hopaas_p2p.trackers.mlflow._MOST_PAGES", 3)
    for answer in (b'{"experiment": {"experiment_id": NaN}}', b"[" * 200_000, pages):
        with closing(Answering(answer)) as server, pytest.raises(TrackerUnreachable) as failed:
            export_to(study, tracker(server.url, tmp_path))
        assert len(str(failed.value)) < 1500


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        (b"/health", b"HTTP/1.1 200 OK\r\nX: "),
        (b"/health", b"endless"),
        (b"/api/", b"HTTP/1.1 200 OK\r\nX: "),
        (b"/api/", b"HTTP/1.1 200 OK\r\n\r\n["),
    ],
)
def test_an_answer_that_drips_is_given_up_and_one_without_an_end_is_not_read(
    path: bytes, begins: bytes, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server(Listening):
        def serve(self, client: socket.socket) -> None:
            if path not in client.recv(1 << 16):
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
                return
            client.sendall(begins if begins != b"endless" else b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                client.sendall(b" " if begins != b"endless" else bytes(1 << 16))
                time.sleep(0.02 if begins != b"endless" else 0)

    monkeypatch.setattr("hopaas_p2p.trackers.mlflow._HEALTH", 0.5)
    monkeypatch.setattr("hopaas_p2p.trackers.mlflow._LONGEST", 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Server() as server, pytest.raises((TrackerUnreachable, ConfigurationError)) as failed:
        began = time.monotonic()
        export_to(study, tracker(f"http://127.0.0.1:{server.port}", tmp_path))
    assert time.monotonic() - began < 10
    assert len(str(failed.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


def test_no_redirect_takes_the_login_elsewhere(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    class Elsewhere(Listening):
        def serve(self, client: socket.socket) -> None:
            heard.append(client.recv(1 << 16))
            client.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "geheim")
    with Elsewhere() as elsewhere:
        to = b"Location: http://localhost:%d/x\r\nContent-Length: 0\r\n\r\n" % elsewhere.port
        for status in (b"301", b"307"):
            with Says(b"HTTP/1.1 " + status + b" Moved\r\n" + to) as server, pytest.raises(TrackerUnreachable):
                export_to(study, tracker(f"http://127.0.0.1:{server.port}", tmp_path))
    assert all(b"/x" in one and b"geheim" not in one for one in heard)


class Answering:
    """A server that gives everybody the same answer."""

    def __init__(self, answer: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that a test leaves running, should it fail."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for one in running:
        one.kill()
        one.wait()


def test_following_outlasts_an_outage_of_the_tracker(
    tmp_path: Path, mlflow_server: str, way: Way, started: list[subprocess.Popen[str]]
) -> None:
    study = campaign(tmp_path, budget=2)
    trial = study.ask()
    words = ["study", "export", "s", "-s", "store", "--format", "mlflow", "--to", way.uri]
    process = start(*words, "--follow", cwd=tmp_path, MLFLOW_EXPERIMENT_NAME=tmp_path.name)
    started.append(process)
    errors = tmp_path / "worker.err"
    until(lambda: "Trying again" in errors.read_text(), 60)
    way.open()
    until(lambda: [run.info.status for run in runs(mlflow_server, tmp_path)] == ["RUNNING", "RUNNING"], 60)
    until(lambda: "answers again" in errors.read_text(), 60)
    way.close()
    study.tell(trial, 1.0)
    until(lambda: errors.read_text().count("Trying again") == 2, 60)
    way.open()
    until(lambda: [run.info.status for run in runs(mlflow_server, tmp_path)] == ["RUNNING", "FINISHED"], 60)

    study.tell(study.ask(), 2.0)

    assert process.wait(60) == 0
    assert [run.info.status for run in runs(mlflow_server, tmp_path)] == ["FINISHED"] * 3
    said = errors.read_text().splitlines()
    assert [line.split(" ")[0] for line in said] == ["MLflow", "The", "MLflow", "The", "Exported"]
    study.close()
