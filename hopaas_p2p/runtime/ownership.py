"""Which files and folders are the user's own, so that nobody else can have written them.

A file in a shared directory may be anybody's work. A file that says where a token is sent, or holds a login, counts
only if this user owns it, and nobody else may write to it or to its directory. Files that this program names itself
(job scripts, logs, caches, the spool) go to an `own_folder`. Another user's link or folder in its place is refused, and
anything put in its place later is not written to.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FOLDER: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""How to open a folder in order to create, open or rename something in it."""
_ITSELF: Final = FOLDER & ~os.O_DIRECTORY | os.O_NOFOLLOW
"""How to open a folder, or the link in its place."""
_OPENED: Final = Path("/proc/self/fd")
_ACL: Final = "system.posix_acl_access"


@contextlib.contextmanager
def own_folder(path: Path, *below: str, mode: int | None = 0o700) -> Iterator[Path]:
    """A folder of this user only: `path`, or what is `below` it. Missing folders are created.

    The parent of `path` was chosen deliberately, so links on the way to it are followed, but not another user's
    link in the parent's place. The block gets a path that leads to the folder itself, even if something else is put
    in its place meanwhile; on a system without /proc, the path leads to whatever has that name.

    Args:
        path: the folder. From here on, no link is followed.
        below: names of folders below `path`, each in the one before it.
        mode: the mode of created folders; with None, no folder is created.

    Raises:
        PermissionError: a folder is a link or a file, belongs to somebody else, or others may write to it; the
            message says which.
        OSError: a folder cannot be created.
    """
    path = path if path.name else path.absolute()
    if mode is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    where, fd = path.parent, open_named(path.parent)
    try:
        for name in (path.name, *below):
            where, above, fd = where / name, fd, -1
            try:
                fd = step_down(above, name, mode=mode)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise PermissionError(f"{where} is a link or a file, not a folder") from None
                raise OSError(error.errno, error.strerror, str(where)) from None
            if why := doubt(os.fstat(fd), where):
                raise PermissionError(why)
        yield opened(fd, where)
    finally:
        if fd >= 0:
            os.close(fd)


def step_down(above: int, name: str, *, mode: int | None = None) -> int:
    """A descriptor of a folder in the open folder `above`, which is closed. With a mode, a missing folder is created.

    No link is followed.
    """
    try:
        if mode is not None:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=above)
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=above)
    finally:
        os.close(above)


@contextlib.contextmanager
def named_folder(path: Path) -> Iterator[Path]:
    """A folder that the user named, for files whose names come from others. Yields a path as `own_folder` does.

    Raises:
        PermissionError: another user's link is in the folder's place.
        OSError: the folder does not exist.

    """
    with closing_fd(open_named(path)) as fd:
        try:
            yield opened(fd, path)
        except OSError as error:
            if error.filename:
                error.filename = str(error.filename).replace(str(opened(fd, path)), str(path))
            raise


@contextlib.contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close this descriptor of a file or folder at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_named(path: Path) -> int:
    """A descriptor of a folder that is not behind another user's link; the link that is checked is the one followed."""
    if path.parent == _OPENED:
        return os.open(path, FOLDER)
    try:
        return os.open(path, FOLDER | os.O_NOFOLLOW)  # as a folder, because only then an automounter mounts it
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    with closing_fd(os.open(path, _ITSELF)) as fd:
        found = os.fstat(fd)
        if not stat.S_ISLNK(found.st_mode):
            return os.open(path, FOLDER | os.O_NOFOLLOW)  # a file, or a folder that has just taken the link's place
        _check_owner(found, path)
        return os.open(path.parent / os.readlink("", dir_fd=fd), FOLDER)


def opened(fd: int, path: Path) -> Path:
    """A path that leads to the open object, whatever its name leads to by now; `path` where there is no /proc."""
    return _OPENED / str(fd) if _OPENED.exists() else path


def unmovable(path: Path) -> Path:
    """The real path of a file that a library changes in place, opening it by name, such as a database.

    Nobody else can put anything in its place. For new contents, use `atomic.replace_atomically`.

    Raises:
        PermissionError: a link at `path`, or in place of its folder, is another user's, or others may write to a folder
            on the way to the file.
        OSError: there is no regular file.

    """
    with named_folder(path.parent) as folder, closing_fd(os.open(folder / path.name, _ITSELF)) as fd:
        found = os.fstat(fd)
        if stat.S_ISLNK(found.st_mode):
            _check_owner(found, path)
            return unmovable(folder / os.readlink("", dir_fd=fd))
        real = opened(fd, folder / path.name).resolve()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is not a regular file")
    if why := doubt(real.parent.lstat(), real.parent) or who_could_move(real.parent):
        raise PermissionError(f"{why}, so somebody could replace {path.name} with a link")
    return real


def _check_owner(link: os.stat_result, path: Path) -> None:
    if link.st_uid not in {os.geteuid(), 0}:
        why = f"{path} is a link, and belongs to {_user(link.st_uid)}"
        raise PermissionError(f"{why}. If the link leads where you want, name that place instead")


def who_could_move(path: Path) -> str | None:
    """How others could replace this folder, or a folder above it, with something else; None if nobody could.

    The path has no links in it. A batch system opens the files that a script names by path, as the user who submitted
    the job, unattended.
    """
    for one in (path, *path.parents):
        found = one.lstat()
        others = doubt(found, one, owners={os.geteuid(), 0})
        if others and not (found.st_mode & stat.S_ISVTX and found.st_uid in {os.geteuid(), 0}):
            return others
    return None


def doubt(found: os.stat_result, path: Path, *, owners: set[int] | None = None) -> str | None:
    """Why somebody other than `owners`, by default this user, may have written here; None if nobody else can."""
    owners = owners or {os.geteuid()}
    if found.st_uid not in owners:
        return f"{path} belongs to {_user(found.st_uid)}"
    group = found.st_mode & stat.S_IWGRP and not (_is_private(found.st_gid, found.st_uid) and not _has_acl(path))
    if group or found.st_mode & stat.S_IWOTH:
        return f"others may write to {path} (chmod go-w {path})"
    return None


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group has only this user, like the group of the same name that many systems create for each user."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}


def _has_acl(path: Path) -> bool:
    """Whether an access control list may let more users write here than the mode shows."""
    with contextlib.suppress(OSError, AttributeError):
        return _ACL in os.listxattr(path)
    return False
