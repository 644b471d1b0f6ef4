"""A token goes only to servers that the user chose; not where somebody else's file or ticket points.

A store's URL that comes with a directory (`./hopaas.toml`, which may be a clone of anybody's repository) or in a ticket
is a stranger's word. A secret of the user's is sent to its servers only if the user named them, too: in HOPAAS_STORE or
the user's own settings, in HOPAAS_TOKEN_HOST, or on the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

from hopaas_p2p import settings
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.redaction import redacted
from hopaas_p2p.settings import Settings


def check_store(url: str, found: Settings, *, origin: str, secret: bool = False) -> None:
    """Let the user's token go to the servers of this store.

    Args:
        url: the store.
        found: the settings.
        origin: who names it, for the message.
        secret: whether there is a secret beside those of the settings and the environment.

    Raises:
        ConfigurationError: nobody vouches for one of them.

    """
    brought = not secret and _comes_with_directory(found)
    if not (secret or brought or settings.token() or found.get("token_file") or os.environ.get("PGPASSWORD")):
        return
    named = _servers(found.own("store") or "") | _servers((found.here("store") if brought else "") or "")
    allowed = {word.lower() for word in (found.own("token_host") or "").replace(",", " ").split()}
    for host, port in sorted(_servers(url) - named):
        if not allowed & {host, f"{host}:{port}"}:
            raise ConfigurationError(
                f"{origin} would send your token to {host}:{port}, a host that you have not named. If the "
                f"token is meant for it: name the store yourself, --store {redacted(url)} or HOPAAS_STORE, or set "
                f"HOPAAS_TOKEN_HOST={host}"
            )


def _comes_with_directory(found: Settings) -> bool:
    """Whether the token is the one that this directory's file names, beside its store."""
    chosen, brought = found.get("token_file"), found.here("token_file")
    return bool(chosen and brought) and Path(str(chosen)).resolve() == Path(str(brought)).resolve()


def _servers(url: str) -> set[tuple[str, int]]:
    """(host, port) of what a Postgres store's login is shown to; other stores are shown none."""
    if not url.lower().startswith("postgresql"):
        return set()
    from hopaas_p2p.stores.postgres.connect import PostgresAddress

    return {(host.lower(), port) for host, port in PostgresAddress(url).servers}
