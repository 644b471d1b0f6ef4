"""Compare: some studies of the store beside each other."""

from __future__ import annotations

import zlib

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import follow
from dashboard_app.theme import draw
from dashboard_app.views import compare
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.charts import ALONG, Along


def show(page: PageContext) -> None:
    """The page."""
    theme.title("Compare")
    names = [one.name for one in page.studies()]
    if len(names) < 2:
        theme.nothing("Comparing needs at least two studies in this store.")
        return
    if not url.given("studies"):  # a default would be left out of the address, and differs from person to person
        before = st.session_state.get("study")
        results = {one.name for one in _frames(page, names, wait=False) if one.columns.best() is not None}
        st.session_state.setdefault("studies", sorted(names, key=lambda one: (one != before, one not in results))[:2])
    chosen = st.multiselect("Studies", names, key="studies", bind="query-params", max_selections=compare.MOST_STUDIES)
    along = theme.segments("Horizontal axis", list(ALONG), names=ALONG.__getitem__, key="along")

    def shown() -> str:
        frames = _frames(page, chosen)
        if frames:
            _body(frames, along)
        else:
            theme.nothing("Choose studies.")
        return _version(frames)

    follow(
        shown, version=lambda: _version(_frames(page, chosen)), freshness=page.cache.freshness,
        key=f"compare-{zlib.crc32(repr((chosen, along)).encode()):08x}",
    )  # fmt: skip


def _version(frames: list[Frame]) -> str:
    return " ".join(f"{frame.study_id}:{frame.lsn}" for frame in frames)


def _body(frames: list[Frame], along: Along) -> None:
    pairs = [(frame.name, frame.columns) for frame in frames]
    if len({columns.directions[0] for _, columns in pairs}) > 1:
        theme.caption("These studies do not optimise in the same direction.")
    if any(len(columns.directions) > 1 for _, columns in pairs):
        theme.caption("For studies with several objectives, the first objective is shown.")
    summaries = [compare.summary(frame.state, frame.columns) for frame in frames]
    rows = [
        [
            theme.link(name, "live", study=name),
            theme.safe(", ".join(columns.directions)),
            *map(number, summary.values()),
        ]
        for (name, columns), summary in zip(pairs, summaries, strict=True)
    ]
    headers = ("study", "direction", *summaries[0])
    theme.table(headers, rows, label="Studies compared", numeric=range(2, len(headers)))
    draw(compare.best_so_far(pairs, along=along), key="best", empty="No complete trial yet.")
    draw(compare.distributions(pairs), key="edf", empty="")


def _frames(page: PageContext, names: list[str], *, wait: bool = True) -> list[Frame]:
    known = {one.name: one.uuid for one in page.studies()}
    frames = [page.cache.frame(known[name], wait=wait) for name in names if name in known]
    return [frame for frame in frames if frame is not None]
