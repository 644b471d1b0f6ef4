"""What MLflow costs: our export beside Optuna's own MLflowCallback, on one server; and what training notices of it.

A trial has 5 parameters and 10 reports. The callback does not send reports, so on its side every trial logs them with
`mlflow.log_metric`, as one would. Requests are counted where they leave the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import optuna

import hopaas_p2p
from hopaas_p2p.study import Study
from hopaas_p2p.trackers import MLflow, export_to
from tests.support.mlflow_fixtures import a_server
from tests.support.studies import opened_study

TRIALS = 60
STEADY = 600  # trials of a training, so that it outlasts the tracker's first look
SPACE = {f"x{number}": hopaas_p2p.Float(0, 1) for number in range(5)}


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """The requests that leave this process."""
    import requests

    seen: list[str] = []
    send = requests.Session.send

    def counting(self: Any, request: Any, **options: Any) -> Any:
        seen.append(request.path_url)
        return send(self, request, **options)

    requests.Session.send = counting  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        requests.Session.send = send  # type: ignore[method-assign]


def objective(trial: Any) -> float:
    """Ten reports."""
    value = sum(trial.suggest_float(name, 0, 1) for name in SPACE)
    for step in range(10):
        trial.report(value + 1 / (step + 1), step)
    return float(value)


def theirs(uri: str) -> tuple[float, float]:
    """(seconds, requests) a trial of Optuna's callback, with reports."""
    import mlflow
    from optuna_integration import MLflowCallback

    callback = MLflowCallback(tracking_uri=uri, metric_name="value", mlflow_kwargs={"nested": True})

    @callback.track_in_mlflow()  # type: ignore[misc]
    def tracked(trial: optuna.Trial) -> float:
        value = objective(trial)
        for step, report in sorted(trial.storage.get_trial(trial._trial_id).intermediate_values.items()):
            mlflow.log_metric("report", report, step)
        return value

    study = optuna.create_study(study_name="theirs")
    study.optimize(tracked, n_trials=1, callbacks=[callback])
    with counted() as seen:
        began = time.perf_counter()
        study.optimize(tracked, n_trials=TRIALS, callbacks=[callback])
        return (time.perf_counter() - began) / TRIALS, len(seen) / TRIALS


def ours(uri: str) -> tuple[float, float, float]:
    """(seconds, requests) a trial of an export, and the seconds of a second one that finds nothing to do."""
    study = _study("ours")
    study.optimize(objective, n_trials=TRIALS)
    with counted() as seen:
        began = time.perf_counter()
        export_to(study, MLflow(uri))
        seconds = (time.perf_counter() - began) / TRIALS
        requests = len(seen) / TRIALS
    began = time.perf_counter()
    export_to(study, MLflow(uri))
    again = time.perf_counter() - began
    study.close()
    return seconds, requests, again


def training(uri: str | None) -> float:
    """Seconds a trial of `optimize`, with a tracker beside it or without."""
    study = _study("beside", trackers=[MLflow(uri)] if uri else [])
    study.optimize(objective, n_trials=3)
    began = time.perf_counter()
    study.optimize(objective, n_trials=STEADY)
    seconds = (time.perf_counter() - began) / STEADY
    study.close()
    return seconds


def _study(name: str, **options: Any) -> Study:
    place = tempfile.mkdtemp(prefix="hopaas-bench-")
    sampler = optuna.samplers.RandomSampler(seed=0)
    return opened_study(place, name, space=SPACE, sampler=sampler, **options)


def main() -> str:
    """The section of results.md."""
    warnings.simplefilter("ignore")
    os.environ |= {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("hopaas_p2p").setLevel(logging.ERROR)
    with a_server() as uri:
        their_seconds, their_requests = theirs(uri)
        own_seconds, own_requests, again = ours(uri)
        rounds = [[training(one) for one in (None, uri, "http://127.0.0.1:9")] for _ in range(3)]
        alone, beside, away = (statistics.median(column) for column in zip(*rounds, strict=True))
    rows = [
        ("requests per trial", f"{own_requests:.1f}", f"{their_requests:.1f}", own_requests / their_requests, "< 1"),
        (
            "ms per trial",
            f"{1000 * own_seconds:.0f}",
            f"{1000 * their_seconds:.0f}",
            own_seconds / their_seconds,
            "< 1",
        ),
    ]
    table = "\n".join(f"| {what} | {one} | {two} | {ratio:.2f} | {bound} |" for what, one, two, ratio, bound in rows)
    return (
        "## MLflow\n\n"
        f"We exported {TRIALS} trials with 5 parameters and 10 reports each to a real `mlflow server` (SQLite). "
        '"Theirs" is Optuna\'s\n'
        "MLflowCallback, with `mlflow.log_metric` for the reports.\n\n"
        "| | ours | theirs | ratio | bound |\n|---|---|---|---|---|\n"
        f"{table}\n\n"
        f"A second export, which has nothing to send, takes {1000 * again:.0f} ms. A trial of `optimize` takes "
        f"{1000 * alone:.1f} ms alone, and {1000 * beside:.1f} ms while a\n"
        f"tracker is updated. While the tracker is away, it takes {1000 * away:.1f} ms.\n"
    )


if __name__ == "__main__":
    print(main())
