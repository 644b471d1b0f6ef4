"""The pages, in the order of the menu."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, NamedTuple

from dashboard_app.here import Here


class Entry(NamedTuple):
    """One page."""

    path: str
    """Its name in the address."""
    title: str
    icon: str
    module: str
    """In `dashboard_app.pages`; imported when first shown. Has `show(here)`."""
    study: bool = True
    """Whether it is about one study, else about the store."""
    group: str = "Study"
    listed: bool = True
    """Whether the menu shows it."""
    actions: bool = False
    """Whether it is only there when actions are allowed."""

    def load(self) -> Callable[[Here], None]:
        """The function that shows the page."""
        show: Callable[[Here], None] = importlib.import_module(f"dashboard_app.pages.{self.module}").show
        return show


PAGES: Final = (
    Entry("campaigns", "Campaigns", ":material/dashboard:", "campaigns", study=False, group="Store"),
    Entry("live", "Live", ":material/monitoring:", "live"),
    Entry("peers", "Peers & sites", ":material/hub:", "peers"),
    Entry("trials", "Trials", ":material/table_rows:", "trials"),
    Entry("trial", "Trial", ":material/target:", "trial"),
    Entry("explore", "Explore", ":material/scatter_plot:", "explore"),
    Entry("pruning", "Pruning", ":material/content_cut:", "pruning"),
    Entry("failures", "Failures", ":material/report:", "failures"),
    Entry("notes", "Notes & artifacts", ":material/edit_note:", "notes"),
    Entry("steer", "Steer", ":material/tune:", "steer", actions=True),
    Entry("compare", "Compare", ":material/compare_arrows:", "compare", study=False, group="Store"),
    Entry("admin", "Admin", ":material/admin_panel_settings:", "admin", study=False, group="Store"),
)
