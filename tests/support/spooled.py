"""Files of the spool, as a peer writes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from hopaas_p2p import spool
from hopaas_p2p.stores.base import Placed


def keep(
    commits: Iterable[Placed],
    *,
    store: str,
    study: str,
    name: str,
    at: int,
    trials: Iterable[int] = (),
    why: Literal["unsent", "unconfirmed", "history"] = "unsent",
) -> tuple[Path | None, str]:
    """Write these commits, which end `trials`; what `spool.write` returns."""
    kept = list(commits)
    places, payloads = [(one.lsn, one.before) for one in kept], [one.commit.payload for one in kept]
    return spool.write(spool.Spooled(store, study, name, list(trials), at, why, places, payloads))
