"""Exports studies to MLflow, as one run for the study in an experiment, and a nested run for each trial.

    hopaas-p2p study export digits --format mlflow --to http://mlflow.example.org:5000

Runs are found by the tags that they are created with (`hopaas.study`, `hopaas.trial`), so an interrupted export
continues where it was. If two exporters have created a run for the same trial, the next export keeps the older run.
Needs `mlflow-skinny` or `mlflow`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from hopaas_p2p.errors import ConfigurationError, Denied
from hopaas_p2p.open import redacted
from hopaas_p2p.runtime import extras
from hopaas_p2p.runtime.parallel import within
from hopaas_p2p.trackers.base import TrackerRefused, TrackerUnreachable, first_line, new_files
from hopaas_p2p.trackers.view import PREFIX, REPORT, STUDY, RunView

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from hopaas_p2p.files.artifacts import StudyArtifacts

T = TypeVar("T")

MARK: Final = PREFIX + "mark"
FILES: Final = PREFIX + "files"
_STUDY: Final = PREFIX + STUDY
_TRIAL: Final = PREFIX + "trial"
_PARENT: Final = "mlflow.parentRunId"
_STATUS: Final = {
    "RUNNING": "RUNNING",
    "WAITING": "SCHEDULED",
    "COMPLETE": "FINISHED",
    "PRUNED": "KILLED",
    "FAIL": "FAILED",
}
_SILENCE: Final = 5.0  # seconds, for the request that checks whether the server is up
_HEALTH: Final = 10.0  # seconds for that request as a whole; only the head of its answer is read
_LONGEST: Final = 300.0  # seconds for any other call
_PAGE: Final = 1000
_MOST_PAGES: Final = 1000
_MOST_METRICS: Final = 1000 - 100 - 100  # MLflow's limits for one batch: 1000 in all, 100 tags, 100 parameters
_MOST_TAGS: Final = 100
_LONGEST_KEY: Final = 250
_LONGEST_PARAM: Final = 6000
_LONGEST_TAG: Final = 5000
_NOT_IN_A_KEY: Final = re.compile(r"[^\w\-. :/]", re.ASCII)
_REFUSED: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_DENIED: Final = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_CLOUD: Final = re.compile(
    r"(s3|gs|dbfs):|(wasbs://[\w$-]+@\w+\.blob|abfss://[\w$-]+@\w+\.dfs)"
    r"\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)(/|$)",
    re.ASCII,
)
"""Locations for files that a server may name although they are outside the server, because their hosts come from the
settings of MLflow's client or belong to Microsoft."""


@dataclasses.dataclass
class _Run:
    id: str
    status: str
    place: str
    """Where MLflow's client would send the run's files. Any user of the server can choose this place, even a local
    folder."""
    files: list[str]
    """Ids of the files that the run has."""
    sent: dict[str, dict[int, float]] | None = None
    """The reports and metrics that the run has, by step; None if MLflow must be asked."""


