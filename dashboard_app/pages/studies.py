"""The page Studies, with one card per study, or a comparison of several studies."""

from __future__ import annotations

import zlib
from typing import Any

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import follow
from dashboard_app.theme import draw
from dashboard_app.views import studies
from hopaas_p2p import notes
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.charts import ALONG, Along
from hopaas_p2p.analysis.html import safe
from hopaas_p2p.analysis.lookalikes import told_apart


def show(page: PageContext) -> None:
    """The page."""
    theme.title("Studies")
    (_compare if theme.segments("Show", ["Cards", "Compare"], key="show", visible=False) == "Compare" else _cards)(page)


def _cards(page: PageContext) -> None:
    def version() -> str:
        """A version that changes when a card does, with new commits in a log or new heartbeats of its peers."""
        marks = []
        for listing in page.studies():
            signs = sorted(str(sign.alive) for sign in page.cache.signs(listing.uuid).values())
            marks.append((listing.study_id, page.cache.lsn(listing.uuid), signs))
        return f"{zlib.crc32(repr(marks).encode()):08x}"

    follow(lambda: _grid(page), version=version, freshness=page.cache.freshness, key="studies")


def _grid(page: PageContext) -> None:
    found: list[tuple[bool, float, str]] = []
    listings = page.studies()
    for listing, name in zip(listings, told_apart([one.name for one in listings]), strict=True):
        frame = page.cache.frame(listing.uuid)
        if frame is None:
            why = page.cache.freshness(listing.uuid).trouble or "being created"
            found.append((True, 0.0, f'<div class="hp-card"><h3>{safe(name)}</h3>{safe(why)}</div>'))
            continue
        card = studies.card(frame.state, frame.columns, page.cache.signs(frame.uuid))
        found.append((card["word"] != "running", -(card["last"] or 0.0), _card(frame, card, name)))
    trouble = page.cache.freshness().trouble
    if trouble:
        theme.error(trouble, icon=":material/cloud_off:")
    if found:
        found.sort(key=lambda one: one[:2])  # running studies first, then the latest
        st.html(f'<div class="hp-cards">{"".join(html for _, _, html in found)}</div>')
    else:
        theme.nothing(
            "No study yet. To create one: hopaas-p2p study create NAME --store "
            f"{page.cache.url} --space 'x=float(0,1)', or run your program; the study then appears here."
        )


def _card(frame: Frame, card: dict[str, Any], name: str) -> str:
    best, best_of = card["best"]
    words = {word: "failed" if word == "fail" else word for word in card["counts"]}
    counts = " · ".join(f"{count:,} {words[word]}" for word, count in card["counts"].items()) or "no trials yet"
    peers = " · ".join(f"{safe(site)} {count}" for site, count in card["sites"].items())
    began = [f"started by {safe(card['begun_by'])}"] if card["begun_by"] else []
    began += [f"last trial {theme.ago(card['last'])}"] if card["last"] is not None else []
    budget = "" if card["budget"] is None else f" of {card['budget']:,}"
    lines = [
        f"{card['used']:,}{budget} used · {counts}",
        f"live peers: {peers}" if peers else "no live peers",
        safe(studies.first_line(notes.read_note(frame.system, None))),
        " ".join(theme.tag(one) for one in notes.read_tags(frame.system)[:6]),
        " · ".join(began),
    ]
    spark = ""
    if card["spark"]:
        said = f"The best value went from {card['spark'][0]:.4g} to {card['spark'][-1]:.4g}"
        spark = theme.spark(card["spark"], said, wide=True)
    whole = max(1, card["budget"] or 0, sum(card["counts"].values()))
    parts = "".join(
        f'<i class="hp-{word}" style="width:{100 * card["counts"][word] / whole:.2f}%"></i>'
        for word in ("complete", "pruned", "paused", "running", "fail", "waiting")
        if card["counts"].get(word)
    )
    bar = f'<div class="hp-bar" aria-hidden="true">{parts}</div>'
    bar = bar if budget and frame.state.configurations.unit == "trials" else ""  # it has one part per state of trials
    return (
        f'<a class="hp-card" target="_self" href="{safe(url.link("live", study=frame.name), longest=4000)}">'
        f'<div class="hp-row"><h3>{safe(name)}</h3>{theme.pill(card["word"])}</div>'
        f'<div class="hp-row"><span><span class="hp-best">{safe(best)}</span> '
        f'<span class="hp-small">{safe(best_of)}</span></span></div>{spark}{bar}'
        + "".join(f'<div class="hp-small">{line}</div>' for line in lines if line)
        + "</a>"
    )


def _compare(page: PageContext) -> None:
    names = [one.name for one in page.studies()]
    if len(names) < 2:
        theme.nothing("A comparison needs at least two studies in this store.")
        return

    def frames() -> list[Frame]:
        known = {one.name: one.uuid for one in page.studies()}
        found = [page.cache.frame(known[name]) for name in chosen if name in known]
        return [frame for frame in found if frame is not None]

    def version() -> str:
        return " ".join(f"{frame.study_id}:{frame.lsn}" for frame in frames())

    if not url.given("studies"):  # widgets omit a default from the address, but this one differs between people
        before = st.session_state.get("study")
        st.session_state.setdefault("studies", sorted(names, key=lambda one: one != before)[:2])
    chosen = st.multiselect("Studies", names, key="studies", bind="query-params", max_selections=studies.MOST_STUDIES)
    along = theme.segments("Horizontal axis", list(ALONG), names=ALONG.__getitem__, key="along")
    key = f"compare-{zlib.crc32(repr((chosen, along)).encode()):08x}"
    follow(lambda: _compared(frames(), along), version=version, freshness=page.cache.freshness, key=key)


def _compared(frames: list[Frame], along: Along) -> None:
    if not frames:
        theme.nothing("Choose studies.")
        return
    if any(len(frame.columns.directions) > 1 for frame in frames):
        theme.caption("For studies with several objectives, the first objective is shown.")
    summaries = [studies.summary(frame.state, frame.columns) for frame in frames]
    rows = [
        [theme.link(one.name, "live", study=one.name), ", ".join(one.columns.directions), *map(number, found.values())]
        for one, found in zip(frames, summaries, strict=True)
    ]
    theme.table(("study", "direction", *summaries[0]), rows, label="Studies compared")
    chart = studies.best_so_far([(one.name, one.columns) for one in frames], along=along)
    draw(chart, key="best", empty="No complete trial yet.")
