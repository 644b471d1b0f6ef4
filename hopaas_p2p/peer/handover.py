"""A peer's answer to a rescue: the state of a damaged study, as far as this peer has read its log."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.names import NO_REQUEST, handover_prefix, request_name
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError, Denied
from hopaas_p2p.peer.session import LogClient, translated
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.stores.base import Store

REQUESTS_EVERY = 60.0
"""Seconds between checks for a rescue's request, each of which is an extra round trip."""


def answer_requests(
    store: Store, logs: Mapping[str, LogClient[State]], answered: dict[str, str], *, writer: str
) -> None:
    """Send the state of a study to each rescue that requests it, once; `answered` has each study's last request.

    Raises StoreUnreachable; a request that could not be answered for that reason is answered by the next call.
    """
    asking = {uuid: log for uuid, log in logs.items() if log.state.define is not None}
    with translated():
        asked = store.beats(map(request_name, asking)) if asking else {}
    for uuid, log in asking.items():
        request = asked.get(request_name(uuid), NO_REQUEST)
        if request in (NO_REQUEST, answered.get(uuid)):
            continue
        with log.lock:
            lsn, data = log.state.lsn, snapshot.dump(log.state)
        with tempfile.TemporaryDirectory(prefix="hopaas-rescue-") as directory, translated():
            path = Path(directory, "state")
            path.write_bytes(data)
            try:
                store.artifacts().put(f"{handover_prefix(uuid)}{lsn:012d}-{writer}", path)
            except (ConfigurationError, Denied) as error:
                LOG.warning("a rescue requested this study's state, which could not be sent: %s", error)
            else:
                LOG.warning("sent the state after commit %d to a rescue of the study", lsn)
        answered[uuid] = request
