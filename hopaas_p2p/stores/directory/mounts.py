"""Which file system a directory is on, and what that means for a store."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

MOUNTS: Final = Path("/proc/self/mountinfo")
_LOCAL: Final = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)
"""Seen by one machine only: what one process does, every other sees at once."""
_WHOLE: Final = frozenset(("ceph", "fuse.ceph", "fuse.ceph-fuse", "nfs", "nfs4"))
UNFIT: Final = frozenset(("cifs", "exfat", "fuse.exfat", "msdos", "ntfs", "ntfs3", "smb3", "smbfs", "vfat"))
"""Have no symbolic links, or only imitate them."""
_MAGIC: Final = {
    0xEF53: "ext4",  # and ext2, ext3
    0x01021994: "tmpfs",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x794C7630: "overlay",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0x6969: "nfs",
}
"""What the file system itself says, statfs(2): for a process whose table of mounts lacks its own, as in a chroot."""


class Mount(NamedTuple):
    """One line of the system's table of mounts."""

    kind: str
    """The type of the file system, `nfs4` or `ext4`; empty if the system does not say."""
    source: str
    options: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether other machines may write to it; unknown ones count as shared."""
        return self.kind not in _LOCAL

    @property
    def nfs(self) -> bool:
        return self.kind in ("nfs", "nfs4")

    @property
    def links_are_born_whole(self) -> bool:
        """Whether a symbolic link is there with all of its text or not at all, for every machine.

        It is not on GlusterFS: a client that looks at a name while its link is being made may see a link without text,
        or make the creation fail after others were refused the name. It is on local file systems, NFS and CephFS.
        """
        return not self.shared or self.kind in _WHOLE

    def option(self, name: str) -> str | None:
        """The value of an option, empty if it has none; None if it is not set."""
        return next((one.partition("=")[2] for one in self.options if one.partition("=")[0] == name), None)


def mount_of(path: Path, table: Path = MOUNTS) -> Mount:
    """The mount that holds this path."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        _, row = _row(path, table)
        kind, source, options = row[row.index("-") + 1 : row.index("-") + 4]
        return Mount(kind, source, tuple(f"{row[5]},{options}".split(",")))
    return Mount(_asked(path), "", ())


def mount_point(path: Path, table: Path = MOUNTS) -> tuple[str, str]:
    """Where the file system of this path is mounted, and its kind; the path need not be there."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        point, row = _row(path, table)
        return point, row[row.index("-") + 1]
    return "", ""


def _row(path: Path, table: Path) -> tuple[str, list[str]]:
    """The mount point of this path, and its line in the table."""
    rows = [line.split(" ") for line in table.read_text(errors="replace").splitlines()]
    points = {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), row[4]): row for row in rows}
    resolved = path.resolve()
    point = next(str(one) for one in (resolved, *resolved.parents) if str(one) in points)
    return point, points[point]


def _asked(path: Path) -> str:
    """The kind of file system, as far as it says itself."""
    said = (ctypes.c_ulong * 32)()
    try:
        failed = ctypes.CDLL(None).statfs(os.fsencode(path), said)
    except (OSError, AttributeError):  # not Linux
        return ""
    return "" if failed else _MAGIC.get(said[0], "")
