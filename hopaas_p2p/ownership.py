"""Which files are the user's own: nobody else can have written them.

A file in a shared directory may be anybody's work. What says where a token goes, or holds a login, counts only if this
user owns the file, and nobody else may write to it or to its directory.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

_ACL: Final = "system.posix_acl_access"


def read_own(path: Path, *, link: bool = True) -> str:
    """The text of a file of this user's.

    Args:
        path: the file.
        link: whether it may be a link. One that somebody planted leads to a file that the user did write.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        PermissionError: somebody else may have written it; the message says who or how.
        UnicodeDecodeError: it is not text.

    """
    if not link and path.is_symlink():
        raise PermissionError(f"{path} is a link")
    follow = 0 if link else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)  # a FIFO shall not hold us up
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{path} is not a regular file")
        doubt = _doubt(found, path, owners={os.geteuid()})
        for folder in {path.resolve().parent, path.parent.resolve()}:  # of the file, and of a link to it
            doubt = doubt or _doubt(folder.stat(), folder, owners={os.geteuid(), 0})
        if doubt:
            raise PermissionError(doubt)
        with open(descriptor, "rb", closefd=False) as file:  # noqa: PTH123  # a descriptor
            return file.read().decode()
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> str:
    """The text of a file of this user's that only this user can read, without the spaces around it.

    Raises:
        OSError, UnicodeDecodeError: as `read_own`; PermissionError also if others can read it.

    """
    text = read_own(path).strip()
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(f"{path} can be read by others (chmod 600 {path})")
    return text


def _doubt(found: os.stat_result, path: Path, *, owners: set[int]) -> str | None:
    """Why somebody else may have written here; None if only one of these owners can."""
    if found.st_uid not in owners:
        return f"{path} belongs to {_user(found.st_uid)}"
    group = found.st_mode & stat.S_IWGRP and not (_is_private(found.st_gid, found.st_uid) and not _has_acl(path))
    if group or found.st_mode & stat.S_IWOTH:
        return f"others may write to {path} (chmod go-w {path})"
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is this user's alone: the one of the same name that many systems make for each user."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}


def _has_acl(path: Path) -> bool:
    """Whether more users than the mode says may write there."""
    try:
        return _ACL in os.listxattr(path)
    except (OSError, AttributeError):
        return False
