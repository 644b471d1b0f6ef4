"""Commits that could not be sent, kept on disk until any process of this user reaches the store.

There is one file per batch of commits, and one directory per user: `$XDG_STATE_HOME/hopaas-p2p/spool`, or
`~/.local/state/hopaas-p2p/spool`. If that is not writable (a full quota, a read-only home), the directory is under
`/var/tmp`, or else under the temporary directory, which a batch system may delete with the job. Files are readable by
their owner only. Each commit is kept byte for byte with its nonce, so it counts once in the log, whichever process
sends it, and however often. A file is removed when the store has acknowledged everything in it.

A file is a sequence of frames, each after four bytes with its length: the description of a batch, then its commits. An
exported file holds several batches. Files are read frame by frame, so that a false length is found at the first frame.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import tempfile
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import may_be_a_workers
from hopaas_p2p.core.records import Commit, PeerJoin
from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreUnreachable
from hopaas_p2p.runtime.atomic import locked, open_regular, replace_atomically, state_folder
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.stores.base import Outgoing, Placed

LASTING: Final = "/var/tmp"  # noqa: S108  # in a folder there that only this user can write to
_PATIENCE: Final = 60.0  # seconds for which another process of this user may be sending the same commits
_SUFFIX: Final = ".commits"
ASIDE: Final = f".deleted{_SUFFIX}"
"""The suffix of a file that was set aside."""
SENT: Final = ".sent"
"""The suffix of a file that was sent under another URL of its store, or to a copy of the store."""
_KEPT: Final = 30 * 86_400  # seconds for which a file is kept that was sent to a store under another URL
_HISTORY: Final = ".history"
_NEEDED: Final = 3  # descriptors to write a file: its folder's, the same for a rename, and its own
_MAGIC: Final = b"hopaas-spool\n"
_LARGEST_HEAD: Final = 2 << 20  # bytes, enough for 100,000 commits; a forged head can take 20 times as much memory
_LOGIN: Final = re.compile(r"://[^/@]*@")


Why = Literal["unsent", "unconfirmed", "history"]


class Spooled(msgspec.Struct, frozen=True):
    """Commits of one writer to one study, in the order they must be sent."""

    store: str
    """The store's URL, without secrets."""
    study: str
    """The study's uuid."""
    name: str
    trials: list[int]
    """The trials that the commits end."""
    at: int
    why: Why
    """Unconfirmed: the log has acknowledged the commits with a place; compare the file with the log before sending it.
    History: the log turned out to have two histories. The file is never sent, because a log with later commits of the
    same writer would count these as duplicates. A rescue interprets them by their places."""
    places: list[tuple[int, int | None]]
    """For each commit, as in `Placed`: its lsn, or 0, and the sum of the log before it."""
    payloads: list[bytes]

    @property
    def placed(self) -> list[Placed]:
        """The commits, with their places if known."""
        return [
            Placed(lsn, before, Outgoing(codec.nonce_of(payload), payload))
            for (lsn, before), payload in zip(self.places, self.payloads, strict=True)
        ]


def directories() -> list[Path]:
    """The directories of this user's spool: the preferred one, and fallbacks if that is not writable."""
    places, temporary = [], [LASTING]
    with contextlib.suppress(RuntimeError):
        places.append(state_folder() / "spool")
    with contextlib.suppress(OSError):  # no temporary directory is writable
        temporary.append(tempfile.gettempdir())
    resolved = dict.fromkeys(Path(one).resolve() for one in temporary)  # in a container, root's link seems foreign
    return [*places, *(one / f"hopaas-p2p-spool-{os.getuid()}" for one in resolved)]


def write(spooled: Spooled) -> tuple[Path | None, str]:
    """Create a spool file in the first writable directory. Returns its path, or None and the reasons. Never raises.

    A history is named by its content, so that the same one is kept once.
    """
    data = b"".join([_MAGIC, *_frames(spooled)])
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}{_SUFFIX}"
    if spooled.why == "history":
        name = f"{1000 * spooled.at:020d}-{hashlib.blake2b(data, digest_size=16).hexdigest()}{_HISTORY}"
    why = []
    with _spare_lent():
        for directory in directories():
            try:
                with own_folder(directory) as folder:
                    with replace_atomically(folder / name, private=True, sync=True) as draft:
                        draft.write_bytes(data)
                    return directory / name, ""
            except OSError as error:
                why.append(f"{directory}: {error.strerror or error}")
    return None, "; ".join(why)


