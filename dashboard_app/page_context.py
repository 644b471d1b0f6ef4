"""The argument of every page, with the store, the study, and this person's rights in both.

Dialogs, fragments and downloads outlive the run that drew them, and a person's grant or sign-in can end meanwhile. So
pages read and write only through `frame`, `study`, `act` and `download`, which check the person's role at each use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import streamlit as st

from dashboard_app import sign_in, theme
from dashboard_app.frames import Frame
from dashboard_app.options import DashboardOptions
from dashboard_app.replica_cache import ReplicaCache
from dashboard_app.roles import Role, named, role_of
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.remote.access import ROLES
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
        """The study as last read; None if there is none, or if this person is no longer allowed to see it."""
        return self.cache.frame(self.uuid) if self.role() != "none" else None

    def title(self, text: str) -> None:
        """Draw the page's heading below the study's name."""
        theme.title(text, above=self.listing.name if self.listing is not None else "")

    def leases(self, frame: Frame) -> dict[str, Any]:
        """The seconds left of the leases of running trials, by owner, as `more` of `redraw.live`; at most 60 leases."""
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
        """Whether to show controls for changes that take the role worker. `study` checks the role again."""
        return self.options.actions and self.role() in ("worker", "owner")

    @property
    def may_steer(self) -> bool:
        """Whether to show controls for changes that take the role owner."""
        return self.options.actions and self.role() == "owner"

    @property
    def may_administer(self) -> bool:
        """Whether this person may manage users, tokens and grants with the dashboard's own rights.

        Without sign-in, everyone may on a dashboard that allows actions; with sign-in, the people named in
        HOPAAS_DASHBOARD_ADMINS.
        """
        named_here = self.options.auth == "none" or self.person in named("HOPAAS_DASHBOARD_ADMINS")
        return self.options.actions and time.time() < self.until and named_here

    def need(self, least: Role) -> None:
        """Raise Denied unless this person has this role now, or one that includes it."""
        if self.role() not in ROLES[ROLES.index(least) :]:
            raise Denied(f"This needs the role {least}: ask one of the study's owners for it, or sign in again.")

    def study(self, least: Literal["worker", "owner"]) -> Study:
        """The study, for a change that takes this role. Changes are written through the replica that pages show.

        Raises:
            Denied: this person does not have the role now, or the dashboard is read-only.
            NoSuchStudy: the study was deleted meanwhile.
            StoreUnreachable: the store does not answer.

        """
        assert self.listing is not None
        if not self.options.actions:
            raise Denied("This dashboard is read-only; start it with --allow-actions to change things.")
        self.need(least)
        return self.cache.study(self.listing, sign_in.signature(self.person))

    def act(self, least: Literal["worker", "owner"], do: Callable[[Study], Any], *, done: str) -> None:
        """Make a change that takes this role, confirm it, and redraw the page. If it is refused, show why.

        `study` checks the person's role again. The store checks only the rights of the dashboard's own login.
        """

        def change() -> None:
            do(self.study(least))
            self.cache.show_written(self.uuid)

        attempt(change, done)

    def download(self, label: str, make: Callable[[], str | bytes], **how: Any) -> None:
        """Draw a button that makes a file from the study when it is clicked."""

        def data() -> str | bytes:
            self.need("viewer")
            return make()

        st.download_button(label, data=data, on_click="ignore", icon=":material/download:", **how)


def attempt(change: Callable[[], Any], done: str = "") -> None:
    """Make a change, confirm it, and redraw the page. If it is refused, show why."""
    try:
        change()
    except HopaasError as error:
        queued = isinstance(error, StoreUnreachable) and error.queued  # the change is sent when the store answers
        theme.error(error, icon=":material/hourglass:" if queued else ":material/block:")
        return
    if done:
        st.toast(theme.plain(done), icon=":material/check:")
    st.rerun()
