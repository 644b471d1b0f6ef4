"""One run of one session: sign in, find the study, show the page. `entry/app.py` calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from dashboard_app import options, theme, url
from dashboard_app.feed import feed_of
from dashboard_app.here import Here
from dashboard_app.registry import PAGES, Entry
from dashboard_app.roles import person
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.url import redacted


def main() -> None:
    """One run of one session."""
    told = options.current()
    st.set_page_config(page_title="hopaas-p2p", page_icon=theme.ICON, layout="wide")
    theme.apply()
    if told.auth == "oidc" and not _signed_in():
        return
    try:
        feed = feed_of(_store(told))
        who = person(st.user.to_dict()) if told.auth == "oidc" else ""
        here = Here(feed, told, person=who)
        studies = here.studies()
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000), icon=":material/error:")
        return
    groups = _pages(here, studies)
    page = st.navigation([page for group in groups.values() for page in group], position="hidden")
    with st.sidebar:
        _menu(groups, _chosen(studies))
        _sidebar(here, studies)
    page.run()


def _store(told: options.Options) -> str:
    """The store that the address names, else the one looked at before, else the first.

    Never a URL that only the address names: it has to be one that we serve.
    """
    known = _stores(told)
    for name in (url.given("store"), st.session_state.get("store", "")):
        if name in known:
            st.session_state["store"] = name
            url.set_("store", name)
            return known[name]
    return told.stores[0]


def _stores(told: options.Options) -> dict[str, str]:
    """The stores we serve: as they may be shown -> as they were given."""
    return {feed_of(one).url: one for one in told.stores} if len(told.stores) > 1 else {}


def _signed_in() -> bool:
    if st.user.is_logged_in:
        return True
    theme.title("hopaas-p2p")
    st.button("Sign in", on_click=st.login, type="primary", icon=":material/login:")
    return False


def _pages(here: Here, studies: list[Listing]) -> dict[str, list[st.Page]]:
    """The pages by the heading that they stand under."""
    listing = _chosen(studies)
    groups: dict[str, list[st.Page]] = {}
    for entry in PAGES:
        if entry.actions and not here.options.actions:
            continue
        groups.setdefault(entry.group, []).append(
            st.Page(
                _shower(entry, replace(here, listing=listing if entry.study else None)),
                title=entry.title,
                icon=entry.icon,
                url_path=entry.path,
                default=entry is PAGES[0],
                visibility="visible" if entry.listed and (listing is not None or not entry.study) else "hidden",
            )
        )
    return groups


def _menu(groups: dict[str, list[st.Page]], listing: Listing | None) -> None:
    """Ours: Streamlit's own, with headings, is a list that a screen reader cannot read.

    Each link says all of its address: it can be opened in another tab, and is one step for the button Back.
    """
    store = {"store": named} if (named := url.given("store")) else {}
    of_study = {entry.path for entry in PAGES if entry.study}
    for heading, pages in groups.items():
        shown = [page for page in pages if page.visibility == "visible"]
        if shown:
            st.html(f'<p class="hp-group">{theme.safe(heading)}</p>')
        for page in shown:
            study = {"study": listing.name} if listing is not None and page.url_path in of_study else {}
            st.page_link(page, icon=page.icon, width="stretch", query_params=store | study)


def _sidebar(here: Here, studies: list[Listing]) -> None:
    """Which study and store are shown, and where else to look."""
    now = _chosen(studies)
    names = [one.name for one in studies]
    if names:
        picked = st.selectbox(
            "Study",
            names,
            index=names.index(now.name) if now is not None else None,
            placeholder="choose one",
            key=f"pick-{now.uuid if now is not None else ''}",
        )
        if picked is not None and (now is None or picked != now.name):
            st.session_state["study"] = picked
            url.set_("study", picked)
            st.rerun()
    if len(here.options.stores) > 1:
        known = list(_stores(here.options))
        store = st.selectbox("Store", known, index=known.index(here.feed.url), key="pick-store")
        if store != here.feed.url:
            st.session_state["store"] = store
            url.set_("study", None)
            url.set_("store", store)
            st.session_state.pop("study", None)
            st.rerun()
    if here.options.optuna_port is not None:
        host = here.options.host
        st.link_button("optuna-dashboard", f"http://{host}:{here.options.optuna_port}/", icon=":material/open_in_new:")
    lines = [f"store {redacted(here.feed.url)}", "changes allowed" if here.options.actions else "read-only"]
    lines += [f"signed in as {here.person}"] if here.person else []
    for line in lines:
        theme.caption(line)
    if here.person:
        st.button("Sign out", on_click=st.logout, type="tertiary")


def _chosen(studies: list[Listing]) -> Listing | None:
    """The study that the address names, else the one looked at before."""
    by_name = {one.name: one for one in studies}
    name = url.given("study") or st.session_state.get("study", "")
    found = by_name.get(name)
    if found is not None:
        st.session_state["study"] = name
    return found


def _shower(entry: Entry, here: Here) -> Callable[[], None]:
    def show() -> None:
        if entry.study:
            if here.listing is None:
                _no_study()
                return
            url.set_("study", here.listing.name)
        entry.load()(here)

    show.__name__ = entry.module
    return show


def _no_study() -> None:
    asked = url.given("study")
    theme.title("No such study" if asked else "Which study?")
    theme.nothing(
        f"There is no study {asked!r} here; it may have been deleted." if asked else "Choose one among the campaigns."
    )
    st.html(f'<a href="{theme.safe(url.link("campaigns"))}" target="_self">All campaigns</a>')
