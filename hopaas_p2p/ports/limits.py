"""How long this job may still run, according to the user or the batch system.

A limit is a duration from now. Slurm gives the end by a clock that is synchronised with the node's (munge refuses
credentials otherwise). HTCondor gives durations, and the start by the submit machine's clock, which may be wrong, so
the start is taken from the job ad's file, which this node wrote when the job began.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.condor import job_ad, job_name
from hopaas_p2p.runtime.provenance import batch_job

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PARTS: Final = re.compile(r"(?:\d+(?:\.\d+)?\s*[smhd]\s*)+|\d+(?:\.\d+)?", re.IGNORECASE)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_FIRM: Final = ("maxruntime", "allowedexecuteduration", "allowedjobduration")
"""Attributes that limit an HTCondor job: the pool's own `+MaxRuntime`, and the two of a submit file."""


def parse_duration(text: str) -> float:
    """Seconds in `4h`, `1h30m`, or `90` (seconds).

    Raises:
        InvalidInput: it is not a duration, or not positive.

    """
    parts = _PART.findall(text) if _PARTS.fullmatch(text.strip()) else []
    seconds = sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)
    if not seconds > 0:
        raise InvalidInput(f"{text!r} is not a duration; write 4h, 1h30m or 90s")
    return seconds


def time_left(env: Mapping[str, str] = os.environ) -> tuple[float, str] | None:
    """(seconds, source) until the batch system ends this job; None without a limit or a batch system."""
    end = env.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return max(0.0, int(end) - time.time()), f"Slurm job {batch_job(env).get('job', '?')}"
    ad, began = job_ad(env)
    limits = [ad[name] for name in _FIRM if ad.get(name, 0) > 0]
    if not limits:
        return None
    left = min(limits) - max(0.0, time.time() - began)
    return max(0.0, left), f"HTCondor job {job_name(ad)}"
