"""Objects in a directory: names that are write-once on every file system with symbolic links, network ones included.

A small object is the text of a symbolic link that is never followed, in base64 after `hopaas:`. `symlink()` is one call
to a file server. The call creates the name with all of its text or not at all, and exactly one of several callers that
create the same name succeeds. `readlink()` reads the text. A larger object (over 3 kB, on XFS 750 bytes) is a file,
which is written and synced first; a link beside it then names the file. Where a symbolic link may be seen half made, as
on GlusterFS, a written and synced file gets its name by `link()`, which is slower but just as exclusive. Neither call
replaces a name that the other has created.

Objects that may be replaced (packs, snapshots, artifacts) are regular files, written completely under another name and
then renamed. Beats are regular files too, except on NFS, where they are links, which nobody opens.

A client of a network file system remembers for a minute that a name was missing, unless it opens the directory again,
so a lookup that must be certain opens the folder first. A name that was seen needs no second lookup, because it never
changes.

Folders and files inherit the permissions of the store's directory, so its group has the same rights in all of them. Its
other members may therefore put anything there. No link to a file or folder is followed below the root, only regular
files are read, and anything replaced or removed is named relative to a folder that was opened step by step.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from hopaas_p2p.errors import MOUNTED_READ_ONLY, Denied, HopaasError, InvalidInput, StoreUnreachable
from hopaas_p2p.runtime.atomic import READ, open_regular, read_fd, read_regular
from hopaas_p2p.runtime.ownership import FOLDER, closing_fd, step_down
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.directory.mounts import BORN_WHOLE, NFS, UNFIT, mount_of
from hopaas_p2p.stores.objects.contract import Found, delete_each

NOT_MOUNTED: Final = "the store is not there, perhaps because its file system is not mounted"
_TEXT: Final = "hopaas:"
_LONGEST: Final = 4000  # characters of a link's text; Linux takes 4,095
_FROM_URLS: Final = bytes.maketrans(b"-_", b"+/")
_NAME: Final = 240  # characters between two slashes; file systems take 255
_Reading = TypeVar("_Reading", bound=Callable[..., Any])
_SHORT: Final = 1000  # XFS takes 1,023
_TOO_LONG: Final = (errno.ENAMETOOLONG, errno.EFBIG, errno.EINVAL)
_BESIDE: Final = re.compile(r"\.[0-9A-Za-z_-]{1,64}\.[0-9a-f]{12}")
_CHUNK: Final = 1 << 20  # bytes of a file copied at once
_NO_HARD_LINKS: Final = (errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
_SETTLES: Final = 2.0
"""Seconds. A GlusterFS client that lists a folder may see a draft that is still empty, and takes it for empty for
another second, even after it is renamed."""
_STALE: Final = 0.05  # seconds between attempts to read a file that was replaced
_NEVER_OPENED: Final = "beats/"
"""The folder where objects are constantly replaced. A node that opens a file on NFS 4 may get a delegation for it.
Nobody can replace the file until the delegation is returned, which takes 90 s or more if the node has died. A link is
never opened."""
_REMOVED: Final = ".removed-"
_ROOT, _META = "v1", "meta.json"
BOX: Final = "box.json"
"""The description of a folder that carries requests; see `remote.box`."""
DESCRIPTION: Final = 1 << 20
"""The most bytes of a store's description."""
_MOST_CHECKED: Final = 1000
_CHECKED: Final = 1.0
"""Seconds for which a folder that only this user may write to is trusted not to be a link."""
_ABSENT: Final = (FileNotFoundError, NotADirectoryError)
_PLACES: Final = "/proc/self/fd/%d" if os.path.isdir("/proc/self/fd") else ""
"""Links that name the path of an open folder, whatever links led to it; only Linux has them."""


class NoFolder(LookupError):
    """The folder of these keys does not exist, because nothing was ever written to it, or it was removed entirely."""


def _again_if_replaced(read: _Reading) -> _Reading:
    """Read again from the start if the file was replaced meanwhile, or this machine has cached the previous one."""

    def reading(self: Directory, *given: Any) -> Any:
        settled = time.monotonic() + (_SETTLES if self.shared else 0.0)
        while True:
            try:
                return read(self, *given)
            except (OSError, StoreUnreachable) as error:
                stale = getattr(error.__cause__ or error, "errno", None) == errno.ESTALE
                if not stale or time.monotonic() >= settled:
                    raise
            time.sleep(_STALE)

    return cast("_Reading", reading)


