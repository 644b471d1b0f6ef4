"""Campaigns: a card a study."""

from __future__ import annotations

import zlib

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import follow
from dashboard_app.views import campaigns
from dashboard_app.views.campaigns import Card


def show(here: Here) -> None:
    """The page."""
    theme.title("Campaigns")
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    wanted = left.text_input("Find", key="find", placeholder="a name, a tag, a user", bind="query-params")
    archived = right.toggle("Archived ones too", key="archived", bind="query-params")

    def draw() -> str:
        shown = _version(here)
        _cards(here, (wanted or "").casefold(), archived=archived)
        return shown

    follow(draw, version=lambda: _version(here), freshness=here.feed.freshness, key="campaigns")


def _version(here: Here) -> str:
    """What tells one state of all cards from another: logs that moved, and peers that fell silent."""
    marks = []
    for listing in here.studies():
        frame = here.feed.frame(listing.uuid, wait=False)
        owners = [frame.state.trials[one].owner for one in list(frame.state.running)] if frame is not None else []
        silent = sum(not here.alive(frame, owner) for owner in owners if owner) if frame is not None else 0
        marks.append((listing.study_id, here.feed.lsn(listing.uuid), silent))
    return f"{zlib.crc32(repr(marks).encode()):08x}"


def _cards(here: Here, wanted: str, *, archived: bool) -> None:
    found: list[tuple[bool, float, str]] = []
    hidden = 0
    for listing in here.studies():
        frame = here.feed.frame(listing.uuid)
        if frame is None:
            why = here.feed.freshness(listing.uuid).trouble or "being created"
            found.append(
                (True, 0.0, f'<div class="hp-card"><h3>{theme.safe(listing.name)}</h3>{theme.safe(why)}</div>')
            )
            continue
        if campaigns.ARCHIVED in frame.tags and not archived:
            hidden += 1
            continue
        card = _card(here, frame)
        if wanted and not any(wanted in one.casefold() for one in (frame.name, card.begun_by, *card.tags)):
            continue
        found.append((card.word != "running", -(card.last or 0.0), _html(frame, card)))
    parts = [card for _, _, card in sorted(found, key=lambda one: one[:2])]  # what runs first, then the latest
    trouble = here.feed.freshness().trouble
    if trouble:
        st.error(theme.plain(trouble, longest=1000), icon=":material/cloud_off:")
    if parts:
        st.html(f'<div class="hp-cards">{"".join(parts)}</div>')
    elif wanted:
        theme.nothing(f"No campaign matches {wanted!r}.")
    else:
        theme.nothing(
            "No study yet. Make one: hopaas-p2p study create NAME --store "
            f"{here.feed.url} --space 'x=float(0,1)', or run your program; it shows up by itself."
        )
    if hidden:
        theme.caption(f"{hidden} archived, not shown")


def _card(here: Here, frame: Frame) -> Card:
    return campaigns.card(
        frame.state, frame.columns, tags=frame.tags, note=frame.note, alive=lambda owner: here.alive(frame, owner)
    )


def _html(frame: Frame, card: Card) -> str:
    safe = theme.safe
    of = f" of {card.budget:,}" if card.budget is not None else ""
    counts = " · ".join(f"{count:,} {word}" for word, count in card.counts.items()) or "no trials yet"
    peers = " · ".join(f"{safe(site)} {count}" for site, count in card.sites.items())
    tags = " ".join(theme.tag(one) for one in card.tags[:6])
    seen = f"last trial {theme.ago(card.last)}" if card.last is not None else ""
    by = f"begun by {safe(card.begun_by)}" if card.begun_by else ""
    small = " · ".join(part for part in (by, seen) if part)
    return (
        f'<a class="hp-card" target="_self" href="{safe(url.link("live", study=frame.name), longest=4000)}">'
        f'<div class="hp-row"><h3>{safe(frame.name)}</h3>{theme.pill(card.word)}</div>'
        f'<div class="hp-row"><span><span class="hp-best">{safe(card.best)}</span> '
        f'<span class="hp-small">{safe(card.best_of)}</span></span></div>'
        f"{_spark(card)}{_bar(card)}"
        f'<div class="hp-small">{card.used:,}{of} used · {counts}</div>'
        f'<div class="hp-small">{f"live peers: {peers}" if peers else "no live peers"}</div>'
        + (f'<div class="hp-small">{safe(card.note)}</div>' if card.note else "")
        + (f"<div>{tags}</div>" if tags else "")
        + (f'<div class="hp-small">{small}</div>' if small else "")
        + "</a>"
    )


def _spark(card: Card) -> str:
    if len(card.spark) < 2:
        return ""
    words = f"The best value went from {card.spark[0]:.4g} to {card.spark[-1]:.4g}"
    return theme.spark(card.spark, words, wide=True)


def _bar(card: Card) -> str:
    whole = max(1, card.budget or 0, sum(card.counts.values()))
    parts = [
        f'<i class="hp-{word}" style="width:{100 * card.counts[word] / whole:.2f}%"></i>'
        for word in ("complete", "pruned", "running", "fail", "waiting")
        if card.counts.get(word)
    ]
    return f'<div class="hp-bar" aria-hidden="true">{"".join(parts)}</div>'
