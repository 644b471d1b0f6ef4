"""Fewer points that show the same picture: the envelope is kept, the middle is sampled evenly.

Nothing here is random, so a chart does not flicker from one refresh to the next.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dashboard_app.views.columns import Floats, Ints

MOST: Final = 5000
"""Points of one chart; more are thinned."""


def thin_points(x: Floats, y: Floats, *, most: int = MOST, keep: Ints | None = None) -> Ints:
    """Rows of a cloud of points that are to be drawn, ascending: at most `most`, and those of `keep` beside them.

    Along x the points fall into bins of equally many; of each bin the lowest and the highest are kept, which half of
    the room is for, and the other half is an even sample of the rest.
    """
    count = len(x)
    if count <= most:
        return np.arange(count)
    bins = max(1, most // 4)
    along = np.argsort(x, kind="stable")
    bin_of = np.empty(count, dtype=np.int64)
    bin_of[along] = np.arange(count) * bins // count
    ordered = np.lexsort((y, bin_of))
    ends = np.searchsorted(bin_of[ordered], np.arange(bins + 1))
    envelope = np.union1d(ordered[ends[:-1]], ordered[ends[1:] - 1])
    rest = np.setdiff1d(np.arange(count), envelope, assume_unique=True)
    room = most - len(envelope)
    sample = rest[np.arange(room) * len(rest) // room] if room > 0 else rest[:0]
    chosen = np.union1d(envelope, sample)
    return chosen if keep is None else np.union1d(chosen, keep)


def thin_line(y: Floats, *, most: int = MOST) -> Ints:
    """Points of a line that are to be drawn, ascending: both ends, and the lowest and highest of equal stretches."""
    count = len(y)
    if count <= most:
        return np.arange(count)
    bins = max(1, (most - 2) // 2)
    bin_of = np.arange(count) * bins // count
    ordered = np.lexsort((y, bin_of))
    ends = np.searchsorted(bin_of[ordered], np.arange(bins + 1))
    return np.unique(np.concatenate([[0, count - 1], ordered[ends[:-1]], ordered[ends[1:] - 1]]))


def spread(count: int, most: int) -> Ints:
    """`most` positions of `count`, evenly spread; all when there are fewer."""
    return np.arange(count) if count <= most else np.arange(most) * count // most
