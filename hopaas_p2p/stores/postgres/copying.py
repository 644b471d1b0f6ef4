"""COPY … TO STDOUT (FORMAT binary): large values travel as they are, and the driver converts none of them.

psycopg2 asks for the results of ordinary statements as text, in which bytes take twice or, in base64, a third more.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.errors import StoreCorrupt

if TYPE_CHECKING:
    from sqlalchemy import Engine

_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_HEADER: Final = len(_SIGNATURE) + 8  # behind it flags and the length of an extension; both have always been 0
_COUNT: Final = struct.Struct("!h")
_LENGTH: Final = struct.Struct("!i")
_OPTION: Final = "hopaas_copy_to"
_END: Final = -1


class BinaryRows:
    """What a COPY is written to, in pieces of any length; a server sends a row in each.

    Attributes:
        rows: the fields of each row as they came, as views of the pieces; none is NULL.

    """

    def __init__(self) -> None:
        self.rows: list[list[memoryview]] = []
        self._rest = b""
        self._begun = self._ended = False

    def write(self, data: bytes) -> int:
        """Take the next piece. Raises StoreCorrupt for what is no COPY in the binary format."""
        taken = len(data)
        data, at = self._rest + data if self._rest else data, 0
        if not self._begun and len(data) >= _HEADER:
            if data[:_HEADER] != _SIGNATURE + bytes(8):
                raise StoreCorrupt("the server's COPY is not in the binary format that this program knows")
            self._begun, at = True, _HEADER
        if self._begun:
            while (end := self._take_row(memoryview(data), at)) is not None:
                at = end
        self._rest = data[at:]
        return taken

    def _take_row(self, data: memoryview, at: int) -> int | None:
        """Where the row that begins here ends; None if that has not come yet."""
        if self._ended or len(data) < at + _COUNT.size:
            return None
        (count,) = _COUNT.unpack_from(data, at)
        at += _COUNT.size
        if count == _END:
            self._ended = True
            return at
        row = []
        for _ in range(count):
            if len(data) < at + _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if length < 0:
                raise StoreCorrupt("the server's COPY has a NULL where none can be")
            if len(data) < at + length:
                return None
            row.append(data[at : at + length])
            at += length
        self.rows.append(row)
        return at

    @property
    def options(self) -> dict[str, Any]:
        """Of the execution of a COPY that is to be written here, on an engine that `allow` was called for."""
        return {_OPTION: self}


def allow(engine: Engine) -> None:
    """Let statements of this engine be a COPY, with the same handling of errors and connections as others."""
    from sqlalchemy import event

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        rows = context.execution_options.get(_OPTION)
        if rows is not None:
            cursor.copy_expert(cursor.mogrify(statement, parameters), rows)
        return rows is not None
