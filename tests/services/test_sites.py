"""Two sites and a centre, each in network namespaces of its own: what people call "behind a proxy" and "no egress".

    site one ── login one (squid) ── 30 ms ──┐
                                             ├── 443 ── centre (server, Postgres)
    site two ── login two (squid) ── 30 ms ──┘
    site three: no network at all; a directory that login two shares and serves through

A site has one cable, to its login node, and no route beyond it. A login node has no cable to the centre: all there is
between them is port 443, by way of a link in user space. Skipped where no namespaces can be made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core.state import State
from tests.support.namespaces import Namespaces, namespaces_or_skip
from tests.support.postgres import Server
from tests.support.processes import CLI
from tests.support.served import Authority
from tests.support.site_fixtures import PASSWORD, USER, Squid

CENTRE: Final = "centre.example.org"
URL: Final = f"https://{CENTRE}"
_SHARE: Final = 4  # trials that each peer runs
_PEER: Final = """
import sys
import hopaas_p2p
storage = hopaas_p2p.open_storage(sys.argv[1], create=False, patience=120)
study = hopaas_p2p.open_study(storage, "campaign", create=False)
def objective(trial):
    for step in range(3):
        trial.report(trial.params["x"], step)
    return trial.params["x"]
study.optimize(objective, n_trials=int(sys.argv[2]))
study.close()
"""


class SiteSquid(Squid):
    """The proxy of a site, on its login node; it knows the centre's name."""

    def __init__(self, spaces: Namespaces, login: str, address: str) -> None:
        super().__init__()
        self._spaces, self._login, self.address = spaces, login, address
        hosts, config = self.folder / "hosts", self.folder / "squid.conf"
        hosts.write_text(f"127.0.0.1 {CENTRE}\n")
        text = config.read_text().replace(f"http_port 127.0.0.1:{self.port}", f"http_port {address}:{self.port}")
        config.write_text(f"{text}hosts_file {hosts}\n")

    def start(self) -> SiteSquid:
        assert self.binary is not None
        log = f"squid-{self._login}.log"
        self._process = self._spaces.start(self._login, [self.binary, "-N", "-f", self.folder / "squid.conf"], log=log)
        while not self._spaces.reaches(self._login, self.address, self.port):
            assert self._process.poll() is None, self.log()
        return self

    def kill(self) -> None:
        """As `Squid.kill`; it is a child of `ip` and in this process's group."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)
        self._process = None

    def proxy(self, user: str = USER, password: str = "p%40ss%3Aword%2F1") -> str:
        return f"http://{user}:{password}@{self.address}:{self.port}"


class World:
    """The centre and the sites."""

    def __init__(self, spaces: Namespaces, server: Server, store: str, folder: Path) -> None:
        self.spaces, self.server, self.store, self.folder = spaces, server, store, folder
        access.add_user(store, "ann")
        token = folder / "token"
        token.write_text(access.create_token(store, "ann").secret.reveal())
        authority = Authority(folder)
        self.pair = authority.certificate(CENTRE, "localhost")
        self.env = {"HOPAAS_TOKEN_FILE": str(token), "HOPAAS_CA_FILE": str(authority.file)}
        self.squids: dict[str, SiteSquid] = {}

    def build(self) -> None:
        self.spaces.make("centre", "site1", "login1", "site2", "login2", "site3")
        socket_folder = self.server.settings["unix_socket_directories"]
        target = f"postgresql:///store?host={socket_folder}&port={self.server.port}"
        words = ["serve", "https", target, "--listen", "127.0.0.1:443", "--tls-cert", str(self.pair[0])]
        words += ["--tls-key", str(self.pair[1])]
        self.spaces.start("centre", [*CLI, *words], log="server.log")
        self.spaces.wait_for("server.log", "Serving on")
        for number in ("1", "2"):
            _, address = self.spaces.cable(f"site{number}", f"login{number}")
            self.spaces.link(f"login{number}", "centre", round_trip=0.030)
            self.squids[number] = SiteSquid(self.spaces, f"login{number}", address).start()

    def through(self, number: str) -> dict[str, str]:
        """The environment of a process at that site."""
        return {**self.env, "HTTPS_PROXY": self.squids[number].proxy(), "HOPAAS_SITE": f"site{number}"}

    def peer(self, name: str, url: str, **env: str) -> subprocess.Popen[str]:
        """Start a peer there, which runs its share."""
        words = [sys.executable, "-c", _PEER, url, str(_SHARE)]
        return self.spaces.start(name, words, log=f"{name}.log", **env)

    def study(self, budget: int) -> None:
        """Made by Ann, from the first site."""
        words = ["study", "create", "campaign", "--store", URL, "--budget", str(budget), "--space", "x=float(0,1)"]
        done = self.spaces.run("site1", *words, **self.through("1"))
        assert done.returncode == 0, done.stderr

    def state(self) -> State:
        study = hopaas_p2p.open_study(self.store, "campaign", create=False)
        state = study.state
        study.close()
        return state

    def end(self) -> None:
        self.spaces.end()


@pytest.fixture
def world(postgres: Server, postgres_url: str, tmp_path: Path) -> Iterator[World]:
    spaces = namespaces_or_skip(tmp_path)
    made = None
    try:
        made = World(spaces, postgres, postgres_url, tmp_path)
        made.build()
        yield made
    finally:
        spaces.end()


def finished(world: World, peers: list[subprocess.Popen[str]], logs: list[str]) -> State:
    """Wait for the peers to end well; the study's state."""
    codes = [peer.wait(150) for peer in peers]
    assert set(codes) == {0}, "\n".join(world.spaces.said(log) for log in logs)
    return world.state()


