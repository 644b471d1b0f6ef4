"""The command `hopaas-p2p dashboard`, which serves the monitor to browsers."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, command, store_named
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.open import redacted
from hopaas_p2p.runtime import extras


@command(study="none")
@click.argument("named", required=False, metavar="[STORE]", callback=store_named)
@click.option("--host", default="127.0.0.1", help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, help="The port to listen on.")
@click.option("--allow-actions/--read-only", "actions", help="Let people change studies within their grants.")
@click.option("--auth", type=click.Choice(["none", "oidc"]), default="none", help="How people sign in.")
@click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME", help="The host name that a proxy uses.")
@click.option("--base-path", metavar="PATH", help="The path at which a proxy serves the dashboard.")
@click.option("--open", "open_browser", is_flag=True, help="Open a browser.")
@click.option("--optuna", "with_optuna", is_flag=True, help="Also serve optuna-dashboard, on the next port.")
def dashboard(session: CliSession, named: str | None, with_optuna: bool, base_path: str | None, **given: Any) -> None:
    """Watch studies in a browser: which trials run, where, and how well.

    The dashboard reads the store like a peer, and needs nothing else; a viewer's token is enough. The printed address
    contains a key; requests without the key are refused.

    \b
    hopaas-p2p dashboard ./campaign --open
    hopaas-p2p dashboard --allow-actions        # the store in HOPAAS_STORE; pause, enqueue, annotate
    """  # noqa: D301  # click wants the backspace
    for module in ("streamlit", *(["optuna_dashboard"] if with_optuna else [])):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"the dashboard needs {module}: {extras.install('dashboard')}")
    host, port, auth = given["host"], given["port"], given["auth"]
    if with_optuna and auth != "none":
        raise click.UsageError("optuna-dashboard has no sign-in. Omit --optuna or --auth.")
    if with_optuna and port == 65535:
        raise click.UsageError("--optuna uses the port after --port, and 65535 is the last. Choose a lower --port.")
    for store in filter(None, [named, session.given["store"]]):
        if redacted(store) != store:
            cure = "set AWS_PROFILE" if store.startswith("s3:") else "set HOPAAS_TOKEN_FILE, or PGPASSFILE"
            raise ConfigurationError(f"{redacted(store)}: a password does not belong in an argument; {cure}")
    store = named or session.store_url
    if auth != "none" and store.lower().startswith("https:"):
        raise ConfigurationError(
            f"{redacted(store)}: a server does not reveal users' grants, so anyone who signs in could see all studies. "
            "With --auth, use the URL of the store that it serves"
        )
    session.settings.publish()
    from dashboard_app.options import DashboardOptions
    from dashboard_app.server import serve
    from hopaas_p2p.net.proxies import is_loopback

    optuna_port = port + 1 if with_optuna else None
    opts = DashboardOptions(store=store, base_path=base_path or "", optuna_port=optuna_port, **given)
    if given["actions"] and auth == "none" and not is_loopback(host):
        output.say(f"Anyone who has the key can change these studies, and {host}:{port} has no TLS. See --auth oidc.")
    serve(opts)
