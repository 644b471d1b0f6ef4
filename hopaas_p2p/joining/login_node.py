"""What has to run on a login node so that compute nodes without a network of their own can take part.

A relay, or a server of a folder, is a process of the user's, started in the background, with its output in a file
beside the study's settings. It goes on when `join` has ended, and is found again by the next `join`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.joining.membership import Membership
from hopaas_p2p.net.proxies import connect_through, parse_proxy
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.atomic import open_regular
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.runtime.settings import read_proxy

_START_TIMEOUT: Final = 60.0  # seconds for a process to begin its work


class LoginNodeProcess(NamedTuple):
    """What runs here."""

    pid: int | None
    """None: it ran before."""
    log: Path


def can_be_relayed(url: str) -> bool:
    """Whether this store can be reached by way of a relay: one that is spoken to by HTTPS."""
    return url.startswith("https:") or (url.startswith("s3:") and "endpoint=http:" not in url)


def start_relay(membership: Membership, *, known_as: str | None = None) -> LoginNodeProcess:
    """See that a relay to the store runs here, and that `membership.relay_file` names it.

    Raises:
        ConfigurationError: it does not begin; the message says why.

    """
    log = membership.relay_file.with_suffix(".relay.log")
    if _answers(membership):
        return LoginNodeProcess(None, log)
    membership.relay_file.unlink(missing_ok=True)
    words = ["serve", "relay", "--listen", "0", "--to", membership.store, "--login-file", str(membership.relay_file)]
    process = _start([*words, *(["--known-as", known_as] if known_as else [])], log, "https://")
    _wait(process, log, lambda: _answers(membership))
    return LoginNodeProcess(process.pid, log)


def start_folder(membership: Membership) -> LoginNodeProcess:
    """See that the store is served through `membership.box` by a process here; raises as `start_relay` does."""
    log = membership.box.with_suffix(".folder.log")
    pid = membership.box.with_suffix(".folder.pid")
    if pid.exists() and _runs(pid.read_text().strip(), str(membership.box)):
        return LoginNodeProcess(None, log)
    process = _start(["serve", "folder", str(membership.box), membership.store], log, membership.store)
    _wait(process, log, lambda: "Serving " in log.read_text(errors="replace"))
    pid.write_text(f"{process.pid}\n")
    return LoginNodeProcess(process.pid, log)


def _answers(membership: Membership) -> bool:
    """Whether the relay of an earlier time still leads to the store."""
    from hopaas_p2p.remote.relay import targets_of

    try:
        proxy = parse_proxy(read_proxy(membership.relay_file).reveal())
        connect_through(proxy, targets_of(membership.store)[0], timeout=5.0).close()
    except HopaasError:
        return False
    return True


def _runs(pid: str, what: str) -> bool:
    """Whether this is still the process that we started, on this machine."""
    try:
        return what.encode() in Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def _start(words: Sequence[str], log: Path, store: str) -> subprocess.Popen[bytes]:
    """Start a command of ours, which logs in at this store if it has one of its own."""
    with own_folder(log.parent) as folder:
        descriptor = open_regular(folder / log.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hopaas_p2p.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=credentials.environment(store=store),
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = log.read_text(errors="replace")
            why = said.strip().splitlines()[-1] if said.strip() else f"see {log}"
            raise ConfigurationError(f"it did not start on this node: {why}")
        time.sleep(0.1)
