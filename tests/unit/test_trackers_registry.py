"""The best model in the registry of a real MLflow."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.study import Study
from hopaas_p2p.trackers import MLflow, register_best
from tests.support.mlflow_fixtures import needed
from tests.support.processes import campaign

needed("mlflow")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """Three trials, each with a model that says its number; the second is the best."""
    one = campaign(tmp_path, budget=3)

    def objective(trial: hopaas_p2p.Trial) -> float:
        (tmp_path / "model.txt").write_text(f"weights of {trial.number}")
        trial.upload(tmp_path / "model.txt")
        return [3.0, 1.0, 2.0][trial.number]

    one.optimize(objective)
    yield one
    one.close()


@pytest.fixture
def tracker(mlflow_server: str, tmp_path: Path) -> MLflow:
    return MLflow(mlflow_server, experiment=tmp_path.name)


def test_the_best_model_is_registered_with_its_parameters_and_provenance(
    study: Study, tracker: MLflow, tmp_path: Path
) -> None:
    made = register_best(study, "model.txt", tmp_path.name, tracker=tracker)

    assert (made.version, made.trial, made.uri) == ("1", 1, f"models:/{tmp_path.name}/1")
    version = tracker.client.get_model_version_by_alias(tmp_path.name, "best")
    best = study.best_trial
    provenance = study.provenance(1)
    assert version.tags["hopaas.param.lr"] == str(best.params["lr"])
    assert (version.tags["hopaas.value"], version.tags["hopaas.trial"]) == ("1.0", "1")
    assert (version.tags["hopaas.site"], version.tags["hopaas.node"]) == (provenance["site"], provenance["host"])
    assert version.tags["hopaas.sha256"] == study.artifacts().list(1)[0].sha256
    assert f"| depth | {best.params['depth']} |" in version.description
    run = tracker.client.get_run(version.run_id)
    assert (run.info.run_name, run.data.tags["hopaas.study"]) == ("trial 1", version.tags["hopaas.study"])
    place = tracker.client.download_artifacts(version.run_id, "model/model.txt", str(tmp_path))
    assert Path(place).read_text() == "weights of 1"


def test_registering_twice_gives_the_same_version_and_a_better_trial_a_new_one(
    study: Study, tracker: MLflow, tmp_path: Path
) -> None:
    first = register_best(study, "model.txt", tmp_path.name, tracker=tracker)
    again = register_best(study, "model.txt", tmp_path.name, tracker=tracker)
    study.set_budget(4)
    trial = study.ask()
    (tmp_path / "better.txt").write_text("better")
    study.tell(trial, 0.5)

    better = register_best(study, tmp_path / "better.txt", tmp_path.name, tracker=tracker)

    assert again == first
    assert (better.version, better.trial) == ("2", 3)
    assert tracker.client.get_model_version_by_alias(tmp_path.name, "best").version in (2, "2")


@pytest.mark.parametrize("form", ["zip", "gztar"])
def test_a_packed_model_of_mlflows_can_be_loaded_from_the_registry(
    study: Study, tracker: MLflow, tmp_path: Path, form: str
) -> None:
    model = tmp_path / "packed"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}\n")
    (model / "weights").mkdir()
    (model / "weights" / "0.bin").write_bytes(b"\x00")
    archive = Path(shutil.make_archive(str(tmp_path / "digits"), form, model))
    name = f"{tmp_path.name}-{form}"

    made = register_best(study, archive, name, tracker=tracker)

    version = tracker.client.get_model_version(name, made.version)
    there = {one.path for one in tracker.client.list_artifacts(version.run_id, "model")}
    assert there == {"model/MLmodel", "model/weights"}


def _leads_out(archive: tarfile.TarFile, outside: Path) -> None:
    """Links by which Python's filter for data lets a file be written, and read, outside (CVE-2025-4517)."""

    def add(name: str, kind: bytes, link: str = "", data: bytes = b"") -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, len(data)
        archive.addfile(info, io.BytesIO(data))

    long, steps, path = "d" * 247, "abcdefghijklmnop", ""
    for step in steps:
        add(os.path.join(path, long), tarfile.DIRTYPE)  # noqa: PTH118  # too long for a Path
        add(os.path.join(path, step), tarfile.SYMTYPE, long)  # noqa: PTH118
        path = os.path.join(path, long)  # noqa: PTH118
    way = "/".join([*steps, "l" * 254])
    add(way, tarfile.SYMTYPE, "../" * len(steps))
    add("escape", tarfile.SYMTYPE, f"{way}{'/..' * 8}{outside}")
    add("escape/planted", tarfile.REGTYPE, data=b"planted")
    add("copied", tarfile.LNKTYPE, "escape/key")


def _bomb(archive: tarfile.TarFile, _outside: Path) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 100 << 20
    archive.addfile(info, io.BytesIO(bytes(info.size)))


@pytest.mark.parametrize("trap", [_leads_out, _bomb])
def test_an_archive_of_a_peer_writes_and_reads_nothing_outside_and_does_not_grow(
    trap: Callable[[tarfile.TarFile, Path], None], study: Study, tracker: MLflow, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "key").write_text("secret")
    with tarfile.open(tmp_path / "model.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("MLmodel")
        info.size = 12
        archive.addfile(info, io.BytesIO(b"flavors: {}\n"))
        trap(archive, outside)

    with contextlib.suppress(InvalidInput, OSError):
        made = register_best(study, tmp_path / "model.tgz", tmp_path.name, tracker=tracker)
        run = tracker.client.get_model_version(tmp_path.name, made.version).run_id
        assert "model/copied" not in {one.path for one in tracker.client.list_artifacts(run, "model")}
        assert trap is not _bomb

    assert {one.name for one in outside.iterdir()} == {"key"}
    assert (outside / "key").stat().st_nlink == 1


def test_a_file_that_the_best_trial_does_not_have_is_named_with_those_it_has(study: Study, tracker: MLflow) -> None:
    with pytest.raises(InvalidInput, match=r"trial 1, the best, has no file 'weights.pt'; it has: model.txt"):
        register_best(study, "weights.pt", "digits", tracker=tracker)


@pytest.mark.parametrize("name", ["", "a/b", "a' or name != '"])
def test_a_name_that_no_model_has_is_refused(study: Study, tracker: MLflow, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a model name"):
        register_best(study, "model.txt", name, tracker=tracker)
