"""The command `hopaas-p2p invite`, which prints one string that lets somebody join a study."""

from __future__ import annotations

from typing import Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, command, role_option
from hopaas_p2p.joining import invitation as invitations
from hopaas_p2p.runtime.times import to_iso
from hopaas_p2p.stores.postgres.connect import PostgresAddress


@command(study="argument")
@role_option
@click.option("--days", type=click.IntRange(1, 366), default=7, help="Days for which the invitation is valid.")
@click.option("--site", metavar="NAME", help="The name of the guest's site, under which its peers are shown.")
@click.option("--via", metavar="URL", help="The store's address for guests, such as a server's. [default: the store's]")
def invite(session: CliSession, **given: Any) -> None:
    """Print one string that lets somebody join STUDY with one command.

    \b
    hopaas-p2p invite digits --site north > north.invitation
    hopaas-p2p join north.invitation -- python train.py --lr {lr}      # there

    On Postgres, and for a store that is served (--via https://…), the string contains a new token for a guest who may
    use only this study and cannot create others. Guests with the same --site, or none, are one user and can act in each
    other's names. On Postgres, you need an administrator's login. `admin token revoke` revokes the token. For a bucket
    or a directory that guests reach themselves, the string only names the study; guests need their own keys or
    permissions.
    """  # noqa: D301  # click wants the backspace
    made = invitations.invite(session.store_url, session.study_name, **given | {"site": given["site"] or ""})
    said = made.invitation
    secret, expires = said.seal().reveal(), to_iso(said.expires * 1_000_000)
    data = {"study": said.study, "store": said.store, "token": made.token_name or None, "expires": expires}
    session.show({"invitation": secret, **data}, lambda: output.print_lines([secret]))
    if made.token_name:
        end = session.again(f"admin token revoke {made.token_name}")
        about = f"It is a secret and is shown only once, so send it as you would send a password. To revoke it: {end}"
    else:
        about = f"It contains no secret. Guests need their own access to {said.store}."
    output.say(f"This invitation to {said.study} is valid until {output.utc_time(expires)}. {about}")
    if said.store.startswith("postgresql") and PostgresAddress(said.store).local:
        output.say(f"Note: {said.store} can be reached only from this machine; to invite others, use --via URL")
