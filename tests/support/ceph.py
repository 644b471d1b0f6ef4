"""A Ceph cluster in memory, on 127.0.0.1: one monitor and one OSD, for what runs on top of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.needs import PATH
from tests.support.ports import free_port

PROGRAMS: Final = ("ceph-mon", "ceph-osd", "ceph", "monmaptool", "setpriv")
_CLASSES: Final = "/usr/lib/{machine}-linux-gnu/rados-classes"
_CONFIG: Final = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_mon_client_mode = crc
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = /dev/null
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.$pid.asok
crash_dir = {folder}/crash
mon_data = {folder}/mon
mon_data_avail_warn = 2
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_data = {folder}/osd
osd_class_dir = {classes}
osd_objectstore = memstore
memstore_device_bytes = 1073741824
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mds_data = {folder}/mds
"""


class Ceph:
    """One cluster; subclasses start more in `start_more`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hopaas-ceph-"))
        self._environment = {**os.environ, "PATH": PATH, "CEPH_CONF": str(self.folder / "ceph.conf")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for name in ("mon", "osd", "mds", "crash"):
            (self.folder / name).mkdir()
        try:
            self._start_cluster()
            self.start_more()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start_more(self) -> None:
        """What runs on the cluster."""

    def stop(self) -> None:
        """End everything and remove what it has written."""
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_cluster(self) -> None:
        port = free_port()
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        classes = _CLASSES.format(machine=os.uname().machine)
        config = _CONFIG.format(fsid=fsid, port=port, folder=self.folder, classes=classes)
        (self.folder / "ceph.conf").write_text(config)
        address = f"[v2:127.0.0.1:{port}]"
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(self.folder / "monmap"))
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(self.folder / "monmap"))
        self.run_on("mon", "ceph-mon", "-f", "-i", "a")
        self.ceph("osd", "new", osd, "0")
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.run_on("osd", "ceph-osd", "-f", "-i", "0")

    def ceph(self, *words: str) -> str:
        """Say this to the cluster; what it answers."""
        return self.run("ceph", "--connect-timeout", "30", *words)

    def run(self, *words: str) -> str:
        """Run a program to its end, which must be a good one; what it printed."""
        done = subprocess.run(
            words, env=self._environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def run_on(self, name: str, *words: str) -> None:
        """Start a program that lives until the end, or until the process of that name is killed."""
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self.folder,
            )

    def check_alive(self) -> None:
        """See that everything still runs."""
        assert all(process.poll() is None for process in self.processes.values()), self.log()

    def log(self) -> str:
        """The end of what the processes have said."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.out"))
