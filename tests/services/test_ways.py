"""One campaign by every way at once: a directory itself, its server, a proxy with a password, a folder."""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import hopaas_p2p
from tests.support.machines import Job, NfsLab
from tests.support.measures import NODES
from tests.support.processes import ROOT, environment, until
from tests.support.served import HOST, PROXIES, Authority, FolderProcess, HttpsProcess, administrator
from tests.support.site_fixtures import Squid

_BUDGET = 40
_PEER = """
import sys, time
import hopaas_p2p
storage = hopaas_p2p.open_storage(sys.argv[1], patience=120)
study = hopaas_p2p.open_study(storage, "campaign", create=False)
print("ready", flush=True)
while "begin" not in study.user_attrs:  # for nobody to find the budget used up
    time.sleep(0.2)
def objective(trial):
    time.sleep(0.1)
    trial.report(trial.params["x"], 0)
    print("told", trial.number, flush=True)
    return trial.params["x"]
study.optimize(objective)
storage.close()
"""


def _works(peer: subprocess.Popen[bytes]) -> bool:
    return peer.poll() in (None, 0)


def test_a_laptop_nodes_behind_a_proxy_nodes_with_a_folder_and_a_peer_at_the_directory_share_a_budget(
    squid: Squid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*PROXIES, "HOPAAS_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOPAAS_SITE", "direct")
    authority, store = Authority(tmp_path), str(tmp_path / "store")
    space = {"x": hopaas_p2p.Float(0, 1)}
    study = hopaas_p2p.open_study(
        store, "campaign", space=space, budget=_BUDGET, policy=hopaas_p2p.StudyPolicy(lease_ttl=20.0)
    )
    chain, key = authority.certificate()
    server = HttpsProcess(tmp_path, store, "--tls-cert", str(chain), "--tls-key", str(key)).start()
    url, token = f"https://{HOST}:{server.port}", {"HOPAAS_TOKEN": administrator(store)}
    by_https = {**token, "HOPAAS_CA_FILE": str(authority.file)}
    by_proxy = {**by_https, "HTTPS_PROXY": squid.url()}
    served = FolderProcess(tmp_path / "box", url, tmp_path, **by_proxy).start()
    ways = [
        ("direct", store, {}),
        ("laptop", url, by_https),
        *[("proxy", url, by_proxy)] * 2,
        *[("folder", f"folder://{tmp_path / 'box'}", {})] * 2,
    ]
    logs = [tmp_path / f"peer-{number}.log" for number in range(len(ways))]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for (site, place, env), log in zip(ways, logs, strict=True):
            with log.open("wb") as output:
                command = [sys.executable, "-c", _PEER, place]
                running.append(subprocess.Popen(command, stdout=output, env=environment(**env, HOPAAS_SITE=site)))
        until(
            lambda: all(log.read_text() for log in logs) or not all(_works(peer) for peer in running),
            120,
            what=served.log,
        )
        study.set_user_attr("begin", True)
        for broken in (served, server, squid, served):
            seen = len(study.trials)
            until(
                lambda seen=seen: len(study.trials) >= min(seen + 5, _BUDGET) or not all(_works(p) for p in running),
                120,
                what=served.log,
            )
            assert all(_works(peer) for peer in running), "a peer ended with an error"
            broken.kill()
            broken.start()
        assert [peer.wait(240) for peer in running] == [0] * len(running), served.log()
    finally:
        for process in running:
            process.kill()
            process.wait()
        served.kill()
        server.kill()
    study.storage.peer.pull(study.storage.handle(study.study_id).log)
    state = study.state
    study.close()
    assert state.used() == _BUDGET
    assert [trial.state.name for trial in state.trials if trial.late_of is None].count("COMPLETE") == _BUDGET
    assert {about["site"] for about in state.peers.values() if about.get("site")} == {name for name, *_ in ways}
    assert squid.requests(), "the proxy was used"


# --- the same, where the folder is on a real NFS ------------------------------------------------------------------

_LOGIN = "10.9.0.2"
"""The login node, c1: it keeps the directory, and runs the server, the proxy and the server of the folder."""
_MAKE = """
import sys
import hopaas_p2p
from hopaas_p2p import access
study = hopaas_p2p.open_study(sys.argv[1], "campaign", space={"x": hopaas_p2p.Float(0, 1)}, budget=int(sys.argv[2]))
study.close()
access.add_user(sys.argv[1], "operator", administrator=True)
print("token", access.create_token(sys.argv[1], "operator").secret.reveal())
"""
_BEGIN = """
import sys
import hopaas_p2p
study = hopaas_p2p.open_study(sys.argv[1], "campaign", create=False)
study.set_user_attr("begin", True)
study.close()
"""
_JUDGE = """
import json, sys
import hopaas_p2p
study = hopaas_p2p.open_study(sys.argv[1], "campaign", create=False)
state = study.state
ends = [trial.state.name for trial in state.trials if trial.late_of is None]
sites = sorted({about["site"] for about in state.peers.values() if about.get("site")})
print("found", json.dumps([state.used(), ends.count("COMPLETE"), sites]))
study.close()
"""


