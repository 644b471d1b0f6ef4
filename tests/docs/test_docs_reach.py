"""docs/reach.md, run as a reader would, with a squid and a server of ours for those of the site and the centre."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import blocks, run_page
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.served import HOST, Centre
from tests.support.site_fixtures import Squid

PAGE = "docs/reach.md"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the page runs; what it leaves running is ended."""
    made = tmp_path / "run"
    made.mkdir()
    yield made
    for file in made.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def test_every_block_runs_in_order(centre: Centre, squid: Squid, directory: Path) -> None:
    gateway = centre.serve()
    (directory / "ann.token").write_text(centre.token("ann").secret.reveal())
    stands_in = {
        "gateway.example.org/tuning": f"{HOST}:{gateway.port}/store",
        "http://user:password@proxy.site.example:3128": squid.url(),
        "login.site.example": HOST,
        "--listen 8443": f"--listen 127.0.0.1:{free_port()}",
    }
    said = run_page(PAGE, directory, stands_in=stands_in, env={"HOPAAS_CA_FILE": str(centre.authority.file)})
    assert "connects" in said
    assert "accepts ann" in said
    assert "checks failed" not in said
    assert "Stopped. Forwarded" in _until_ended(directory, "folder")
    assert "Stopped. Forwarded" in _until_ended(directory, "relay")


def _until_ended(directory: Path, name: str) -> str:
    from tests.support.processes import until

    log = directory / f"{name}.log"
    until(lambda: "Stopped." in log.read_text(), 30, what=log.read_text)
    return log.read_text()


def test_the_page_shows_no_other_commands_than_those_that_run() -> None:
    """The line for cron is the command of the block before it."""
    (shown,) = [block.text for block in blocks(ROOT / PAGE) if block.language == "text" and "flock" in block.text]
    (folder,) = [block.text for block in blocks(ROOT / PAGE) if "nohup hopaas-p2p serve folder" in block.text]
    assert folder.partition("nohup ")[2].partition(" >")[0] in shown
