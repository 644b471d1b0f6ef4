"""Chooses the store of the studies, from `Client(server=…)` or from our own settings."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import hopaas_p2p
from hopaas_p2p.hopaas.exceptions import HopaasServerError, translated
from hopaas_p2p.open import redacted, servers_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.settings import Secret, Settings

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage

_storages: Final[dict[str, Storage]] = {}
_lock: Final = threading.Lock()


class Client:
    """The store that holds this client's studies. It is contacted when a study first needs it.

    Args:
        server: the store, as a directory or a URL.
        token: the token for `server` if that is a served store, otherwise for your own store. It is never used for the
            store of a joined study.
        config_filename: has no effect; the original's file named its server.
        force_reconfig: has no effect; the original asked questions at the terminal.

    Without `server`, the store of our own settings (`HOPAAS_STORE`, hopaas.toml) is used. A store in these settings is
    also used in place of a Hopaas server's address (http://…, https://…), so a script can keep that address.

    Raises:
        HopaasServerError: no store is named.

    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        config_filename: str | None = None,
        force_reconfig: bool = False,
    ) -> None:
        self._store = _usable(server or "")
        self._named = self._store == server
        self._token = Secret(token) if token and (self._named or not server) else None

    def __repr__(self) -> str:
        return f"hopaas.Client({self.server!r})"

    def __getstate__(self) -> dict[str, Any]:
        self._leave_token()  # the secret is not pickled, and a child inherits the environment
        return self.__dict__ | {"_token": None}

    def _leave_token(self) -> None:
        """Put the token into the environment, where the store looks for it, if the store is served."""
        if self._token is not None and urlsplit(self._store).scheme == "https":
            servers = servers_of(self._store)
            if self._named or not credentials.is_joined(servers):
                credentials.leave_token(self._token, servers)

    @property
    def server(self) -> str:
        """The store's URL, without secrets; a directory's begins with file://."""
        return redacted(self._store if "://" in self._store else Path(self._store).absolute().as_uri())

    @property
    def token(self) -> str:
        """`***` if there is a token, or else an empty string. The token itself is not shown."""
        return str(self._token or "")

    @property
    def backend_version(self) -> str:
        """The version of this package, because there is no server."""
        return hopaas_p2p.__version__

    def storage(self) -> Storage:
        """The open store, which all clients of this process share.

        Raises:
            HopaasServerError: the store cannot be reached or used.

        """
        from hopaas_p2p.storage import open_storage

        with _lock, translated():
            if self._store not in _storages:
                self._leave_token()
                _storages[self._store] = open_storage(self._store, named=self._named)
            return _storages[self._store]

    def close(self) -> None:
        """Send queued records and close the store. This also happens when the program ends."""
        with _lock:
            storage = _storages.pop(self._store, None)
        if storage is not None:
            storage.close()


def _usable(server: str) -> str:
    """The store to use, which is `server`, or the one in our settings if `server` is empty or the address of a Hopaas
    server.
    """
    if server and urlsplit(server).scheme not in ("http", "https"):
        return server
    with translated():
        settings = Settings()
        instead = settings.get("store")
        if instead == server or (not instead and server.startswith("https:")):  # a served store
            return server
        if instead:
            settings.publish()
            if server:
                LOG.warning("using the store %s in place of the server %s", redacted(instead), redacted(server))
            return instead
    told = f"{redacted(server)} is a Hopaas server, and hopaas_p2p needs a store"
    raise HopaasServerError(
        f"{told if server else 'no store is set'}. Use Client(server=…) or HOPAAS_STORE: a directory that all jobs "
        "reach, or a URL"
    )
