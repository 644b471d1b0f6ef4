"""Artifacts and checkpoints at the near side of a bridge: kept here at once, and at the far side as soon as may be.

A file that is put is safe in the near store when `put` returns; the bridge copies it to the far side, in the order of
the requests. A file that is not here is brought on demand, and stays.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.bridge.frames import MISSING, Answer, File, nonce

if TYPE_CHECKING:
    from hopaas_p2p.stores.bridge.store import BridgedStore


class BridgedArtifacts:
    """Files of the far store, by way of the near one."""

    def __init__(self, store: BridgedStore) -> None:
        self._store = store
        self._near = store.near.artifacts()

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        self._near.put(key, source, progress)
        place = self._store.post(File("put", key, nonce()))
        with contextlib.suppress(
            StoreUnreachable
        ):  # it need not be there yet, but what is said of it had better follow
            self._store.wait(place, lambda: self._store.answer_to(place) is not None)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        with contextlib.suppress(KeyError):
            self._near.get(key, target, progress)
            return
        self._asked("get", key)
        self._near.get(key, target, progress)

    def delete(self, key: str) -> None:
        self._near.delete(key)
        self._store.post(File("delete", key, nonce()))

    def keys(self, prefix: str) -> list[str]:
        return self._asked("list", prefix).message.split()

    def _asked(self, what: str, key: str) -> Answer:
        """The answer to a request. A large file takes its time, so this waits for as long as the bridge is at work."""
        place = self._store.post(File(what, key, nonce()))
        while True:
            with contextlib.suppress(StoreUnreachable):
                self._store.wait(place, lambda: self._store.answer_to(place) is not None)
            answer = self._store.answer_to(place)
            if answer is not None:
                if answer.kind == MISSING:
                    raise KeyError(key)
                self._store.judge(answer)
                return answer
            self._store.wait_for_round(self._store.patience)
