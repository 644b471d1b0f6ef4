"""Which file system a directory is on, and what that means for a store."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final, NamedTuple

MOUNTS: Final = Path("/proc/self/mountinfo")
_LOCAL: Final = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)
"""File systems that only one machine uses, where all processes see a change at once."""
NFS: Final = frozenset(("nfs", "nfs4"))
BORN_WHOLE: Final = _LOCAL | NFS | {"ceph", "fuse.ceph", "fuse.ceph-fuse"}
"""File systems on which a symbolic link appears with all of its text or not at all, on every machine.

GlusterFS is not among them: a client that reads a name while its link is being created may see a link without text, or
make the creation fail after others were refused the name."""
UNFIT: Final = frozenset(("cifs", "exfat", "fuse.exfat", "msdos", "ntfs", "ntfs3", "smb3", "smbfs", "vfat"))
"""File systems that have no symbolic links, or only imitate them."""


class Mount(NamedTuple):
    """One line of the system's table of mounts."""

    kind: str
    """The type of the file system, such as `nfs4` or `ext4`; empty if the system does not report it."""
    source: str
    options: tuple[str, ...]
    point: str = ""
    """The path where the file system is mounted."""

    @property
    def shared(self) -> bool:
        """Whether other machines may write to the file system; one of an unknown type counts as shared."""
        return self.kind not in _LOCAL

    def option(self, name: str) -> str | None:
        """The value of an option, empty if it has none; None if it is not set."""
        return next((one.partition("=")[2] for one in self.options if one.partition("=")[0] == name), None)


def mount_of(path: Path, table: Path = MOUNTS) -> Mount:
    """The mount that contains this path, which need not exist."""
    with contextlib.suppress(OSError, RuntimeError, ValueError, IndexError, StopIteration):  # such as a loop of links
        rows = [line.split(" ") for line in table.read_text(errors="replace").splitlines()]
        points = {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), row[4]): row for row in rows}
        resolved = path.resolve()
        point = next(str(one) for one in (resolved, *resolved.parents) if str(one) in points)
        row = points[point]
        kind, source, options = row[row.index("-") + 1 : row.index("-") + 4]
        return Mount(kind, source, tuple(f"{row[5]},{options}".split(",")), point)
    return Mount("", "", ())
