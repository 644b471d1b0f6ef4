"""One campaign by every way at once: a directory itself, its server, a proxy with a password, a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hopaas_p2p
from tests.support.processes import environment, until
from tests.support.served import HOST, PROXIES, Authority, FolderProcess, HttpsProcess, administrator
from tests.support.site_fixtures import Squid

_BUDGET = 40
_PEER = """
import sys, time
import hopaas_p2p
storage = hopaas_p2p.open_storage(sys.argv[1], patience=120)
study = hopaas_p2p.open_study(storage, "campaign", create=False)
def objective(trial):
    time.sleep(0.1)
    trial.report(trial.params["x"], 0)
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
    running = [
        subprocess.Popen([sys.executable, "-c", _PEER, place], env=environment(**env, HOPAAS_SITE=site))
        for site, place, env in ways
    ]
    try:
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
