"""Fewer points that show the same picture: the envelope is kept, the middle is sampled evenly.

Nothing here is random, so a chart does not flicker from one refresh to the next.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hopaas_p2p.analysis.table import Floats, Ints

MOST: Final = 5000
"""Points of one chart; of more, a sample is drawn."""


def downsample_points(x: Floats, y: Floats, *, most: int = MOST) -> Ints:
    """Rows of a cloud of points that are to be drawn, ascending: at most `most`.

    Along x the points fall into bins of equally many; of each bin the lowest and the highest are kept, which takes half
    of the room, and the other half is an even sample of the rest.
    """
    count = len(x)
    if count <= most:
        return np.arange(count)
    bins = max(1, most // 4)
    bin_of = np.empty(count, dtype=np.int64)
    bin_of[np.argsort(x, kind="stable")] = np.arange(count) * bins // count
    envelope = np.unique(_envelope(bin_of, y, bins))
    rest = np.setdiff1d(np.arange(count), envelope, assume_unique=True)
    return np.union1d(envelope, rest[spread(len(rest), max(0, most - len(envelope)))])


def downsample_line(y: Floats, *, most: int = MOST) -> Ints:
    """Points of a line that are to be drawn, ascending: both ends, and the lowest and highest of equal stretches."""
    count = len(y)
    if count <= most:
        return np.arange(count)
    bins = max(1, (most - 2) // 2)
    return np.union1d([0, count - 1], _envelope(np.arange(count) * bins // count, y, bins))


def _envelope(bin_of: Ints, y: Floats, bins: int) -> Ints:
    """The lowest and the highest row of each bin."""
    ordered = np.lexsort((y, bin_of))
    ends = np.searchsorted(bin_of[ordered], np.arange(bins + 1))
    return np.concatenate([ordered[ends[:-1]], ordered[ends[1:] - 1]])


def spread(count: int, most: int) -> Ints:
    """`most` positions of `count`, evenly spread; all when there are fewer."""
    return np.arange(count) if count <= most else np.arange(most) * count // most