def sites(state: State) -> set[str]:
    """Where the trials were run."""
    owners = {trial.owner or trial.history[-1].owner for trial in state.trials if trial.owner or trial.history}
    return {state.peers[owner]["site"] for owner in owners if owner is not None}


def test_three_peers_at_each_of_two_sites_run_a_campaign_to_its_end_through_both_proxies(world: World) -> None:
    squid = world.squids["1"]
    assert world.spaces.reaches("site1", squid.address, squid.port)
    assert not world.spaces.reaches("site1", "127.0.0.1", 443)
    assert not world.spaces.reaches("site1", world.squids["2"].address, world.squids["2"].port)
    assert not world.spaces.reaches("login1", "127.0.0.1", world.server.port)
    world.study(budget=6 * _SHARE)
    peers = [world.peer(f"site{number}", URL, **world.through(number)) for number in "121212"]
    state = finished(world, peers, ["site1.log", "site2.log"])
    assert [trial.state.name for trial in state.trials] == ["COMPLETE"] * 6 * _SHARE
    assert sites(state) == {"site1", "site2"}
    asked = {line.split()[6] for other in world.squids.values() for line in other.requests() if " CONNECT " in line}
    assert asked == {f"{CENTRE}:443"}


def test_the_doctor_at_a_site_tells_the_proxys_refusal_from_the_rest(world: World) -> None:
    good = world.spaces.run("site1", "doctor", URL, "--json", **world.through("1"))
    assert good.returncode == 0, good.stdout + good.stderr
    found = {one["check"]: one["detail"] for one in json.loads(good.stdout)}
    assert "connects to centre.example.org:443, with a login" in found["proxy"]
    wrong = {**world.through("1"), "HTTPS_PROXY": world.squids["1"].proxy(password="guess")}
    bad = world.spaces.run("site1", "doctor", URL, "--json", **wrong)
    assert bad.returncode == 1
    last = json.loads(bad.stdout)[-1]
    assert (last["check"], "407" in last["detail"]) == ("proxy", True)
    none = world.spaces.run("site1", "doctor", URL, "--json", **world.env)
    assert json.loads(none.stdout)[-1]["check"] == "name"
    assert PASSWORD not in good.stdout + bad.stdout + none.stdout


def test_peers_without_any_network_take_part_through_a_folder_of_the_login_node(world: World, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    world.study(budget=3 * _SHARE)
    world.spaces.start("login2", [*CLI, "serve", "folder", shared, URL], log="folder.log", **world.through("2"))
    world.spaces.wait_for("folder.log", "Serving ")
    peers = [world.peer("site3", f"folder://{shared}", HOPAAS_SITE="site3") for _ in range(2)]
    peers.append(world.peer("site1", URL, **world.through("1")))
    state = finished(world, peers, ["site1.log", "site3.log", "folder.log"])
    assert [trial.state.name for trial in state.trials] == ["COMPLETE"] * 3 * _SHARE
    assert sites(state) == {"site1", "site3"}


def test_a_site_goes_through_the_relay_of_its_login_node(world: World, tmp_path: Path) -> None:
    login, (address, port) = tmp_path / "relay.login", (world.squids["2"].address, 8443)
    words = ["serve", "relay", "--listen", f"{address}:{port}", "--to", URL, "--login-file", str(login)]
    world.spaces.start("login2", [*CLI, *words], log="relay.log", **world.through("2"))
    world.spaces.wait_for("relay.log", "Relay listening on")
    world.study(budget=_SHARE)
    peers = [
        world.peer("site2", URL, **{**world.env, "HOPAAS_SITE": "site2", "HTTPS_PROXY": login.read_text().strip()})
    ]
    assert sites(finished(world, peers, ["site2.log", "relay.log"])) == {"site2"}
