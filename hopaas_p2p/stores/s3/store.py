"""A store in an S3 bucket, with no server of ours at all: any S3 whose `If-None-Match: *` is atomic.

Names in the bucket are in `stores.objects.store` and `stores.objects.log`. Before a process writes to it, the server
must prove that it keeps the condition on which everything rests: see `proof`.
"""

from __future__ import annotations

import json
import secrets
from typing import Final

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.objects.store import FORMAT, META, ObjectBackedStore, uuid_in
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.bucket import Bucket
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.proof import Condition

_META: Final = 4096


class S3Store(ObjectBackedStore[Bucket]):
    """A prefix of a bucket as a store.

    Args:
        url: `s3://bucket/prefix?endpoint=…&region=…`.
        create: whether a prefix that is no store yet becomes one.

    Raises:
        ConfigurationError: the URL is not understood. What else is wrong shows at the first use.
    """

    freshness = 5.0

    def __init__(self, url: str, *, create: bool = True) -> None:
        address = parse(url)
        self.url = address.url
        self.objects = Bucket(address)
        self._create = create
        self._meta: bytes | None = None
        self.condition = Condition(self.objects, self.url)

    def _log(self, root: str) -> BucketLog:
        return BucketLog(self, root)

    def after_fork(self) -> None:
        self.objects.after_fork()

    def close(self) -> None:
        self.objects.close()

    # --- the proof ---

    def find(self) -> bytes:
        """See that this is a store, once a process, and make it one if it may become that; its description.

        Raises:
            ConfigurationError: this is no store and may not become one, or a bucket that cannot be used.
            NewerFormat: the store was made by a newer version.

        """
        if self._meta is None:
            found = self.objects.get(META, limit=_META) or self._found_store()
            uuid_in(found.data, f"{META} in {self.url}")
            self._meta = found.data
        return self._meta

    def prove(self, root: str = "studies/") -> bool:
        """As `find`, and see that the server keeps the condition, before something is written to the log at `root`.

        Raises:
            ConfigurationError: the server breaks the condition, or as `find`.
            NewerFormat: as `find`.

        """
        self.find()
        self.condition.prove(root)
        return False

    def _found_store(self) -> Found:
        if not self._create:
            raise ConfigurationError(f"there is no store in {self.url}; create one with: hopaas-p2p study create")
        self.condition.prove("studies/", thoroughly=True)
        data = json.dumps({"format": FORMAT, "uuid": secrets.token_hex(16)}).encode() + b"\n"
        created = self.objects.put_new(META, data)
        found = self.objects.get(META, limit=_META)
        if found is None or (created and found.data != data):
            raise ConfigurationError(f"{self.url}: what was just written cannot be read; the server is not consistent")
        return found