@contextlib.contextmanager
def alone(study: str) -> Iterator[None]:
    """Hold the lock of this study, which excludes this user's other processes and threads on this machine.

    If no directory of the spool accepts a file, there is no lock.

    Raises:
        StoreUnreachable: another process or thread has held the lock for a minute.

    """
    name = hashlib.blake2b(study.encode(errors="surrogatepass"), digest_size=16).hexdigest()  # it comes from a file
    with contextlib.ExitStack() as stack:
        for directory in directories():
            with contextlib.suppress(OSError):  # without a lock, if no disk accepts a file
                folder = stack.enter_context(own_folder(directory))
                try:
                    stack.enter_context(locked(folder / f"{name}.lock", patience=_PATIENCE))
                except TimeoutError:
                    why = f"For {_PATIENCE:.0f} s, another process has been sending this user's results of the study."
                    raise StoreUnreachable(why) from None
                break
        yield


def remove(path: Path) -> None:
    """Remove a file of the spool, if it is there and can be removed."""
    with contextlib.suppress(OSError), own_folder(path.parent, mode=None) as folder:
        (folder / path.name).unlink(missing_ok=True)


def set_aside(path: Path, suffix: str = ASIDE) -> Path:
    """Give a file's name this ending, set its time to now, and return its new path.

    ASIDE is for a file of a deleted study, which peers send only if the study comes back.
    """
    aside = path.with_name(path.name.removesuffix(ASIDE).removesuffix(_SUFFIX) + suffix)
    with contextlib.suppress(OSError), own_folder(path.parent, mode=None) as folder:
        os.utime(folder / path.name)
        (folder / path.name).rename(folder / aside.name)
        return aside
    return path


def sent(path: Path, spooled: Spooled, store: str) -> None:
    """Record that the store at this URL has this file's content. A file that names another URL is kept for 30 days.

    The store at this URL may be a copy of the one that the file names, in a folder that was cloned or under an
    invitation.
    """
    if is_for(spooled, store):
        remove(path)
    else:
        set_aside(path, SENT)


_spare: Final[list[int]] = []
"""Descriptors held in reserve, so that a result can be kept when the process has no others left."""


def _take_spare() -> None:
    """Reserve as many descriptors as a spool file needs, if available."""
    with contextlib.suppress(OSError):
        while len(_spare) < _NEEDED:
            _spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


@contextlib.contextmanager
def _spare_lent() -> Iterator[None]:
    """Free the reserved descriptors for use in this block."""
    while _spare:
        with contextlib.suppress(OSError, IndexError):  # another thread may have lent them
            os.close(_spare.pop())
    try:
        yield
    finally:
        _take_spare()


_take_spare()


def read(path: Path) -> Spooled | None:
    """The content of a spool file; None if the file is gone, or is unreadable and stays in place."""
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123  # a descriptor
            return next(_batches(file), None)
    except (OSError, ValueError):
        return None


def _frames(spooled: Spooled) -> Iterator[bytes]:
    for part in (msgspec.msgpack.encode(msgspec.structs.replace(spooled, payloads=[])), *spooled.payloads):
        yield len(part).to_bytes(4, "big") + part