class _Bounded:
    """MLflow's client with a time limit for its calls, which otherwise might never return."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return partial(within, _LONGEST, getattr(self._client, name))


class MLflow:
    """An MLflow tracking server.

    Args:
        uri: the server; by default MLFLOW_TRACKING_URI. The login is taken from MLflow's own variables
            (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_TOKEN, …).
        experiment: the experiment's name; by default MLFLOW_EXPERIMENT_NAME, or else the study's name.

    Raises:
        ConfigurationError: no URI is given or set.

    """

    name = "mlflow"

    def __init__(self, uri: str | None = None, *, experiment: str | None = None) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self.uri:
            raise ConfigurationError(
                "no MLflow server is set. Use --to http://host:5000, or in Python MLflow('http://host:5000'), or set "
                "MLFLOW_TRACKING_URI"
            )
        self._experiment_name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._study = ""
        self._runs: dict[int | None, _Run] = {}
        """Runs by trial number; the key None has the study's run."""

    def __repr__(self) -> str:
        return f"MLflow({redacted(self.uri)!r})"

    @property
    def place(self) -> str:
        return f"{redacted(self.uri)} {self._experiment_name or ''}".strip()

    @property
    def client(self) -> MlflowClient:
        """MLflow's client for this server; raises ConfigurationError if MLflow is not installed."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # else a line per trial
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # exports should not wait for telemetry
            try:
                from mlflow import MlflowClient
            except ImportError:
                raise ConfigurationError(f"MLflow is not installed: {extras.install('mlflow')}") from None
            self._client = cast("MlflowClient", _Bounded(MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)))
        return self._client

    def begin(self, study: RunView) -> dict[int | None, str]:
        with self._translated():
            if urlsplit(self.uri).scheme in ("http", "https"):  # MLflow's client would retry for minutes
                import requests

                options: dict[str, Any] = {"timeout": _SILENCE, "allow_redirects": False, "stream": True}
                with contextlib.suppress(requests.exceptions.SSLError):  # MLflow has its own TLS settings
                    within(_HEALTH, requests.get, self.uri.rstrip("/") + "/health", **options).close()
            self._study = study.tags[STUDY]
            self._experiment = self._find_experiment(self._experiment_name or study.name)
            self._runs = {}
            marks: dict[int | None, str] = {}
            parents: dict[str, str] = {}
            for run in self._existing_runs():
                run_id, tags = run.info.run_id, run.data.tags
                try:
                    number = int(tags[_TRIAL]) if _TRIAL in tags else None
                    files = [str(one) for one in json.loads(tags.get(FILES, "[]"))]
                except (ValueError, TypeError, RecursionError):  # another user of the server may have written it
                    continue
                if number in self._runs:
                    self.client.delete_run(run_id)  # two exporters created runs of a trial at once; the older is kept
                    continue
                self._runs[number] = _Run(run_id, run.info.status, run.info.artifact_uri, files)
                marks[number] = tags.get(MARK, "")
                if number is not None:
                    parents[run_id] = tags.get(_PARENT, "")
            parent = self._run(study).id
            for run_id, before in parents.items():
                if before != parent:
                    self.client.set_tag(run_id, _PARENT, parent)
            return marks

    def put(self, view: RunView, files: StudyArtifacts) -> bool:
        from mlflow.entities import Param, RunTag
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with self._translated():
            run = self._run(view)
            names = [one.filename for one in view.files]
            for one, path in new_files(view, run.files, files):
                self.check_place(view)
                # to the checked place, which a client would request again, and without the time limit of other calls
                place = get_artifact_repository(run.place, tracking_uri=self.uri)
                place.log_artifact(str(path), None if names.count(one.filename) == 1 else one.id[-8:])
                run.files.append(one.id)
                self.client.set_tag(run.id, FILES, json.dumps(run.files))
            status = _STATUS.get(view.state, "FINISHED" if view.final else "RUNNING")
            if view.final:
                self.client.set_terminated(run.id, status, _ms(view.end))
            elif run.status != status:
                self.client.update_run(run.id, status)
            run.status = status
            metrics: list[Metric] = []
            for name, by_step in view.series.items():
                if run.sent is None:  # after an interruption, MLflow is asked what it holds
                    sent = (
                        {m.step: m.value for m in self.client.get_metric_history(run.id, _key(name))} if by_step else {}
                    )
                else:
                    sent = run.sent.get(name, {})
                new = {step: value for step, value in by_step.items() if step not in sent or sent[step] != value}
                metrics += _metrics(name, new, view.start)
            last = max(view.series.get(REPORT, ()), default=0)
            for name, value in view.values.items():
                metrics += _metrics(name, {last: value}, view.end or view.start)
            own = {"mlflow.user": "peer.user", "mlflow.source.git.commit": "peer.git_commit"}  # MLflow's tag names
            named = {name: view.tags[ours] for name, ours in own.items() if ours in view.tags}
            tags = {**_tags(view), **named, MARK: view.mark}
            labels = [RunTag(key, text[:_LONGEST_TAG]) for key, text in _by_key(tags).items()]
            params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in _by_key(view.params).items()]
            while params or metrics or labels:  # the tags go last, because the mark is one of them
                now = labels[:_MOST_TAGS] if len(params) <= _MOST_TAGS and len(metrics) <= _MOST_METRICS else []
                self.client.log_batch(run.id, metrics[:_MOST_METRICS], params[:_MOST_TAGS], now)
                params, metrics, labels = params[_MOST_TAGS:], metrics[_MOST_METRICS:], labels[len(now) :]
            run.sent = {} if view.final else view.series
        return True

    def link(self) -> str:
        base = redacted(self.uri)
        if urlsplit(self.uri).scheme not in ("http", "https"):
            return base
        return f"{base.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._runs[None].id}"

    def close(self) -> None:
        """Do nothing, because nothing is open between calls."""

    def check_place(self, view: RunView) -> None:
        """Refuse to write a run's files to this machine, or to send them with a login to a machine other than the
        server.

        Raises:
            ConfigurationError: files of this run would go to such a place.

        """
        server, place = urlsplit(self.uri), self._runs[view.number].place
        told = urlsplit(place)
        own = told.scheme == "mlflow-artifacts" and told.netloc in ("", server.netloc)
        if server.scheme in ("http", "https") and not own and not _CLOUD.match(place):
            raise ConfigurationError(
                f"MLflow at {redacted(self.uri)} would put files into {redacted(place)!r}, which is not on that "
                "server. Choose another experiment: MLFLOW_EXPERIMENT_NAME"
            )

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
        for _ in range(_MOST_PAGES):
            page = self.client.search_runs(
                [self._experiment],
                f"tags.`{_STUDY}` = '{self._study}'",
                max_results=_PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return
        raise TrackerUnreachable(f"MLflow at {redacted(self.uri)} sends pages of runs without an end")

    def _run(self, view: RunView) -> _Run:
        """The run of this view; creates it if it does not exist."""
        if view.number not in self._runs:
            parent = {} if view.number is None else {_STUDY: self._study, _PARENT: self._runs[None].id}
            made = self.client.create_run(self._experiment, _ms(view.start), {**parent, **_tags(view)}, view.name)
            self._runs[view.number] = _Run(str(made.info.run_id), made.info.status, made.info.artifact_uri, [], {})
        return self._runs[view.number]

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise our errors in place of MLflow's, without passwords."""
        assert self.client is not None  # `client` raises if MLflow is not installed
        import requests
        from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            message = first_line(error)
            if error.error_code in _REFUSED:
                raise TrackerRefused(message) from None
            if error.error_code in _DENIED:
                raise Denied(f"MLflow at {redacted(self.uri)} denies access: {message}") from None
            raise TrackerUnreachable(f"MLflow at {redacted(self.uri)}: {message}") from None
        except (requests.RequestException, ParseError, TimeoutError) as error:
            raise TrackerUnreachable(
                f"MLflow at {redacted(self.uri)} does not answer: {type(error).__name__}"
            ) from None


def _key(name: str) -> str:
    """The name, with characters that MLflow refuses replaced; also in a name that would be another one as a path."""
    key = _NOT_IN_A_KEY.sub("_", name)[:_LONGEST_KEY]
    is_path = posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == "."
    return re.sub(r"^$|[./]", "_", key) if is_path else key


def _by_key(values: Mapping[str, T]) -> dict[str, T]:
    """The values by their keys; of those that have the same one, which MLflow refuses, the last."""
    return {_key(name): value for name, value in values.items()}


def _tags(view: RunView) -> dict[str, str]:
    note = {"mlflow.note.content": view.note} if view.note else {}
    return {**{PREFIX + name: text for name, text in view.tags.items()}, **note}


def _ms(microseconds: int | None) -> int | None:
    return None if microseconds is None else microseconds // 1000


def _metrics(name: str, by_step: Mapping[int, float], at: int | None) -> list[Metric]:
    """Metrics for MLflow. All get the same time, because the log has no times of reports. So a metric sent twice is
    stored once.
    """
    from mlflow.entities import Metric

    when = max(0, _ms(at) or 0)  # MLflow refuses times before 1970, as of a peer with a false clock
    return [Metric(_key(name), value, when, step) for step, value in by_step.items()]
