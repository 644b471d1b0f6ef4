"""Provenance: what a peer tells of where and with what it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hopaas_p2p.peer import identity


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
    assert identity.describe()["git_commit"] == git("rev-parse", "HEAD", cwd=checkout)[:12]


def test_a_worktree_is_a_checkout_too(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("worktree", "add", "--quiet", "-b", "beside", "worktree", cwd=checkout)
    monkeypatch.chdir(checkout / "worktree")
    git("commit", "--quiet", "--allow-empty", "--message", "second", cwd=checkout / "worktree")
    assert identity.describe()["git_commit"] == git("rev-parse", "beside", cwd=checkout)[:12]


def test_outside_of_a_checkout_no_commit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "git_commit" not in identity.describe()


def test_gpus_are_told_by_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slot in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "information").write_text("Model: \t\t NVIDIA A100\nIRQ:   42\n")
    monkeypatch.setattr(identity, "_NVIDIA", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    identity._machine.cache_clear()
    try:
        assert identity.describe()["gpu"] == "NVIDIA A100, NVIDIA A100 (visible: 1)"
    finally:
        identity._machine.cache_clear()


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
    identity._domain.cache_clear()
    try:
        assert identity.site() == site
    finally:
        identity._domain.cache_clear()
