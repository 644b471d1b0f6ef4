"""Reads the attributes that HTCondor gives a job, in a file that any user's submit file may extend."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hopaas_p2p.runtime.atomic import read_regular

_LARGEST: Final = 16 << 20  # bytes
_ATTRIBUTE: Final = re.compile(rb"^(\w+)\s*=\s*(\d{1,18})\s*$", re.MULTILINE)


def job_ad(env: Mapping[str, str] = os.environ) -> tuple[dict[str, int], float]:
    """The job's whole numbers, by name in lower case, and when this node wrote them; none outside of HTCondor."""
    try:
        text = read_regular(env["_CONDOR_JOB_AD"], limit=_LARGEST, named=True)
        began = Path(env["_CONDOR_JOB_AD"]).stat().st_mtime
    except (KeyError, OSError):
        return {}, 0.0
    return {name.decode().lower(): int(number) for name, number in _ATTRIBUTE.findall(text)}, began


def job_name(ad: Mapping[str, int]) -> str:
    """The name that HTCondor gives the job."""
    return f"{ad.get('clusterid', '?')}.{ad.get('procid', '?')}"
