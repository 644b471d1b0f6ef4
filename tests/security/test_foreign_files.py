"""Attributes and records that name a file of another study: it is neither fetched nor removed."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.artifacts import upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound

import hopaas_p2p
from hopaas_p2p.core.records import Checkpoint, StudySet
from hopaas_p2p.errors import NoSuchFile
from hopaas_p2p.files import checkpoints
from hopaas_p2p.files.artifacts import SUM, Artifact
from hopaas_p2p.study import Study
from hopaas_p2p.trackers.base import new_files
from hopaas_p2p.trackers.view import look
from tests.support.processes import cli


@pytest.fixture(params=["directory", "memory", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return str(tmp_path / "store") if request.param == "directory" else f"memory://{tmp_path.name}"


@pytest.fixture
def studies(url: str) -> Iterator[tuple[Study, Study]]:
    """(the victim's, the attacker's)"""
    mine, theirs = hopaas_p2p.open_study(url, "mine"), hopaas_p2p.open_study(url, "theirs")
    yield mine, theirs
    mine.close()
    theirs.close()


def file(tmp_path: Path, data: str = "secret") -> Path:
    path = tmp_path / "model.pt"
    path.write_text(data)
    return path


def name_it(study: Study, artifact_id: str, name: str = "stolen.pt") -> None:
    """Write an attribute that says that the file of this id is this study's."""
    fields = json.dumps({"artifact_id": artifact_id, "filename": name, "mimetype": "text/html"})
    study.handle.say(StudySet(system={f"artifacts:{artifact_id}": json.dumps(fields)}))


def test_a_file_of_another_study_is_neither_fetched_nor_removed(studies: tuple[Study, Study], tmp_path: Path) -> None:
    mine, theirs = studies
    own = mine.artifacts().put(file(tmp_path))
    optunas = upload_artifact(
        artifact_store=mine.artifacts(), file_path=str(file(tmp_path)), study_or_trial=mine, storage=mine.storage
    )
    files = theirs.artifacts()
    for artifact_id in (own.id, optunas):
        name_it(theirs, artifact_id)

        with pytest.raises(NoSuchFile, match="no longer in the store"):
            files.get(artifact_id, tmp_path / "got")
        with pytest.raises(ArtifactNotFound):
            files.open_reader(artifact_id)
        with contextlib.suppress(ArtifactNotFound):
            files.remove(artifact_id)
        files.delete(artifact_id)
        assert files.list() == []  # its false description is gone
        with mine.artifacts().open_reader(artifact_id) as there:
            assert there.read() == b"secret"


def test_an_id_with_a_path_in_it_is_none(studies: tuple[Study, Study], tmp_path: Path) -> None:
    files = studies[1].artifacts()
    for artifact_id in ("../../meta.json", "a/b", "", "x" * 8, "0" * 200):
        with pytest.raises(ArtifactNotFound):
            files.open_reader(artifact_id)
        with pytest.raises(ArtifactNotFound):
            files.remove(artifact_id)
        with pytest.raises(NoSuchFile):
            files.get(Artifact(artifact_id, "x", "x", None, None, None, None), tmp_path / "got")


def test_a_checkpoint_that_names_another_studys_file_is_not_loaded_and_takes_nothing_away(
    studies: tuple[Study, Study], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = studies
    own = mine.artifacts().put(file(tmp_path))
    store = theirs.storage.peer.store.artifacts()
    key = f"{own.id[:32]}/file/{own.id[33:]}"
    trial = theirs.ask()
    assert own.size is not None and own.sha256 is not None
    theirs.handle.checkpoint(trial.number, Checkpoint(0, key, own.size, own.sha256), within=None)
    uuid = theirs.handle.uuid

    with caplog.at_level(logging.WARNING):
        found = checkpoints.load(store, uuid, theirs.state.trials[trial.number].checkpoints, tmp_path)
    for step in (1, 2, 3):
        trial.checkpoint(b"mine", step=step)

    assert found is None
    assert "does not belong to this study" in caplog.text
    assert mine.artifacts().get(own, tmp_path / "got").read_text() == "secret"
    theirs.tell(trial, 1.0)


def test_optunas_dashboard_serves_and_removes_a_studys_own_files_only(
    studies: tuple[Study, Study], tmp_path: Path
) -> None:
    optuna_server = pytest.importorskip("dashboard_app.optuna_server")
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    mine, theirs = studies
    own = mine.artifacts().put(file(tmp_path))
    name_it(theirs, own.id)
    storage = mine.storage
    app = optuna_server.confined(
        optuna_dashboard.wsgi(storage, artifact_store=optuna_server.RequestedFiles(storage)), actions=True
    )

    def ask(path: str, method: str = "GET") -> tuple[str, bytes]:
        said: list[str] = []
        environ: dict[str, object] = {}
        setup_testing_defaults(environ)
        parts = app(environ | {"REQUEST_METHOD": method, "PATH_INFO": path}, lambda status, *_: said.append(status))
        try:
            return said[0], b"".join(parts)
        finally:
            getattr(parts, "close", lambda: None)()

    assert ask(f"/artifacts/{mine.study_id}/{own.id}") == ("200 OK", b"secret")
    assert b"secret" not in ask(f"/artifacts/{theirs.study_id}/{own.id}")[1]
    ask(f"/api/artifacts/{theirs.study_id}/{own.id}", "DELETE")
    ask(f"/api/studies/{theirs.study_id}", "DELETE")
    assert ask(f"/artifacts/{mine.study_id}/{own.id}") == ("200 OK", b"secret")


def test_a_tracker_is_sent_all_but_a_file_that_is_not_there(
    studies: tuple[Study, Study], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = studies
    name_it(theirs, mine.artifacts().put(file(tmp_path)).id)
    own = theirs.artifacts().put(file(tmp_path))

    sent = [path.name for _, path in new_files(look(theirs)[-1], [], theirs.artifacts())]

    assert sent == [own.filename]
    assert "is not exported" in caplog.text


def test_a_file_whose_name_is_longer_than_disks_take_stops_no_tracker(
    studies: tuple[Study, Study], tmp_path: Path
) -> None:
    mine, _ = studies
    name_it(mine, mine.artifacts().put(file(tmp_path)).id, "漢" * 200)

    sent = [path.name for _, path in new_files(look(mine)[-1], [], mine.artifacts())]

    assert sent == ["漢" * 66]


def test_the_shell_removes_no_file_of_another_study(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with contextlib.closing(hopaas_p2p.open_study(store, "mine")) as mine:
        own = mine.artifacts().put(file(tmp_path))
        with contextlib.closing(hopaas_p2p.open_study(store, "theirs")) as theirs:
            name_it(theirs, own.id)
            theirs.handle.say(StudySet(system={SUM + own.id: json.dumps({"size": 6})}))

        got = cli(
            "trial",
            "artifact",
            "get",
            own.id,
            str(tmp_path / "got"),
            "--store",
            store,
            "--study",
            "theirs",
            check=False,
        )
        cli("trial", "artifact", "rm", own.id, "--store", store, "--study", "theirs")

        assert got.returncode == 1
        assert not (tmp_path / "got").exists()
        assert mine.artifacts().get(own, tmp_path / "got").read_text() == "secret"


optuna.logging.set_verbosity(optuna.logging.WARNING)
