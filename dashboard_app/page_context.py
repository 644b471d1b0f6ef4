"""What every page is given: the store, the study, and what this person may do there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard_app import sign_in, theme
from dashboard_app.frames import Frame
from dashboard_app.options import DashboardOptions
from dashboard_app.replica_cache import ReplicaCache
from dashboard_app.roles import Role, named, role_of
from dashboard_app.views.requests import NotMade
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.study import Study


@dataclass(frozen=True, slots=True)
class PageContext:
    """One run of one session."""

    cache: ReplicaCache
    options: DashboardOptions
    listing: Listing | None = None
    """The study that the address names; None on a page about the store."""
    person: str = ""
    """Who signed in; empty without sign-in."""
    until: float = math.inf
    """When the sign-in no longer counts, in seconds since 1970."""

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
        """Draw the page's heading, under the name of the study it is about."""
        theme.title(text, above=self.listing.name if self.listing is not None else "")

    def alive(self, owner: str, listing: Listing | None = None) -> bool | None:
        """Whether a peer that runs a trial is alive; None until that is known."""
        one = listing or self.listing
        return None if one is None else self.cache.sign_of_life(one.uuid, owner).alive

    def leases(self, frame: Frame, owners: Mapping[str, str]) -> dict[str, Any]:
        """Name -> seconds left of this owner's lease, as a page's browser is sent them with each poll."""
        left = {name: self.cache.lease_left(frame.uuid, owner) for name, owner in owners.items()}
        return {"leases": {name: round(seconds) for name, seconds in left.items() if seconds is not None}}

    def studies(self) -> list[Listing]:
        """The studies that this person may know of, the newest first."""
        return [one for one in self.cache.studies() if self.role(one) != "none"]

    def role(self, listing: Listing | None = None) -> Role:
        """What this person may do in a study, this one if no other is named."""
        one = listing or self.listing
        if one is None or time.time() >= self.until:
            return "none"
        return role_of(self.cache, one.uuid, self.options, self.person)

    @property
    def may_act(self) -> bool:
        """Whether to show what adds to the study: the server and a grant allow it. The store decides in the end."""
        return self.options.actions and self.role() in ("worker", "owner")

    @property
    def may_steer(self) -> bool:
        """Whether to show what controls the study, for its owners."""
        return self.options.actions and self.role() == "owner"

    @property
    def may_administer(self) -> bool:
        """Whether this person may use the dashboard's own rights over users, tokens and grants.

        Without sign-in, everybody who may act; with it, the people that HOPAAS_DASHBOARD_ADMINS names.
        """
        opts = self.options
        if not opts.actions or time.time() >= self.until:
            return False
        return opts.auth == "none" or self.person in named("HOPAAS_DASHBOARD_ADMINS")

    def study(self) -> Study:
        """The study, to write to; what is written goes through the replica that is shown.

        Raises:
            NoSuchStudy: it was deleted meanwhile.
            StoreUnreachable: the store does not answer.

        """
        assert self.listing is not None
        return self.cache.study(self.listing, sign_in.signature(self.person))

    def act(self, do: Callable[[Study], Any], *, done: str) -> None:
        """Do it to the study, say that it is done, and draw the page anew; or say why it was refused.

        What the store does not allow is refused by the store, whatever the page shows.
        """
        failure = self.attempt(do)
        if failure is not None:
            theme.error(failure.why, icon=":material/hourglass:" if failure.queued else ":material/block:")
            return
        st.toast(theme.plain(done), icon=":material/check:")
        st.rerun()

    def attempt(self, do: Callable[[Study], Any]) -> NotMade | None:
        """Do it to the study. None when it is done, else why it was not."""
        if not self.options.actions:
            return NotMade("This dashboard is read-only; start it with --allow-actions to change things.")
        if not self.may_act:
            return NotMade("Your role in this study is viewer, which does not allow changes.")
        try:
            do(self.study())
        except HopaasError as error:
            return NotMade(str(error), queued=isinstance(error, StoreUnreachable) and error.queued)
        self.cache.show_written(self.uuid)
        return None
