"""A store in an S3 bucket, without a server of ours, on any S3 server whose `If-None-Match: *` is atomic.

`stores.objects.store` and `stores.objects.log` define the names in the bucket.

Everything depends on that condition, and servers break it in ways that one PUT does not show; see `objects.race`. So
the condition is tested with fresh keys before a store is created, and before a process writes for the first time. It is
tested again, with a few requests, while a process writes and after the server was unavailable, because a server may get
a second pool, or versioning, during a study. No number of requests proves the condition for good; the chain of commits
reveals violations that the tests miss.

Test keys are written where the policies let every worker write and remove. If an older or custom policy does not allow
that, the keys are written beside the snapshots or commits of the log that is to be written.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Final

from hopaas_p2p.errors import BrokenChain, ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.objects.race import KEYS, RACERS, race
from hopaas_p2p.stores.objects.store import FORMAT, META, ObjectBackedStore, uuid_in
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.bucket import Bucket
from hopaas_p2p.stores.s3.log import BucketLog

SCRATCH: Final = "study/doctor-proof/snapshot/"
RENEW: Final = 300.0
"""Seconds after which a process that writes proves the condition again."""
_SETTLED: Final = 5.0  # seconds for which a proof stays valid even if the server is unavailable meanwhile
_FEW: Final = 2  # keys, and writers per key, if the server was proved before
CAUSES: Final = (
    "Most likely, in this order: (1) MinIO or RustFS with more than one server pool: use a server with one pool, and "
    "never add another; (2) a Ceph bucket with versioning switched on, before Squid 19.2.7 and Tentacle 20.2.1: use a "
    "bucket that never had versions; (3) a gateway, proxy or cache that drops the header, or checks first and "
    "writes later, such as the Versity gateway and rclone serve s3: talk to the server behind it; (4) a "
    "server made for tests, such as s3rver and Ceph's RGW on dbstore: use another; (5) an old release, such as MinIO "
    "before 2024-09. docs/s3.md lists servers that work. Run hopaas-p2p doctor again to see whether it is fixed"
)
_META: Final = 4096


class S3Store(ObjectBackedStore[Bucket]):
    """A prefix of a bucket as a store.

    Args:
        url: `s3://bucket/prefix?endpoint=…&region=…`.
        create: whether a prefix that is not a store yet becomes one.

    Raises:
        ConfigurationError: the URL is not understood. Other problems show at the first use.
    """

    freshness = 5.0

    def __init__(self, url: str, *, create: bool = True) -> None:
        super().__init__()
        address = parse(url)
        self.url = address.url
        self.objects = Bucket(address)
        self.clock = time.monotonic
        self._create = create
        self._found = False
        self._proved_at: float | None = None
        self._interruptions = 0
        """The number of the server's interruptions up to the last proof."""
        self._refusal: ConfigurationError | BrokenChain | None = None

    def _new_log(self, root: str) -> BucketLog:
        return BucketLog(self, root)

    def after_fork(self) -> None:
        self.objects.after_fork()

    def close(self) -> None:
        self.objects.close()

    def find(self) -> None:
        """Check, until that has succeeded, that this is a store, and make it one if allowed.

        Raises:
            ConfigurationError: this is not a store and may not become one, or the bucket cannot be used.
            NewerFormat: the store was created by a newer version.

        """
        if not self._found:
            found = self.objects.get(META, limit=_META) or self._created()
            uuid_in(found.data, f"{META} in {self.url}")
            self._found = True

    def _created(self) -> Found:
        if not self._create:
            raise ConfigurationError(f"there is no store in {self.url}; run: hopaas-p2p study create NAME -s URL")
        self._prove_condition("studies/", thoroughly=True)
        data = json.dumps({"format": FORMAT, "uuid": secrets.token_hex(16)}).encode() + b"\n"
        created = self.objects.put_new(META, data)
        found = self.objects.get(META, limit=_META)
        if found is None or (created and found.data != data):
            raise ConfigurationError(f"{self.url}: an object just written cannot be read; the server is not consistent")
        return found

    def prove(self, root: str = "studies/") -> bool:
        """Like `find`, and prove that the server honours the condition, before a write to the log at `root`.

        Raises:
            ConfigurationError: the condition is broken; the message says what was seen, and the possible cause.
            BrokenChain: the condition is broken after this process has written, so acknowledged commits may be lost.
            StoreUnreachable: too few answers to decide.
            NewerFormat: as in `find`.

        """
        self.find()
        self._prove_condition(root)
        return False

    def _prove_condition(self, root: str, *, thoroughly: bool = False) -> None:
        """Prove the condition unless the last proof is fresh; for a new store, do so `thoroughly`.

        Credentials that may not write anywhere need no proof; if `thoroughly`, Denied is raised instead.
        """
        if self._refusal is not None:
            raise type(self._refusal)(str(self._refusal))
        age = None if self._proved_at is None else self.clock() - self._proved_at
        away = self.objects.interruptions != self._interruptions
        if age is not None and age < RENEW and not (away and age >= _SETTLED):
            return
        keys, writers = KEYS if age is None else _FEW, RACERS if thoroughly else _FEW
        for where in (SCRATCH, f"{root}snapshot/proof-", f"{root}log/proof-"):
            try:
                found = race(self.objects, where, keys=keys, writers=writers, look=thoroughly)
            except Denied:
                if thoroughly:
                    raise
                continue
            if found.seen:
                said = (
                    f"{self.url}: the server does not honour 'If-None-Match: *', on which commits depend: "
                    f"{found.seen}. Commits would be lost, so nothing is written. {CAUSES}"
                )
                self._refusal = ConfigurationError(said) if self._proved_at is None else BrokenChain(said)
                raise self._refusal
            if found.held < (keys + 1) // 2:
                raise found.unknown or StoreUnreachable
            self._proved_at, self._interruptions = self.clock(), self.objects.interruptions
            return
