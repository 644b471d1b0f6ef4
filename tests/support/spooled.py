"""Writes files of the spool by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hopaas_p2p import spool
from hopaas_p2p.spool import Spooled
from hopaas_p2p.stores.base import Placed


def keep(
    commits: Sequence[Placed],
    *,
    store: str,
    study: str,
    name: str,
    trials: Sequence[int] = (),
    why: spool.Why = "unsent",
) -> tuple[Path | None, str]:
    """Keep these commits, which end `trials`, in the spool; returns the file, or None and why not."""
    places, payloads = [(one.lsn, one.before) for one in commits], [one.commit.payload for one in commits]
    return spool.write(Spooled(store, study, name, list(trials), 0, why, places, payloads))
