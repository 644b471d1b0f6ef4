"""`hopaas-p2p bridge`: lets peers that reach only a shared directory take part in studies that live elsewhere."""

from __future__ import annotations

import logging
import signal
import threading

import click

from hopaas_p2p.cli.options import Session, options


@click.command()
@click.argument("near")
@click.argument("far")
@click.option(
    "--pace",
    metavar="SECONDS",
    type=click.FloatRange(min=0.01),
    help="Between looks for what others did; by default 1 s on Postgres, 5 s on S3.",
)
@options(study="none", store=False)
def bridge(session: Session, near: str, far: str, pace: float | None) -> None:
    """Carry studies between NEAR, a directory that local peers share, and FAR, the store where they live.

    Runs until it is stopped, on a node that reaches both, such as a login node. It may be stopped, killed and started
    again at any time, and two may run at once: what local peers have said waits in NEAR. They use NEAR as their store.
    """
    from hopaas_p2p.stores.bridge.bridge import Bridge
    from hopaas_p2p.stores.bridge.ends import open_ends

    session.settings.publish()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("hopaas_p2p").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ends = open_ends(near, far)
    bridge = Bridge(ends.near, ends.far, crew=ends.crew, pace=pace)
    session.done({"near": ends.near.url, "far": ends.far.url}, f"carrying between {ends.near.url} and {ends.far.url}")
    try:
        bridge.run(stop.wait)
    finally:
        ends.close()
    session.done({"carried": bridge.carried}, f"stopped; carried {bridge.carried} commits")