class Directory:
    """Objects below a folder, which must exist and contain the store's description.

    Args:
        root: the folder.
        meta: the name of the description. Nothing is ever created below a root without a description,
            because such a root may be an empty mount point.

    """

    def __init__(self, root: Path, *, meta: str) -> None:
        self.root = str(root)
        self._meta = f"{self.root}/{meta}"
        self.uuid = ""
        """The uuid of the store that was first found here; empty while that is not known."""
        self.mount = mount_of(root)
        self.shared, self._nfs = self.mount.shared, self.mount.kind in NFS
        self._hard_links = self.mount.kind not in BORN_WHOLE
        self.settles = _SETTLES if self._hard_links else 0.0
        self._longest = _LONGEST
        self._described = (0, 0)
        """Device and inode of the description that was last read."""
        self._checked: dict[str, float] = {}
        """Folder -> time until which it is known not to be a link; negative if others could make it one at any time."""
        self._doubtful: dict[str, bytes] = {}
        """Path -> bytes of the objects that this process wrote into folders that it could not sync."""

    # --- write-once objects ---

    def put_new(self, key: str, data: bytes, *, unless: Sequence[str] | None = ()) -> bool:
        path = f"{self.root}/{key}"
        folder = path[: path.rindex("/")]
        created = False
        try:
            try:
                status = os.stat(self._meta)
                described = status.st_dev, status.st_ino
            except _ABSENT:
                described = (0, 0)
            if described != self._described or described == (0, 0):  # check that this store is still mounted here
                self._check_mounted()
                self._described = described
            try:
                created = self._create(data, path)
            except FileNotFoundError:
                if unless is None or not self.make_folder(key.rpartition("/")[0], unless):
                    return False
                created = self._create(data, path)
            if created:
                self._sync(folder)
        except OSError as error:
            if created:
                self._doubtful[path] = data
            raise _reached(path, error) from error
        return created

    def _create(self, data: bytes, path: str, dir_fd: int | None = None) -> bool:
        """Create an object; in a folder that others could exchange for a link, below a descriptor of the folder."""
        folder, _, name = path.rpartition("/")
        if dir_fd is None:
            if self._checked.get(folder, 0.0) >= 0.0:
                self._check_links(folder)
            if self._checked.get(folder, 0.0) <= 0.0:
                fd = os.open(folder, FOLDER | os.O_NOFOLLOW)
                try:
                    if _PLACES and not os.readlink(_PLACES % fd).endswith(folder[len(self.root) :]):
                        raise FileNotFoundError(errno.ENOENT, f"{folder} was moved away")
                    return self._create(data, name, fd)
                finally:
                    os.close(fd)
        if self._hard_links:
            try:
                return _name_file(data, path, dir_fd, hard=True)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                self._hard_links = False
        if len(data) * 4 // 3 < self._longest:
            text = _TEXT + base64.urlsafe_b64encode(data).decode()
            if len(text) > _NAME:  # for a tool that follows the link as if it were a path
                text = "/".join(text[at : at + _NAME] for at in range(0, len(text), _NAME))
            try:
                os.symlink(text, path, dir_fd=dir_fd)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if len(text) <= _SHORT or error.errno not in _TOO_LONG:
                    raise
                self._longest = _SHORT
        return _name_file(data, path, dir_fd, hard=False)

    def secure(self, key: str) -> None:
        path = f"{self.root}/{key}"
        folder, _, name = path.rpartition("/")
        with reaching(path), contextlib.suppress(FileNotFoundError):
            if (data := self._doubtful.get(path)) is not None:
                # After a failed sync, the system may consider unwritten data written, so syncing the same file again
                # proves nothing: a new file with the same bytes replaces it. A name that was lost with the sync may
                # belong to another writer by now, and is left alone.
                self._check_links(folder)
                found = self._read(path, len(data))
                if isinstance(found, StoreUnreachable):
                    raise found
                if found is not None and found.data == data:
                    again = f"again-{secrets.token_hex(6)}"
                    self._create(data, f"{folder}/{again}")
                    with self._opened(folder) as fd:
                        os.replace(again, name, src_dir_fd=fd, dst_dir_fd=fd)
            self._sync(folder)
            self._doubtful.pop(path, None)

    def exists(self, key: str) -> bool | None:
        """Whether the object exists; None if an answer takes a call to a server."""
        if self.shared:
            return None
        path = f"{self.root}/{key}"
        try:  # not `reaching`, which would double the cost of a read
            self._check_links(path[: path.rindex("/")])
        except OSError as error:
            raise _reached(path, error) from error
        return os.access(path, os.F_OK, follow_symlinks=False)

    # --- reading ---

    def get(self, key: str, *, limit: int, certain: bool = True) -> Found | None:
        try:
            (found,) = self.get_run([key], limit=limit, certain=certain)
        except NoFolder:
            return None
        if isinstance(found, StoreUnreachable):
            raise found
        return found

    def get_many(self, keys: Sequence[str], *, limit: int) -> list[Found | StoreUnreachable | None]:
        return [self.get(key, limit=limit) for key in keys]

    def get_run(
        self, keys: Iterable[str], *, limit: int, certain: bool = True
    ) -> list[Found | StoreUnreachable | None]:
        """Consecutive objects of one folder, up to the first missing or unreadable one.

        Unless `certain`, only the absence of the first object is certain.

        Raises:
            NoFolder: none of them exists, nor does their folder.

        """
        paths = map(f"{self.root}/".__add__, keys)  # not a generator, which would complain if Ctrl-C ended it
        path = next(paths)
        folder = path[: path.rindex("/")]
        try:
            self._check_links(folder)
            one = None if certain and self.shared else self._read(path, limit)
            if one is None:
                if not (look_anew(folder) if self.shared else _is_folder(folder)):
                    self._check_mounted()
                    raise NoFolder(folder)
                one = self._read(path, limit)
            found = [one]
            while isinstance(one, Found) and (following := next(paths, None)) is not None:
                one = self._read(following, limit)
                found.append(one)
        except OSError as error:
            raise _reached(folder, error) from error
        return found

    def _check_links(self, folder: str) -> None:
        """Check that no link below the root leads to this folder; at most once per second if only this user can
        write.
        """
        now = time.monotonic()
        if self._checked.get(folder, 0.0) > now:
            return
        alone = True
        for below in itertools.accumulate(folder[len(self.root) :].split("/"), "{}/{}".format):
            path = self.root + below
            try:
                status = os.lstat(path)
            except _ABSENT:
                return
            if stat.S_ISLNK(status.st_mode):
                raise OSError(errno.ELOOP, f"{path} is a symbolic link that somebody put there: remove it")
            alone = alone and status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if len(self._checked) > _MOST_CHECKED:
            self._checked.clear()
        self._checked[folder] = now + _CHECKED if alone else -now - _CHECKED

    @contextlib.contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        """A descriptor of a folder that no link below the root leads to.

        Raises:
            FileNotFoundError: it does not exist.
            NotADirectoryError: the folder, or one above it, is a link or a file.

        """
        fd = os.open(self.root, FOLDER | os.O_NOFOLLOW)
        try:
            for name in filter(None, folder[len(self.root) :].split("/")):
                above, fd = fd, -1
                fd = step_down(above, name)
            yield fd
        finally:
            if fd >= 0:
                os.close(fd)

    def _check_mounted(self) -> None:
        """Raise if this store is not mounted here: nothing is concluded or created below an empty mount point."""
        try:
            said = read_regular(self._meta, limit=DESCRIPTION)
        except _ABSENT:
            raise FileNotFoundError(errno.ENOENT, NOT_MOUNTED) from None
        if self.uuid.encode() not in said:
            raise FileNotFoundError(errno.ENOENT, "another store is in its place")

    def _read(self, path: str, limit: int) -> Found | StoreUnreachable | None:
        try:
            text = os.readlink(path)
        except _ABSENT:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return self._read_file(path, limit)
            if error.errno != errno.ESTALE:
                raise
            text = ""
        if not text:  # half made, where links are not created atomically
            return StoreUnreachable(f"{path} is being written at this moment. Nothing acknowledged is lost.")
        if text.startswith(_TEXT):
            with contextlib.suppress(ValueError):
                coded = text[len(_TEXT) :].replace("/", "").encode()
                data = binascii.a2b_base64(coded.translate(_FROM_URLS), strict_mode=True)
                return Found(data if len(data) <= limit else b"", len(data))
        if _BESIDE.fullmatch(text):
            return self._read_file(f"{path[: path.rindex('/')]}/{text}", limit) or Found(b"", 0)
        data = text.encode(errors="surrogateescape")  # a link that is not ours is content like any other
        return Found(data if len(data) <= limit else b"", len(data))

    @_again_if_replaced
    def _read_file(self, path: str, limit: int) -> Found | None:
        try:
            fd = open_regular(path)
        except _ABSENT:
            return None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENXIO):
                raise
            return Found(b"", 0)  # not a file, so not ours
        try:
            size = os.fstat(fd).st_size
            return Found(read_fd(fd, size) if size <= limit else b"", size)
        finally:
            os.close(fd)

    # --- files that are replaced ---

    def put(self, key: str, data: bytes) -> None:
        with self._replacing(key) as (draft, fd):
            if self._nfs and key.startswith(_NEVER_OPENED):
                os.symlink(_TEXT + base64.urlsafe_b64encode(data).decode(), draft, dir_fd=fd)
            else:
                _write(draft, data, dir_fd=fd)

    put_same = put

    def upload(self, key: str, source: Path) -> None:
        with source.open("rb") as given, self._replacing(key) as (draft, fd):
            _write(draft, iter(lambda: given.read(_CHUNK), b""), dir_fd=fd)

    @_again_if_replaced
    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        path = f"{self.root}/{key}"
        folder, _, name = path.rpartition("/")
        with reaching(path):
            if self.shared:
                look_anew(folder)
            try:
                with self._opened(folder) as above:
                    fd = os.open(name, READ, dir_fd=above)
            except _ABSENT:
                self._check_mounted()
                return False
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO):
                    raise
                return False  # a link or a socket, which is not ours
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return False  # not ours
        with open(fd, "rb") as given, target.open("wb") as taken:
            while True:
                with reaching(path):
                    chunk = given.read(_CHUNK)
                if not chunk:
                    return True
                taken.write(chunk)
                if progress is not None:
                    progress(len(chunk))

    @contextlib.contextmanager
    def _replacing(self, key: str) -> Iterator[tuple[str, int]]:
        """A name to write to, and a descriptor of its folder; the new file then replaces the one under the key."""
        path = f"{self.root}/{key}"
        folder, _, name = path.rpartition("/")
        there: os.stat_result | None = None
        with reaching(path):
            with contextlib.suppress(*_ABSENT):
                there = os.stat(self._meta)
            if not there or (there.st_dev, there.st_ino) != self._described:  # one call, whereas a read takes three
                self._check_mounted()
            draft = f".{name}.{secrets.token_hex(6)}"
            try:
                if not _is_folder(folder):
                    self.make_folder(key.rpartition("/")[0])
                with self._opened(folder) as fd:
                    try:
                        yield draft, fd
                        os.replace(draft, name, src_dir_fd=fd, dst_dir_fd=fd)
                    except BaseException:
                        with contextlib.suppress(OSError):
                            os.unlink(draft, dir_fd=fd)
                        raise
            except (IsADirectoryError, NotADirectoryError):
                raise InvalidInput(f"{key} is a folder of this store, or a folder above it is a file") from None
            self._sync(folder)

    # --- folders ---

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[str]:
        folder = f"{self.root}/{prefix.rpartition('/')[0]}".rstrip("/")
        with reaching(folder):
            self._look_into(folder)
            keys = (path[len(self.root) + 1 :] for path in _walk(folder))
            return list(itertools.islice((key for key in keys if key.startswith(prefix) and key > after), at_most))

    def names_in(self, folder: str, *, folders: bool = False) -> list[str]:
        """The names of the files, or of the folders, in this folder itself."""
        path = f"{self.root}/{folder}"
        with reaching(path):
            self._look_into(path)
            return [name for name, is_folder in _entries(path) if is_folder is folders]

    def _look_into(self, folder: str) -> None:
        """Prepare to list a folder: check that it is the store's, and make the server report its current contents."""
        if self.shared:
            look_anew(folder)
        self._check_mounted()
        self._check_links(folder)

    def delete(self, keys: Iterable[str]) -> None:
        delete_each(self._unlink, keys)

    def _unlink(self, key: str) -> None:
        path = f"{self.root}/{key}"
        folder, _, name = path.rpartition("/")
        with reaching(path), contextlib.suppress(*_ABSENT, IsADirectoryError), self._opened(folder) as fd:
            beside = ""
            with contextlib.suppress(OSError):
                beside = os.readlink(name, dir_fd=fd)
            os.unlink(name, dir_fd=fd)
            if _BESIDE.fullmatch(beside):
                os.unlink(beside, dir_fd=fd)

    def discard(self, keys: Iterable[str]) -> None:
        if names := list(keys):
            self._off_this_thread(lambda: self.delete(names))

    def _off_this_thread(self, remove: Callable[[], None]) -> None:
        """Remove files that others may have opened.

        An NFS server delegates files that are opened for reading, and blocks their removal until the delegation is
        returned. A node that lost power does not return it for 90 s, so on NFS another thread removes the files.
        """

        def run() -> None:
            with contextlib.suppress(OSError, HopaasError):
                remove()

        if self._nfs:
            threading.Thread(target=run, name="hopaas-discard", daemon=True).start()
        else:
            run()

    def modified(self, key: str) -> float | None:
        """When this object was written, in seconds on the file system's own clock; None if it does not exist."""
        with reaching(key):
            try:
                return os.lstat(f"{self.root}/{key}").st_mtime
            except _ABSENT:
                return None

    def remove_folder(self, key: str) -> None:
        """Remove this folder and everything in it; the folder disappears for everybody in one step."""
        path = f"{self.root}/{key}"
        folder, _, name = path.rpartition("/")
        gone = f"{_REMOVED}{secrets.token_hex(6)}"
        with reaching(path), contextlib.suppress(FileNotFoundError), self._opened(folder) as fd:
            os.rename(name, gone, src_dir_fd=fd, dst_dir_fd=fd)
            self._off_this_thread(lambda: self._clear(folder))

    def _clear(self, folder: str) -> None:
        """Remove what was moved aside in this folder by this process, or by processes that died before they removed
        it.
        """
        with self._opened(folder) as fd:
            for name in os.listdir(folder):  # names only; what is removed is below the descriptor
                if name.startswith(_REMOVED):
                    shutil.rmtree(name, ignore_errors=True, dir_fd=fd)
                    with contextlib.suppress(OSError):  # a link in place of the folder
                        os.unlink(name, dir_fd=fd)

    def make_folder(self, key: str, unless: Sequence[str] = ()) -> bool:
        """Create a folder, with its parents; return False if an object exists for a key in `unless`. Raises OSError.

        The keys are checked again at the end. Such an object is written before the folder is removed, so it is visible
        by then, however long this process slept in between.
        """
        folder = f"{self.root}/{key}"
        parent, _, name = folder.rpartition("/")
        self._check_mounted()
        if self._any(unless):
            return False
        if not _is_folder(parent):
            self.make_folder(key.rpartition("/")[0])
        with self._opened(parent) as fd:
            made = _make_folder(name, fd)
            self._sync(parent)
            ended = self._any(unless)
            if ended and made:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=fd)
        return not ended

    def _any(self, keys: Sequence[str]) -> bool:
        return any(found is not None for found in self.get_many(keys, limit=0))

    def _sync(self, folder: str) -> None:
        """Make the names in a folder survive a loss of power. An NFS server makes them durable before it answers."""
        if self._nfs:
            return
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
                raise
        finally:
            os.close(fd)


