"""A CephFS in memory, mounted twice by two FUSE clients."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.ceph import PROGRAMS, Ceph
from tests.support.needs import need_fuse, need_programs, need_root
from tests.support.processes import until

PACKAGES: Final = "ceph-mon ceph-osd ceph-mds ceph-fuse ceph-common"


class CephFS(Ceph):
    """One file system and its two mounts, `a` and `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.mounts = (self.folder / "a", self.folder / "b")

    def start_more(self) -> None:
        for pool in ("meta", "data"):
            self.ceph("osd", "pool", "create", pool, "4")
        self.ceph("fs", "new", "fs", "meta", "data")
        self.run_on("mds", "ceph-mds", "-f", "-i", "x")
        until(lambda: "active" in self.ceph("mds", "stat"), 60, what=self.log)
        for mount in self.mounts:
            mount.mkdir()
            words = ("-n", f"client.{mount.name}", "--client_mountpoint=/", str(mount))
            self.run_on(f"fuse-{mount.name}", "ceph-fuse", "-f", *words)
        for mount in self.mounts:
            until(lambda mount=mount: self._answers(mount), 40, what=self.log)

    def stop(self) -> None:
        for name in ("fuse-a", "fuse-b"):
            if name in self.processes:
                self.processes[name].kill()
        for mount in self.mounts:  # of clients that are gone: what they had is not to be saved
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        super().stop()

    def _answers(self, mount: Path) -> bool:
        """Whether the mount is there and answers; a mount that hangs, hangs another process."""
        self.check_alive()
        words = ["timeout", "--signal=KILL", "5", "sh", "-c", f"mountpoint -q {mount} && ls {mount}"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def cephfs() -> Iterator[CephFS]:
    """A file system, shared by all tests of a session: write to a folder of your own."""
    need_root("a mount of CephFS")
    need_fuse("CephFS")
    need_programs("CephFS", PACKAGES, *PROGRAMS, "ceph-mds", "ceph-fuse")
    with CephFS() as system:
        yield system
