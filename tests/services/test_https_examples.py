"""What examples/https and docs/reach.md say is true of the program that there is."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.cli.serve import serve_https
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Log
from hopaas_p2p.testing.commits import append_many, everything, outgoing
from tests.support.ports import free_port
from tests.support.postgres_fixtures import missing
from tests.support.processes import ROOT, until
from tests.support.served import Centre, forget_servers
from tests.support.site_fixtures import answers

EXAMPLES = ROOT / "examples/https"


def _commands(text: str) -> Iterator[list[str]]:
    """The words after `hopaas-p2p serve https`, wherever that stands."""
    joined = re.sub(r"\s*\\\n#?\s*", " ", text)
    for line in re.findall(r"hopaas-p2p serve https ([^\n#`]*)", joined):
        yield shlex.split(line)


@pytest.mark.parametrize("path", [*sorted(EXAMPLES.iterdir()), ROOT / "docs/reach.md"], ids=lambda path: path.name)
def test_every_command_is_understood(path: Path) -> None:
    commands = list(_commands(path.read_text()))
    if path.name == "Containerfile":
        (entry,) = re.findall(r"^ENTRYPOINT \[(.*?)\]$", path.read_text(), re.MULTILINE | re.DOTALL)
        words = re.findall(r'"(.*?)"', entry)
        assert words[:3] == ["hopaas-p2p", "serve", "https"]
        commands = [[*words[3:], "postgresql://db.example.org/tuning"]]
    assert commands
    for command in commands:
        serve_https.make_context("https", [*command])


def test_options_that_the_page_names_exist() -> None:
    page = (ROOT / "docs/reach.md").read_text()
    section = page[page.index("## Serve a store") :]
    known = {option for parameter in serve_https.params for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", section)) <= known


def test_what_the_container_file_copies_is_enough_to_install_from(tmp_path: Path) -> None:
    copied = re.findall(r"^COPY (.*)$", (EXAMPLES / "Containerfile").read_text(), re.MULTILINE)
    for *sources, target in map(str.split, copied):
        for source in sources:
            here, there = ROOT / source, tmp_path / target.lstrip("/")
            if here.is_dir():
                shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                there.mkdir(parents=True, exist_ok=True)
                shutil.copy(here, there)
    words = ["-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", "-w", "wheels", "./src"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("hopaas_p2p-*.whl")
    assert "hopaas_p2p/cli/serve.py" in zipfile.ZipFile(wheel).namelist()


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        missing("systemd-analyze")
    assert program is not None
    unit = (EXAMPLES / "hopaas-server.service").read_text().replace("/opt/hopaas/bin/hopaas-p2p", "/bin/true")
    (tmp_path / "hopaas-server.service").write_text(unit)
    done = subprocess.run(
        [program, "verify", "--man=no", tmp_path / "hopaas-server.service"], capture_output=True, text=True, timeout=120
    )
    told = [line for line in done.stderr.splitlines() if "hopaas-server.service" in line]
    assert (done.returncode, told) == (0, [])


def test_haproxy_may_stand_before_two_servers(centre: Centre, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
    if binary is None:
        missing("haproxy")
    assert binary is not None
    one, two = (centre.serve("--behind-proxy", "127.0.0.1", tls=False) for _ in range(2))
    both = tmp_path / "both.pem"
    both.write_bytes(centre.pair[0].read_bytes() + centre.pair[1].read_bytes())
    port = free_port()
    text = (EXAMPLES / "haproxy.cfg").read_text()
    for old, new in (
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("/etc/haproxy/hopaas.pem", str(both)),
        ("10.0.0.1:8080", f"127.0.0.1:{one.port}"),
        ("10.0.0.2:8080", f"127.0.0.1:{two.port}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "haproxy.cfg").write_text(text)
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    with (tmp_path / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([binary, "-db", "-f", tmp_path / "haproxy.cfg"], stdout=log, stderr=log)
    try:
        until(lambda: answers(port), 60, what=lambda: (tmp_path / "haproxy.log").read_text())
        with contextlib.closing(open_store(centre.url(port))) as store:
            log_of_study = store.log("u")
            append_many(log_of_study, "a", 3)
            one.kill()
            until(lambda: _appended(log_of_study), 60)
            assert until(lambda: _read(log_of_study), 60) == 4
    finally:
        process.kill()
        process.wait(30)


def _read(log: Log) -> int:
    forget_servers()
    with contextlib.suppress(StoreUnreachable):
        return len(everything(log))
    return 0


def _appended(log: Log) -> bool:
    forget_servers()
    with contextlib.suppress(StoreUnreachable):
        log.exchange(outgoing("after"), 0)
        return True
    return False