def _batches(file: BinaryIO) -> Iterator[Spooled]:
    """The content of a file. Raises ValueError if it is damaged."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a spool")
    while size := file.read(4):
        batch = msgspec.msgpack.decode(_part(file, size, _LARGEST_HEAD), type=Spooled)
        payloads = [_part(file, file.read(4), codec.MAX_BYTES) for _ in batch.places]
        batch = msgspec.structs.replace(batch, payloads=payloads)
        if not all(map(codec.nonce_of, payloads)):
            raise ValueError("written by another version")
        yield batch


def _part(file: BinaryIO, size: bytes, limit: int) -> bytes:
    count = int.from_bytes(size, "big")
    part = file.read(count) if count <= limit else b""
    if len(size) < 4 or not part or len(part) < count or (limit == codec.MAX_BYTES and not codec.intact(part)):
        raise ValueError("damaged")
    return part


def waiting(store: str | None = None, studies: Container[str] = ()) -> Iterator[tuple[Path, Spooled]]:
    """The batches to send, oldest first: those for the store at this URL or with these studies, or all of them.

    The file of a batch that was sent to its store under another URL is removed here after 30 days.

    A store is identified by its studies, whose uuids are 128 random bits, and not by the URL that the result's peer
    used. Others may reach the store through a server, a mount point or a folder, or with another login.
    """
    for path, spooled in _all(_SUFFIX):
        if store is None or is_for(spooled, store, studies):
            yield path, spooled
    for path, spooled in _all(SENT):
        if store is not None and is_for(spooled, store):
            yield path, spooled
            continue
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - path.stat().st_mtime > _KEPT:
                remove(path)


def is_for(spooled: Spooled, store: str, studies: Container[str] = ()) -> bool:
    """Whether these commits are for the store at this URL with these studies."""
    return spooled.study in studies or _LOGIN.sub("://", store) == _LOGIN.sub("://", spooled.store)


def histories(study: str | None = None) -> Iterator[tuple[Path, Spooled]]:
    """The histories kept for a rescue of this study, or of all, oldest first."""
    for path, spooled in _all(_HISTORY):
        if study in (None, spooled.study):
            yield path, spooled


def _all(suffix: str) -> Iterator[tuple[Path, Spooled]]:
    """The files in all directories that only this user can have written to, oldest first."""
    found: list[Path] = []
    for directory in directories():
        with contextlib.suppress(OSError), own_folder(directory, mode=None) as folder:
            found += [directory / path.name for path in folder.glob(f"*{suffix}")]
    for path in sorted(found, key=lambda file: file.name):
        spooled = None
        with contextlib.suppress(OSError), own_folder(path.parent, mode=None) as folder:
            spooled = read(folder / path.name)
        if spooled is not None:
            yield path, spooled


# --- on another machine ---


def export(target: Path) -> list[Spooled]:
    """Write all waiting batches, and histories, into one file for another machine to send; returns its content."""
    everything = [spooled for _, spooled in itertools.chain(waiting(), histories())]
    with replace_atomically(target, private=True, sync=True) as draft:
        draft.write_bytes(b"".join([_MAGIC, *(frame for one in everything for frame in _frames(one))]))
    return everything


def take_in(spooled: Spooled) -> None:
    """Keep a history, such as one from another machine, in this user's spool, where a rescue looks for it.

    Raises:
        ConfigurationError: no disk accepts it.

    """
    path, why = write(msgspec.structs.replace(spooled, trials=[], why="history"))
    if path is None:
        raise ConfigurationError(f"the spool cannot store anything: {why}")


def exported(source: Path) -> list[Spooled]:
    """The content of an exported or a single spool file, without records that a file may not contain.

    The log attributes every record to its sender. Therefore, somebody else's file may contain only records that any
    worker may write, such as results, but no record that requires an owner, or that acts for another person by name.

    Raises:
        InvalidInput: this is neither kind of file, or it is damaged.
        OSError: the file cannot be read, or is not a regular file.

    """
    try:
        with open(open_regular(source, named=True), "rb") as file:  # noqa: PTH123  # a descriptor
            return [_results_of(one) for one in _batches(file)]
    except ValueError:
        raise InvalidInput(
            f"{source} holds no results: it was not written by `hopaas-p2p admin spool export`, or is damaged"
        ) from None


def _results_of(spooled: Spooled) -> Spooled:
    """The batch without the records that only an owner's own session may write."""
    payloads = []
    for payload in spooled.payloads:
        commit = codec.decode(payload)
        if isinstance(commit, Commit):
            kept = tuple(
                one
                for one in commit.records
                if may_be_a_workers(one) and not (isinstance(one, PeerJoin) and "on_behalf_of" in one.info)
            )
            if kept != commit.records:
                payload = codec.encode(msgspec.structs.replace(commit, records=kept))  # noqa: PLW2901
        payloads.append(payload)
    return msgspec.structs.replace(spooled, payloads=payloads)
