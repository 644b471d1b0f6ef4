"""The proof that a bucket keeps `If-None-Match: *`, and its renewal while a process writes.

Everything rests on this condition, and servers break it in ways that one PUT does not show: see `objects.race`. So it
is proved with fresh keys, before a store is created and before a process writes for the first time; and again, with a
few requests, while it writes and after the server was away, because a server may get a second pool, or versioning, in
the middle of a study. No number of requests proves it for good: the chain of commits notices what slips through.

Keys are written where the policies let every worker write and remove; where those of an older policy, or of another
hand, do not, beside the snapshots or the commits of the log that is to be written.
"""

from __future__ import annotations

import time
from typing import Final

from hopaas_p2p.errors import BrokenChain, ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.stores.objects.race import KEYS, RACERS, race
from hopaas_p2p.stores.s3.bucket import Bucket

SCRATCH: Final = "study/doctor-proof/snapshot/"
RENEW: Final = 300.0
"""Seconds after which a process that writes proves the condition anew."""
_SETTLED: Final = 5.0  # seconds after a proof for which a server that was away proves nothing anew
_FEW: Final = 2  # keys, and writers per key, where the server was proved before
CAUSES: Final = (
    "Most likely, in this order: (1) MinIO or RustFS with more than one server pool: use a server with one pool, and "
    "never add another; (2) a Ceph bucket with versioning switched on, before Squid 19.2.7 and Tentacle 20.2.1: use a "
    "bucket that never had versions; (3) a gateway, proxy or cache that drops the header, or checks first and "
    "writes later, such as the Versity gateway and rclone serve s3: talk to the server behind it; (4) a "
    "server made for tests, such as s3rver and Ceph's RGW on dbstore: use another; (5) an old release, such as MinIO "
    "before 2024-09. docs/s3.md lists servers that keep it. Run hopaas-p2p doctor again to see whether it is fixed"
)


class Condition:
    """What this process knows of the condition in one bucket.

    Args:
        objects: the bucket.
        url: of the store, for messages.

    """

    def __init__(self, objects: Bucket, url: str) -> None:
        self.clock = time.monotonic
        self._objects = objects
        self._url = url
        self._proved_at: float | None = None
        self._interruptions = 0
        self._refusal: ConfigurationError | BrokenChain | None = None

    def prove(self, root: str, *, thoroughly: bool = False) -> None:
        """Before something is written to the log at `root`, unless the proof is fresh.

        Args:
            root: of the log.
            thoroughly: before a store is created.

        Raises:
            ConfigurationError: the condition is broken; the message says what was seen, and why that may be.
            BrokenChain: the same, after this process has written: what it was told is safe may not be in the log.
            StoreUnreachable: too few answers to tell.
            Denied: this user may not write where a store is to be created. Keys that may write nowhere need no proof.

        """
        if self._refusal is not None:
            raise type(self._refusal)(str(self._refusal))
        age = None if self._proved_at is None else self.clock() - self._proved_at
        away = self._objects.interruptions != self._interruptions
        if age is not None and age < RENEW and not (away and age >= _SETTLED):
            return
        keys, writers = KEYS if age is None else _FEW, RACERS if thoroughly else _FEW
        for where in (SCRATCH, f"{root}snapshot/proof-", f"{root}log/proof-"):
            try:
                found = race(self._objects, where, keys=keys, writers=writers, look=thoroughly)
            except Denied:
                if thoroughly:
                    raise
                continue
            if found.seen:
                said = (
                    f"{self._url}: the server does not keep 'If-None-Match: *', on which every commit rests: "
                    f"{found.seen}. Commits would be lost, so nothing is written. {CAUSES}"
                )
                self._refusal = ConfigurationError(said) if self._proved_at is None else BrokenChain(said)
                raise self._refusal
            if found.held < (keys + 1) // 2:
                raise found.unknown or StoreUnreachable
            self._proved_at, self._interruptions = self.clock(), self._objects.interruptions
            return
