"""Who may use the store: users, tokens and grants. A Postgres store has them; others are open to all who reach them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.here import Here
from hopaas_p2p.errors import HopaasError

_MADE: Final = "token-just-made"


def people(here: Here) -> None:
    """Users and their tokens."""
    if not _has_users(here):
        return
    if not here.may_administer:
        theme.nothing("Users and tokens are for administrators, on a dashboard that is started with --allow-actions.")
        return
    from hopaas_p2p import access

    try:
        users, tokens = access.users(here.feed.address), access.tokens(here.feed.address)
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000))
        return
    theme.heading("Users")
    theme.table(
        ("user", "since", "tokens"),
        [[theme.safe(one.name), day(one.created), str(one.tokens)] for one in users],
        label="Users", numeric=(2,), empty="No user yet: whoever shall take part gets a name here, then a token.",
    )  # fmt: skip
    with st.form("user", clear_on_submit=True):
        left, right = st.columns([3, 1], vertical_alignment="bottom")
        name = left.text_input("New user", max_chars=45)
        if right.form_submit_button("Add", width="stretch") and name:
            _do(lambda: access.add_user(here.feed.address, name), f"{name} may use this store; now make a token")
    theme.heading("Tokens")
    _show_secret()
    rows = [
        [
            theme.safe(one.name), theme.safe(one.user), theme.safe(one.label), day(one.created), day(one.expires),
            day(one.last_used), f"{one.sessions} of {one.connections}",
        ]
        for one in tokens
    ]  # fmt: skip
    headers = ("token", "user", "label", "made", "valid until", "last used", "in use")
    theme.table(headers, rows, label="Tokens", numeric=(6,), empty="No token yet.")
    names = [one.name for one in users]
    left, right = st.columns(2)
    with left:
        _new_token(here, names)
    with right:
        _end(here, names, [one.name for one in tokens])


def _new_token(here: Here, users: list[str]) -> None:
    from hopaas_p2p import access

    with st.form("token"):
        user = st.selectbox("Token for", users, index=None)
        valid = st.segmented_control("Valid for a", list(access.VALIDITIES), default="month", required=True)
        label = st.text_input("Label: where it is used", max_chars=60)
        if st.form_submit_button("Make a token", type="primary") and user:
            made: list[access.NewToken] = []
            place, span = here.feed.address, valid or "month"
            if _do(lambda: made.append(access.create_token(place, user, label=label, valid=span)), "", rerun=False):
                st.session_state[_MADE] = made[0]
                st.rerun()


def _show_secret() -> None:
    """The secret of a token, once."""
    made = st.session_state.pop(_MADE, None)
    if made is not None:
        st.warning("This is the only time that this token is shown. Keep it in a file of mode 600 (HOPAAS_TOKEN_FILE).")
        st.code(made.secret.reveal(), language=None, wrap_lines=True)


def _end(here: Here, users: list[str], tokens: list[str]) -> None:
    from hopaas_p2p import access

    with st.form("revoke"):
        token = st.selectbox("End a token", tokens, index=None)
        if st.form_submit_button("Revoke it") and token:
            _do(lambda: access.revoke_token(here.feed.address, token), f"{token} is revoked; its sessions have ended")
    with st.form("remove"):
        user = st.selectbox("Remove a user, with all tokens and grants", users, index=None)
        sure = st.text_input("Type the name again")
        if st.form_submit_button("Remove") and user:
            if sure != user:
                st.error("The names differ; nothing was removed.")
            else:
                _do(lambda: access.remove_user(here.feed.address, user), f"{user} and its tokens and grants are gone")


def study_grants(here: Here) -> None:
    """Who may do what in one study."""
    if not _has_users(here):
        return
    from hopaas_p2p import access

    studies = [one.name for one in here.studies()]
    name = st.selectbox("Study", studies, key="of-grants") if studies else None
    if name is None:
        theme.nothing("No study yet.")
        return
    try:
        found = access.grants(here.feed.address, name)
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000))
        return
    rows = [[theme.safe(one.user), one.role, day(one.granted), theme.safe(one.granted_by)] for one in found]
    theme.table(("user", "may", "since", "granted by"), rows, label="Grants", empty="Nobody has a grant yet.")
    theme.caption("viewer: look. worker: also run and queue trials, write notes. owner: also control and share.")
    listing = next(one for one in here.studies() if one.name == name)
    if not (here.options.actions and here.role(listing) == "owner"):
        theme.caption("Grants are given by the study's owners, on a dashboard that is started with --allow-actions.")
        return
    with st.form("grant"):
        left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
        user = left.text_input("User", max_chars=63)
        role = middle.segmented_control("May", [*access.ROLES, "nothing"], default="viewer", required=True)
        if right.form_submit_button("Share", width="stretch") and user:
            if role == "nothing":
                _do(lambda: access.revoke(here.feed.address, name, user), f"{user} has no part in {name} any more")
            else:
                _do(
                    lambda: access.grant(here.feed.address, name, user, role or "viewer"),
                    f"{user} is {role} of {name} now",
                )


def _has_users(here: Here) -> bool:
    if hasattr(here.feed.store, "call"):
        return True
    theme.nothing(
        "This store has no users of its own: who may read or write it is decided by the file system, or by the "
        "bucket's policy. A Postgres store has users, tokens and grants."
    )
    return False


def _do(what: Callable[[], Any], done: str, *, rerun: bool = True) -> bool:
    try:
        what()
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000))
        return False
    if done:
        st.toast(theme.plain(done), icon=":material/check:")
    if rerun:
        st.rerun()
    return True


def day(when: datetime.datetime | None) -> str:
    """A moment, to the minute, in UTC."""
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M") if when else "-"
