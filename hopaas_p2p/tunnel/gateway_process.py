"""A gateway as a process: its descriptors, its signals, and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.tunnel.gateway import LOOPBACK, PENDING, Gateway, Limits, Networks
from hopaas_p2p.tunnel.gateway_log import event
from hopaas_p2p.tunnel.gateway_postgres import Target
from hopaas_p2p.tunnel.gateway_tls import Certificate


def make_room(connections: int) -> None:
    """Let this process have as many descriptors as so many tunnels need: two each, and those at the door."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 2 * PENDING + 64
    if soft != resource.RLIM_INFINITY and soft < wanted:
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        if possible < wanted:
            event("few descriptors", level=logging.WARNING, have=possible, want=wanted)


async def serve(
    url: str,
    *,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    behind: Networks = (),
    metrics_from: Networks = LOOPBACK,
    limits: Limits | None = None,
    listening: Callable[[int], None] | None = None,
) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it; a second one hurries. See `Gateway` for the arguments."""
    if (certificate is None) != (key is None):
        raise ConfigurationError("--tls-cert and --tls-key belong together")
    pair = None if certificate is None or key is None else Certificate(certificate, key)
    gateway = Gateway(Target.of(url), certificate=pair, behind=behind, metrics_from=metrics_from, limits=limits)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_note_trouble)

    def asked_to_stop() -> None:
        if stop.is_set():
            gateway.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # "reload": files are looked at every second anyway
    bound = await gateway.start(host, port)
    if listening is not None:
        listening(bound)
    await stop.wait()
    await gateway.drain()


def _note_trouble(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What went wrong in a callback: one connection's trouble, told without what it was about."""
    error = context.get("exception")
    where = traceback.extract_tb(error.__traceback__)[-1] if error is not None and error.__traceback__ else None
    event(
        "failed",
        level=logging.ERROR,
        why=type(error).__name__ if error is not None else context.get("message"),
        where=f"{Path(where.filename).name}:{where.lineno}" if where is not None else None,
    )
