"""Studies in MLflow: an experiment holds a run for the study, and in it a run for each trial.

    hopaas-p2p export mlflow digits --to http://mlflow.example.org:5000

Runs are found by the tags that they are created with (`hopaas.study`, `hopaas.trial`), so an interrupted export
continues where it was. If two exporters have created a run for the same trial, the next export keeps the older run.
Needs `mlflow-skinny` or `mlflow`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from hopaas_p2p import extras
from hopaas_p2p.errors import ConfigurationError, Denied
from hopaas_p2p.stores.url import redacted
from hopaas_p2p.trackers.base import TrackerRefused, TrackerUnreachable, fetched
from hopaas_p2p.trackers.view import PREFIX, REPORT, StudyView, TrialView

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

    from hopaas_p2p.artifacts import Artifact, StudyArtifacts

MARK: Final = PREFIX + "mark"
FILES: Final = PREFIX + "files"
_STUDY: Final = PREFIX + "study"
_TRIAL: Final = PREFIX + "trial"
_PARENT: Final = "mlflow.parentRunId"
_STATUS: Final = {
    "RUNNING": "RUNNING",
    "WAITING": "SCHEDULED",
    "COMPLETE": "FINISHED",
    "PRUNED": "KILLED",
    "FAIL": "FAILED",
}
_TIMEOUT: Final = 5.0  # seconds, for the request that finds out whether the server is there
_PAGE: Final = 1000
_MOST_METRICS: Final = 1000 - 100 - 100  # MLflow's limits for one batch: 1000 in all, 100 tags, 100 parameters
_MOST_TAGS: Final = 100
_LONGEST_KEY: Final = 250
_LONGEST_PARAM: Final = 6000
_LONGEST_TAG: Final = 5000
_NOT_IN_A_KEY: Final = re.compile(r"[^\w\-. :/]", re.ASCII)
_REFUSED: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_DENIED: Final = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


class MLflow:
    """An MLflow tracking server.

    Args:
        uri: the server; by default MLFLOW_TRACKING_URI. The login is taken from MLflow's own variables
            (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_TOKEN, …).
        experiment: its name; by default MLFLOW_EXPERIMENT_NAME, else the study's name.

    Raises:
        ConfigurationError: no URI is given or set.


    """

    name = "mlflow"

    def __init__(self, uri: str | None = None, *, experiment: str | None = None) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self.uri:
            raise ConfigurationError(
                "no MLflow server is given. Give its address (in a shell: --to http://host:5000), or set "
                "MLFLOW_TRACKING_URI"
            )
        self._experiment_name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._study_run = ""
        self._study_uuid = ""
        self._runs: dict[int, str] = {}
        self._status: dict[int, str] = {}
        self._sent: dict[int, dict[str, dict[int, float]]] = {}
        """Trial -> the reports and metrics that its run holds, by step."""
        self._files: dict[str, list[str]] = {}
        """Run -> ids of its files."""

    def __repr__(self) -> str:
        return f"MLflow({redacted(self.uri)!r})"

    @property
    def place(self) -> str:
        return f"{redacted(self.uri)} {self._experiment_name or ''}".strip()

    @property
    def client(self) -> MlflowClient:
        """MLflow's client for this server; raises ConfigurationError if MLflow is not installed."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print a line per trial
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nor would an export wait for that
            try:
                from mlflow import MlflowClient
            except ImportError:
                raise ConfigurationError(f"MLflow is not installed: {extras.install('mlflow')}") from None
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def begin(self, study: StudyView) -> dict[int, str]:
        with self.translated():
            self._check_reachable()
            self._study_uuid = study.uuid
            self._experiment = self._find_experiment(self._experiment_name or study.name)
            self._runs, self._status, self._sent, self._files = {}, {}, {}, {}
            self._study_run = ""
            marks: dict[int, str] = {}
            parents: dict[str, str] = {}
            for run in self._existing_runs():
                run_id, tags = run.info.run_id, run.data.tags
                number = int(tags[_TRIAL]) if _TRIAL in tags else None
                if self._study_run if number is None else number in marks:
                    self.client.delete_run(run_id)  # two exporters created it at once; the older one stays
                    continue
                self._files[run_id] = json.loads(tags.get(FILES, "[]"))
                if number is None:
                    self._study_run = run_id
                    continue
                self._runs[number], self._status[number] = run_id, run.info.status
                marks[number] = tags.get(MARK, "")
                parents[run_id] = tags.get(_PARENT, "")
            if not self._study_run:
                tags = {**_prefixed(study.tags), **_note(study.note)}
                made = self.client.create_run(self._experiment, _ms(study.start), tags, study.name)
                self._study_run = made.info.run_id
            for run_id, parent in parents.items():
                if parent != self._study_run:
                    self.client.set_tag(run_id, _PARENT, self._study_run)
            return marks

    def put(self, trial: TrialView, files: StudyArtifacts) -> None:
        with self.translated():
            run_id = self._run_of(trial)
            self._upload(run_id, trial.files, files)
            status = _STATUS[trial.state]
            if trial.final:
                self.client.set_terminated(run_id, status, _ms(trial.end))
            elif self._status[trial.number] != status:
                self.client.update_run(run_id, status)
            self._status[trial.number] = status
            metrics: list[Metric] = []
            for name, by_step in self._new(trial, run_id).items():
                metrics += _metrics(name, by_step, trial.start)
            last = max(trial.series[REPORT], default=0)
            for name, value in trial.values.items():
                metrics += _metrics(name, {last: value}, trial.end)
            tags = {**_prefixed(trial.tags), **_note(trial.note), **_provenance(trial), MARK: trial.mark}
            self._send(run_id, params=trial.params, metrics=metrics, tags=tags)
            self._sent[trial.number] = trial.series
            if trial.final:
                self._sent.pop(trial.number)

    def put_study(self, study: StudyView, files: StudyArtifacts) -> None:
        with self.translated():
            self._upload(self._study_run, study.files, files)
            counts = {f"trials_{word.lower()}": {0: float(count)} for word, count in study.counts.items()}
            metrics = [one for name, value in counts.items() for one in _metrics(name, value, study.start)]
            metrics += _metrics("best_value", dict(study.best), study.start)
            tags = {**_prefixed(study.tags), **_note(study.note)}
            self._send(self._study_run, params=study.params, metrics=metrics, tags=tags)
            if study.final:
                self.client.set_terminated(self._study_run, "FINISHED")
            else:
                self.client.update_run(self._study_run, "RUNNING")

    def link(self) -> str:
        scheme = urlsplit(self.uri).scheme
        if scheme not in ("http", "https"):
            return redacted(self.uri)
        base = redacted(self.uri).rstrip("/")
        return f"{base}/#/experiments/{self._experiment}/runs/{self._study_run}"

    def close(self) -> None:
        """Nothing is open between two calls."""

    def run_of(self, number: int) -> str:
        """The id of a trial's run; raises KeyError if the trial was never exported."""
        return self._runs[number]

    def _find_experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            raise ConfigurationError(
                f"the experiment {name!r} was deleted in MLflow; restore it, or choose another name"
            )
        if found is None:
            from mlflow.exceptions import MlflowException

            with contextlib.suppress(MlflowException):  # another exporter created it
                return str(self.client.create_experiment(name))
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise TrackerUnreachable(f"MLflow has no experiment {name!r}, and cannot create it")
        return str(found.experiment_id)

    def _existing_runs(self) -> Iterator[Run]:
        """The runs of this study, oldest first."""
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._experiment],
                f"tags.`{_STUDY}` = '{self._study_uuid}'",
                max_results=_PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _run_of(self, trial: TrialView) -> str:
        """The id of the trial's run, which is created if it does not exist."""
        if trial.number in self._runs:
            return self._runs[trial.number]
        tags = {_STUDY: self._study_uuid, _PARENT: self._study_run, **_prefixed(trial.tags)}
        made = self.client.create_run(self._experiment, _ms(trial.start), tags, f"trial {trial.number}")
        run_id = str(made.info.run_id)
        self._runs[trial.number] = run_id
        self._status[trial.number] = made.info.status
        self._sent[trial.number] = {}
        return run_id

    def _new(self, trial: TrialView, run_id: str) -> dict[str, dict[int, float]]:
        """The reports and metrics that the run does not hold; after an interruption, MLflow is asked which it holds."""
        if trial.number not in self._sent:
            self._sent[trial.number] = {
                name: {one.step: one.value for one in self.client.get_metric_history(run_id, _key(name))}
                for name, by_step in trial.series.items()
                if by_step
            }
        new = {}
        for name, by_step in trial.series.items():
            sent = self._sent[trial.number].get(name, {})
            new[name] = {step: value for step, value in by_step.items() if step not in sent or sent[step] != value}
        return new

    def _send(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Iterable[Metric] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send in as few requests as MLflow allows. Tags go last, because the mark is one of them."""
        from mlflow.entities import Param, RunTag

        param_list: list[Param] = [
            Param(_key(name), str(value)[:_LONGEST_PARAM]) for name, value in (params or {}).items()
        ]
        metric_list = list(metrics)
        labels: list[RunTag] = [RunTag(_key(name), text[:_LONGEST_TAG]) for name, text in (tags or {}).items()]
        while param_list or metric_list or labels:
            first_params, param_list = param_list[:_MOST_TAGS], param_list[_MOST_TAGS:]
            first_metrics, metric_list = metric_list[:_MOST_METRICS], metric_list[_MOST_METRICS:]
            first_tags: list[RunTag] = []
            if not (param_list or metric_list):
                first_tags, labels = labels[:_MOST_TAGS], labels[_MOST_TAGS:]
            self.client.log_batch(run_id, metrics=first_metrics, params=first_params, tags=first_tags)

    def _upload(self, run_id: str, wanted: tuple[Artifact, ...], files: StudyArtifacts) -> None:
        there = self._files.setdefault(run_id, [])
        names = [one.filename for one in wanted]
        for one in wanted:
            if one.id in there:
                continue
            with tempfile.TemporaryDirectory(prefix="hopaas-mlflow-") as directory:
                path = fetched(files, one, Path(directory, one.filename))
                if path is None:
                    continue
                own = None if names.count(one.filename) == 1 else one.id[-8:]
                self.client.log_artifact(run_id, str(path), own)
            there.append(one.id)
            self.client.set_tag(run_id, FILES, json.dumps(there))

    def _check_reachable(self) -> None:
        """Ask the server for its health first: MLflow's client would retry for minutes."""
        if urlsplit(self.uri).scheme not in ("http", "https"):
            return
        import requests

        with contextlib.suppress(requests.exceptions.SSLError):  # MLflow has settings of its own for TLS
            requests.get(self.uri.rstrip("/") + "/health", timeout=_TIMEOUT)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise our errors in place of MLflow's, without passwords."""
        assert self.client is not None  # raises if MLflow is not installed
        import requests
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            message = redacted(str(error).splitlines()[0] if str(error) else type(error).__name__)
            if error.error_code in _REFUSED:
                raise TrackerRefused(message) from None
            if error.error_code in _DENIED:
                raise Denied(f"MLflow at {redacted(self.uri)} denies access: {message}") from None
            raise TrackerUnreachable(f"MLflow at {redacted(self.uri)}: {message}") from None
        except requests.RequestException as error:
            raise TrackerUnreachable(f"MLflow at {redacted(self.uri)} does not answer: {_short(error)}") from None


def _short(error: Exception) -> str:
    """The cause, without the library's chain of causes."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer came within {_TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refuses the connection"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return redacted(f"{type(error).__name__}: {error}")[:200]


def _key(name: str) -> str:
    """The name with the characters replaced that MLflow refuses."""
    return _NOT_IN_A_KEY.sub("_", name)[:_LONGEST_KEY]


def _prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    return {PREFIX + name: text for name, text in tags.items()}


def _note(text: str) -> dict[str, str]:
    return {"mlflow.note.content": text} if text else {}


def _provenance(trial: TrialView) -> dict[str, str]:
    """Tags for which MLflow has names of its own."""
    own = {"mlflow.user": "peer.user", "mlflow.source.git.commit": "peer.git_commit"}
    return {name: trial.tags[ours] for name, ours in own.items() if ours in trial.tags}


def _ms(microseconds: int | None) -> int | None:
    return None if microseconds is None else microseconds // 1000


def _metrics(name: str, by_step: Mapping[int, float], at: int | None) -> list[Metric]:
    """The log keeps no times of reports, so all carry one time: a metric that is sent twice is stored once."""
    from mlflow.entities import Metric

    return [Metric(_key(name), value, _ms(at) or 0, step) for step, value in by_step.items()]
