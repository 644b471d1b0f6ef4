"""Where a session is: the store, the study, and what this viewer may do. Given to every page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashboard_app.feed import Feed
from dashboard_app.frames import Frame
from dashboard_app.options import Options
from dashboard_app.roles import Role, may_administer, role_of
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.leases import ttl_of

if TYPE_CHECKING:
    from hopaas_p2p.study import Study


@dataclass(frozen=True, slots=True)
class Here:
    """One run of one session."""

    feed: Feed
    options: Options
    listing: Listing | None = None
    """The study that the address names; None on a page about the store."""
    person: str = ""
    """Who signed in; empty without sign-in."""

    @property
    def uuid(self) -> str:
        """The study's uuid; a page that is about a study has one."""
        assert self.listing is not None
        return self.listing.uuid

    @property
    def frame(self) -> Frame | None:
        """The study as last seen."""
        return self.feed.frame(self.uuid)

    def alive(self, frame: Frame, owner: str) -> bool:
        """Whether this peer shows signs of life; yes while it has not been watched for long enough to tell."""
        silent = self.feed.silence(frame.uuid, owner)
        return silent is None or silent < ttl_of(frame.state, owner)

    def studies(self) -> list[Listing]:
        """The studies that this person may know of, the newest first."""
        return [one for one in self.feed.studies() if self.role(one) != "none"]

    def role(self, listing: Listing | None = None) -> Role:
        """What this person may do in a study, this one if no other is named."""
        one = listing or self.listing
        return role_of(self.feed, one.uuid, self.options, self.person) if one is not None else "none"

    @property
    def may_act(self) -> bool:
        """Whether to show what adds to the study: the server and a grant allow it. The store has the last word."""
        return self.options.actions and self.role() in ("worker", "owner")

    @property
    def may_steer(self) -> bool:
        """Whether to show what controls the study, which its owners may."""
        return self.options.actions and self.role() == "owner"

    @property
    def may_administer(self) -> bool:
        """Whether this person may use the dashboard's own rights over users and tokens."""
        return may_administer(self.options, self.person)

    def study(self) -> Study:
        """The study, to write to. Another replica than the one that is shown, opened at the first need.

        Raises:
            NoSuchStudy: it was deleted meanwhile.
            StoreUnreachable: the store does not answer.

        """
        from dashboard_app.actor import study_of

        assert self.listing is not None
        return study_of(self.feed.address, self.listing, self.person)
