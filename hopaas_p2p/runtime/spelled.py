"""Bytes as one word that people can copy: a prefix for its type, and base64 of a checksum and the bytes."""

from __future__ import annotations

import base64
import zlib


def spell(prefix: str, data: bytes) -> str:
    """The word for these bytes."""
    return prefix + base64.urlsafe_b64encode(zlib.crc32(data).to_bytes(4, "big") + data).decode().rstrip("=")


def read_spelled(prefix: str, text: str) -> bytes:
    """The bytes of such a word. Raises ValueError if it is not one, or only part of one."""
    code = text.removeprefix(prefix)
    data = base64.b64decode(code + "=" * (-len(code) % 4), altchars="-_", validate=True)
    if code == text or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
        raise ValueError
    return data[4:]
