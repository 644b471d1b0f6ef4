"""A PgBouncer in transaction mode before a server of `tests.support.postgres`, for tests.

The binary is the one in HOPAAS_PGBOUNCER, in PATH or in Debian's place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.ports import free_port
from tests.support.postgres import Server

_START = 10.0  # seconds


def find_pgbouncer() -> str | None:
    """The binary, if there is one here."""
    return os.environ.get("HOPAAS_PGBOUNCER") or shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


@contextlib.contextmanager
def transaction_pooler(server: Server, user: str, *, size: int = 2) -> Iterator[int]:
    """The port of a pooler that shares `size` connections of the server among all clients that log in as this user."""
    binary = find_pgbouncer()
    if binary is None:
        raise RuntimeError("there is no pgbouncer here; get it with: apt-get install pgbouncer")
    port = free_port()
    users = server.place("pgbouncer.users", f'"{user}" "{server.password}"\n'.encode())
    log = server.place("pgbouncer.log", b"")
    configuration = server.place(
        "pgbouncer.ini",
        f"""
[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 500
logfile = {log}
""".encode(),
    )
    process = subprocess.Popen(
        [binary, "-q", configuration], cwd="/", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **server.as_user
    )
    try:
        _wait_for(port, process, log)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"pgbouncer did not start: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.02)
