"""The output of a command whose trial failed: the end of it stays with the trial, where everybody can read it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hopaas_p2p.artifacts import OUTPUT
from hopaas_p2p.errors import HopaasError

if TYPE_CHECKING:
    from hopaas_p2p.trial import Trial

LONGEST: Final = 1 << 16
"""Bytes that are kept."""
MOST: Final = 100
"""Failed trials per worker whose output is kept: a command that often fails must not fill the store."""


def keep(trial: Trial, output: bytes) -> str | None:
    """Store the end of the output as a file of the trial; why that did not work, or None. Blocks for the upload."""
    if not output.strip():
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="hopaas-output-") as folder:
            path = Path(folder, OUTPUT)
            path.write_bytes(end_of(output))
            trial.upload(path, mimetype="text/plain")
    except (HopaasError, OSError) as error:  # the result is told all the same
        return str(error)
    return None


def end_of(output: bytes) -> bytes:
    """The last 64 kB, from the beginning of a line if there is one."""
    if len(output) <= LONGEST:
        return output
    end = output[-LONGEST:]
    return end[end.find(b"\n") + 1 :]
