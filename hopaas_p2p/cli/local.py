"""The commands `hopaas-p2p serve local`, for programs in other languages, and `serve mcp`, for agents. Either runs one
peer.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hopaas_p2p.cli.options import ABOVE_ZERO, CliSession, command, host_and_port
from hopaas_p2p.errors import ConfigurationError, explained
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.atomic import secret_if_any, state_folder, write_private

if TYPE_CHECKING:
    from hopaas_p2p.ports.local import LocalPeer

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_silence = click.option("--silence", default=3600, type=ABOVE_ZERO, metavar="S", help="Seconds a client may be silent.")


@command(study="none")
@click.option("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="A port on loopback.")
@click.option("--key-file", metavar="FILE", help="The key's file. [default: local.key in ~/.local/state/hopaas-p2p]")
@_silence
def local(session: CliSession, listen: str, key_file: str | None, silence: float) -> None:
    """Let programs in any language take part, through JSON over HTTP on this machine.

    The server is one peer. Its clients run trials with POST /v1/ask, report, tell and others; see docs/local.md.
    Under /api/ it offers the REST interface of Hopaas. Requests carry a key, which is kept in a file that only you can
    read. When the server ends, or a client is silent for too long, unfinished trials are returned.
    """
    from hopaas_p2p.ports.http import LocalServer

    with _peer(session, actions=True, silence=silence) as (peer, ending):
        file, key = _key(key_file)
        host, port = host_and_port(listen)
        if host and host not in _LOOPBACK:
            raise ConfigurationError(f"--listen {listen}: use a port on loopback, such as 127.0.0.1:8321")
        server = LocalServer(peer, (host or _LOOPBACK[0], port), key)
        threading.Thread(target=server.serve_forever, name="hopaas-local", daemon=True).start()
        where = {"listening": server.url, "key_file": str(file)}
        session.done(where, f"Listening on {server.url}; the key is in {file}")
        ending.wait()
        server.shutdown()
        server.server_close()


@command(study="none")
@click.option("--allow-actions", is_flag=True, help="Also offer tools that run and change trials.")
@_silence
def mcp(session: CliSession, allow_actions: bool, silence: float) -> None:
    """Let an agent look at studies, and with --allow-actions run trials, through the Model Context Protocol.

    The agent's program starts this command and talks to it over stdio. The Python package mcp must be installed.
    """
    from hopaas_p2p.ports.mcp import server

    with _peer(session, actions=allow_actions, silence=silence) as (peer, _):
        server(peer).run("stdio")


@contextlib.contextmanager
def _peer(session: CliSession, *, actions: bool, silence: float) -> Iterator[tuple[LocalPeer, threading.Event]]:
    """The peer, and an event set by SIGTERM and Ctrl-C. The peer's trials are returned at the end."""
    from hopaas_p2p.ports.local import LocalPeer, watch_silence

    ending = threading.Event()

    def end(*_: object) -> None:
        if ending.is_set():
            raise KeyboardInterrupt
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    peer = LocalPeer(session.storage(), actions=actions, silence=silence)
    watcher = threading.Thread(target=watch_silence, args=(peer, ending), name="hopaas-silence", daemon=True)
    watcher.start()
    try:
        yield peer, ending
    finally:
        ending.set()
        watcher.join(timeout=30)
        peer.close()


def _key(given: str | None) -> tuple[Path, str]:
    """The path of the key's file, and the key. The file is created if it is missing.

    Raises:
        ConfigurationError: the file is empty, or others can read or write it, or it can be neither read nor created.

    """
    file = expanded(given) if given else state_folder() / "local.key"
    key = secret_if_any(file, "key file")
    if key is None:
        key = secrets.token_urlsafe(32)
        with explained(f"the key file {file} cannot be created"):
            write_private(file, key + "\n")
    if not key:
        raise ConfigurationError(f"the key file {file} is empty; remove it, and a new key will be created")
    return file, key