def _name_file(data: bytes, path: str, dir_fd: int | None = None, *, hard: bool) -> bool:
    """Write a file; once it is complete and durable, make the name a hard link or a symbolic link to it."""
    folder, slash, name = path.rpartition("/")
    beside = f".{name}.{secrets.token_hex(6)}"
    draft, created = f"{folder}{slash}{beside}", False
    try:
        _write(draft, data, dir_fd=dir_fd)
        if hard:
            os.link(draft, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        else:
            os.symlink(beside, path, dir_fd=dir_fd)
        created = True
    except FileExistsError:
        created = hard and os.stat(draft, dir_fd=dir_fd).st_nlink == 2  # an answer was lost, and the object is ours
    finally:
        if hard or not (created or _may_link_to(path, beside, dir_fd)):
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=dir_fd)
    return created


def _may_link_to(path: str, text: str, dir_fd: int | None) -> bool:
    """Whether this link may have that text, as far as is known."""
    try:
        return os.readlink(path, dir_fd=dir_fd) in (text, "")
    except FileNotFoundError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def reaching(path: str | Path) -> Iterator[None]:
    """Turn errors of the file system into ours; see `_reached`."""
    try:
        yield
    except OSError as error:
        raise _reached(path, error) from error


def _reached(path: str | Path, error: OSError) -> HopaasError:
    """Our error for this error of the file system. Nothing was acknowledged."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        # if the description can be read, this user lacks the right; otherwise a Kerberos ticket may have expired
        for folder in Path(path).parents:
            description = folder / (_META if folder.name == _ROOT else BOX)
            with contextlib.suppress(OSError), closing_fd(os.open(description, READ)) as fd:
                store = folder.parent if folder.name == _ROOT else folder
                if error.errno != errno.EROFS:
                    return not_permitted(store, "read it but not write to it")
                if os.fstatvfs(fd).f_flag & os.ST_RDONLY:  # otherwise a file server is in trouble, which may pass
                    return Denied(f"{store}: {error.strerror}: {MOUNTED_READ_ONLY}")
    if error.errno == errno.ENAMETOOLONG:
        return InvalidInput(f"{path}: {error.strerror}")
    return StoreUnreachable(f"{path}: {error.strerror or error}. Nothing acknowledged is lost.")


def not_permitted(store: Path, may: str) -> Denied:
    """The error for a store whose permissions keep this user out, and how to fix it."""
    owner, group = "its owner", "GROUP"
    with contextlib.suppress(OSError, KeyError):
        owner, group = store.owner(), store.group()
    return Denied(
        f"Permission denied: the store {store} belongs to {owner}; you may {may}. To share it with the group {group}, "
        f"{owner} runs: chmod -R g+rwX {store} && find {store} -type d -exec chmod g+s {{}} +"
    )


def look_anew(folder: str) -> bool:
    """Open a folder, so that this machine asks the server for its contents; return whether it exists."""
    for attempt in range(2):
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            return True
        except _ABSENT:  # it may only be cached as absent
            if attempt or len(folder) < 2 or not look_anew(folder[: folder.rindex("/")] or "/"):
                break
    return False


def _is_folder(path: str) -> bool:
    """Whether there is a folder at this path. Unlike `os.path.isdir`, a disk error is raised."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except _ABSENT:
        return False


