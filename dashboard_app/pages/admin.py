"""The page Admin, with users, tokens and grants of a Postgres store."""

from __future__ import annotations

import datetime
import time
from functools import partial
from typing import Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.page_context import PageContext, attempt
from hopaas_p2p import access
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.remote.access import ROLES

_MADE: Final = "token-just-made"
_OWN_TOKENS: Final = 20
"""The most tokens that a person can have at once when creating them on this page."""


def show(page: PageContext) -> None:
    """The page."""
    theme.title("Admin")
    theme.caption(f"The store is {page.cache.url}.")
    if not hasattr(page.cache.store, "call"):
        theme.nothing(
            "This page manages users of Postgres stores only. For a store behind serve https, use hopaas-p2p admin on "
            "its server. For other stores, the file system or the bucket's policy decides who may read or write."
        )
        return
    parts = {"People": _people, "Grants": _grants}
    if page.person:
        parts["Your tokens"] = _own_tokens
    part = theme.segments("Part", list(parts), key="part", visible=False)
    try:
        parts[part](page)
    except HopaasError as error:
        theme.error(error)


def _people(page: PageContext) -> None:
    """Users and their tokens."""
    if not page.may_administer:
        theme.nothing("Only administrators can manage users and tokens, and only with --allow-actions.")
        return
    users = access.users(page.cache.url)
    names = [one.name for one in users]
    theme.table(
        ("user", "since", "tokens"),
        [[one.name, _day(one.created), str(one.tokens)] for one in users],
        label="Users", titled=True, empty="No users yet. Add a user here, then create a token for that user.",
    )  # fmt: skip
    with st.form("user", clear_on_submit=True):
        left, right = st.columns([3, 1], vertical_alignment="bottom")
        name = left.text_input("New user", max_chars=45)
        if right.form_submit_button("Add", width="stretch") and name:
            attempt(lambda: access.add_user(page.cache.url, name), f"{name} may use this store; next, create a token")
    theme.heading("Tokens")
    _tokens(page, access.tokens(page.cache.url), names)
    with st.form("remove"):
        user = st.selectbox("Remove a user, with all tokens and grants", names, index=None)
        sure = st.text_input("Type the name again")
        if st.form_submit_button("Remove") and user:
            if sure != user:
                st.error("The names differ; nothing was removed.")
            else:
                attempt(lambda: access.remove_user(page.cache.url, user), f"{user} was removed, with tokens and grants")


def _own_tokens(page: PageContext) -> None:
    """The tokens of the person who has signed in, as the store's user of the same name."""
    if not page.options.actions or time.time() >= page.until:
        cure = "Sign in again" if page.options.actions else "Start the dashboard with --allow-actions"
        theme.nothing(f"{cure} to manage your own tokens.")
    elif all(one.name != page.person for one in access.users(page.cache.url)):
        theme.nothing(
            f"This store has no user {theme.plain(page.person)}. Ask an administrator to add you, and to give you "
            "access to a study."
        )
    else:
        theme.caption("A token gives your programs your rights. Create one per cluster, and revoke unused ones.")
        _tokens(page, access.tokens(page.cache.url, user=page.person))


def _tokens(page: PageContext, tokens: list[access.Token], users: list[str] | None = None) -> None:
    """Draw tokens, and forms to create and revoke them. Without `users`, they are for the person who has signed in."""
    made = st.session_state.pop(_MADE, None)
    if made is not None:
        st.warning("This token is shown only now. Keep it in a file of mode 600, named by HOPAAS_TOKEN_FILE.")
        st.code(made.secret.reveal(), language=None, wrap_lines=True)
    rows = [
        [
            *(one.name, one.user, one.label),
            *map(_day, (one.created, one.expires, one.last_used)),
            f"{one.sessions} of {one.connections}",
        ]
        for one in tokens
    ]
    headers = ("token", "user", "label", "made", "valid until", "last used", "in use")
    theme.table(headers, rows, label="Tokens", empty="No token yet.")
    left, right = st.columns(2)
    if users is None and len(tokens) >= _OWN_TOKENS:
        with left:
            theme.nothing(f"The limit is {_OWN_TOKENS} tokens per person. Revoke one before you create another.")
    else:
        with left, st.form("token"):
            user = page.person if users is None else st.selectbox("Token for", users, index=None)
            days = st.number_input("Valid for days", 1, access.MOST_DAYS, 30)
            label = st.text_input("Label, such as where it is used", max_chars=60)
            if st.form_submit_button("Create a token", type="primary") and user:
                made = partial(access.create_token, page.cache.url, user, label=label, days=days)
                attempt(lambda: st.session_state.update({_MADE: made()}))
    with right, st.form("revoke"):
        token = st.selectbox("Revoke a token", [one.name for one in tokens], index=None)
        if st.form_submit_button("Revoke it") and token:
            attempt(lambda: access.revoke_token(page.cache.url, token), f"{token} and its sessions are revoked")


def _grants(page: PageContext) -> None:
    """Who may do what in one study."""
    studies = {one.name: one for one in page.studies()}
    if not studies:
        theme.nothing("No study yet.")
        return
    before = st.session_state.get("study")
    name = st.selectbox("Study", studies, index=list(studies).index(before) if before in studies else 0, key="of")
    call = partial(page.cache.store.call, log=studies[name].uuid)  # type: ignore[attr-defined]  # see `show`
    rows = [[user, role, _day(granted), by] for user, role, granted, by in call("grants")]
    theme.table(("user", "may", "since", "granted by"), rows, label="Grants", empty="Nobody has a grant yet.")
    theme.caption("A viewer reads, a worker also runs and queues trials, and an owner also controls and shares.")
    if not (page.options.actions and page.role(studies[name]) == "owner"):
        theme.caption("Only owners of the study can give grants, and only on a dashboard with --allow-actions.")
        return
    with st.form("grant"):
        left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
        user = left.text_input("User", max_chars=63)
        role = middle.segmented_control("May", [*ROLES, "nothing"], default="viewer", required=True)
        if right.form_submit_button("Share", width="stretch") and user:
            if role == "nothing":
                attempt(lambda: call("revoke", user=user), f"{user} no longer has access to {name}")
            else:
                done = f"{user} is now {role} of {name}"
                attempt(lambda: call("grant", user=user, role=role), done)


def _day(when: datetime.datetime | None) -> str:
    """A time to the minute, in UTC, or "-"."""
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M") if when else "-"
