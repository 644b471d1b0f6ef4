"""Files in a Postgres database: for models and plots of some megabytes, sent and fetched in parts of one.

What may be stored, and by whom, is the server's business, see `artifacts.sql`. A part that got lost is sent
again: the server counts it once.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.errors import StoreUnreachable

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Progress

_PART: Final = 1 << 20  # bytes, as the server has them
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.2  # seconds, and twice as long each time

Call = Callable[..., list[Any]]


class PostgresArtifacts:
    """See the module. `call` says a statement of calls.sql."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        upload = secrets.token_hex(16)
        with source.open("rb") as file:
            size = source.stat().st_size
            self._insist("begin_artifact", key=_checked(key), size=size, upload=upload)
            for part in range(-(-size // _PART)):
                data = file.read(_PART)
                self._insist("put_part", upload=upload, part=part, data=data)
                if progress is not None:
                    progress(len(data))
        self._insist("finish_artifact", upload=upload)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        found: int | None = None
        done, size, part = 0, 1, 0
        with target.open("wb") as file:
            while done < size:
                rows = self._insist("read_part", key=_checked(key), id=found, part=part)
                if not rows:
                    break
                found, size, text = rows[0]
                data = base64.b64decode(text or "")
                file.write(data)
                done, part = done + len(data), part + 1
                if progress is not None:
                    progress(len(data))
        if found is None:
            target.unlink()
            raise KeyError(key)
        if done < size:
            raise StoreUnreachable(f"{key} was replaced while it was read; get it again")

    def delete(self, key: str) -> None:
        self._insist("remove_artifact", key=_checked(key))

    def keys(self, prefix: str) -> list[str]:
        return [key for (key,) in self._insist("artifact_keys", prefix=prefix)]

    def _insist(self, name: str, **parameters: Any) -> list[Any]:
        pause = _FIRST_PAUSE
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._call(name, **parameters)
            except StoreUnreachable:
                time.sleep(pause)
                pause *= 2
        return self._call(name, **parameters)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise KeyError(key)
    return key
