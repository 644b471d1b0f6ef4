"""How a study shows itself in a notebook; what draws is imported when something is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from hopaas_p2p.study.handle import Handle

if TYPE_CHECKING:
    from hopaas_p2p.notebook.plot import Plot
    from hopaas_p2p.notebook.watch import Watching
    from hopaas_p2p.study import Study


class Shown(Handle):
    """The side of a study that people look at."""

    def _repr_html_(self) -> str:
        from hopaas_p2p.notebook.summary import study_html

        return study_html(cast("Study", self))

    @property
    def plot(self) -> Plot:
        """Charts for a notebook: `study.plot.history()`, importances, slice, parallel, timeline, intermediate."""
        from hopaas_p2p.notebook.plot import Plot

        return Plot(cast("Study", self))

    def watch(self, *, interval: float = 2.0) -> Watching:
        """Show this study in a notebook, kept up to date while other cells run. Returns at once.

        Args:
            interval: seconds between two looks.

        Raises:
            InvalidInput: this is no notebook; in a terminal use `hopaas-p2p watch`.

        """
        from hopaas_p2p.notebook.watch import Watching

        return Watching(cast("Study", self), interval=interval)
