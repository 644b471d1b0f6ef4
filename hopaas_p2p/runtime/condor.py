"""What HTCondor tells a job about itself: a file of attributes, which any user's submit file may extend."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_ATTRIBUTE: Final = re.compile(rb"^(\w+)\s*=\s*(\d{1,18})\s*$", re.MULTILINE)


def job_ad(env: Mapping[str, str] = os.environ) -> tuple[dict[str, int], float] | None:
    """The job's whole numbers, by name in lower case, and when this node wrote them; None outside of HTCondor."""
    try:
        with Path(env["_CONDOR_JOB_AD"]).open("rb") as file:  # in whatever encoding its texts are
            found = {name.decode().lower(): int(number) for name, number in _ATTRIBUTE.findall(file.read())}
            return found, os.fstat(file.fileno()).st_mtime
    except (KeyError, OSError):
        return None


def job_name(ad: Mapping[str, int]) -> str:
    """The job, as HTCondor names it."""
    return f"{ad.get('clusterid', '?')}.{ad.get('procid', '?')}"
