"""Compare: some studies of the store beside each other."""

from __future__ import annotations

import zlib

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.charts import draw
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import follow
from dashboard_app.views import compare
from dashboard_app.views.history import ALONG, Along
from dashboard_app.views.spec import number


def show(here: Here) -> None:
    """The page."""
    theme.title("Compare")
    names = [one.name for one in here.studies()]
    if len(names) < 2:
        theme.nothing("It takes two studies in this store to compare.")
        return
    before = st.session_state.get("study")
    ordered = sorted(names, key=lambda name: (name != before, not _has_results(here, name)))
    if not url.given("studies"):  # a default would be left out of the address, and is another one for others
        st.session_state.setdefault("studies", ordered[:2])
    chosen = st.multiselect("Studies", names, key="studies", bind="query-params", max_selections=compare.MOST_STUDIES)
    words = list(ALONG)
    along = st.segmented_control(
        "Along", words, format_func=ALONG.__getitem__, default="number", key="along", bind="query-params", required=True
    )

    def shown() -> str:
        frames = _frames(here, chosen)
        if frames:
            _body(frames, along or "number")
        else:
            theme.nothing("Choose studies.")
        return _version(frames)

    follow(
        shown, version=lambda: _version(_frames(here, chosen)), freshness=here.feed.freshness,
        key=f"compare-{zlib.crc32(repr((chosen, along)).encode()):08x}",
    )  # fmt: skip


def _version(frames: list[Frame]) -> str:
    return " ".join(f"{frame.study_id}:{frame.lsn}" for frame in frames)


def _body(frames: list[Frame], along: Along) -> None:
    pairs = [(frame.name, frame.columns) for frame in frames]
    if len({columns.directions[0] for _, columns in pairs}) > 1:
        theme.caption("These studies do not optimise in the same direction.")
    if any(len(columns.directions) > 1 for _, columns in pairs):
        theme.caption("Of studies with several objectives the first is shown.")
    _table(frames)
    draw(compare.best_so_far(pairs, along=along), key="best", empty="No complete trial yet.")
    draw(compare.distributions(pairs), key="edf", empty="")


def _has_results(here: Here, name: str) -> bool:
    """As far as that is known without waiting."""
    return any(frame.columns.best() is not None for frame in _frames(here, [name], wait=False))


def _frames(here: Here, names: list[str], *, wait: bool = True) -> list[Frame]:
    found = []
    known = {one.name: one for one in here.studies()}
    for name in names:
        listing = known.get(name)
        frame = here.feed.frame(listing.uuid, wait=wait) if listing is not None else None
        if frame is not None:
            found.append(frame)
    return found


def _table(frames: list[Frame]) -> None:
    rows = compare.table([(frame.name, frame.columns) for frame in frames])
    headers = list(rows.columns)
    cells = []
    for row in rows.itertuples(index=False, name=None):
        name, direction, *numbers = row
        href = theme.safe(url.link("live", study=name), longest=4000)
        cells.append(
            [
                f'<a href="{href}" target="_self">{theme.safe(name)}</a>',
                theme.safe(direction),
                *(theme.safe(number(None if value is None else float(value))) for value in numbers),
            ]
        )
    theme.table(headers, cells, label="Studies compared", numeric=range(2, len(headers)))
