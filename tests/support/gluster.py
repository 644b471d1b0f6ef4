"""A GlusterFS volume in a folder, mounted twice by two clients with caches of their own.

The translators are those of a volume as `gluster volume create` makes it, in files of our own: so there is no daemon
that manages it, which would keep its state in one place of the machine and listen on all its interfaces. Brick and
clients meet at a Unix socket.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.needs import PATH, need_fuse, need_programs, need_root
from tests.support.processes import until

PACKAGES: Final = "glusterfs-server glusterfs-client"
_BRICK: Final = [
    ("storage/posix", {"directory": "{folder}/brick", "fips-mode-rchecksum": "on", "shared-brick-count": "1"}),
    ("features/access-control", {}),
    ("features/locks", {"enforce-mandatory-lock": "off"}),
    ("features/leases", {"leases": "off"}),
    ("features/upcall", {"cache-invalidation": "off"}),
    ("performance/io-threads", {}),
    ("debug/io-stats", {}),
    (
        "protocol/server",
        {
            "transport-type": "socket",
            "transport.address-family": "unix",
            "transport.socket.listen-path": "{folder}/socket",
            "auth.addr.{below}.allow": "*",
        },
    ),
]
_CLIENT: Final = [
    (
        "protocol/client",
        {
            "transport-type": "socket",
            "transport.address-family": "unix",
            "transport.socket.connect-path": "{folder}/socket",
            "remote-host": "localhost",  # it wants one, and does not use it
            "remote-subvolume": "brick-6",
            "ping-timeout": "42",
        },
    ),
    ("cluster/distribute", {}),
    ("features/utime", {"noatime": "on"}),
    ("performance/write-behind", {}),
    ("performance/open-behind", {}),
    ("performance/quick-read", {}),
    ("performance/md-cache", {}),
    ("performance/io-threads", {}),
    ("debug/io-stats", {}),
]


class Gluster:
    """One volume and its two mounts, `a` and `b`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hopaas-gluster-"))
        self.mounts = (self.folder / "a", self.folder / "b")
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Gluster:
        for name in ("brick", "a", "b"):
            (self.folder / name).mkdir()
        try:
            self._start("brick", _BRICK)
            until((self.folder / "socket").exists, 20, what=self.log)
            for mount in self.mounts:
                self._start(mount.name, _CLIENT, str(mount))
            for mount in self.mounts:
                until(lambda mount=mount: self._answers(mount), 20, what=self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        for mount in self.mounts:  # of clients that are gone: what they had is not to be saved
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, translators: list[tuple[str, dict[str, str]]], *words: str) -> None:
        volume = self.folder / f"{name}.vol"
        volume.write_text(self._volume("brick" if name == "brick" else "client", translators))
        program = "glusterfsd" if name == "brick" else "glusterfs"
        command = ["setpriv", "--pdeathsig", "KILL", program, "--no-daemon", "-f", str(volume)]
        with (self.folder / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                [*command, "-l", str(self.folder / f"{name}.log"), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": PATH},
            )
        self._processes.append(process)

    def _volume(self, name: str, translators: list[tuple[str, dict[str, str]]]) -> str:
        lines: list[str] = []
        for number, (kind, options) in enumerate(translators):
            known = {"folder": self.folder, "below": f"{name}-{number - 1}"}
            lines += [f"volume {name}-{number}", f"    type {kind}"]
            lines += [f"    option {key} {value}".format(**known) for key, value in options.items()]
            lines += [f"    subvolumes {name}-{number - 1}"] if number else []
            lines += ["end-volume", ""]
        return "\n".join(lines)

    def _answers(self, mount: Path) -> bool:
        """Whether the mount is there and answers; a mount that hangs, hangs another process."""
        assert all(process.poll() is None for process in self._processes), self.log()
        words = ["timeout", "--signal=KILL", "5", "sh", "-c", f"mountpoint -q {mount} && ls {mount}"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def log(self) -> str:
        """The end of what the processes have said."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log"))


@pytest.fixture(scope="session")
def gluster() -> Iterator[Gluster]:
    """A volume, shared by all tests of a session: write to a folder of your own."""
    need_root("a mount of GlusterFS")
    need_fuse("GlusterFS")
    need_programs("GlusterFS", PACKAGES, "glusterfs", "glusterfsd", "setpriv")
    with Gluster() as volume:
        yield volume
