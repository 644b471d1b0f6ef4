"""A server of NFS and two clients: small virtual machines under QEMU's software emulation, which needs no KVM.

    with NfsLab() as lab:                       # some 20 s
        folder = lab.mount("c1", "vers=4.2")
        lab["c1"].run(f"touch {folder}/here")
        lab["c2"].kill()                        # as a node that loses its power
        lab["c2"].boot()
        with lab.server_away():
            ...

The kernels and the protocol are real, and so are the server's lease and grace (90 s). Python runs some five times
slower than here. The machines reach each other by sockets in a folder of their own and nothing else, and end with this
process. Their root is this machine's as it was when they booted, so they have the checkout and its virtual environment,
but not what is written here later: hand over what they need in a command, and take what they say from its output.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support.agent import WORKERS
from tests.support.kernel import Kernel, cached_kernel, make_initrd
from tests.support.needs import PATH, need_programs, need_root
from tests.support.processes import ROOT, patient, until

PACKAGES: Final = "qemu-system-x86 busybox-static kmod nfs-common nfs-kernel-server e2fsprogs iproute2"
_PROGRAMS: Final = ("qemu-system-x86_64", "busybox", "modprobe", "mount.nfs", "rpc.nfsd", "mkfs.ext4", "ip")
_MEGABYTES: Final = 900
_BOOT: Final = 120.0  # seconds; 10 to 20 are usual
_BOOTS: Final = 3  # under emulation a kernel panics now and then while it patches its own code

_EVERY_NODE: Final = """
set -e
mkdir -p /dev/pts /dev/shm /lib/modules
mount -t tmpfs run /run; mount -t tmpfs shm /dev/shm; mount -t devpts devpts /dev/pts
mount --bind %(modules)s /lib/modules
hostname %(name)s; ip link set lo up
"""
_CLIENT: Final = """
ip addr add %(address)s/24 dev eth0; ip link set eth0 up
modprobe nfs; rpcbind; rpc.statd
"""
_SERVER: Final = """
modprobe -a bridge ext4 nfsd
ip link add br0 type bridge
for device in eth0 eth1; do ip link set $device master br0; ip link set $device up; done
ip addr add %(address)s/24 dev br0; ip link set br0 up
[ "$(blkid -o value -s TYPE /dev/vda)" = ext4 ] || mkfs.ext4 -q -E lazy_itable_init=1 /dev/vda
mkdir -p /srv/disk; mount /dev/vda /srv/disk
mkdir -p /srv/disk/export/squashed /srv/disk/state/{v4recovery,nfsdcld,sm,sm.bak,rpc_pipefs}
mount --bind /srv/disk/state /var/lib/nfs
[ -e /var/lib/nfs/etab ] || chmod 777 /srv/disk/export /srv/disk/export/squashed
mkdir -p /export /run/rpc_pipefs; mount --bind /srv/disk/export /export
mount --bind /export/squashed /export/squashed
mount -t nfsd nfsd /proc/fs/nfsd; mount -t rpc_pipefs sunrpc /run/rpc_pipefs
touch /var/lib/nfs/{etab,rmtab}; rpcbind; nfsdcld; rpc.statd
exportfs -i -o rw,no_root_squash,no_subtree_check,sync,fsid=0 10.9.0.0/24:/export
exportfs -i -o rw,root_squash,no_subtree_check,sync,fsid=1 10.9.0.0/24:/export/squashed
rpc.mountd; rpc.nfsd 8
"""
_WORKERS: Final = """
export PYTHONPATH=%(root)s XDG_STATE_HOME=/run/state
%(python)s -m tests.support.workers serve %(socket)s > /run/workers.log 2>&1 &
until [ -e %(socket)s ]; do kill -0 $! || { cat /run/workers.log; exit 1; }; sleep 0.1; done
"""


class Line(NamedTuple):
    """A line that a command has said, and when it came, by this machine's monotonic clock."""

    at: float
    text: str


