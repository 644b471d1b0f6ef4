"""Where the studies are, configured as in the original: by arguments, or in an INI file."""

from __future__ import annotations

import logging
import os
import threading
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import hopaas_p2p
from hopaas_p2p.hopaas.exceptions import HopaasServerError, translated
from hopaas_p2p.open import redacted, servers_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.settings import Secret, Settings

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage

_log: Final = logging.getLogger("hopaas_p2p")
_storages: Final[dict[str, Storage]] = {}
_lock: Final = threading.Lock()


class Client:
    """The store that holds this client's studies. Nothing is contacted before a study needs it.

    Args:
        server: the store: a directory or a URL.
        token: for a store that is served.
        config_filename: an INI file, with `[server] address, port` and `[auth] api_token`.
        force_reconfig: without effect; the original asked questions at the terminal.

    Without `server` the first of these wins: `config_filename`, the file that `HOPAAS_CONFIG_FILE` names, the store of
    our own settings (`HOPAAS_STORE`, hopaas.toml), `~/.hopaasrc`. If it names a Hopaas server (http://…, https://…) and
    our settings name a store, that store is used, so that a script may keep its address.

    Raises:
        HopaasServerError: no store is named, or a named file cannot be read.

    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        config_filename: str | None = None,
        force_reconfig: bool = False,
    ) -> None:
        store, origin, kept = (server, "server=", None) if server else _configured(config_filename)
        self._store = _usable(store, origin)
        self._token = Secret(token or kept or "") if token or kept else None

    def __repr__(self) -> str:
        return f"hopaas.Client({self.server!r})"

    def __reduce__(self) -> tuple[type[Client], tuple[str]]:
        self._leave_token()  # the secret is not pickled; a child inherits the environment
        return Client, (self._store,)

    def _leave_token(self) -> None:
        """Put the token into the environment, where the store looks for it, if the store is served."""
        if self._token is not None and urlsplit(self._store).scheme == "https":
            credentials.leave_token(self._token, servers_of(self._store))

    @property
    def server(self) -> str:
        """The store's URL, without secrets; a directory's begins with file://."""
        return redacted(self._store if "://" in self._store else Path(self._store).absolute().as_uri())

    @property
    def token(self) -> str:
        """`***` if there is a token, else empty. The token itself is not shown."""
        return str(self._token or "")

    @property
    def backend_version(self) -> str:
        """The version of this package, because there is no server."""
        return hopaas_p2p.__version__

    def storage(self) -> Storage:
        """The open store, which all clients of this process share.

        Raises:
            HopaasServerError: it cannot be reached or used.

        """
        from hopaas_p2p.storage import open_storage

        with _lock, translated():
            if self._store not in _storages:
                self._leave_token()
                _storages[self._store] = open_storage(self._store)
            return _storages[self._store]

    def close(self) -> None:
        """Send what is queued and close the store. Also happens when the program ends."""
        with _lock:
            storage = _storages.pop(self._store, None)
        if storage is not None:
            storage.close()


def _configured(config_filename: str | None) -> tuple[str, str, str | None]:
    """The store when `server` is not given, the source of that setting, and a token if there is one."""
    named = config_filename or os.environ.get("HOPAAS_CONFIG_FILE")
    path = Path(named or "~/.hopaasrc").expanduser()
    if not named:
        with translated():
            setting = Settings().find("store")
        if setting.value:
            return setting.value, setting.origin, None
        if not path.is_file():
            raise HopaasServerError(
                "no store is given. Use Client(server=…) or HOPAAS_STORE: a directory that all jobs reach, or a URL; "
                "or name an INI file with HOPAAS_CONFIG_FILE, with [server] address = …"
            )
    parser = ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
        address = parser.get("server", "address").strip()
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        problem = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise HopaasServerError(f"{path}: {problem}; it takes [server] address = STORE") from None
    parts, port = urlsplit(address), parser.get("server", "port", fallback="").strip()
    if parts.scheme.startswith("postgres") and port.isdigit() and ":" not in parts.netloc.rpartition("@")[2]:
        address = parts._replace(netloc=f"{parts.netloc}:{port}").geturl()  # other stores have no port
    return address, str(path), parser.get("auth", "api_token", fallback=None)


def _usable(store: str, origin: str) -> str:
    """The store, or the one from our settings if this is the address of a Hopaas server."""
    if not store:
        raise HopaasServerError(f"{origin}: the address of the store is empty")
    if urlsplit(store).scheme not in ("http", "https"):
        return store
    with translated():
        instead = Settings().get("store")
    if instead == store or (not instead and store.startswith("https:")):  # a store that is served
        return store
    if not instead:
        raise HopaasServerError(
            f"{redacted(store)} ({origin}) is the address of a Hopaas server, and hopaas_p2p has none: "
            "give a store instead, as a directory that all jobs can reach or as a URL, there or in HOPAAS_STORE"
        )
    _log.warning("using the store %s in place of the server %s", redacted(instead), redacted(store))
    return instead