def _handed_over(folder: Path, there: str) -> str:
    """The command that makes this folder's files on a machine that cannot see them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    return f"mkdir -p {there}; echo {base64.b64encode(packed.getvalue()).decode()} | base64 -d | tar xz -C {there}"


def _python(*words: str, **env: str) -> str:
    settings = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": "/run/state", "HOME": "/run", **env}
    told = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    return f"cd {ROOT}; exec env {told} {shlex.join([sys.executable, *words])}"


def test_nodes_with_a_real_nfs_folder_a_laptop_nodes_behind_squid_and_a_peer_at_the_directory_share_a_budget(
    nfs_lab: NfsLab, squid: Squid, tmp_path: Path
) -> None:
    budget, login = 40, nfs_lab["c1"]
    mounts = [nfs_lab.mount(node, "vers=4.2") for node in NODES]
    box = f"{mounts[0]}/ways-{time.monotonic_ns()}"  # at the same place on both nodes
    there, kept = f"/run/ways-{time.monotonic_ns()}", f"/tmp/kept-{time.monotonic_ns()}"
    files = tmp_path / "files"
    files.mkdir()
    Authority(files).certificate(_LOGIN)
    for name in ("squid.conf", "login.sh"):
        text = (squid.folder / name).read_text().replace(str(squid.folder), there)
        (files / name).write_text(text.replace("127.0.0.1", _LOGIN))
    for node in NODES:
        nfs_lab[node].run(_handed_over(files, there))
    login.run(f"chmod 755 {there}/login.sh; chown -R proxy {there}; chmod 711 /run")
    made = login.submit(_python("-c", _MAKE, kept, str(budget)))
    token = made.wait_for("token", 120).text.partition(" ")[2]
    url, by_https = f"https://{_LOGIN}:8443", {"HOPAAS_TOKEN": token, "HOPAAS_CA_FILE": f"{there}/ca.pem"}
    by_proxy = {**by_https, "HTTPS_PROXY": squid.url().replace("127.0.0.1", _LOGIN)}
    pair = ("--tls-cert", f"{there}/server.crt", "--tls-key", f"{there}/server.key")
    command = ("-m", "hopaas_p2p", "serve")
    serve = {
        "https": _python(*command, "https", kept, "--listen", f"{_LOGIN}:8443", *pair),
        "folder": _python(*command, "folder", box, url, **by_proxy),
    }
    proxy = login.submit(f"exec {squid.binary} -N -f {there}/squid.conf")
    servers: dict[str, Job] = {}
    for name, words in serve.items():
        servers[name] = login.submit(words)
        servers[name].wait_for("Serving", 120)
    ways = [("c1", "direct", kept, {}), ("c2", "laptop", url, by_https), ("c2", "proxy", url, by_proxy)]
    ways.append(("c2", "folder", f"folder://{box}", {}))
    peers = [
        nfs_lab[node].submit(_python("-c", _PEER, place, **env, HOPAAS_SITE=site)) for node, site, place, env in ways
    ]

    for peer in peers:
        peer.wait_for("ready", 300)
    login.run(_python("-c", _BEGIN, kept, HOPAAS_SITE="direct"), 120)

    def told() -> int:
        assert all(peer.status in (None, 0) for peer in peers), [peer.output for peer in peers]
        return sum(len(peer.said("told")) for peer in peers)

    until(lambda: all(peer.said("told") for peer in peers) or told() >= budget, 300, what=lambda: peers[-1].output)
    for name, server in list(servers.items()):
        seen = told()
        server.signal(9)
        server.ended.wait(60)
        servers[name] = login.submit(serve[name])
        until(lambda seen=seen: told() >= min(seen + 3, budget), 300, what=lambda: peers[-1].output)
    for peer in peers:
        peer.wait(300)
    found = json.loads(login.submit(_python("-c", _JUDGE, kept)).wait_for("found", 120).text.partition(" ")[2])
    assert found == [budget, budget, sorted(site for _, site, *_ in ways)]
    assert "CONNECT" in login.run(f"cat {there}/access.log")
    for job in (*servers.values(), proxy):
        job.signal(15)
        job.ended.wait(60)
