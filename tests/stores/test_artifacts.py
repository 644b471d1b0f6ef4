"""Files of studies and trials, on every store; as Optuna and its dashboard see them."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import download_artifact, get_all_artifact_meta, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound

import hopaas_p2p
from hopaas_p2p.core.records import TrialReclaim
from hopaas_p2p.errors import (
    ConfigurationError,
    InvalidInput,
    LeaseLost,
    NoSuchFile,
    NoSuchTrial,
    StoreCorrupt,
    StoreUnreachable,
)
from hopaas_p2p.files.artifacts import artifacts_of, key_of, safe_name, within
from hopaas_p2p.net import backoff
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.remote.client import RemoteArtifacts
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.study import Study
from tests.support import s3_faults
from tests.support.processes import cli
from tests.support.s3_faults import FaultProxy
from tests.support.s3_server import S3Server

_names = itertools.count()
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(params=["memory", "directory", "s3", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        found: str = request.getfixturevalue("s3_url")
        return found
    if request.param == "postgres":
        there: str = request.getfixturevalue("postgres_url")
        return there
    return f"memory://files-{next(_names)}" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
def study(url: str) -> Iterator[Study]:
    study = hopaas_p2p.open_study(url, "s")
    yield study
    study.close()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, data: bytes = b"weights") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return make


def test_a_file_comes_back_as_it_was(study: Study, file: Callable[..., Path], tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 << 20)
    stored = study.artifacts().put(file("model.pt", data))
    assert (stored.filename, stored.size, stored.trial) == ("model.pt", 3 << 20, None)
    for what in (stored, stored.id, "model.pt", stored.id.partition("-")[2][:8]):
        path = study.artifacts().get(what, tmp_path / "fetched")
        assert path.read_bytes() == data
    assert study.artifacts().list() == [stored]
    study.artifacts().delete(stored)
    assert study.artifacts().list() == []
    with pytest.raises(NoSuchFile, match="no longer"):
        study.artifacts().get(stored, tmp_path / "fetched")


def test_files_belong_to_trials_running_and_finished(study: Study, file: Callable[..., Path]) -> None:
    trial = study.ask()
    running = trial.upload(file("plot.png"))
    study.tell(trial, 1.0)
    finished = study.artifacts().put(file("notes.txt"), trial=trial.number)
    others = hopaas_p2p.open_study(study.storage.url, "s", create=False)
    assert [one.filename for one in others.artifacts().list(0)] == ["notes.txt", "plot.png"]
    assert set(others.artifacts().list()) == {running, finished}
    assert running.mimetype == "image/png"
    for one in (running, finished):
        others.artifacts().delete(one)
    assert others.artifacts().list() == []
    if others.storage is not study.storage:
        others.close()
    with pytest.raises(NoSuchTrial):
        study.artifacts().put(file("x"), trial=7)
    with pytest.raises(NoSuchTrial):
        study.artifacts().list(7)
    with pytest.raises(InvalidInput, match="no file"):
        study.artifacts().put("/nowhere/at all")


@pytest.mark.parametrize("by", ["its process", "a process that it travelled to"])
def test_a_file_of_a_trial_that_was_taken_over_unnoticed_is_not_acknowledged(
    study: Study, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    trial = study.ask()
    mine = trial if by == "its process" else pickle.loads(pickle.dumps(trial))
    mine.storage.get_trial(mine.id)
    other = hopaas_p2p.open_study(study.storage.url, "s", create=False)
    with monkeypatch.context() as patched:
        patched.setattr(Peer, "refresh_for_reading", lambda *_: None)  # a read may be as old as the store's freshness
        other.handle.say(TrialReclaim(0, 1))
        with pytest.raises(LeaseLost):
            mine.upload(file("model.pt"))
    assert other.artifacts().list() == []
    assert list(artifacts_of(study.storage.peer.store).keys(f"{study.handle.uuid}/file/")) == []
    with pytest.raises(LeaseLost) as lost:
        study.tell(trial, 0.5)
    other.storage.peer.catch_up(other.handle.log)
    assert other.artifacts().list(lost.value.kept_as) == [], "nor does a late result name it"
    for one in {mine.storage, other.storage} - {study.storage}:
        one.close()


def test_optuna_reads_ours_and_we_read_optunas(study: Study, file: Callable[..., Path], tmp_path: Path) -> None:
    trial = study.ask()
    trial.upload(file("model.pt", b"ours"))
    upload_artifact(artifact_store=study.artifacts(), file_path=str(file("table.csv", b"theirs")), study_or_trial=trial)
    study.tell(trial, 1.0)
    frozen = study.trials[0]
    metas = get_all_artifact_meta(frozen, storage=study.storage)
    assert {meta.filename for meta in metas} == {"model.pt", "table.csv"}
    for meta in metas:
        target = tmp_path / f"fetched-{meta.filename}"
        download_artifact(artifact_store=study.artifacts(), artifact_id=meta.artifact_id, file_path=str(target))
        assert target.read_bytes() == (b"ours" if meta.filename == "model.pt" else b"theirs")
    assert {(one.filename, one.size) for one in study.artifacts().list()} == {("model.pt", 4), ("table.csv", None)}
    for name in ("../../etc/passwd", "0" * 36):
        with pytest.raises(ArtifactNotFound):
            study.artifacts().open_reader(name)
    with pytest.raises(ArtifactNotFound):
        study.artifacts().remove("0" * 36)


def ask_dashboard(app: Any, path: str) -> tuple[str, bytes]:
    """One GET, as a browser sends it, without a server in between."""
    status: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    body = app(environ, lambda line, *_: status.append(line))
    try:
        return status[0], b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def test_the_dashboard_shows_and_serves_our_files(study: Study, file: Callable[..., Path]) -> None:
    trial = study.ask()
    one = trial.upload(file("model.pt", b"weights"))
    study.tell(trial, 1.0)
    late = study.artifacts().put(file("late.txt", b"late"), trial=0)
    own = study.artifacts().put(file("summary.txt", b"summary"))
    app = optuna_dashboard.wsgi(study.storage, artifact_store=study.artifacts())
    status, body = ask_dashboard(app, f"/api/studies/{study.study_id}")
    assert status.startswith("200")
    told = json.loads(body)
    assert {meta["filename"] for meta in told["trials"][0]["artifacts"]} == {"model.pt", "late.txt"}
    assert [meta["filename"] for meta in told["artifacts"]] == ["summary.txt"]
    trial_id = trial._trial_id
    assert ask_dashboard(app, f"/artifacts/{study.study_id}/{trial_id}/{one.id}")[1] == b"weights"
    assert ask_dashboard(app, f"/artifacts/{study.study_id}/{trial_id}/{late.id}")[1] == b"late"
    assert ask_dashboard(app, f"/artifacts/{study.study_id}/{own.id}")[1] == b"summary"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("..", "file"),
        ("C:\\temp\\x.txt", "x.txt"),
        (".bashrc", "bashrc"),
        ("a\nb\x1b[2J", "a_b_[2J"),
        ("", "file"),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_name_leads_nowhere(name: str, shown: str) -> None:
    assert safe_name(name) == shown


def test_hostile_attributes_are_passed_over(study: Study) -> None:
    for key, value in {
        "artifacts:x": "not json",
        "artifacts:y": json.dumps({"artifact_id": "../../secret", "filename": "a"}),
        "artifacts:number": json.dumps({"artifact_id": 12345678, "filename": "a"}),
        "artifacts:z": json.dumps([1, 2]),
        "artifacts:deep": "[" * 100_000,
        "artifacts:w": 7,
        "artifacts:ok": json.dumps({"artifact_id": "0" * 36, "filename": "../../.ssh/id_rsa\n", "size": "x"}),
    }.items():
        study.storage.set_study_system_attr(study.study_id, key, value)
    assert [one.filename for one in study.artifacts().list()] == ["id_rsa_"]


def test_bytes_that_are_not_what_was_stored_are_refused(tmp_path: Path, file: Callable[..., Path]) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s")
    one = study.artifacts().put(file("model.pt"))
    (path,) = (tmp_path / "store" / "v1" / "artifacts").rglob("file/*")
    path.write_bytes(b"WEIGHTS")
    target = tmp_path / "mine"
    target.write_bytes(b"before")
    with pytest.raises(StoreCorrupt, match="differ from those that were stored"):
        study.artifacts().get(one, target)
    assert target.read_bytes() == b"before"
    assert not list(tmp_path.glob(".hopaas-*"))
    study.close()


def test_a_file_of_a_few_bytes_is_no_longer_than_was_said_either(study: Study, file: Callable[..., Path]) -> None:
    one = study.artifacts().put(file("model.pt", b"x" * 1000))
    fetched = file("fetched", b"before")
    with pytest.raises(StoreCorrupt, match="more than the 10 bytes"):
        study.artifacts().get(one._replace(size=10, sha256=None), fetched)
    assert fetched.read_bytes() == b"before"


@pytest.mark.parametrize("error", [StoreUnreachable(), ConfigurationError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("of_trial", [False, True])
def test_the_bytes_stay_when_what_is_said_of_them_goes_out_later(
    tmp_path: Path, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: BaseException, *, of_trial: bool
) -> None:
    """The store is away between the two: the attribute is queued, and must not come to speak of a file that is gone."""
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(tmp_path / "store", patience=0.0), "s")
    log = study.handle.log.log

    trial = study.ask().number if of_trial else None

    def away(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(log, "exchange", away)
        with pytest.raises(type(error)):
            study.artifacts().put(file("model.pt", b"weights"), trial=trial)
    study.storage.flush()
    (one,) = study.artifacts().list()
    assert study.artifacts().get(one, tmp_path / "copy").read_bytes() == b"weights"
    study.close()


def test_a_large_file_goes_to_a_bucket_in_parts_and_reading_goes_on_where_it_broke(
    s3_server: S3Server, tmp_path: Path
) -> None:
    with FaultProxy(s3_server.port) as proxy:
        store = S3Store(s3_server.url(s3_server.new_prefix(), endpoint=proxy.endpoint))
        source, target = tmp_path / "source", tmp_path / "target"
        with source.open("wb") as file:
            for seed in range(40):
                file.write(random.Random(seed).randbytes(1 << 20))
        proxy.next("PUT", s3_faults.UNAVAILABLE, path="/artifacts/")  # a part is sent again
        store.artifacts().put("u/model", source)
        assert proxy.requests["PUT"] == 4
        told: list[int] = []
        proxy.next("GET", s3_faults.CUT_BODY, path="/artifacts/")
        store.artifacts().get("u/model", target, told.append)
        assert proxy.requests["GET"] == 2
        assert source.read_bytes() == target.read_bytes()
        assert sum(told) == 40 << 20
        store.close()


def test_a_file_that_breaks_off_on_its_way_and_begins_again_is_not_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_FIRST_PAUSE", 0.001)
    data, target = random.Random(1).randbytes(3 << 20), tmp_path / "target"

    class Link:
        """Breaks off once, behind two thirds."""

        broken = False

        def get(self, _key: str, path: Path, progress: Callable[[int], None]) -> None:
            with path.open("wb") as file:
                for place in range(0, len(data), 1 << 20):
                    file.write(data[place : place + (1 << 20)])
                    progress(1 << 20)
                    if place and not self.broken:
                        self.broken = True
                        raise StoreUnreachable("broke off")

    RemoteArtifacts(Link()).get("study/file/x", target, within(target, len(data)))  # type: ignore[arg-type]
    assert target.read_bytes() == data
    with pytest.raises(StoreCorrupt, match="more than the 1,048,576 bytes"):
        RemoteArtifacts(Link()).get("study/file/x", target, within(target, 1 << 20))  # type: ignore[arg-type]


def test_a_file_too_large_for_postgres_is_refused_and_the_setting_named(postgres_url: str, tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(postgres_url, "s")
    large = tmp_path / "large"
    with large.open("wb") as sparse:
        sparse.truncate((64 << 20) + 1)
    with pytest.raises(ConfigurationError, match="HOPAAS_ARTIFACTS"):
        study.artifacts().put(large)
    assert study.artifacts().list() == []
    study.close()


@pytest.mark.parametrize("kind", ["directory", "memory", "s3", "postgres"])
def test_files_of_every_kind_of_store_go_where_the_setting_says(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = {"directory": str(tmp_path / "store"), "memory": "memory://files-elsewhere"}
    url = urls.get(kind) or request.getfixturevalue(f"{kind}_url")
    elsewhere = tmp_path / "files"
    monkeypatch.setenv("HOPAAS_ARTIFACTS", str(elsewhere))
    study = hopaas_p2p.open_study(url, "s")
    one = study.artifacts().put(file("model.pt"))
    assert study.storage.peer.store.artifacts().keys("") == []
    assert open_store(elsewhere).artifacts().keys("") == [key_of(one.id, one.id[:32])]
    assert study.artifacts().get(one, tmp_path / "fetched").read_bytes() == b"weights"
    study.close()


def test_the_shell_puts_lists_gets_and_removes(tmp_path: Path, file: Callable[..., Path]) -> None:
    hopaas_p2p.open_study(str(tmp_path / "store"), "s").close()
    where = ["--store", str(tmp_path / "store"), "--study", "s"]
    file("model.pt")
    (line,) = cli("trial", "artifact", "put", "model.pt", *where, cwd=tmp_path).stdout.split()
    shown = json.loads(cli("trial", "artifact", "ls", "--json", *where, cwd=tmp_path).stdout)
    assert [(one["id"], one["filename"], one["size"]) for one in shown] == [(line, "model.pt", 7)]
    there = cli("trial", "artifact", "get", "model.pt", *where, cwd=tmp_path, check=False)
    assert there.returncode == 2
    assert "--force" in there.stderr
    cli("trial", "artifact", "get", line, "copy.pt", *where, cwd=tmp_path)
    assert (tmp_path / "copy.pt").read_bytes() == b"weights"
    for _ in range(4):
        cli("trial", "artifact", "put", "model.pt", *where, cwd=tmp_path)
    vague = cli("trial", "artifact", "rm", "model.pt", *where, cwd=tmp_path, check=False)
    assert vague.returncode == 2
    assert vague.stderr.endswith(", …; see: hopaas-p2p trial artifact ls\n")
    table = cli("trial", "artifact", "ls", *where, cwd=tmp_path).stdout.splitlines()[1:]
    assert max(map(len, table)) < 80
    for row in table:
        cli("trial", "artifact", "rm", row.split()[-1], *where, cwd=tmp_path)
    assert json.loads(cli("trial", "artifact", "ls", "--json", *where, cwd=tmp_path).stdout) == []
    shutil.rmtree(tmp_path / "store")
