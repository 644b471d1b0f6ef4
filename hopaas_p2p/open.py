"""Opens the store at a URL."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from hopaas_p2p.errors import ConfigurationError, NoSuchStudy
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.arguments import near
from hopaas_p2p.runtime.redaction import path_of, redacted

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Store
    from hopaas_p2p.stores.memory import MemoryStore

__all__ = ["no_such_study", "open_beside", "open_store", "redacted", "servers_of", "store_option"]

_NO_SLASHES: Final = re.compile(r"(file|memory|s3|postgres|postgresql(\+\w+)?|https?|folder):", re.IGNORECASE)
_SCHEMES: Final = ("file", "memory", "s3", "https", "folder", "postgresql", "postgresql+psycopg2")
_BOX: Final = "box.json"  # see `remote.box`
_memories: Final[dict[str, MemoryStore]] = {}


def open_store(url: str | os.PathLike[str], *, create: bool = True) -> Store:
    """The store at this URL.

    Args:
        url: a path, or `file://`, `memory://`, `postgresql://`, `https://`, `folder://`, `s3://`.
        create: whether a directory or bucket that is not a store yet becomes one.

    Raises:
        ConfigurationError: unknown scheme, or a store that cannot be used; the message says what to change.

    """
    try:
        url = os.fsdecode(url)
        os.fsencode(url)
    except (TypeError, UnicodeError):
        raise ConfigurationError(f"a store must be a path or a URL, got {url!r}") from None
    if not url or "\0" in url:
        raise ConfigurationError(f"{url!r} is not a store; give a path such as ./campaign, or a URL")
    scheme = _scheme(url)
    if not scheme:
        if _NO_SLASHES.match(url) or redacted(url) != url:
            raise ConfigurationError(
                f"{redacted(url)!r} looks like a URL without its two slashes; for a directory, put ./ first"
            )
        return _directory(Path(url), create=create)
    match scheme:
        case "file":
            return _directory(path_of(url), create=create)
        case "memory":
            from hopaas_p2p.stores.memory import MemoryStore

            name = url.partition("://")[2]
            return _memories.setdefault(name, MemoryStore(name))
        case "s3":
            from hopaas_p2p.stores.s3.store import S3Store

            return S3Store(url, create=create)
        case "http" | "https" | "folder":
            from hopaas_p2p.remote.client import RemoteStore

            return RemoteStore(url)
        case _:
            from hopaas_p2p.stores.postgres.store import PostgresStore

            return PostgresStore(url)


def open_beside(url: str, *, create: bool = True) -> Store:
    """Like `open_store`, for work on a whole store, whose URL must not lead through a server.

    Raises:
        ConfigurationError: the URL leads through a server.

    """
    store = open_store(url, create=create)
    if store.url.startswith(("https:", "folder:")):
        raise ConfigurationError(f"{store.url} leads to a store through a server; use the URL of the store itself")
    return store


def servers_of(url: str) -> list[tuple[str, int]]:
    """The (host, port) pairs contacted when the store at this URL is opened; port 0 for a Unix socket.

    The list is empty for a directory, a folder through which a store is served, and a store in memory.

    Raises:
        ConfigurationError: the URL cannot be parsed, or no store has such a URL.

    """
    match _scheme(url):
        case "postgresql" | "postgresql+psycopg2":
            from hopaas_p2p.stores.postgres.connect import PostgresAddress

            return PostgresAddress(url).destinations
        case "http" | "https":
            from hopaas_p2p.remote.client import RemoteAddress

            return [(host, port) for host, port in RemoteAddress.parse(url).servers]
        case "s3":
            from hopaas_p2p.net.proxies import server_of
            from hopaas_p2p.stores.s3.address import parse

            return [server_of(parse(url).endpoint)]
    return []


def _scheme(url: str) -> str:
    """The scheme of a store's URL, in lower case; empty for a path."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme.lower() not in ("http", *_SCHEMES):  # http is refused later, with a better reason
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ConfigurationError(f"{redacted(url)!r}: no store has the scheme {scheme!r}. Use a path, or {known}")
    return scheme.lower() if separator else ""


def names_servers(url: str) -> bool:
    """Whether the URL itself, and not this user's environment, says which servers are contacted; raises like
    `servers_of`.
    """
    if url.lower().startswith("postgresql"):
        from hopaas_p2p.stores.postgres.connect import PostgresAddress

        return bool(PostgresAddress(url).parameters.get("host"))
    servers_of(url)  # can be parsed
    return not url.lower().startswith("s3:") or "endpoint" in dict(parse_qsl(urlsplit(url).query))


def store_option(url: str) -> str:
    """The option, " --store URL", with which a command that a message suggests uses this store.

    Empty for a joined study's store, which commands find without it; naming it would send it the user's own token.
    """
    if credentials.is_joined(servers_of(url)):
        return ""
    return f" --store {shlex.quote(redacted(url))}"


def no_such_study(name: str, url: str, names: Iterable[str]) -> NoSuchStudy:
    """The error that this store, which has these studies, has none of this name."""
    hint = near(name, names, f"see: hopaas-p2p study list{store_option(url)}")
    return NoSuchStudy(f"there is no study {name!r} in {redacted(url)}; {hint}")


def _directory(path: Path, *, create: bool) -> Store:
    if os.path.isfile(path / _BOX):  # noqa: PTH113  # also false if this user may not enter the folder
        return open_store(f"folder{path.absolute().as_uri().removeprefix('file')}")
    from hopaas_p2p.stores.directory.store import DirectoryStore

    return DirectoryStore(path, create=create)
