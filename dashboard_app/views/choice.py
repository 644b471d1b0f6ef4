"""The filter that the pages of a study share: which trials one looks at. It lives in the page's address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from dashboard_app.views.columns import Columns, Mask
from hopaas_p2p.core.records import TrialState

_STATES: Final = {state.name.lower(): state for state in TrialState}


class Choice(NamedTuple):
    """What is shown; an empty part lets everything through."""

    states: tuple[str, ...] = ()
    """Lower-case words: complete, pruned, fail, running, waiting."""
    sites: tuple[str, ...] = ()
    first: int | None = None
    """Trials from this number on."""
    last: int | None = None
    ranges: tuple[tuple[str, float, float], ...] = ()
    """(parameter, from, to), both inclusive, in the log's representation."""

    def of(self, columns: Columns) -> Mask:
        """Which trials pass."""
        mask: Mask = np.ones(len(columns), dtype=np.bool_)
        if self.states:
            mask &= np.isin(columns.state, [_STATES[word] for word in self.states])
        if self.sites:
            known = [index for index, name in enumerate(columns.sites) if name in self.sites]
            mask &= np.isin(columns.site, known)
        if self.first is not None:
            mask &= columns.number >= self.first
        if self.last is not None:
            mask &= columns.number <= self.last
        for name, low, high in self.ranges:
            column = columns.params.get(name)
            if column is not None:
                mask &= (column >= low) & (column <= high)
        return mask

    def to_query(self) -> dict[str, str]:
        """As parts of an address; only what is set."""
        parts = {
            "states": ",".join(self.states),
            "sites": "\n".join(self.sites),
            "from": "" if self.first is None else str(self.first),
            "to": "" if self.last is None else str(self.last),
            "where": "\n".join(f"{name}={low!r}..{high!r}" for name, low, high in self.ranges),
        }
        return {key: text for key, text in parts.items() if text}

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Choice:
        """What an address says; parts that make no sense are left out, for people edit addresses."""
        return cls(
            states=tuple(word for word in query.get("states", "").split(",") if word in _STATES),
            sites=tuple(site for site in query.get("sites", "").split("\n") if site),
            first=_whole(query.get("from", "")),
            last=_whole(query.get("to", "")),
            ranges=tuple(_ranges(query.get("where", "").split("\n"))),
        )

    def sentence(self, columns: Columns, shown: int) -> str:
        """How much of the study is shown."""
        total = len(columns)
        return f"all {total:,} trials" if shown == total else f"{shown:,} of {total:,} trials"


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _ranges(texts: Sequence[str]) -> list[tuple[str, float, float]]:
    found = []
    for text in texts:
        name, equals, rest = text.rpartition("=")
        low, dots, high = rest.partition("..")
        if equals and dots:
            try:
                found.append((name, float(low), float(high)))
            except ValueError:
                continue
    return found
