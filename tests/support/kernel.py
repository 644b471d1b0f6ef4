"""Debian's kernel, unpacked into a cache and not installed, and what machines start with that share this one's root.

The root of such a machine is this machine's file system, read-only by 9p, with a tmpfs over it: what is installed here
is there too, and what it writes is gone when it ends.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.needs import PATH, missing

_BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "9pnet_virtio", "9p", "overlay")
_INIT: Final = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /order); do $b insmod /modules/$module; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower
$b mount -t tmpfs -o size=60% upper /over
$b mkdir /over/files /over/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/over/files,workdir=/over/work root /root
for folder in proc sys dev; do $b mount --move /$folder /root/$folder; done
exec $b switch_root /root {python} -I -S {agent}
"""


class Kernel(NamedTuple):
    """A kernel that can be booted."""

    image: Path
    modules: Path
    """What is to be seen as /lib/modules."""


def cached_kernel() -> Kernel:
    """Debian's kernel; downloaded on the first call of a user, some 110 MB."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hopaas-tests"
    found = sorted(cache.glob("linux-image-*/boot/vmlinuz-*"))
    tree = found[-1].parent.parent if found else _download(cache)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    return Kernel(image, tree / "lib" / "modules")


def _download(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as name:
        folder = Path(name)
        try:
            said = _run("apt-cache", "depends", "linux-image-amd64", cwd=folder)
            found = re.search(r"Depends: (linux-image-\S+)", said)
            if found is None:
                missing(f"Debian has no kernel package here: {said}")
            _run("apt-get", "download", found[1], cwd=folder)
        except (OSError, subprocess.CalledProcessError) as error:
            missing(f"no kernel could be downloaded (apt-get update?): {getattr(error, 'stderr', error)}")
        (package,) = folder.glob("*.deb")
        _run("dpkg-deb", "-x", str(package), "tree", cwd=folder)
        tree = folder / "tree"
        if not (tree / "lib").exists():
            (tree / "lib").symlink_to("usr/lib")
        (version,) = (tree / "lib" / "modules").iterdir()
        _run("depmod", "-b", str(tree), version.name, cwd=folder)
        target = cache / found[1]
        try:
            tree.rename(target)
        except OSError:  # another process was first
            assert (target / "boot").is_dir()
        return target


def _run(*words: str, cwd: Path) -> str:
    return subprocess.run(
        words, cwd=cwd, check=True, capture_output=True, text=True, env={**os.environ, "PATH": PATH, "LC_ALL": "C"}
    ).stdout


def make_initrd(kernel: Kernel, target: Path, *, python: str, agent: Path) -> None:
    """Write what the kernel starts with: it mounts the root, and runs the agent as the machine's first process."""
    busybox = shutil.which("busybox", path=PATH)
    assert busybox is not None
    (version,) = kernel.modules.iterdir()
    words = ("modprobe", "-d", str(kernel.modules.parent.parent), "-S", version.name, "--show-depends")
    files: dict[str, bytes | None] = dict.fromkeys(
        ("bin", "modules", "proc", "sys", "dev", "lower", "over", "root")
    )  # None: a directory
    order: list[str] = []
    for wanted in _BOOT_MODULES:
        for path in re.findall(r"^insmod (\S+)", _run(*words, wanted, cwd=target.parent), re.MULTILINE):
            name = Path(path).name.removesuffix(".xz")
            if name not in order:
                order.append(name)
                data = Path(path).read_bytes()
                files[f"modules/{name}"] = lzma.decompress(data) if path.endswith(".xz") else data
    files["bin/busybox"] = Path(busybox).read_bytes()
    files["order"] = "\n".join(order).encode()
    files["init"] = _INIT.format(python=python, agent=agent).encode()
    target.write_bytes(gzip.compress(_archive(files), compresslevel=1))


def _archive(files: dict[str, bytes | None]) -> bytes:
    """The files as a cpio archive of the kind "newc"; None is a directory. All may be executed."""
    parts = []
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        mode = (stat.S_IFDIR if data is None else stat.S_IFREG) | 0o755
        content, encoded = data or b"", name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        parts.append(_padded(b"070701" + b"".join(b"%08x" % field for field in fields) + encoded))
        parts.append(_padded(content))
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
