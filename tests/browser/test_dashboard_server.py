"""`hopaas-p2p dashboard` as people start it: a real server, asked over HTTP."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("streamlit")

from hopaas_p2p.runtime import extras
from tests.support.dashboard_studies import Scribe
from tests.support.ports import free_port, free_ports
from tests.support.processes import cli, start, until


@pytest.fixture
def store(tmp_path: Path) -> Path:
    scribe = Scribe(name="digits")
    scribe.join("ann", "north")
    scribe.trial("ann", 1.0, lr=1e-3)
    scribe.put_into(str(tmp_path / "store"))
    return tmp_path / "store"


KEY = "a-key-that-was-chosen"


def ask(address: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, body; asked with the key."""
    headers = {"Authorization": f"Bearer {KEY}", **headers}
    request = urllib.request.Request(address, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@contextmanager
def serving(cwd: Path, *words: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The dashboard, answering at the address that is given."""
    port, _ = free_ports(2)  # --optuna takes the next one
    (cwd / "key").write_text(KEY)
    env = {"HOPAAS_DASHBOARD_KEY_FILE": str(cwd / "key"), **env}
    process = start("dashboard", *words, "--port", str(port), cwd=cwd, **env)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (cwd / "worker.err").read_text()
        try:
            ask(address)
        except OSError:
            return False
        return True

    try:
        until(answers, 60, what=lambda: (cwd / "worker.err").read_text())
        yield address, process
    finally:
        process.kill()
        process.wait(30)


def test_the_server_answers_and_ends_with_ctrl_c(store: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(store)) as (address, process):
        health = ask(f"{address}/healthz")
        assert (health[0], json.loads(health[2])["ok"]) == (200, True)
        assert b"digits" in ask(f"{address}/metrics")[2]
        status, headers, body = ask(f"{address}/live?study=digits")
        assert (status, b"<html" in body) == (200, True)
        assert "default-src 'self'" in headers["content-security-policy"]
        assert ask(f"{address}/version?ticket=guess")[0] == 404

        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    assert "Traceback" not in (tmp_path / "worker.err").read_text()


def test_a_browser_is_opened_if_that_was_asked_for(store: Path, tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)

    with serving(tmp_path, str(store), "--base-path", "ml", "--open", BROWSER=str(browser)) as (address, _):
        until(lambda: opened.exists() and opened.read_text().endswith("\n"), 60, what="no browser was opened")
        page = Path(urlsplit(opened.read_text().strip()).path)
        assert f'url={address}/ml?key={KEY}"' in page.read_text()
        assert KEY not in opened.read_text()  # what a browser is started with is seen by every user of the machine
        assert page.parent.stat().st_mode & 0o077 == 0


def test_behind_a_proxy_everything_is_under_its_path(store: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(store), "--base-path", "/groups/ml/") as (address, _):
        assert ask(f"{address}/groups/ml/healthz")[0] == 200
        assert ask(f"{address}/groups/ml/version?ticket=guess")[0] == 404
        page = ask(f"{address}/groups/ml/")[2].decode()
        script = page.split('src="./static/js/')[1].split('"')[0]
        _, headers, _ = ask(f"{address}/groups/ml/static/js/{script}", **{"Accept-Encoding": "gzip"})
        assert headers["content-encoding"] == "gzip"


def test_optunas_dashboard_stands_beside_and_is_read_only_too(store: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(store), "--optuna") as (address, _):
        host, port = address.rsplit(":", 1)
        beside = f"{host}:{int(port) + 1}"
        listed = json.loads(ask(f"{beside}/api/studies")[2])
        assert [one["study_name"] for one in listed["study_summaries"]] == ["digits"]
        assert ask(f"{beside}/api/studies/0", method="DELETE")[0] == 403


def test_a_port_that_is_taken_is_said_at_once(store: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("dashboard", str(store), "--port", str(taken.getsockname()[1]), check=False)

    assert done.returncode == 78
    assert "hoose another --port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "cure"),
    [
        (("nowhere", "--port", "1"), 78, ""),
        (("--auth", "oidc", "--optuna"), 2, "Omit --optuna or --auth"),
        (("https://127.0.0.1:1/x", "--auth", "oidc"), 78, "use the URL of the store that it serves"),
        (("--port", "65535", "--optuna"), 2, "hoose a lower --port"),
        ((), 78, "--store URL"),
    ],
)
def test_what_cannot_be_served_is_one_line(words: tuple[str, ...], code: int, cure: str, tmp_path: Path) -> None:
    done = cli("dashboard", *words, check=False, cwd=tmp_path)

    assert done.returncode == code, done.stderr
    assert cure in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sign_in_without_a_provider_is_said_at_once(store: Path, tmp_path: Path) -> None:
    """A folder that came with somebody's repository names no provider."""
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit/secrets.toml").write_text(
        '[auth]\nredirect_uri = "https://evil.example.org/oauth2callback"\n'
    )
    done = cli("dashboard", str(store), "--auth", "oidc", "--port", str(free_port()), check=False, cwd=tmp_path)

    assert done.returncode == 78
    assert "HOPAAS_OIDC_FILE" in done.stderr


def test_the_folder_it_is_started_in_sets_nothing(store: Path, tmp_path: Path) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit/config.toml").write_text('[server]\nenableCORS = false\n[client]\nallowedOrigins = ["*"]\n')

    with serving(tmp_path, str(store)) as (address, _):
        assert "access-control-allow-origin" not in ask(f"{address}/_stcore/health")[1]


def test_without_the_extra_the_cure_is_said(store: Path, tmp_path: Path) -> None:
    """As on a machine that has no Streamlit: an import hook hides it."""
    program = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'streamlit' else find(name, *more)\n"
        "from hopaas_p2p.cli.main import run\n"
        f"sys.exit(run(['dashboard', {str(store)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 78
    assert done.stderr == f"hopaas-p2p: the dashboard needs streamlit: {extras.install('dashboard')}\n"
