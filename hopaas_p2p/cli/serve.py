"""The commands `hopaas-p2p serve …`, which serve a store over HTTPS or a folder, run a relay, and serve local programs
and agents.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.local import local, mcp
from hopaas_p2p.cli.options import FILE, CliSession, host_and_port
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.open import open_beside, open_store
from hopaas_p2p.remote import https, log
from hopaas_p2p.remote.box import SCHEME, Box
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.folder import FolderServer
from hopaas_p2p.remote.relay import Relay, read_password, targets_of, write_address
from hopaas_p2p.remote.server import ListedService, PostgresService, Service
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.logs import LOG

_EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104  # clients need the login
_SWITCH: Final = 0.0005  # seconds; short, because the event loop and the store's thread take turns at every request


@click.group(cls=Group)
def serve() -> None:
    """Let other machines, programs and agents take part through this machine."""


@click.command("https")
@click.argument("store")
@click.option("--listen", metavar="HOST:PORT", default="0.0.0.0:443", help="The address to listen on.")  # noqa: S104
@click.option("--tls-cert", type=FILE, help="The certificate with its chain, PEM.")
@click.option("--tls-key", type=FILE, help="The certificate's key, PEM. Both files are reread when they change.")
@click.option("--behind-proxy", metavar="NETWORK", multiple=True, help="Serve only TLS proxies in this network.")
@click.option("--metrics-from", metavar="NETWORK", multiple=True, help="Who may read /metrics. [default: this machine]")
@click.option("--connections", default=1000, type=click.IntRange(1), help="Maximum number of connections at once.")
@click.option("--per-token", default=256, type=click.IntRange(1), help="Maximum number of connections per token.")
@click.option("--drain", default=30, type=click.FloatRange(0), help="Seconds to answer pending requests after SIGTERM.")
@click.option("--head", default=10.0, hidden=True, type=click.FloatRange(0.1, 60.0))
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure.")
def serve_https(
    store: str,
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    behind_proxy: tuple[str, ...],
    metrics_from: tuple[str, ...],
    **limits: Any,
) -> None:
    """Serve STORE, a directory, a bucket or a database, to everyone who has a token for it.

    Peers use https://HOST as their store, with their token. For a database, give the URL without a login, because the
    database checks each token itself. For a directory or bucket, this server checks tokens against the lists of `admin
    user`, `token` and `grant`. People who can write to the store directly bypass these checks. After SIGTERM, the
    server answers pending requests, and then stops. The log goes to stderr, one line of JSON per event; /healthz and
    /metrics are for monitoring. Several servers can serve one store. A proxy in the NETWORK of --behind-proxy
    terminates TLS, and has to set X-Forwarded-For and X-Forwarded-Proto.
    """
    host, port = host_and_port(listen)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key must be given together.")
    log.to_stderr()
    sys.setswitchinterval(_SWITCH)
    _allow_many_files()

    async def run() -> None:
        made = https.HttpsServer(
            PostgresService(store)
            if store.startswith("postgresql")
            else ListedService(open_beside(store, create=False)),
            certificate=Certificate(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None,
            behind=_networks(behind_proxy),
            metrics_from=_networks(metrics_from) or https.LOOPBACK,
            limits=https.HttpsLimits(**limits),
        )
        ending = _ending(again=made.hurry)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, int)  # changed files are read again anyway
        output.say(f"Serving on {host}:{await made.start(host, port)}")
        await ending.wait()
        await made.drain()

    asyncio.run(run())


@serve.command("folder", study="none", store=False)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("target", metavar="STORE")
def serve_folder(session: CliSession, folder: Path, target: str) -> None:
    """Serve STORE through FOLDER, for nodes that reach only a directory shared with this node.

    Run this on a node that reaches both, such as a login node. Peers use folder:///path/of/FOLDER as their store, and
    act with the rights of this process's login. The command runs until it is stopped. You can stop, kill and restart it
    at any time, or run it twice at once, because commits stay in FOLDER until the store has them.
    """
    session.settings.publish()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    LOG.setLevel(logging.INFO)

    async def run() -> int:
        service = Service(lambda _: open_store(target, create=target.lower().startswith("s3:")))  # creates no directory
        served = service.store
        if served.url.startswith((SCHEME, "memory:")):
            raise ConfigurationError(f"{served.url} cannot be served through a folder; use a directory or another URL")
        box, ending = Box.make(folder, served.url), _ending()
        made = FolderServer(box, service, pace=served.freshness)
        session.done({"folder": box.url, "store": served.url}, f"Serving {served.url} through {box.url}")
        await made.run(ending)
        return made.carried

    carried = asyncio.run(run())
    session.done({"carried": carried}, f"Stopped. Forwarded {output.count(carried, 'commit')}.")


def _ending(again: Callable[[], object] = int) -> asyncio.Event:
    """An event set by SIGTERM and Ctrl-C; further signals call `again`."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: again() if ending.is_set() else ending.set())
    return ending


def _networks(texts: tuple[str, ...]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(text, strict=False) for text in texts]
    except ValueError as error:
        raise InvalidInput(f"{error}; write a network such as 10.0.0.0/8, or one address") from None


def _allow_many_files() -> None:
    """Raise this process's limit of open files, and so of connections, as far as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@serve.command(study="none", store=False)
@click.option("--listen", required=True, metavar="PORT|HOST:PORT", help="Where to listen.")
@click.option("--to", "url", required=True, metavar="URL", help="The target: https:// or s3://.")
@click.option("--login-file", type=FILE, required=True, help="File for the address and login; created if missing.")
@click.option("--known-as", metavar="HOST", help="The name of this node on compute nodes. [default: its own]")
def relay(session: CliSession, listen: str, url: str, login_file: Path, known_as: str | None) -> None:
    """Forward connections to one target, for nodes that can reach only this node.

    The relay is an HTTP proxy. Its login is created at the first start and kept in the login file, readable only by
    you. On compute nodes, run export HTTPS_PROXY=$(cat FILE). TLS runs end to end through the relay.
    """
    session.settings.publish()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    _allow_many_files()
    targets, login_file = targets_of(url), expanded(login_file)  # a shell leaves --login-file=~/x as it is
    password, (host, port) = read_password(login_file), host_and_port(listen)

    async def run() -> None:
        relay = Relay(targets, password)
        ending = _ending()
        known = known_as or (host if host not in _EVERYWHERE else socket.gethostname())
        bound = await relay.listen(host or _EVERYWHERE[1], port)
        where = f"{known}:{bound}"
        write_address(login_file, known, bound, password)
        output.say(f"On compute nodes: export HTTPS_PROXY=$(cat {login_file})")
        names = [str(target) for target in targets]
        session.done({"listening": where, "to": names}, f"Relay listening on {where}, forwarding to {', '.join(names)}")
        await ending.wait()
        await relay.close()
        data = {"carried": relay.carried, "refused": relay.refused}
        session.done(data, f"Stopped. Forwarded {output.count(relay.carried, 'connection')}, refused {relay.refused}.")

    asyncio.run(run())


for way in (serve_https, local, mcp):
    serve.add_command(way)
