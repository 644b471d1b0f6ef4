"""Provenance: what a peer tells of where and with what it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.ports.limits import time_left
from hopaas_p2p.runtime import provenance
from hopaas_p2p.study import Study
from hopaas_p2p.study.audit import audit


def git(*words: str, cwd: Path) -> str:
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    return subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git("init", "--quiet", "--initial-branch", "topic/x", cwd=tmp_path)
    git("commit", "--quiet", "--allow-empty", "--message", "first", cwd=tmp_path)
    inside = tmp_path / "deep" / "down"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    return tmp_path


@pytest.mark.parametrize("then", [None, ("pack-refs", "--all"), ("checkout", "--quiet", "--detach")])
def test_the_commit_of_the_checkout_is_told(checkout: Path, then: tuple[str, ...] | None) -> None:
    if then is not None:
        git(*then, cwd=checkout)
    assert provenance.describe()["git_commit"] == git("rev-parse", "HEAD", cwd=checkout)[:12]


def test_a_worktree_is_a_checkout_too(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("worktree", "add", "--quiet", "-b", "beside", "worktree", cwd=checkout)
    monkeypatch.chdir(checkout / "worktree")
    git("commit", "--quiet", "--allow-empty", "--message", "second", cwd=checkout / "worktree")
    assert provenance.describe()["git_commit"] == git("rev-parse", "beside", cwd=checkout)[:12]


def test_outside_of_a_checkout_no_commit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "git_commit" not in provenance.describe()


def test_the_time_of_an_htcondor_job_is_said_with_its_own_number(tmp_path: Path) -> None:
    """A pool's workers may run as jobs of another batch system, and builds set JOB_ID."""
    (tmp_path / "ad").write_text("ClusterId = 12\nProcId = 3\nAllowedExecuteDuration = 100\n")
    for others in ({}, {"SLURM_JOB_ID": "9"}, {"JOB_ID": "build-5"}):
        found = time_left({"_CONDOR_JOB_AD": str(tmp_path / "ad"), **others})
        assert found is not None
        assert found[1] == "HTCondor job 12.3"


def test_gpus_are_told_by_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text("Model: \t\t NVIDIA A100\nIRQ:   42\n")
    monkeypatch.setattr(provenance, "_NVIDIA", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    provenance._machine.cache_clear()
    try:
        assert provenance.describe()["gpu"] == "NVIDIA A100, NVIDIA A100 (visible: 1)"
    finally:
        provenance._machine.cache_clear()


@pytest.mark.parametrize(
    ("full", "host", "site"),
    [
        ("n17.hpc.example.org", "n17", "hpc.example.org"),
        ("n17", "n17", "n17"),
        ("localhost", "laptop", "laptop"),
        ("localhost.localdomain", "n17.hpc.example.org", "hpc.example.org"),
    ],
)
def test_a_site_without_a_name_is_the_hosts_domain(
    full: str, host: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOPAAS_SITE", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("socket.getfqdn", lambda: full)
    monkeypatch.setattr("socket.gethostname", lambda: host)
    provenance._domain.cache_clear()
    try:
        assert provenance.site() == site
    finally:
        provenance._domain.cache_clear()


def test_a_service_writes_for_several_people_through_one_replica(tmp_path: Path) -> None:
    """What the service, Ann and Bob write is told apart in the log, though one peer writes it, and each sees it."""
    service = hopaas_p2p.open_storage(str(tmp_path / "store"))
    study = hopaas_p2p.open_study(service, "shared", budget=5)
    people = {name: service.on_behalf_of(name) for name in ("ann", "bob", "")}

    for name, storage in people.items():
        Study(storage, study.study_id, "shared").set_budget(6 + len(name))
        study.set_user_attr("last", name)

    assert {storage.state(study.study_id).lsn for storage in people.values()} == {study.state.lsn}
    lines = [(line["kind"], line["on_behalf_of"] or "") for line in audit(study)]
    assert [who for kind, who in lines if kind == "study.control"] == ["ann", "bob", ""]
    for storage in (*people.values(), service):
        storage.close()