def make_folder(folder: Path) -> bool:
    """Create a folder whose parent exists, and give it to the parent's group; return whether it is new."""
    with closing_fd(os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as parent:
        return _make_folder(folder.name, parent)


def _make_folder(name: str, parent: int) -> bool:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return False
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(OSError), closing_fd(os.open(name, flags, dir_fd=parent)) as fd:  # a removal is seen later
        _share(fd, os.fstat(parent))
    return True


def describe(meta: Path, said: dict[str, object]) -> None:
    """Write a store's description. If another process does so at the same moment, one of the two stays for good."""
    data = json.dumps(said).encode() + b"\n"
    try:
        _name_file(data, str(meta), hard=True)
    except OSError:  # without hard links, another reader may find it empty for a moment
        with contextlib.suppress(FileExistsError):
            _write(str(meta), data)


def links_work(folder: Path) -> bool:
    """Whether symbolic links are write-once names here, so that a second link of the same name is refused."""
    if mount_of(folder).kind in UNFIT:
        return False
    name = folder / f".proof-{secrets.token_hex(6)}"
    try:
        name.symlink_to(_TEXT)
        try:
            name.symlink_to(f"{_TEXT}again")
        except FileExistsError:
            return os.readlink(name) == _TEXT
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            return False
        raise
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def _share(what: int, above: os.stat_result, *, bits: int = 0o7777) -> None:
    """Give a new file or folder to the group, if the group may write to the folder above it.

    In a world-writable folder with the sticky bit, such as /tmp, nothing is given to the group.
    """
    everybodys = above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH
    if above.st_mode & stat.S_IWGRP and not everybodys:
        with contextlib.suppress(PermissionError):
            os.fchmod(what, stat.S_IMODE(above.st_mode) & bits)


def _write(path: str, data: bytes | Iterable[bytes], *, dir_fd: int | None = None) -> None:
    """Write a new file, durable when this returns. After an error in sync or close, none of the file is durable."""
    above = os.stat(path.rpartition("/")[0]) if dir_fd is None else os.fstat(dir_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with closing_fd(os.open(path, flags, 0o666, dir_fd=dir_fd)) as fd:
        _share(fd, above, bits=0o666)
        for chunk in [data] if isinstance(data, bytes) else data:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.fsync(fd)


def _entries(folder: str) -> list[tuple[str, bool]]:
    """Names in a folder, in order, and whether each is a folder; without dot files, which are drafts or kept by NFS."""
    try:
        with os.scandir(folder) as entries:
            return sorted((one.name, one.is_dir(follow_symlinks=False)) for one in entries if one.name[0] != ".")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG or isinstance(error, _ABSENT):  # no key can be that long
            return []
        raise


def _walk(folder: str) -> Iterator[str]:
    """The files below a folder, in order, however deep."""
    left = [(folder, True)]
    while left:
        path, is_folder = left.pop()
        if is_folder:
            left += [(f"{path}/{name}", below) for name, below in reversed(_entries(path))]
        else:
            yield path
