"""The argument of every page: the store, the study, and what this person may do there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import streamlit as st

from dashboard_app import sign_in, theme
from dashboard_app.frames import Frame
from dashboard_app.options import DashboardOptions
from dashboard_app.replica_cache import ReplicaCache
from dashboard_app.roles import Role, named, role_of
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.study import Study

_LEASES: Final = 60  # the most leases that a page counts down


@dataclass(frozen=True, slots=True)
class PageContext:
    """One run of one session."""

    cache: ReplicaCache
    options: DashboardOptions
    listing: Listing | None = None
    """The study that the address names; None on a page about the store."""
    person: str = ""
    """The person who signed in; empty without sign-in."""
    until: float = math.inf
    """When the sign-in expires, in seconds since 1970."""

    @property
    def uuid(self) -> str:
        """The study's uuid, on a page about a study."""
        assert self.listing is not None
        return self.listing.uuid

    @property
    def frame(self) -> Frame | None:
        """The study as last seen."""
        return self.cache.frame(self.uuid)

    def title(self, text: str) -> None:
        """Draw the page's heading below the study's name."""
        theme.title(text, above=self.listing.name if self.listing is not None else "")

    def leases(self, frame: Frame) -> dict[str, Any]:
        """Owner -> seconds left of its lease, as sent to a page's browser with each poll."""
        left, running = self.cache.leases(frame.uuid), sorted(frame.state.running)[:_LEASES]
        owners = [frame.state.trials[one].owner or "" for one in running]
        return {"leases": {owner: round(left[owner]) for owner in owners if owner in left}}

    def studies(self) -> list[Listing]:
        """The studies that this person may see, newest first."""
        return [one for one in self.cache.studies() if self.role(one) != "none"]

    def role(self, listing: Listing | None = None) -> Role:
        """This person's role in a study; by default, in this study."""
        one = listing or self.listing
        if one is None or time.time() >= self.until:
            return "none"
        return role_of(self.cache, one.uuid, self.options, self.person)

    @property
    def may_act(self) -> bool:
        """Whether to show controls that add to the study, as server and grant allow. The store checks each change."""
        return self.options.actions and self.role() in ("worker", "owner")

    @property
    def may_steer(self) -> bool:
        """Whether to show controls for the study's owners."""
        return self.options.actions and self.role() == "owner"

    @property
    def may_administer(self) -> bool:
        """Whether this person may use the dashboard's own rights over users, tokens and grants.

        Without sign-in, everyone who may act does; with sign-in, the people named in HOPAAS_DASHBOARD_ADMINS.
        """
        named_here = self.options.auth == "none" or self.person in named("HOPAAS_DASHBOARD_ADMINS")
        return self.options.actions and time.time() < self.until and named_here

    def study(self) -> Study:
        """The study, for writing. Writes go through the replica that is shown.

        Raises:
            NoSuchStudy: the study was deleted meanwhile.
            StoreUnreachable: the store does not answer.

        """
        assert self.listing is not None
        return self.cache.study(self.listing, sign_in.signature(self.person))

    def act(self, do: Callable[[Study], Any], *, done: str) -> None:
        """Apply a change to the study, confirm it, and redraw the page; or show why it was refused.

        The store checks the user's rights, whatever the page shows.
        """

        def change() -> None:
            if not self.options.actions:
                raise Denied("This dashboard is read-only; start it with --allow-actions to change things.")
            if not self.may_act:
                raise Denied(
                    "You may not change this study. Ask one of its owners for the role worker, or sign in again."
                )
            do(self.study())
            self.cache.show_written(self.uuid)

        attempt(change, done)


def attempt(change: Callable[[], Any], done: str = "") -> None:
    """Make a change, confirm it, and redraw the page; or show why it was refused."""
    try:
        change()
    except HopaasError as error:
        queued = isinstance(error, StoreUnreachable) and error.queued  # it is sent when the store answers
        theme.error(error, icon=":material/hourglass:" if queued else ":material/block:")
        return
    if done:
        st.toast(theme.plain(done), icon=":material/check:")
    st.rerun()
