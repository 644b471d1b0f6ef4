"""`hopaas-p2p relay` and `bridge`: ways out for compute nodes, through a login node or a shared directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from pathlib import Path
from typing import Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.files.artifacts import artifacts_of
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.relay import Relay, read_password, targets_of, write_address
from hopaas_p2p.stores.bridge.bridge import Bridge
from hopaas_p2p.stores.bridge.endpoints import open_endpoints

_EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104  # clients need the login


@click.command()
@click.option("--listen", required=True, metavar="PORT|HOST:PORT|PATH", help="Where to listen; PATH is a Unix socket.")
@click.option("--to", "url", required=True, metavar="URL", help="The target: https:// or s3://.")
@click.option("--login-file", metavar="FILE", help="File for the relay's address and login; created if missing.")
@click.option("--known-as", metavar="HOST", help="The name of this node on compute nodes. [default: its own]")
@options(study="none", store=False)
def relay(session: CliSession, listen: str, url: str, login_file: str | None, known_as: str | None) -> None:
    """Forward connections to one target, for nodes that can reach only this one.

    On a port it is an HTTP proxy with a login, which is created at the first start and kept in the login file, readable
    by you only: on compute nodes, export HTTPS_PROXY=$(cat FILE). On a Unix socket it serves your own processes. TLS
    runs end to end through it.
    """
    session.settings.publish()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    targets = targets_of(url)
    at_socket = "/" in listen
    if not at_socket and login_file is None:
        raise ConfigurationError("Use --login-file FILE, a file that you can also read on the compute nodes.")
    file = Path(login_file).expanduser() if login_file else None
    password = read_password(file or Path("/nonexistent"))
    host, port = ("", 0) if at_socket else _address(listen)

    async def run() -> None:
        relay = Relay(targets, password)
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        if at_socket:
            await relay.listen_at(Path(listen))
            where = listen
        else:
            known = known_as or (host if host not in _EVERYWHERE else socket.gethostname())
            bound = await relay.listen(host or _EVERYWHERE[1], port)
            where = f"{known}:{bound}"
            if file is not None:
                write_address(file, known, bound, password)
                output.say(f"On compute nodes: export HTTPS_PROXY=$(cat {file})")
        names = [str(target) for target in targets]
        session.done({"listening": where, "to": names}, f"Relay listening on {where}, to {', '.join(names)}")
        await ending.wait()
        await relay.close()
        session.done(
            {"carried": relay.carried, "refused": relay.refused},
            f"Stopped. Carried {relay.carried} connections, refused {relay.refused}.",
        )

    asyncio.run(run())


@click.command()
@click.argument("near")
@click.argument("far")
@click.option("--pace", type=click.FloatRange(0.01), help="Seconds between polls of FAR. [default: 1; 5 on S3]")
@options(study="none", store=False)
def bridge(session: CliSession, near: str, far: str, pace: float | None) -> None:
    """Carry studies between NEAR, a directory that local peers share, and FAR, the store where they live.

    Runs until it is stopped, on a node that reaches both, such as a login node. It may be stopped, killed and started
    again at any time, and two may run at once: records of local peers wait in NEAR. They use NEAR as their store.
    """
    session.settings.publish()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("hopaas_p2p").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ends = open_endpoints(near, far, open_store)
    bridge = Bridge(ends.near, ends.far, pool=ends.pool, artifacts=lambda: artifacts_of(ends.far), pace=pace)
    session.done({"near": ends.near.url, "far": ends.far.url}, f"Carrying between {ends.near.url} and {ends.far.url}")
    with contextlib.closing(ends):
        bridge.run(stop.wait)
    session.done({"carried": bridge.carried}, f"Stopped. Carried {output.count(bridge.carried, 'commit')}.")


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"--listen {listen}: give a port, host:port, or the path of a socket")
    return host.strip("[]"), int(port)