class Job:
    """A command that runs on a machine, whose reader writes what it says; `status` is None if the machine died."""

    def __init__(self, machine: Machine, number: int) -> None:
        self._machine, self._number = machine, number
        self.lines: list[Line] = []
        self.ended = threading.Event()
        self.status: int | None = None

    @property
    def output(self) -> str:
        """All that it has said."""
        return "\n".join(line.text for line in list(self.lines))

    def said(self, word: str) -> list[Line]:
        """The lines that begin with this word."""
        return [line for line in list(self.lines) if line.text.partition(" ")[0] == word]

    def wait_for(self, word: str, seconds: float = 60.0) -> Line:
        """The first line that begins with this word, as soon as it is there."""
        found = until(lambda: self.said(word) or (self.ended.is_set() and [None]), seconds, what=lambda: self.output)
        assert found[0] is not None, f"ended with {self.status}:\n{self.output}"
        return found[0]

    def wait(self, seconds: float = 60.0) -> str:
        """Wait until it has ended, and well; its output."""
        if not self.ended.wait(patient(seconds)):
            self.signal(9)
            raise AssertionError(f"not within {seconds} s on {self._machine.name}:\n{self.output}")
        assert self.status == 0, f"ended with {self.status} on {self._machine.name}:\n{self.output}"
        return self.output

    def signal(self, number: int) -> None:
        """Send the signal to the command and all that it has started."""
        self._machine.ask({"job": self._number, "signal": number})


