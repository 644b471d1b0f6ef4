"""A peer's answer to a rescue: the state of a damaged study, as far as this peer had read its log."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.names import NO_REQUEST, handover_prefix, request_name
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError, Denied
from hopaas_p2p.peer.log_client import LogClient, translated
from hopaas_p2p.peer.session import IDLE
from hopaas_p2p.stores.base import Store

REQUESTS_EVERY = 60.0
"""Seconds between looks for a request of a rescue: seldom, since a look is a round trip of its own."""
_log: Final = logging.getLogger("hopaas_p2p")


class Handover:
    """Gives each rescue that asks the state of its study, once. Used by one job only."""

    def __init__(self, store: Store, now: float) -> None:
        self._store = store
        self._looked_at = now
        self._answered: dict[str, str] = {}
        """By the study's uuid: the request that was answered last."""

    def look_if_due(self, logs: Mapping[str, LogClient[State]], now: float, *, writer: str) -> float:
        """Look whether a rescue asks, and answer; the seconds until the next look."""
        taking_part = {
            uuid: log
            for uuid, log in logs.items()
            if log.session.introduced and not log.session.deleted and log.state.define is not None
        }
        if not taking_part:
            return IDLE
        if now < self._looked_at + REQUESTS_EVERY:
            return self._looked_at + REQUESTS_EVERY - now
        self._looked_at = now
        with translated():
            asked = self._store.beats(map(request_name, taking_part))
        for uuid, log in taking_part.items():
            request = asked.get(request_name(uuid), NO_REQUEST)
            if request not in (NO_REQUEST, self._answered.get(uuid)):
                self._answered[uuid] = request
                self._give(uuid, log, writer)
        return REQUESTS_EVERY

    def _give(self, uuid: str, log: LogClient[State], writer: str) -> None:
        with log.lock:
            lsn, data = log.state.lsn, snapshot.dump(log.state)
        with tempfile.TemporaryDirectory(prefix="hopaas-rescue-") as directory, translated():
            path = Path(directory, "state")
            path.write_bytes(data)
            try:
                self._store.artifacts().put(f"{handover_prefix(uuid)}{lsn:012d}-{writer}", path)
            except (ConfigurationError, Denied) as error:
                _log.warning("a rescue asks for this study's state, which could not be handed over: %s", error)
            else:
                _log.warning("handed the state after commit %d over to a rescue of the study", lsn)
