"""`hopaas-p2p gateway`: let Postgres be reached through HTTPS."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from pathlib import Path
from typing import Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.gateway import log, server
from hopaas_p2p.gateway.admission import GatewayLimits
from hopaas_p2p.gateway.certificate import Certificate
from hopaas_p2p.gateway.postgres import PostgresTarget

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--listen", metavar="HOST:PORT", default="0.0.0.0:443", help="The address to listen on.")  # noqa: S104
@click.option("--tls-cert", type=_FILE, help="The certificate with its chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its key, PEM. Both files are read again when they change.")
@click.option("--postgres", metavar="URL", required=True, help="The one database to connect to, without a login.")
@click.option(
    "--behind-proxy",
    metavar="NETWORK",
    multiple=True,
    help="Serve without TLS, to a proxy in NETWORK that terminates it and sets X-Forwarded-For and -Proto.",
)
@click.option("--metrics-from", metavar="NETWORK", multiple=True, help="Who may read /metrics. [default: this machine]")
@click.option("--connections", default=1000, type=click.IntRange(1), help="Maximum number of tunnels at once.")
@click.option("--per-token", default=256, type=click.IntRange(1), help="Maximum number of tunnels per token.")
@click.option("--drain", default=30, type=click.FloatRange(0), help="Seconds for transactions to end after SIGTERM.")
@click.option("--remember", type=_FILE, help="File for digests of valid tokens. [default: in STATE_DIRECTORY, if set]")
@click.option("--ping", default=20.0, hidden=True, type=click.FloatRange(0.1, 50.0))
@click.option("--recheck", default=30.0, hidden=True, type=click.FloatRange(0.1, 300.0))
@click.option("--handshake", default=10.0, hidden=True, type=click.FloatRange(0.1, 60.0))
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure.")
def gateway(
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    postgres: str,
    behind_proxy: tuple[str, ...],
    metrics_from: tuple[str, ...],
    remember: Path | None,
    **limits: Any,
) -> None:
    """Let peers that can use only HTTPS reach a Postgres server.

    Peers use postgresql+https://HOST/DATABASE and their token. After SIGTERM it lets transactions end, then
    stops. The log goes to stderr, one line of JSON per event; /healthz and /metrics are for machines. Several gateways
    may run side by side.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"--listen {listen}: write HOST:PORT, such as 0.0.0.0:443")
    if (tls_cert is None) != (tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key must be given together.")
    if remember is None and os.environ.get("STATE_DIRECTORY"):
        remember = Path(os.environ["STATE_DIRECTORY"].partition(":")[0]) / "tokens"
    log.to_stderr()
    server.raise_descriptor_limit(limits["connections"])
    made = server.Gateway(
        PostgresTarget.of(postgres),
        certificate=Certificate(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None,
        behind=_networks(behind_proxy),
        metrics_from=_networks(metrics_from) or server.LOOPBACK,
        limits=GatewayLimits(**limits),
        remember=remember,
    )

    def listening(bound: int) -> None:
        output.say(f"Gateway listening on {host}:{bound}")

    asyncio.run(server.serve(made, host.strip("[]"), int(port), listening=listening))


def _networks(texts: tuple[str, ...]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(text, strict=False) for text in texts]
    except ValueError as error:
        raise InvalidInput(f"{error}; write a network such as 10.0.0.0/8, or one address") from None