class Machine:
    """One virtual machine. `boot` starts it, again after a `kill`; commands are those of a shell, as root."""

    def __init__(self, name: str, address: str, lab: NfsLab, devices: list[str]) -> None:
        self.name, self.address = name, address
        self._lab, self._devices = lab, devices
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._jobs: dict[int, Job] = {}
        self._ready = threading.Event()
        self._workers: Job | None = None
        self._sending = threading.Lock()

    def start(self) -> None:
        """Start it; `await_boot` is to be called next. Must be called by the thread that lives longest."""
        path = self._lab.folder / f"{self.name}.agent"
        path.unlink(missing_ok=True)
        self._ready.clear()
        words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name", f"hopaas-{self.name}"]
        words += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        words += ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "2", "-m", str(_MEGABYTES)]
        words += ["-serial", f"file:{self._lab.folder / self.name}.console"]
        words += ["-kernel", str(self._lab.kernel.image), "-initrd", str(self._lab.initrd)]
        words += ["-append", "console=ttyS0 quiet panic=1 mitigations=off no_timer_check net.ifnames=0"]
        words += ["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"]
        words += ["-chardev", f"socket,id=agent,path={path},server=on,wait=off"]
        words += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"]
        with (self._lab.folder / f"{self.name}.qemu").open("ab") as log:
            self._process = subprocess.Popen(
                [*words, *self._devices],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": PATH},
            )
        until(lambda: self._connected(path), 30, what=self.log)
        assert self._agent is not None
        threading.Thread(target=self._read, args=(self._agent, self._jobs), daemon=True).start()

    def _connected(self, path: Path) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log()
        self._agent = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # it is there, but not listened at yet
            self._agent.connect(str(path))
            return True
        self._agent.close()
        return False

    def await_boot(self) -> None:
        """Wait until it runs commands, and set it up; a client then begins to import what peers need."""
        boots = 1
        until(self._runs_or_ended, _BOOT, what=self.log)
        while not self._ready.is_set():
            assert boots < _BOOTS, f"{self.name} does not come up:\n{self.log()}"
            boots += 1
            self.start()
            until(self._runs_or_ended, _BOOT, what=self.log)
        values = {"name": self.name, "address": self.address, "modules": shlex.quote(str(self._lab.kernel.modules))}
        self.run((_EVERY_NODE + (_SERVER if self.name == "server" else _CLIENT)) % values, 120)
        if self.name != "server":
            values = {"root": ROOT, "python": sys.executable, "socket": WORKERS}
            self._workers = self.submit(_WORKERS % {name: shlex.quote(str(value)) for name, value in values.items()})

    def _runs_or_ended(self) -> bool:
        assert self._process is not None
        return self._ready.is_set() or self._process.poll() is not None

    def boot(self) -> None:
        """Start it and wait until it can be used."""
        self.start()
        self.await_boot()

    def kill(self) -> None:
        """End it as if it had lost its power."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def submit(self, command: str) -> Job:
        """Start a command there."""
        return self._submit({"run": command})

    def _submit(self, what: dict[str, Any]) -> Job:
        job = Job(self, number := next(self._lab.numbers))
        self._jobs[number] = job
        self.ask({"job": number, **what})
        return job

    def run(self, command: str, seconds: float = 60.0) -> str:
        """Run a command there to its end, which must be a good one; its output."""
        return self.submit(command).wait(seconds)

    def peers(self, kind: str, store: str, *words: object) -> Job:
        """Start one of `tests.support.workers` there, in a child of a process that has imported everything."""
        self.await_workers()
        return self._submit({"fork": [kind, store, *map(str, words)]})

    def await_workers(self) -> None:
        """Wait until that process has imported everything."""
        assert self._workers is not None
        self._workers.wait(_BOOT)

    def log(self) -> str:
        """The end of what QEMU and the kernel have said."""
        paths = [self._lab.folder / f"{self.name}.{kind}" for kind in ("qemu", "console")]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in paths if path.exists())

    def ask(self, message: dict[str, Any]) -> None:
        assert self._agent is not None, f"{self.name} is not running"
        with self._sending:
            self._agent.sendall(json.dumps(message).encode() + b"\n")

    def _read(self, agent: socket.socket, jobs: dict[int, Job]) -> None:
        with contextlib.suppress(OSError), agent.makefile("rb") as lines:
            for line in lines:
                at, message = time.monotonic(), json.loads(line)
                if "ready" in message:
                    self._ready.set()
                elif "line" in message:
                    jobs[message["job"]].lines.append(Line(at, message["line"]))
                else:
                    job = jobs.pop(message["job"])
                    job.status = message["status"]
                    job.ended.set()
        agent.close()
        for job in jobs.values():
            job.ended.set()
        jobs.clear()


class NfsLab:
    """The server, and the clients c1 and c2; see the top of this file."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hopaas-lab-"))
        self.numbers = itertools.count(1)
        self.kernel: Kernel = cached_kernel()
        self.initrd = self.folder / "initrd"
        make_initrd(self.kernel, self.initrd, python=sys.executable, agent=ROOT / "tests" / "support" / "agent.py")
        disk = self.folder / "disk"
        disk.touch()
        os.truncate(disk, 1 << 30)
        drive = f"if=virtio,format=raw,cache=unsafe,file={disk}"  # this machine does not lose its power
        devices = ["-drive", drive, *self._cable(1, at_the_server=True), *self._cable(2, at_the_server=True)]
        self.machines = {"server": Machine("server", "10.9.0.1", self, devices)}
        for number in (1, 2):
            name = f"c{number}"
            cable = self._cable(number, at_the_server=False)
            self.machines[name] = Machine(name, f"10.9.0.{number + 1}", self, cable)

    def _cable(self, number: int, *, at_the_server: bool) -> list[str]:
        """One end of a cable between the server and a client: datagrams, so that either end may die and come back."""
        near, far = (self.folder / f"cable{number}{end}" for end in (("s", "c") if at_the_server else ("c", "s")))
        mac = f"52:54:00:09:0{number}:0{int(at_the_server)}"
        path = f"local.type=unix,local.path={near},remote.type=unix,remote.path={far}"
        return ["-netdev", f"dgram,id=n{number},{path}", "-device", f"virtio-net-pci,netdev=n{number},mac={mac}"]

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def __enter__(self) -> NfsLab:
        try:
            for machine in self.machines.values():
                machine.start()
            for machine in self.machines.values():
                machine.await_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            machine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def mount(self, name: str, options: str, *, squashed: bool = False) -> str:
        """Mount the export on a client, unless it is mounted with these options; the folder."""
        folder = f"/mnt/{options}{'-squashed' if squashed else ''}"
        exported = "/squashed" if squashed else "/"
        if "vers=3" in options.split(","):
            exported = f"/export{exported.rstrip('/')}"
        quoted = shlex.quote(folder)
        mount = f"timeout 150 mount -t nfs -o {options} 10.9.0.1:{exported} {quoted}"
        self[name].run(f"mountpoint -q {quoted} || {{ mkdir -p {quoted} && {mount}; }}", 160)
        return folder

    @contextlib.contextmanager
    def server_away(self) -> Iterator[None]:
        """The server does not answer while the block runs. Afterwards it is in its grace period, as after a restart."""
        self["server"].run("rpc.nfsd 0")
        try:
            yield
        finally:
            self["server"].run("rpc.nfsd 8")


def need_nfs_lab() -> None:
    """Skip where the machines cannot be made."""
    need_root("a machine whose root is this one's")
    need_programs("NFS in virtual machines", PACKAGES, *_PROGRAMS, "setpriv")


@pytest.fixture(scope="session")
def nfs_lab() -> Iterator[NfsLab]:
    """The machines, shared by all tests: leave them as you found them, and write to a folder of your own."""
    need_nfs_lab()
    with NfsLab() as lab:
        yield lab
