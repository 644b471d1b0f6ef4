"""Commits that could not be sent, kept on disk until any process of this user reaches the store.

One file per batch of commits, one directory per user: `$XDG_STATE_HOME/hopaas-p2p/spool`, or
`~/.local/state/hopaas-p2p/spool`; where that cannot be written (a full quota, a read-only home), one under the
temporary directory. Files are readable by their owner only. Each commit is kept byte for byte with its nonce, so it
does not matter who sends it, or how often: the log counts it once. A file is removed when the store has acknowledged
everything in it.

A file is a sequence of frames, four bytes with the length of what follows: what is known of a batch, and its commits.
An exported one holds several batches. It is read frame by frame, so a file that only claims to be large is given up at
its first frame.
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
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import may_be_a_workers
from hopaas_p2p.core.records import Commit, PeerJoin
from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreUnreachable
from hopaas_p2p.runtime.atomic import open_regular, replace_atomically, state_folder
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.stores.base import Outgoing, Placed

_PATIENCE: Final = 60.0  # seconds for which another process of this user may be sending the same commits
_SUFFIX: Final = ".commits"
_HISTORY: Final = ".history"
_NEEDED: Final = 3  # descriptors to write a file: of its folder, of that folder to rename in it, and its own
_MAGIC: Final = b"hopaas-spool\n"
_LARGEST_HEAD: Final = 2 << 20  # bytes, of 100,000 commits: they may not follow, and each takes 20 times its place here
_LOGIN: Final = re.compile(r"://[^/@]*@")


class Spooled(msgspec.Struct, frozen=True):
    """Commits of one writer to one study, in the order they must be sent."""

    store: str
    """The store's URL, without secrets."""
    study: str
    """The study's uuid."""
    name: str
    trials: list[int]
    """Those that the commits end."""
    at: int
    why: Literal["unsent", "unconfirmed", "history"]
    """Unconfirmed: the log has acknowledged those with a place, and whoever sends the file compares it with the log
    first. History: the log turned out to have two, and nobody sends this, because where the log has later commits of
    the same writer it would count these as duplicates. A rescue finds out from their places what they meant."""
    places: list[tuple[int, int | None]]
    """Of each commit, as `Placed` has it: its lsn, or 0, and the sum of the log before it."""
    payloads: list[bytes]

    @property
    def placed(self) -> list[Placed]:
        """The commits, with their places where they had one."""
        return [
            Placed(lsn, before, Outgoing(codec.nonce_of(payload), payload))
            for (lsn, before), payload in zip(self.places, self.payloads, strict=True)
        ]


def directories() -> list[Path]:
    """Where this user's spool is: the place of choice, and another for when that one cannot be written."""
    places = []
    with contextlib.suppress(RuntimeError):
        places.append(state_folder() / "spool")
    with contextlib.suppress(OSError):  # none of the temporary directories can be written
        places.append(Path(tempfile.gettempdir()) / f"hopaas-p2p-spool-{os.getuid()}")
    return places


def keep(
    commits: Iterable[Placed],
    *,
    store: str,
    study: str,
    name: str,
    at: int,
    trials: Iterable[int] = (),
    why: Literal["unsent", "unconfirmed", "history"] = "unsent",
) -> tuple[Path | None, str]:
    """Keep these commits, which end `trials`, on disk: the file; or None, and why not. Never raises."""
    kept = list(commits)
    places, payloads = [(one.lsn, one.before) for one in kept], [one.commit.payload for one in kept]
    return write(Spooled(store, study, name, list(trials), at, why, places, payloads))


def write(spooled: Spooled, name: str | None = None) -> tuple[Path | None, str]:
    """Make a file of the spool in the first place that takes it; or None, and why none does."""
    data = b"".join([_MAGIC, *_frames(spooled)])
    suffix = _HISTORY if spooled.why == "history" else _SUFFIX
    name = f"{name or f'{time.time_ns():020d}-{secrets.token_hex(4)}'}{suffix}"
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
    """In this block no other process or thread of this user here is in such a block for the study.

    Raises:
        StoreUnreachable: another one has been for a minute.

    """
    import filelock  # here only: where it is loaded, a fork at the wrong moment fails on Python 3.12 and newer

    for directory in directories():
        with contextlib.suppress(OSError), own_folder(directory):
            break
    else:  # no disk takes a file
        yield
        return
    try:
        name = hashlib.blake2b(study.encode(errors="surrogatepass"), digest_size=16).hexdigest()  # a file said it
        with filelock.FileLock(directory / f"{name}.lock", timeout=_PATIENCE, mode=0o600):
            yield
    except filelock.Timeout:
        raise StoreUnreachable("another process is about to send what this user's spool holds of the study.") from None


def remove(path: Path) -> None:
    """Remove a file of the spool, if it is there and can be removed."""
    with contextlib.suppress(OSError), own_folder(path.parent, mode=None) as folder:
        (folder / path.name).unlink(missing_ok=True)


