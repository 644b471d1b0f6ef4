"""One of many processes that want the same keys of a bucket. Imports little, so that sixteen of them start quickly."""

from __future__ import annotations

from typing import Any

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.s3.store import S3Store

KEYS, PROCESSES = 300, 16


def race(url: str, name: str, barrier: Any, results: Any) -> None:
    objects = S3Store(url).objects
    objects.get("meta.json", limit=10)  # connected before the race begins
    barrier.wait(60)
    results.put((name, [key for key in range(KEYS) if _wins(objects, key, name)]))


def _wins(objects: Any, key: int, name: str) -> bool:
    while True:
        try:
            return bool(objects.put_new(f"race/{key}", name.encode()))
        except StoreUnreachable:  # 409, or a time-out: whose it is, the object says
            found = objects.get(f"race/{key}", limit=100)
            if found is not None:
                return bool(found.data == name.encode())
