"""Where a session is: the store, the study, and what this viewer may do. Given to every page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dashboard_app.feed import Feed
from dashboard_app.frames import Frame
from dashboard_app.options import Options
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

    @property
    def may_act(self) -> bool:
        """Whether to show what changes things: the server allows it. The store has the last word."""
        return self.options.actions

    def study(self) -> Study:
        """The study, to write to. Another replica than the one that is shown, opened at the first need.

        Raises:
            NoSuchStudy: it was deleted meanwhile.
            StoreUnreachable: the store does not answer.

        """
        from dashboard_app.actor import study_of

        assert self.listing is not None
        return study_of(self.feed.url, self.listing)
