"""Ceph's S3 server, RGW, in memory: a bucket that is plain, and one with versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support import seaweed
from tests.support.ceph import PROGRAMS, Ceph
from tests.support.needs import need_programs
from tests.support.ports import free_port
from tests.support.processes import until
from tests.support.s3_server import S3Server

PACKAGES: Final = "radosgw ceph-mon ceph-osd ceph-common"


class Rgw(Ceph, S3Server):
    """One server. `endpoint` stays the same over restarts."""

    bucket = seaweed.BUCKET
    keys = seaweed.Seaweed.keys

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    def start_more(self) -> None:
        (first, *second), user = self.keys, "--uid=test"
        words = ("--display-name=test", f"--access-key={first[0]}", f"--secret-key={first[1]}")
        self.run("radosgw-admin", "user", "create", user, *words)
        for key, secret in second:
            words = ("--key-type=s3", f"--access-key={key}", f"--secret-key={secret}")
            self.run("radosgw-admin", "key", "create", user, *words)
        self.start_server()
        self.client().make_bucket(self.bucket)

    def start_server(self) -> None:
        """Start it; returns when it answers."""
        front = f"--rgw_frontends=beast endpoint=127.0.0.1:{self.port}"
        self.run_on("rgw", "radosgw", "-f", "-n", "client.rgw", front, "--rgw_enable_apis=s3")
        until(self._answers, 90, what=self.log)

    def _answers(self) -> bool:
        self.check_alive()
        try:
            self.client().list_buckets()
        except Exception:  # noqa: BLE001  # whatever a server says that is not up yet
            return False
        return True


@pytest.fixture(scope="session")
def rgw() -> Iterator[Rgw]:
    """The server, shared by all tests of a session."""
    need_programs("Ceph's RGW", PACKAGES, *PROGRAMS, "radosgw", "radosgw-admin")
    with Rgw() as server:
        yield server
