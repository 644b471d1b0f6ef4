"""The processes that must run on a login node so that compute nodes without their own network access can take part.

A relay, or a server of a folder, is a background process of the user, with its output in a file next to the study's
settings. It continues after `join` has ended, and the next `join` finds it again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Literal

from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.joining.membership import Membership
from hopaas_p2p.net.proxies import connect_through, parse_proxy
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.atomic import open_regular
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.runtime.settings import read_proxy

_START_TIMEOUT: Final = 60.0  # seconds for a process to start working


def can_be_relayed(url: str) -> bool:
    """Whether this store can be reached through a relay, as stores that use HTTPS can."""
    return url.startswith("https:") or (url.startswith("s3:") and "endpoint=http:" not in url)


def start(
    membership: Membership, what: Literal["relay", "folder"], *, known_as: str | None = None
) -> tuple[int | None, Path]:
    """Make sure that a relay to the store, or a server of the membership's box, runs here.

    Returns the pid of the process (None if it was already running) and its log. Blocks for up to a minute, until the
    process works.

    Raises:
        ConfigurationError: the process did not start; the message shows why.

    """
    store, relay, box = membership.store, membership.file("relay"), str(membership.file("box"))
    log, pid = relay.with_suffix(f".{what}.log"), relay.with_suffix(f".{what}.pid")
    if what == "relay" and _leads_there(membership):
        return None, log
    with contextlib.suppress(OSError, ValueError):
        if what == "folder" and box.encode() in Path(f"/proc/{int(pid.read_text())}/cmdline").read_bytes():
            return None, log
    words = ["serve", "folder", box, store]
    if what == "relay":
        relay.unlink(missing_ok=True)
        words = ["serve", "relay", "--listen", "0", "--to", store, "--login-file", str(relay)]
        words += ["--known-as", known_as] if known_as else []
    with own_folder(log.parent) as folder:
        descriptor = open_regular(folder / log.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hopaas_p2p.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=credentials.environment(store="https://" if what == "relay" else store),
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT
    while not (_leads_there(membership) if what == "relay" else "Serving " in log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = log.read_text(errors="replace").strip()
            why = said.splitlines()[-1] if said else f"see {log}"
            raise ConfigurationError(f"the server for jobs did not start on this node: {why}")
        time.sleep(0.1)
    pid.write_text(f"{process.pid}\n")
    return process.pid, log


def _leads_there(membership: Membership) -> bool:
    """Whether an earlier relay still leads to the store."""
    from hopaas_p2p.remote.relay import targets_of

    with contextlib.suppress(HopaasError):
        proxy = parse_proxy(read_proxy(membership.file("relay")).reveal())
        connect_through(proxy, targets_of(membership.store)[0], timeout=5.0).close()
        return True
    return False
