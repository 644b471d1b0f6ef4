"""What stands between a compute node and a server: squid, nginx, a SOCKS server. Real ones where Debian has them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.listening import Listening, join
from tests.support.ports import free_port
from tests.support.postgres_fixtures import missing
from tests.support.processes import ROOT, until

USER, PASSWORD = "site", "p@ss:word/1"


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


class Squid:
    """A site's proxy that wants a login and lets only CONNECT through."""

    def __init__(self) -> None:
        self.binary = shutil.which("squid") or shutil.which("/usr/sbin/squid")
        if self.binary is None:
            missing("squid")
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="hopaas-squid-"))
        self._process: subprocess.Popen[bytes] | None = None
        helper = self.folder / "login.sh"  # the protocol of squid's helpers; which of its own there are differs
        helper.write_text(f'''#!/bin/sh
while read -r user password; do
  if [ "$user" = "{USER}" ] && [ "$password" = "{PASSWORD}" ]; then echo OK; else echo ERR; fi
done
''')
        helper.chmod(0o755)
        (self.folder / "squid.conf").write_text(
            f"""
http_port 127.0.0.1:{self.port}
visible_hostname login.site.example
auth_param basic program {helper}
auth_param basic children 1
auth_param basic realm the site
acl known proxy_auth REQUIRED
acl connect method CONNECT
http_access deny !connect
http_access allow known
http_access deny all
access_log stdio:{self.folder}/access.log
cache_log {self.folder}/cache.log
pid_filename none
netdb_filename none
pinger_enable off
cache deny all
cache_mem 8 MB
max_filedescriptors 1024
shutdown_lifetime 0 seconds
coredump_dir {self.folder}
"""
        )
        if os.geteuid() == 0:
            owner = pwd.getpwnam("proxy")
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def start(self) -> Squid:
        assert self.binary is not None
        self._process = subprocess.Popen(
            [self.binary, "-N", "-f", self.folder / "squid.conf"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        until(lambda: answers(self.port), 60, what=self.log)
        return self

    def kill(self) -> None:
        """End it as a restart does: every connection breaks."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait(30)
            self._process = None

    def log(self) -> str:
        file = self.folder / "cache.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def requests(self) -> list[str]:
        """Lines of its access log."""
        file = self.folder / "access.log"
        return file.read_text().splitlines() if file.exists() else []

    def url(self, user: str = USER, password: str = "p%40ss%3Aword%2F1") -> str:
        login = f"{user}:{password}@" if user else ""
        return f"http://{login}127.0.0.1:{self.port}"


@pytest.fixture
def squid() -> Iterator[Squid]:
    made = Squid().start()
    yield made
    made.kill()
    shutil.rmtree(made.folder, ignore_errors=True)


@contextlib.contextmanager
def nginx(certificate: Path, key: Path, upstream: int, folder: Path) -> Iterator[int]:
    """The port of an nginx with the configuration of examples/https, before the server at `upstream`."""
    binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        missing("nginx")
    assert binary is not None
    port = free_port()
    server = (ROOT / "examples/https/nginx.conf").read_text()
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("gateway.example.org", "localhost"),
        ("/etc/ssl/gateway.crt", str(certificate)),
        ("/etc/ssl/gateway.key", str(key)),
        ("127.0.0.1:8080;", f"127.0.0.1:{upstream};"),
    ):
        assert old in server
        server = server.replace(old, new)
    (folder / "nginx.conf").write_text(
        f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
uwsgi_temp_path {folder}; scgi_temp_path {folder};
{server}
}}
"""
    )
    process = subprocess.Popen(
        [binary, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(port), 60, what=lambda: (folder / "error.log").read_text())
        yield port
    finally:
        process.terminate()
        process.wait(30)


class Socks5(Listening):
    """A SOCKS5 proxy (RFC 1928) with a login (RFC 1929), to any port of 127.0.0.1."""

    def __init__(self, user: str = "", password: str = "") -> None:
        super().__init__()
        self._login = (user.encode(), password.encode())
        self.asked: list[str] = []
        """The names or addresses that were asked for."""

    def serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as reader:
            _, methods = reader.read(2)
            reader.read(methods)
            if self._login[0]:
                client.sendall(b"\x05\x02")
                (_, size) = reader.read(2)
                user = reader.read(size)
                password = reader.read(reader.read(1)[0])
                good = (user, password) == self._login
                client.sendall(b"\x01\x00" if good else b"\x01\x01")
                if not good:
                    return
            else:
                client.sendall(b"\x05\x00")
            *_, kind = reader.read(4)
            host = reader.read(4) if kind == 1 else reader.read(reader.read(1)[0] if kind == 3 else 16)
            (port,) = struct.unpack("!H", reader.read(2))
            self.asked.append(host.decode() if kind == 3 else socket.inet_ntop(socket.AF_INET, host[:4]))
            try:
                there = socket.create_connection(("127.0.0.1", port), timeout=30)
            except OSError:
                client.sendall(b"\x05\x05\x00\x01" + bytes(6))
                return
            with there:
                there.settimeout(None)
                client.sendall(b"\x05\x00\x00\x01" + bytes(6))
                join(client, there)
