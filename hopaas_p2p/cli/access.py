"""`hopaas-p2p init`, `user …`, `token …`, `grants`, `grant`, `revoke`: who may use a Postgres store, and for what."""

from __future__ import annotations

import datetime
from typing import Any, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import Session, options

_ROLES: Final = ("viewer", "worker", "owner")


@click.command()
@click.argument("url", required=False)
@options(study="none")
def init(session: Session, url: str | None) -> None:
    """Prepare a database as a store, or bring its schema up to date.

    URL is that of the database with its owner's login, e.g. postgresql://owner@db.example.org/tuning; it may also be
    given by --store. Repeating it does no harm.
    """
    from hopaas_p2p.stores.url import open_store, redacted

    chosen = url or session.store_url
    if not chosen.startswith(("postgresql:", "postgresql+psycopg2:")):
        store = open_store(chosen)
        session.done({"store": store.url, "was": None}, f"{store.url} is ready")
        return
    from hopaas_p2p import access

    before = access.initialise(chosen)
    what = "is up to date" if before else "is ready; give people tokens: hopaas-p2p user add, hopaas-p2p token create"
    session.done({"store": redacted(chosen), "was": before or None}, f"the store in {redacted(chosen)} {what}")


@click.group()
def user() -> None:
    """Manage the users of a Postgres store. For its administrators."""


@user.command("add")
@click.argument("username", metavar="NAME")
@options(study="none")
@click.option("--existing", is_flag=True, help="Let a login that the server has already use this store.")
def user_add(session: Session, username: str, existing: bool) -> None:
    """Make a user. Then give it a token: hopaas-p2p token create NAME"""
    from hopaas_p2p import access

    access.add_user(session.store_url, username, existing=existing)
    session.done({"user": username}, f"{username} may use this store; next: hopaas-p2p token create {username}")


@user.command("list")
@options(study="none")
def user_list(session: Session) -> None:
    """List the users."""
    from hopaas_p2p import access

    found = access.users(session.store_url)
    session.show(
        [{"user": one.name, "created": _iso(one.created), "tokens": one.tokens} for one in found],
        lambda: output.print_table(
            ("user", "created", "tokens"),
            [(one.name, _local(one.created), str(one.tokens)) for one in found],
            right=("tokens",),
        ),
    )


@user.command("rm")
@click.argument("username", metavar="NAME")
@options(study="none")
def user_rm(session: Session, username: str) -> None:
    """Remove a user with all tokens and grants. Open sessions end at once; what it did stays in the logs."""
    from hopaas_p2p import access

    access.remove_user(session.store_url, username)
    session.done({"user": username}, f"{username} and all its tokens and grants are gone")


@click.group()
def token() -> None:
    """Create, list and revoke tokens. For the store's administrators."""


@token.command("create")
@click.argument("user")
@options(study="none")
@click.option("--valid", default="month", show_default=True, metavar="day|week|month|year|DATE", help="How long.")
@click.option("--label", default="", help="Where it is used, for people.")
@click.option("--connections", type=int, default=256, show_default=True, help="Processes that may use it at once.")
def token_create(session: Session, user: str, valid: str, label: str, connections: int) -> None:
    """Make a token for USER and print it: the only time that it is seen.

    \b
    hopaas-p2p token create alice --valid week --label cluster > alice.token
    export HOPAAS_TOKEN_FILE=$PWD/alice.token
    """  # noqa: D301  # click wants the backspace
    from hopaas_p2p import access

    made = access.create_token(session.store_url, user, valid=valid, label=label, connections=connections)
    secret = made.secret.reveal()
    session.show(
        {"name": made.name, "user": user, "token": secret, "expires": _iso(made.expires)},
        lambda: output.print_lines([secret]),
    )
    output.say(
        f"{made.name} is valid until {_local(made.expires)}. It is not stored anywhere and not shown again: keep it in "
        "a file of mode 600, and name that in HOPAAS_TOKEN_FILE."
    )


@token.command("list")
@options(study="none")
@click.option("--user", help="Of this user only.")
def token_list(session: Session, user: str | None) -> None:
    """List tokens: user, label, created, expires, last used."""
    from hopaas_p2p import access

    found = access.tokens(session.store_url, user=user)
    session.show(
        [_token_facts(one) for one in found],
        lambda: output.print_table(
            ("token", "user", "label", "created", "expires", "last used", "in use"),
            [
                (
                    one.name,
                    one.user,
                    one.label or "-",
                    _local(one.created),
                    _local(one.expires),
                    _local(one.last_used),
                    f"{one.sessions}/{one.connections}",
                )
                for one in found
            ],
            right=("in use",),
        ),
    )


def _token_facts(one: Any) -> dict[str, Any]:
    return {
        "name": one.name,
        "user": one.user,
        "label": one.label,
        "created": _iso(one.created),
        "expires": _iso(one.expires),
        "last_used": _iso(one.last_used),
        "connections": one.connections,
        "sessions": one.sessions,
    }


@token.command("revoke")
@click.argument("token_name", metavar="TOKEN")
@options(study="none")
def token_revoke(session: Session, token_name: str) -> None:
    """End a token, named as in `token list` or by its label. Its open sessions end at once."""
    from hopaas_p2p import access

    gone = access.revoke_token(session.store_url, token_name)
    session.done({"name": gone}, f"{gone} is revoked")


@click.command()
@options(study="argument")
def grants(session: Session) -> None:
    """List who may do what in STUDY: user, role, since when, by whom. For everybody with a grant."""
    from hopaas_p2p import access

    found = access.grants(session.store_url, session.study_name)
    session.show(
        [{"user": g.user, "role": g.role, "granted": _iso(g.granted), "granted_by": g.granted_by} for g in found],
        lambda: output.print_table(
            ("user", "role", "granted", "by"), [(g.user, g.role, _local(g.granted), g.granted_by) for g in found]
        ),
    )


@click.command()
@click.argument("study_name", metavar="STUDY")
@click.argument("user")
@click.argument("role", type=click.Choice(_ROLES))
@options(study="none")
def grant(session: Session, study_name: str, user: str, role: str) -> None:
    """Let USER view STUDY, work in it, or own it. For the study's owners."""
    from hopaas_p2p import access

    access.grant(session.store_url, study_name, user, role)
    session.done({"study": study_name, "user": user, "role": role}, f"{user} is {role} of {study_name} now")


@click.command()
@click.argument("study_name", metavar="STUDY")
@click.argument("user")
@options(study="none")
def revoke(session: Session, study_name: str, user: str) -> None:
    """Take USER's grant for STUDY away. For the study's owners."""
    from hopaas_p2p import access

    access.revoke(session.store_url, study_name, user)
    session.done({"study": study_name, "user": user}, f"{user} has no part in {study_name} any more")


def _iso(when: datetime.datetime | None) -> str | None:
    return when.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z") if when else None


def _local(when: datetime.datetime | None) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M") if when else "-"
