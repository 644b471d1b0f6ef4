"""From an invitation to finished trials with one command, at sites of three kinds, each in a network namespace.

An open one reaches the server; one reaches a proxy that wants a login and is restarted; one reaches its login node and
nothing else. The centre and its links are those of test_sites.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hopaas_p2p import access
from hopaas_p2p.joining.invitation import invite
from tests.services.test_sites import URL, World, sites, world
from tests.support.processes import CLI, ROOT, environment, until
from tests.support.site_fixtures import PASSWORD

__all__ = ["world"]
TRIAL = ["sh", "-c", 'echo "{\\"value\\": {x}}"']


@pytest.fixture
def invited(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A study in the centre, and an administrator there who invites people to it."""
    world.study(budget=20)
    monkeypatch.setenv("HOPAAS_CA_FILE", world.env["HOPAAS_CA_FILE"])
    return world


def given(world: World, tmp_path: Path, site: str, url: str = URL) -> Path:
    """The invitation, as a file at that site."""
    made = invite(world.store, "campaign", site=site, via=url)
    file = tmp_path / f"{site}.invitation"
    file.write_text(made.invitation.seal().reveal())
    return file


def config(tmp_path: Path, site: str) -> dict[str, str]:
    """The environment of a user there who has nothing yet."""
    return {"XDG_CONFIG_HOME": str(tmp_path / site), "HTTPS_PROXY": "", "HOPAAS_CA_FILE": ""}


def test_at_an_open_site(invited: World, tmp_path: Path) -> None:
    spaces = invited.spaces
    spaces.make("open")
    spaces.link("open", "centre", round_trip=0.030)
    file = given(invited, tmp_path, "open", URL.replace("centre.example.org", "localhost"))
    words = ["join", str(file), "--max-trials", "2", "--logs", str(tmp_path / "logs"), "--", *TRIAL]
    done = spaces.run("open", *words, **config(tmp_path, "open"))
    assert done.returncode == 0, done.stderr
    assert "Connection: direct" in done.stderr
    state = invited.state()
    assert [trial.state.name for trial in state.trials] == ["COMPLETE"] * 2
    assert sites(state) == {"open"}


def test_behind_a_proxy_with_a_password_that_restarts(invited: World, tmp_path: Path) -> None:
    file, squid = given(invited, tmp_path, "site1"), invited.squids["1"]
    words = ["join", str(file), "--max-trials", "3", "--logs", str(tmp_path / "logs"), "--", *TRIAL]
    env = config(tmp_path, "site1") | {"HTTPS_PROXY": squid.proxy()}
    joined = invited.spaces.start("site1", [*CLI, *words], log="join.log", **env)
    invited.spaces.wait_for("join.log", "Connection: proxy")
    squid.kill()
    squid.start()
    assert joined.wait(150) == 0, invited.spaces.said("join.log")
    assert [trial.state.name for trial in invited.state().trials] == ["COMPLETE"] * 3

    again = invited.spaces.run(  # the way was kept, with the proxy's login
        "site1",
        "join",
        "--max-trials",
        "1",
        "--logs",
        str(tmp_path / "logs"),
        "--",
        *TRIAL,
        **config(tmp_path, "site1"),
    )
    assert again.returncode == 0, again.stderr
    assert PASSWORD not in again.stderr + invited.spaces.said("join.log")


def test_where_nodes_reach_nothing_but_the_login_node(invited: World, tmp_path: Path) -> None:
    """The job finds that neither the proxy of the login node nor the server can be reached, and takes the relay."""
    spaces, squid = invited.spaces, invited.squids["2"]
    login = tmp_path / "sbatch"
    job = spaces.words("site2", "sh")
    ran = f"{' '.join(job)} {tmp_path}/job.sh > {tmp_path}/job.log 2>&1 < /dev/null &"
    login.write_text(f"#!/bin/sh\ncat > {tmp_path}/job.sh\n{ran}\necho 1\n")  # as sbatch, it reads its input
    login.chmod(0o755)
    squid.kill()  # now one that listens to the login node's own processes only
    file = squid.folder / "squid.conf"
    file.write_text(file.read_text().replace(f"http_port {squid.address}:", "http_port 127.0.0.1:"))
    proxy = squid.proxy().replace(squid.address, "127.0.0.1")
    spaces.start("login2", [str(squid.binary), "-N", "-f", file], log="squid-own.log")
    until(lambda: spaces.reaches("login2", "127.0.0.1", squid.port), 60)

    text = given(invited, tmp_path, "site2").read_text()
    words = ["join", "-", "--submit", "slurm", "--login-node", squid.address, "--max-trials", "2", "--", *TRIAL]
    env = config(tmp_path, "site2") | {"HTTPS_PROXY": proxy, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        spaces.words("login2", *CLI, *words),
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT), **env),
    )
    try:
        assert done.returncode == 0, done.stderr
        assert "started a relay on this node" in done.stderr
        until(lambda: len(invited.state().trials) == 2, 120, what=lambda: (tmp_path / "job.log").read_text())
        until(lambda: {one.state.name for one in invited.state().trials} == {"COMPLETE"}, 60)
        assert "Connection: relay" in (tmp_path / "job.log").read_text()
        assert sites(invited.state()) == {"site2"}
    finally:
        log = (tmp_path / "site2/hopaas-p2p/joined/campaign.relay.log").read_text()
        pid = done.stderr.partition("To stop it: kill ")[2].split()[0]
        assert pid.isdigit(), done.stderr + log
        os.kill(int(pid), 15)


def test_a_site_that_reaches_nothing_is_told_what_was_tried_and_what_to_do(invited: World, tmp_path: Path) -> None:
    file = given(invited, tmp_path, "site3")
    done = invited.spaces.run("site3", "join", str(file), "--", *TRIAL, **config(tmp_path, "site3"))
    assert done.returncode == 78
    assert "direct: name: centre.example.org has no address" in done.stderr
    assert "hopaas-p2p join --submit" in done.stderr


def test_a_revoked_invitation_says_so(invited: World, tmp_path: Path) -> None:
    file = given(invited, tmp_path, "site1")
    (token,) = [one for one in access.tokens(invited.store) if one.user.startswith("guest-")]
    assert token.label == "invitation to campaign for site1"
    access.revoke_token(invited.store, token.name)
    env = config(tmp_path, "site1") | {"HTTPS_PROXY": invited.squids["1"].proxy()}
    done = invited.spaces.run("site1", "join", str(file), "--", *TRIAL, **env)
    assert done.returncode == 77
    assert "the token is wrong, expired or revoked" in done.stderr
    assert "your invitation to 'campaign' has expired or was revoked. Ask its sender for another" in done.stderr
