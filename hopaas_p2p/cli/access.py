"""The commands for access to a store, `hopaas-p2p admin init`, `user …`, `token …`, `grants`, `grant`, `revoke` and
`unlock`.
"""

from __future__ import annotations

import shlex

import click

from hopaas_p2p import access
from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import ROLES, CliSession, Columns, command, store_named
from hopaas_p2p.open import open_beside, redacted
from hopaas_p2p.runtime.times import to_iso


@command(study="none")
@click.argument("url", required=False, callback=store_named)
def init(session: CliSession, url: str | None) -> None:
    """Prepare a database as a store, or bring its schema up to date.

    URL is the database's URL with its owner's login, such as postgresql://owner@db.example.org/tuning. You can give it
    with --store instead. Repeating the command does no harm. It also prepares an empty directory or bucket, which
    `study create` does as well.
    """
    chosen = (CliSession(store=url) if url else session).store_url
    if not chosen.startswith(("postgresql:", "postgresql+psycopg2:")):
        store = open_beside(chosen)
        session.done({"store": store.url, "was": None}, f"The store at {store.url} is ready.")
        return
    before = access.initialise(chosen)
    cure = f"hopaas-p2p admin user add NAME --store {shlex.quote(redacted(chosen))}"
    what = "is up to date" if before else f"is ready. Next: {cure}"
    session.done({"store": redacted(chosen), "was": before or None}, f"The store at {redacted(chosen)} {what}")


@click.group(cls=Group)
def user() -> None:
    """Manage the users of a store. Administrators only."""


@user.command("add", study="none")
@click.argument("username", metavar="NAME")
@click.option("--administrator", is_flag=True, help="Allow everything (in a directory or bucket only).")
def user_add(session: CliSession, username: str, administrator: bool) -> None:
    """Create a user. Next, create a token for the user: hopaas-p2p admin token create NAME"""
    access.add_user(session.store_url, username, administrator=administrator)
    cure = session.again(f"admin token create {username}")
    session.done({"user": username}, f"Created the user {username}. Next: {cure}")


@user.command("list", study="none")
def user_list(session: CliSession) -> None:
    """List the users."""
    rows = [{"user": one.name, "created": one.created, "tokens": one.tokens} for one in access.users(session.store_url)]
    columns: Columns = {"user": "user", "created": output.time_in("created"), "tokens": "tokens"}
    session.show_table(rows, columns, right=("tokens",))


@user.command("rm", study="none")
@click.argument("username", metavar="NAME")
def user_rm(session: CliSession, username: str) -> None:
    """Remove a user with all tokens and grants. Open sessions end at once; the logs keep the user's work."""
    access.remove_user(session.store_url, username)
    session.done({"user": username}, f"Removed {username} with all tokens and grants.")


@click.group(cls=Group)
def token() -> None:
    """Create, list and revoke tokens. Administrators only."""


@token.command("create", study="none")
@click.argument("user")
@click.option("--days", type=click.IntRange(1, access.MOST_DAYS), default=30, help="Days for which the token is valid.")
@click.option("--label", help="A note, such as where the token is used.")
@click.option("--connections", type=int, help="Database connections at once. [default: 1/4 of its limit, at most 256]")
def token_create(session: CliSession, user: str, days: int, label: str | None, connections: int | None) -> None:
    """Create a token for USER and print it. The token is shown only once.

    \b
    hopaas-p2p admin token create alice --days 7 --label cluster > alice.token
    export HOPAAS_TOKEN_FILE=$PWD/alice.token
    """  # noqa: D301  # click wants the backspace
    made = access.create_token(session.store_url, user, days=days, label=label or "", connections=connections)
    secret = made.secret.reveal()
    data = {"name": made.name, "user": user, "token": secret, "expires": to_iso(made.expires)}
    session.show(data, lambda: output.print_lines([secret]))
    output.say(
        f"The token {made.name} is valid until {output.utc_time(to_iso(made.expires))}. It is not stored anywhere, "
        "and not shown again. Keep it in a file of mode 600, and set HOPAAS_TOKEN_FILE to the file's path."
    )


@token.command("list", study="none")
@click.option("--user", help="List the tokens of this user only.")
def token_list(session: CliSession, user: str | None) -> None:
    """List tokens. Each has a user, a label, and the times of its creation, expiry and, in a database, last use."""
    rows = [one._asdict() for one in access.tokens(session.store_url, user=user)]
    times: Columns = {name: output.time_in(name) for name in ("created", "expires")}
    in_use: Columns = {"in use": lambda row: f"{row['sessions']}/{row['connections']}"}
    in_database = session.store_url.startswith("postgresql")  # elsewhere, the use of tokens is not recorded
    used = {"last used": output.time_in("last_used"), **in_use} if in_database else {}
    session.show_table(rows, {"token": "name", "user": "user", "label": "label", **times, **used}, right=("in use",))


@token.command("revoke", study="none")
@click.argument("token_name", metavar="TOKEN")
def token_revoke(session: CliSession, token_name: str) -> None:
    """Revoke a token, named as in `admin token list`. Its open sessions end at once."""
    access.revoke_token(session.store_url, token_name)
    session.done({"name": token_name}, f"Revoked {token_name}.")


@command(study="argument")
def grants(session: CliSession) -> None:
    """List the grants for STUDY. Each has a user, a role, a time and an author. All holders of a grant may run this."""
    rows = [one._asdict() for one in access.grants(session.store_url, session.study_name)]
    session.show_table(rows, {"user": "user", "role": "role", "granted": output.time_in("granted"), "by": "granted_by"})


@command(study="none")
@click.argument("study_name", metavar="STUDY")
@click.argument("user")
@click.argument("role", type=click.Choice(ROLES))
def grant(session: CliSession, study_name: str, user: str, role: str) -> None:
    """Let USER view STUDY, work on it, or own it. Owners of the study only."""
    access.grant(session.store_url, study_name, user, role)
    data = {"study": study_name, "user": user, "role": role}
    session.done(data, f"{user} now has the role {role} in {study_name!r}.")


@command(study="none")
@click.argument("study_name", metavar="[STUDY]", required=False)
def unlock(session: CliSession, study_name: str | None) -> None:
    """End sessions whose open transaction keeps STUDY, or the list of studies, locked. Owners only.

    A session is ended if its transaction has been open for 20 seconds. Peers resend commits that were not acknowledged.
    The list also shows shorter transactions. To stop a user who opens one after another, revoke the grant or the token.
    """
    columns = ("login", "seconds", "ended")
    rows = [dict(zip(columns, one, strict=True)) for one in access.unlock(session.store_url, study_name)]
    session.show_table(rows, {one: one for one in columns}, right=("seconds",), empty="No transaction is open.")


@command(study="none")
@click.argument("study_name", metavar="STUDY")
@click.argument("user")
def revoke(session: CliSession, study_name: str, user: str) -> None:
    """Remove USER's grant for STUDY. Owners of the study only."""
    access.revoke(session.store_url, study_name, user)
    session.done({"study": study_name, "user": user}, f"{user} no longer has a role in {study_name!r}.")
