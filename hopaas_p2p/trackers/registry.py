"""The best trial's model in MLflow's model registry, with its parameters and its origin."""

from __future__ import annotations

import contextlib
import itertools
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.study_like import StudyLike
from hopaas_p2p.trackers.mlflow import MLflow
from hopaas_p2p.trackers.view import PREFIX, RunView, look

if TYPE_CHECKING:
    from hopaas_p2p.files.artifacts import Artifact

_ALIAS: Final = "best"
_MODEL: Final = "model"  # the directory of the run that holds the model
_MARKER: Final = "MLmodel"  # the file that makes a directory an MLflow model
_SMALL: Final = 16 << 20
_RATIO: Final = 32
"""An archive may grow to _SMALL + _RATIO times its bytes."""


class Registered(NamedTuple):
    """A version of a registered model."""

    name: str
    version: str
    trial: int
    uri: str
    """models:/NAME/VERSION, which MLflow's loaders take."""


def register_best(
    study: StudyLike, model_artifact: str | os.PathLike[str], name: str, *, tracker: MLflow | str | None = None
) -> Registered:
    """Register the best trial's model with MLflow, under the alias "best". A repeated call gives the same version.

    Args:
        study: from `open_study`.
        model_artifact: the name or id of a file that the best trial uploaded; or a path, of a file to be uploaded to
            that trial first. A zip or tar with an `MLmodel` file at its top is registered as the model in it.
        name: the registered model.
        tracker: the MLflow to use, or its URI; by default MLFLOW_TRACKING_URI.

    Raises:
        ValueError: no trial is COMPLETE yet.
        InvalidInput: the best trial has no such file, or the name is not allowed.
        TrackerUnreachable: MLflow did not answer.

    """
    if not name or set(name) & set("/:'"):
        raise InvalidInput(f"{name!r} is not a model name: slashes, colons and quotes are not allowed")
    mlflow = tracker if isinstance(tracker, MLflow) else MLflow(tracker)
    number, files = study.best_trial.number, study.artifacts()
    if isinstance(model_artifact, os.PathLike):
        file = files.put(Path(model_artifact), trial=number)
    else:
        there = files.list(number)
        found = [one for one in there if model_artifact in (one.id, one.filename)]
        if not found:
            names = ", ".join(one.filename for one in there) or "none"
            raise InvalidInput(f"trial {number}, the best, has no file {model_artifact!r}; it has: {names}")
        file = found[-1]
    view = look(study, settled=set(range(len(study.state.trials))) - {number})
    mlflow.begin(view)
    (trial,) = view.trials
    mlflow.put(trial, files)
    with mlflow.translated():
        versions = mlflow.client.search_model_versions(f"name = '{name}'")
        origins = {
            (one.tags.get(f"{PREFIX}study"), one.tags.get(f"{PREFIX}file")): str(one.version) for one in versions
        }
        version = origins.get((view.uuid, file.id)) or _create(study, mlflow, name, trial, file, view.uuid)
        mlflow.client.set_registered_model_alias(name, _ALIAS, version)
    return Registered(name, version, number, f"models:/{name}/{version}")


def _create(study: StudyLike, mlflow: MLflow, name: str, trial: RunView, file: Artifact, study_uuid: str) -> str:
    from mlflow.exceptions import MlflowException

    client = mlflow.client
    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    run_id = mlflow.run_of(trial)
    mlflow.check_place(trial)
    with tempfile.TemporaryDirectory(prefix="hopaas-model-") as directory:
        place = _unpacked(study.artifacts().get(file, Path(directory, file.filename)), Path(directory, "unpacked"))
        if place.is_dir():
            client.log_artifacts(run_id, str(place), _MODEL)
        else:
            client.log_artifact(run_id, str(place), _MODEL)
    source = f"{client.get_run(run_id).info.artifact_uri}/{_MODEL}"
    facts: dict[str, object] = {"study": study_uuid, "file": file.id, "sha256": file.sha256 or "", **trial.tags}
    facts |= {**trial.values, **{f"param.{name}": value for name, value in trial.params.items()}}
    tags = {f"{PREFIX}{name}": str(value)[:1000] for name, value in facts.items() if value != ""}
    rows = "\n".join(f"| {name} | {value} |" for name, value in trial.params.items())
    values = ", ".join(f"{name} {value:.6g}" for name, value in trial.values.items())
    where = " on ".join(trial.tags[key] for key in ("site", "node") if key in trial.tags)
    description = (
        f"Trial {trial.number} of the study {study.name!r}: {values}. It ran at {where or 'an unknown place'}.\n\n"
        f"| parameter | value |\n|---|---|\n{rows}\n\n    {trial.tags['command']}\n"
    )
    made = client.create_model_version(name, source, run_id, tags=tags, description=description)
    return str(made.version)


def _unpacked(path: Path, directory: Path) -> Path:
    """The directory of an MLflow model that is in an archive; the path itself for anything else.

    A peer has made the archive. Of a tar, only files and folders are taken: links lead Python's filter astray.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, (one.file_size for one in archive.infolist()))
            if _MARKER not in archive.namelist():
                return path
            archive.extractall(directory)  # noqa: S202  # zipfile drops absolute paths and .., and makes no links
        return directory
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as packed:
            _check_size(path, (one.size + tarfile.BLOCKSIZE for one in packed))
            if not {_MARKER, f"./{_MARKER}"} & set(packed.getnames()):
                return path
            plain = [one for one in packed if one.isreg() or one.isdir()]
            packed.extractall(directory, plain, filter="data")  # noqa: S202  # the filter refuses paths outside
        return directory
    return path


def _check_size(path: Path, sizes: Iterable[int]) -> None:
    """Raises InvalidInput if what is in an archive has many times its bytes."""
    most = _SMALL + _RATIO * path.stat().st_size
    if any(size > most for size in itertools.accumulate(sizes)):
        raise InvalidInput(f"{path.name} grows to more than {most:,} bytes when it is unpacked; register its files")
