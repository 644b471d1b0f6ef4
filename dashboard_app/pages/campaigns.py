"""Campaigns: one card per study."""

from __future__ import annotations

import zlib
from functools import partial

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import follow
from dashboard_app.views import campaigns
from dashboard_app.views.campaigns import Card
from hopaas_p2p.lookalikes import told_apart


def show(page: PageContext) -> None:
    """The page."""
    theme.title("Campaigns")
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    wanted = left.text_input("Find", key="find", placeholder="name, tag or user", bind="query-params")
    archived = right.toggle("Include archived", key="archived", bind="query-params")

    def draw() -> str:
        shown = _version(page)
        _cards(page, (wanted or "").casefold(), archived=archived)
        return shown

    follow(draw, version=lambda: _version(page), freshness=page.cache.freshness, key="campaigns")


def _version(page: PageContext) -> str:
    """What changes when a card does: logs with new commits, and what is known of their peers."""
    marks = []
    for listing in page.studies():
        frame = page.cache.frame(listing.uuid, wait=False)
        owners = [frame.state.trials[one].owner for one in list(frame.state.running)] if frame is not None else []
        signs = sorted(str(page.alive(owner, listing)) for owner in owners if owner)
        marks.append((listing.study_id, page.cache.lsn(listing.uuid), signs))
    return f"{zlib.crc32(repr(marks).encode()):08x}"


def _cards(page: PageContext, wanted: str, *, archived: bool) -> None:
    found: list[tuple[bool, float, str]] = []
    hidden = 0
    listings = page.studies()
    for listing, name in zip(listings, told_apart([one.name for one in listings]), strict=True):
        frame = page.cache.frame(listing.uuid)
        if frame is None:
            why = page.cache.freshness(listing.uuid).trouble or "being created"
            html = f'<div class="hp-card"><h3>{theme.safe(name)}</h3>{theme.safe(why)}</div>'
            found.append((True, 0.0, html))
            continue
        if campaigns.ARCHIVED in frame.tags and not archived:
            hidden += 1
            continue
        alive = partial(page.alive, listing=listing)
        card = campaigns.card(frame.state, frame.columns, alive=alive)
        if not wanted or any(wanted in one.casefold() for one in (frame.name, card.begun_by, *frame.tags)):
            found.append((card.word != "running", -(card.last or 0.0), _html(frame, card, name)))
    trouble = page.cache.freshness().trouble
    if trouble:
        theme.error(trouble, icon=":material/cloud_off:")
    if found:
        found.sort(key=lambda one: one[:2])  # what runs first, then the latest
        st.html(f'<div class="hp-cards">{"".join(html for _, _, html in found)}</div>')
    elif wanted:
        theme.nothing(f"No campaign matches {wanted!r}.")
    else:
        theme.nothing(
            "No study yet. Create one: hopaas-p2p study create NAME --store "
            f"{page.cache.url} --space 'x=float(0,1)', or run your program; it shows up by itself."
        )
    if hidden:
        theme.caption(f"{hidden} archived, not shown")


def _html(frame: Frame, card: Card, name: str) -> str:
    safe = theme.safe
    of = f" of {card.budget:,}" if card.budget is not None else ""
    counts = (
        " · ".join(f"{count:,} {'failed' if word == 'fail' else word}" for word, count in card.counts.items())
        or "no trials yet"
    )
    peers = " · ".join(f"{safe(site)} {count}" for site, count in card.sites.items())
    small = [f"started by {safe(card.begun_by)}"] if card.begun_by else []
    small += [f"last trial {theme.ago(card.last)}"] if card.last is not None else []
    lines = [
        f"{card.used:,}{of} used · {counts}",
        f"live peers: {peers}" if peers else "no live peers",
        safe(campaigns.first_line(frame.note)),
    ]
    below = "".join(f'<div class="hp-small">{line}</div>' for line in lines if line)
    tags = [one for one in frame.tags if one != campaigns.ARCHIVED][:6]
    below += f"<div>{' '.join(map(theme.tag, tags))}</div>" if tags else ""
    below += f'<div class="hp-small">{" · ".join(small)}</div>' if small else ""
    spark = ""
    if card.spark:
        words = f"The best value went from {card.spark[0]:.4g} to {card.spark[-1]:.4g}"
        spark = theme.spark(card.spark, words, wide=True)
    return (
        f'<a class="hp-card" target="_self" href="{safe(url.link("live", study=frame.name), longest=4000)}">'
        f'<div class="hp-row"><h3>{safe(name)}</h3>{theme.pill(card.word)}</div>'
        f'<div class="hp-row"><span><span class="hp-best">{safe(card.best)}</span> '
        f'<span class="hp-small">{safe(card.best_of)}</span></span></div>{spark}{_bar(card)}{below}</a>'
    )


def _bar(card: Card) -> str:
    whole = max(1, card.budget or 0, sum(card.counts.values()))
    parts = [
        f'<i class="hp-{word}" style="width:{100 * card.counts[word] / whole:.2f}%"></i>'
        for word in ("complete", "pruned", "running", "fail", "waiting")
        if card.counts.get(word)
    ]
    return f'<div class="hp-bar" aria-hidden="true">{"".join(parts)}</div>'
