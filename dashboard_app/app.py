"""The list of pages, and one run of a session, which signs in, finds the study and shows the page."""

from __future__ import annotations

import importlib
import math
import time
from dataclasses import replace
from typing import Final, NamedTuple

import streamlit as st

from dashboard_app import options, sign_in, theme, url
from dashboard_app.page_context import PageContext
from dashboard_app.pages import pruning
from dashboard_app.replica_cache import cache_of
from hopaas_p2p.analysis.html import safe
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.open import redacted


class PageEntry(NamedTuple):
    """One page."""

    path: str
    """The page's name in the address; also the name of its module in `dashboard_app.pages`, which has `show(page)`."""
    title: str
    icon: str
    study: bool = True
    """Whether the page is about one study; otherwise it is about the store."""

    def draw(self, page: PageContext) -> None:
        """Draw the page."""
        importlib.import_module(f"dashboard_app.pages.{self.path}").show(page)


PAGES: Final = (
    PageEntry("studies", "Studies", ":material/dashboard:", study=False),
    PageEntry("live", "Live", ":material/monitoring:"),
    PageEntry("peers", "Peers & sites", ":material/hub:"),
    PageEntry("trials", "Trials", ":material/table_rows:"),
    PageEntry("trial", "Trial", ":material/target:"),
    PageEntry("explore", "Explore", ":material/scatter_plot:"),
    PageEntry("pruning", "Pruning", ":material/content_cut:"),
    PageEntry("notes", "Notes & artifacts", ":material/edit_note:"),
    PageEntry("steer", "Steer", ":material/tune:"),
    PageEntry("admin", "Admin", ":material/admin_panel_settings:", study=False),
)


def main() -> None:
    """One run of one session."""
    opts = options.current()
    st.set_page_config(page_title="hopaas-p2p", page_icon=theme.ICON, layout="wide")
    theme.apply()
    signed_in = ("", math.inf) if opts.auth == "none" else _signed_in()
    if signed_in is None:
        return
    person, until = signed_in
    try:
        page = PageContext(cache_of(opts.store), opts, person=person, until=until)
        studies = page.studies()
    except HopaasError as error:
        theme.error(error, icon=":material/error:")
        return
    name = url.given("study") or st.session_state.get("study", "")  # from the address, or else the study viewed before
    listing = next((one for one in studies if one.name == name), None)
    if listing is not None:
        st.session_state["study"] = name
    entries = [(entry, _page(entry, replace(page, listing=listing) if entry.study else page)) for entry in PAGES]
    shown = st.navigation([one for _, one in entries], position="hidden")
    with st.sidebar:
        _menu(entries, listing)
        _sidebar(page, studies, listing)
    shown.run()


def _signed_in() -> tuple[str, float] | None:
    """The person who signed in, and when the sign-in expires; None before a sign-in, when only its page is shown."""
    claims = st.user.to_dict() if st.user.is_logged_in else {}
    name, until = sign_in.person(claims), sign_in.ends(claims)
    if name and time.time() < until:
        return name, until
    theme.title("hopaas-p2p")
    if claims and not name:
        theme.nothing(
            f"Your provider does not send the claim {sign_in.claim()!r}, or has not verified it. "
            "Ask whoever runs this dashboard to set HOPAAS_OIDC_CLAIM to another claim."
        )
        st.button("Sign out", on_click=st.logout, type="tertiary")
        return None
    if claims:
        theme.nothing("Your session has expired. Please sign in again.")
    st.button("Sign in", on_click=st.login, type="primary", icon=":material/login:")
    return None


def _page(entry: PageEntry, page: PageContext) -> st.Page:
    """The Streamlit page for this entry. The menu links to the page only if it has something to show or to do.

    The address of a page that is not in the menu still works, and the page explains why it is empty.
    """

    def show() -> None:
        if entry.study and page.listing is None:
            asked = url.given("study")
            theme.title("No such study" if asked else "Choose a study")
            why = (
                f"There is no study {asked!r} in this store. It may have been deleted." if asked else "Choose a study."
            )
            theme.nothing(why)
            st.html(f'<a href="{safe(url.link(url.HOME))}" target="_self">All studies</a>')
            return
        if page.listing is not None:
            url.set_("study", page.listing.name)
        entry.draw(page)

    show.__name__ = entry.path
    offered = page.listing is not None or not entry.study
    if entry.path == "steer":
        offered = offered and page.may_act
    elif entry.path == "pruning" and offered:
        frame = page.frame
        offered = frame is not None and pruning.offered(frame)
    return st.Page(
        show, title=entry.title, icon=entry.icon, url_path=entry.path, default=entry is PAGES[0],
        visibility="visible" if offered else "hidden",
    )  # fmt: skip


def _menu(entries: list[tuple[PageEntry, st.Page]], listing: Listing | None) -> None:
    """Draw the menu. It replaces Streamlit's own, because screen readers cannot read that list when it has headings.

    Each link is a complete address, so it can be opened in another tab, and the Back button undoes it in one step.
    """
    for of_study in (False, True):
        shown = [page for entry, page in entries if entry.study == of_study and page.visibility == "visible"]
        if shown:
            st.html(f'<p class="hp-group">{"Study" if of_study else "Store"}</p>')
        for page in shown:
            study = {"study": listing.name} if of_study and listing is not None else {}
            st.page_link(page, icon=page.icon, width="stretch", query_params=study)


def _sidebar(page: PageContext, studies: list[Listing], listing: Listing | None) -> None:
    """Draw the sidebar, which selects the study and links to other views."""
    names = [one.name for one in studies]
    if names:
        picked = st.selectbox(
            "Study", names, index=names.index(listing.name) if listing is not None else None, placeholder="choose one",
            key=f"pick-{listing.uuid if listing is not None else ''}",
        )  # fmt: skip
        if picked is not None and (listing is None or picked != listing.name):
            st.session_state["study"] = picked
            url.set_("study", picked)
            st.rerun()
    if page.options.optuna_port is not None:
        st.link_button("optuna-dashboard", page.options.optuna_address, icon=":material/open_in_new:")
    theme.caption(f"Store: {redacted(page.cache.url)}")
    theme.caption("Changes allowed" if page.options.actions else "Read-only")
    if page.person:
        theme.caption(f"Signed in as {sign_in.shown(page.person)}")
        st.button("Sign out", on_click=st.logout, type="tertiary")
