"""Commits that could not be sent, kept on this machine's disk until any process of this user reaches the store.

A file a batch of commits, one directory a user: `$XDG_STATE_HOME/hopaas-p2p/spool`, else
`~/.local/state/hopaas-p2p/spool`; readable by its owner only. Each commit is kept byte for byte with its nonce, so it
does not matter who sends it, or how often: the log counts it once. A file is removed when the store has acknowledged
all that is in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

_FORMAT: Final = 1
_SUFFIX: Final = ".commits"
_LOGIN: Final = re.compile(r"://[^/@]*@")


class Spooled(msgspec.Struct, frozen=True):
    """Commits of one writer to one study, in the order they must be sent."""

    format: int
    store: str
    """The store's URL, without secrets."""
    study: str
    """The study's uuid."""
    name: str
    trials: list[int]
    at: int
    payloads: list[bytes]
    nonces: list[str]


def spool_directory() -> Path:
    """Where this user's spool is."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "hopaas-p2p" / "spool"


def keep(
    commits: Iterable[tuple[str, bytes]], *, store: str, study: str, name: str, trials: list[int], at: int
) -> Path:
    """Keep these commits, each with its nonce, which end `trials`: on disk when this returns."""
    nonces, payloads = map(list, zip(*commits, strict=True))
    return write(Spooled(_FORMAT, store, study, name, trials, at, payloads, nonces))


def write(spooled: Spooled) -> Path:
    """Make a file of the spool."""
    directory = spool_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / f"{time.time_ns():020d}-{secrets.token_hex(4)}{_SUFFIX}"
    draft = path.with_suffix(".draft")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.msgpack.encode(spooled))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    return path


def read(path: Path) -> Spooled | None:
    """What is in a spool file; None if it is gone or cannot be read (it is left where it is)."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Spooled)
    except (OSError, msgspec.MsgspecError):
        return None


def waiting(store: str | None = None) -> Iterator[tuple[Path, Spooled]]:
    """What waits to be sent, oldest first; to one store, or to any."""
    directory = spool_directory()
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(directory.glob(f"*{_SUFFIX}")):
            spooled = read(path)
            if spooled is not None and spooled.format == _FORMAT and _is_for(store, spooled):
                yield path, spooled


def _is_for(store: str | None, spooled: Spooled) -> bool:
    """Whether it is for this store, whichever of the user's logins stands in the URLs; None: any."""
    return store is None or _LOGIN.sub("://", store) == _LOGIN.sub("://", spooled.store)
