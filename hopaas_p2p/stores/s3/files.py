"""Files in a bucket, of any size: sent in parts, and read on where a broken answer ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Final

import urllib3

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.s3.client import Signed
from hopaas_p2p.stores.s3.errors import Refused, unreachable

_PART: Final = 16 << 20  # bytes of a file sent at once; S3 takes 10,000 of them, which is 160 GB
_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 5  # at reading one file


class Files:
    """See the module."""

    def __init__(self, signed: Signed) -> None:
        self._signed = signed
        self.address = signed.address

    def upload(self, key: str, source: Path, progress: Progress | None = None) -> None:
        """Write a file; whole or not at all."""
        name, size = self.address.root + key, source.stat().st_size

        def send() -> None:
            with source.open("rb") as file:
                data: Any = _Counted(file, progress)
                self._signed.client(bulk=True).put_object(self.address.bucket, name, data, size, part_size=_PART)

        try:
            self._signed.guarded(send)
        except Refused as refused:
            raise self._signed.refusal(refused, f"write {key}") from None

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        """Write the object to a file; whether there was one."""
        with target.open("wb") as file:
            there = self._download(key, file, progress)
        if not there:
            target.unlink(missing_ok=True)
        return there

    def _download(self, key: str, file: BinaryIO, progress: Progress | None) -> bool:
        """Read on where a broken answer ended, if the object is still the same."""
        etag = ""
        for attempt in range(_ATTEMPTS):
            done = file.tell()
            rest = {"Range": f"bytes={done}-", "If-Match": etag} if done else {}
            try:
                response = self._signed.ask("GET", key, bulk=True, preload_content=False, headers=rest)
            except Refused as refused:
                if refused.status == 404 and refused.code != "NoSuchBucket":
                    return False
                if refused.status in (412, 416):
                    raise StoreUnreachable(f"{key} was replaced while it was read; get it again") from None
                raise self._signed.refusal(refused, f"read {key}") from None
            etag = response.headers.get("ETag", "")
            if done and response.status != 206:  # it sends all of it again
                file.seek(0)
                file.truncate()
            try:
                for chunk in response.stream(_CHUNK, decode_content=False):
                    file.write(chunk)
                    if progress is not None:
                        progress(len(chunk))
                return True
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise unreachable(self.address, error) from None
            finally:
                response.release_conn()
        raise AssertionError("unreachable")


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._progress is not None and data:
            self._progress(len(data))
        return data