_spare: Final[list[int]] = []
"""Descriptors held in reserve, so that a result can be kept when the process has no others left."""


def _take_spare() -> None:
    """Hold as many as a file of the spool needs, if they are to be had."""
    with contextlib.suppress(OSError):
        while len(_spare) < _NEEDED:
            _spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


@contextlib.contextmanager
def _spare_lent() -> Iterator[None]:
    """In this block they are free for another use."""
    while _spare:
        with contextlib.suppress(OSError, IndexError):  # another thread may have lent them
            os.close(_spare.pop())
    try:
        yield
    finally:
        _take_spare()


_take_spare()


def read(path: Path) -> Spooled | None:
    """What is in a spool file; None if it is gone or cannot be read (it is left where it is)."""
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123  # a descriptor
            return next(_batches(file), None)
    except (OSError, ValueError):
        return None


def _frames(spooled: Spooled) -> Iterator[bytes]:
    for part in (msgspec.msgpack.encode(msgspec.structs.replace(spooled, payloads=[])), *spooled.payloads):
        yield len(part).to_bytes(4, "big") + part


def _batches(file: BinaryIO) -> Iterator[Spooled]:
    """What a file holds. Raises ValueError where that is not what was written."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a spool")
    while size := file.read(4):
        batch = msgspec.msgpack.decode(_part(file, size, _LARGEST_HEAD), type=Spooled)
        payloads = [_part(file, file.read(4), codec.MAX_BYTES) for _ in batch.places]
        batch = msgspec.structs.replace(batch, payloads=payloads)
        if not all(map(codec.nonce_of, payloads)):
            raise ValueError("not of this version")
        yield batch


def _part(file: BinaryIO, size: bytes, limit: int) -> bytes:
    count = int.from_bytes(size, "big")
    part = file.read(count) if count <= limit else b""
    if len(size) < 4 or not part or len(part) < count or (limit == codec.MAX_BYTES and not codec.intact(part)):
        raise ValueError("damaged")
    return part


def waiting(store: str | None = None, studies: Container[str] = ()) -> Iterator[tuple[Path, Spooled]]:
    """What waits to be sent, oldest first: for the store at this URL or that holds these studies; or all of it.

    A store is known by its studies, whose uuids are 128 random bits, and not by the URL that the peer which left the
    result happened to use: others may reach it through a server, a mount point or a folder, or with another login.
    """
    for path, spooled in _all(_SUFFIX):
        if store is None or is_for(spooled, store, studies):
            yield path, spooled


def is_for(spooled: Spooled, store: str, studies: Container[str] = ()) -> bool:
    """Whether this is for the store at this URL, which holds these studies."""
    return spooled.study in studies or _LOGIN.sub("://", store) == _LOGIN.sub("://", spooled.store)


def histories(study: str | None = None) -> Iterator[tuple[Path, Spooled]]:
    """What is kept for a rescue of this study, or of all, oldest first."""
    for path, spooled in _all(_HISTORY):
        if study in (None, spooled.study):
            yield path, spooled


def _all(suffix: str) -> Iterator[tuple[Path, Spooled]]:
    """The files in all places that only this user can have written to, oldest first."""
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
    """Write everything that waits into one file, for another machine to send; what it holds. Histories go along."""
    everything = [spooled for _, spooled in itertools.chain(waiting(), histories())]
    with replace_atomically(target, private=True, sync=True) as draft:
        draft.write_bytes(b"".join([_MAGIC, *(frame for one in everything for frame in _frames(one))]))
    return everything


def take_in(spooled: Spooled) -> None:
    """Keep a history, as of another machine, in this user's spool, where a rescue looks for it; once.

    Raises:
        ConfigurationError: no disk takes it.

    """
    spooled = msgspec.structs.replace(spooled, trials=[], why="history")
    if all(there != spooled for _, there in histories(spooled.study)):
        mark = hashlib.blake2b(msgspec.msgpack.encode(spooled), digest_size=4).hexdigest()
        path, why = write(spooled, f"{1000 * spooled.at:020d}-{mark}")  # the same if two take it in at once
        if path is None:
            raise ConfigurationError(f"the spool cannot store anything: {why}")


def exported(source: Path) -> list[Spooled]:
    """What `export` wrote, or what a single file of a spool holds; without what is not for a file to say.

    The log takes what is sent for the sender's own. So a file of somebody else brings what any worker may say: results,
    not a word that takes an owner, and nobody who acts for another by name.

    Raises:
        InvalidInput: this is neither, or it is damaged.

    """
    try:
        with open(open_regular(source, named=True), "rb") as file:  # noqa: PTH123  # a descriptor
            return [_results_of(one) for one in _batches(file)]
    except ValueError:
        raise InvalidInput(
            f"{source} holds no results: it was not written by `hopaas-p2p admin spool export`, or is damaged"
        ) from None


def _results_of(spooled: Spooled) -> Spooled:
    """The batch without the records that only an owner's own session says."""
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
